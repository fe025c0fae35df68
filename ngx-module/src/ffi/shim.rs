//! The functions of `shim.c`, which says why they are in C.

use std::ffi::c_int;

use nginx_sys::{
    ngx_chain_t, ngx_event_t, ngx_http_core_loc_conf_t, ngx_http_request_t, ngx_int_t, ngx_msec_t,
    ngx_uint_t, ngx_variable_value_t, off_t,
};

unsafe extern "C" {
    pub(super) fn ngx_http_simplestreams_header_sent(r: *mut ngx_http_request_t) -> ngx_uint_t;
    pub(super) fn ngx_http_simplestreams_header_only(r: *mut ngx_http_request_t) -> ngx_uint_t;
    pub(super) fn ngx_http_simplestreams_allow_ranges(r: *mut ngx_http_request_t);
    pub(super) fn ngx_http_simplestreams_vary(r: *mut ngx_http_request_t) -> ngx_uint_t;
    pub(super) fn ngx_http_simplestreams_accepts_gzip(r: *mut ngx_http_request_t) -> ngx_uint_t;
    pub(super) fn ngx_http_simplestreams_etag(r: *mut ngx_http_request_t) -> ngx_uint_t;
    pub(super) fn ngx_http_simplestreams_error_page(
        r: *mut ngx_http_request_t,
        status: ngx_int_t,
    ) -> ngx_uint_t;
    pub(super) fn ngx_http_simplestreams_body(
        r: *mut ngx_http_request_t,
        data: *mut u8,
        len: usize,
        fd: c_int,
        offset: off_t,
    ) -> *mut ngx_chain_t;
    pub(super) fn ngx_http_simplestreams_unnamed(
        clcf: *const ngx_http_core_loc_conf_t,
    ) -> ngx_uint_t;
    pub(super) fn ngx_http_simplestreams_inside(
        clcf: *const ngx_http_core_loc_conf_t,
    ) -> ngx_uint_t;
    pub(super) fn ngx_http_simplestreams_outcome(
        r: *mut ngx_http_request_t,
        bytes: *mut u64,
    ) -> ngx_uint_t;
    pub(super) fn ngx_http_simplestreams_set_variable(
        v: *mut ngx_variable_value_t,
        data: *mut u8,
        len: usize,
    );
    pub(super) fn ngx_http_simplestreams_cancelable(ev: *mut ngx_event_t);
    pub(super) fn ngx_http_simplestreams_add_timer(ev: *mut ngx_event_t, delay: ngx_msec_t);
    pub(super) fn ngx_http_simplestreams_del_timer(ev: *mut ngx_event_t);
}
