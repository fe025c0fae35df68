//! nginx's structures and functions, as far as this module needs them, behind safe names.
//!
//! Bit fields are touched in C alone, see `shim.c`. Everything here runs on nginx's main thread, which is what makes nginx's global variables
//! readable at all.
#![allow(unsafe_code)]

mod config;
mod request;
mod shared;
mod shim;
mod timer;
mod variable;

use log::{Level, LevelFilter};
use nginx_sys::{
    NGX_LOG_DEBUG, NGX_LOG_DEBUG_HTTP, NGX_LOG_ERR, NGX_LOG_NOTICE, NGX_LOG_WARN,
    NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER, ngx_cycle, ngx_log_error_core, ngx_str_t, ngx_uint_t,
};

pub(crate) use self::config::{Conf, StatePathError, main_conf};
pub(crate) use self::request::{Body, Outcome, Request, Status};
pub(crate) use self::shared::{Region, Shared};
pub(crate) use self::timer::Timer;

/// What this process of nginx does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Worker,
    /// `master_process off`; also the process that will be the master, until it has become it.
    Single,
    /// Master, helpers, signallers.
    Other,
}

/// The role of this process.
pub(crate) fn role() -> Role {
    // SAFETY: a plain variable, written by nginx's main thread, on which this runs.
    match u32::try_from(unsafe { nginx_sys::ngx_process }) {
        Ok(NGX_PROCESS_WORKER) => Role::Worker,
        Ok(NGX_PROCESS_SINGLE) => Role::Single,
        _ => Role::Other,
    }
}

/// This worker's number, from 0; 0 in the only process.
pub(crate) fn worker_number() -> usize {
    // SAFETY: a plain variable, written by nginx's main thread, on which this runs.
    unsafe { nginx_sys::ngx_worker }
}

/// `nginx -t`.
pub(crate) fn testing_configuration() -> bool {
    // SAFETY: a plain variable, written by nginx's main thread, on which this runs.
    unsafe { nginx_sys::ngx_test_config != 0 }
}

/// This worker leaves as soon as its connections are done.
pub(crate) fn exiting() -> bool {
    // SAFETY: a plain variable, written by nginx's main thread, on which this runs.
    unsafe { nginx_sys::ngx_exiting != 0 }
}

/// The most detailed level that nginx's error log takes.
pub(crate) fn error_log_level() -> LevelFilter {
    // SAFETY: nginx keeps ngx_cycle and its log valid for as long as it runs, and changes them on
    // the main thread only, on which this runs.
    let level = unsafe { (*(*ngx_cycle).log).log_level };
    if level & NGX_LOG_DEBUG_HTTP as ngx_uint_t != 0 {
        LevelFilter::Debug
    } else if level >= NGX_LOG_NOTICE as ngx_uint_t {
        LevelFilter::Info
    } else if level >= NGX_LOG_WARN as ngx_uint_t {
        LevelFilter::Warn
    } else if level >= NGX_LOG_ERR as ngx_uint_t {
        LevelFilter::Error
    } else {
        LevelFilter::Off
    }
}

/// Writes a line into nginx's error log.
pub(crate) fn write_error_log(level: Level, text: &str) {
    if level > error_log_level() {
        return;
    }
    let level = match level {
        Level::Error => NGX_LOG_ERR,
        Level::Warn => NGX_LOG_WARN,
        Level::Info => NGX_LOG_NOTICE,
        Level::Debug | Level::Trace => NGX_LOG_DEBUG,
    };
    let text = borrowed(text.as_bytes());
    // SAFETY: the log is valid as above; %V takes a pointer to an ngx_str_t, which outlives the
    // call and which nginx only reads.
    unsafe {
        let log = (*ngx_cycle).log;
        ngx_log_error_core(level as ngx_uint_t, log, 0, c"simplestreams: %V".as_ptr(), &text);
    }
}

/// `bytes` as nginx's string, for callees that only read it, and not longer than `bytes` lives.
fn borrowed(bytes: &[u8]) -> ngx_str_t {
    ngx_str_t { len: bytes.len(), data: bytes.as_ptr().cast_mut() }
}
