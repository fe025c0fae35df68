//! A timer on nginx's event loop that does not keep a leaving worker alive.

use std::mem::zeroed;
use std::time::Duration;

use nginx_sys::{ngx_connection_t, ngx_event_t, ngx_msec_t};

use super::shim;

/// The timer; dropping it removes it from the event loop.
pub(crate) struct Timer(*mut Parts);

struct Parts {
    event: ngx_event_t,
    /// nginx's debug messages print the descriptor of the connection that an event belongs to.
    connection: ngx_connection_t,
}

impl Timer {
    /// A timer that calls `handler` once after each [`set`](Self::set).
    pub(crate) fn new(handler: unsafe extern "C" fn(*mut ngx_event_t)) -> Self {
        // SAFETY: both are C structures of integers, pointers and optional functions, for which
        // nginx itself starts from zero.
        let parts = unsafe { Box::new(Parts { event: zeroed(), connection: zeroed() }) };
        let raw = Box::into_raw(parts);
        // SAFETY: from a box just now, and nobody else knows it yet.
        unsafe {
            (*raw).connection.fd = -1;
            (*raw).event.data = (&raw mut (*raw).connection).cast();
            (*raw).event.handler = Some(handler);
            shim::ngx_http_simplestreams_cancelable(&raw mut (*raw).event);
        }
        Self(raw)
    }

    /// Lets the handler be called once, after `delay`.
    pub(crate) fn set(&mut self, delay: Duration) {
        let delay = delay.as_millis().try_into().unwrap_or(ngx_msec_t::MAX);
        // SAFETY: the event lives until drop, which removes it from the tree before; nginx's timer
        // tree is used on the main thread only, on which this runs.
        unsafe { shim::ngx_http_simplestreams_add_timer(&raw mut (*self.0).event, delay) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: as above; what is not in the tree is left alone. The box was given up by `new`.
        unsafe {
            shim::ngx_http_simplestreams_del_timer(&raw mut (*self.0).event);
            drop(Box::from_raw(self.0));
        }
    }
}
