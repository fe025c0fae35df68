//! A timer on nginx's event loop that does not keep a leaving worker alive.

use std::mem::zeroed;
use std::time::Duration;

use nginx_sys::{
    ngx_add_timer, ngx_connection_t, ngx_cycle, ngx_del_timer, ngx_event_handler_pt, ngx_event_t,
};

/// The timer; dropping it removes it from the event loop.
pub(crate) struct Timer(Box<Parts>);

struct Parts {
    event: ngx_event_t,
    /// nginx's debug messages print the descriptor of the connection that an event belongs to.
    connection: ngx_connection_t,
}

impl Timer {
    /// A timer that calls `handler` each time after [`set`](Self::set). None without memory.
    pub(crate) fn new(handler: unsafe extern "C" fn(*mut ngx_event_t)) -> Option<Self> {
        let handler: ngx_event_handler_pt = Some(handler);
        // SAFETY: both are C structures of integers, pointers and optional functions, for which
        // nginx itself starts from zero.
        let mut parts = unsafe { Box::new(Parts { event: zeroed(), connection: zeroed() }) };
        parts.connection.fd = -1;
        parts.event.data = (&raw mut parts.connection).cast();
        parts.event.handler = handler;
        parts.event.set_cancelable(1);
        Some(Self(parts))
    }

    /// Lets the handler be called once, after `delay`.
    pub(crate) fn set(&mut self, delay: Duration) {
        let delay = delay.as_millis().try_into().unwrap_or(nginx_sys::ngx_msec_t::MAX);
        // SAFETY: the event lives in a box of its own until drop, which removes it from the tree;
        // nginx's timer tree is used on the main thread only, on which this runs. The log is the
        // current cycle's, valid until the next cycle, of which `configured` tells us.
        unsafe {
            self.0.event.log = (*ngx_cycle).log;
            ngx_add_timer(&mut self.0.event, delay);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if self.0.event.timer_set() != 0 {
            // SAFETY: it is in the tree, as its flag says, and this is the main thread.
            unsafe { ngx_del_timer(&mut self.0.event) };
        }
    }
}
