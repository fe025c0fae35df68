//! A request, and the answer to it.

use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::null_mut;

use nginx_sys::{
    NGX_ERROR, NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_OK, NGX_OK,
    ngx_http_discard_request_body, ngx_http_output_filter, ngx_http_request_t,
    ngx_http_send_header, ngx_int_t, ngx_list_push, ngx_module_t, ngx_pool_cleanup_add, ngx_pool_t,
    ngx_str_t, ngx_table_elt_t, ngx_uint_t,
};

use super::{borrowed, shim};
use crate::barrier::guard;
use crate::handler::Answer;

/// What a handler returns to nginx: one of nginx's codes, or an HTTP status.
pub(crate) type Status = ngx_int_t;

/// nginx's `NGX_INVALID_FILE`.
const NO_FILE: c_int = -1;

const NO_MEMORY: Status = NGX_HTTP_INTERNAL_SERVER_ERROR as Status;

/// A request that nginx is handling; `'r` is the life of its pool.
pub(crate) struct Request<'r> {
    raw: *mut ngx_http_request_t,
    module: *const ngx_module_t,
    pool: PhantomData<&'r ()>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// As the variable `$status` has it.
    pub(crate) status: u64,
    /// Bytes of its body that were sent.
    pub(crate) bytes: u64,
}

/// A body in memory and what describes it. Everything lives as long as the request's pool.
pub(crate) struct Body<'r> {
    pub(crate) bytes: &'r [u8],
    /// A file that the bytes are in too, and at which offset, if they are better sent from there.
    pub(crate) file: Option<(BorrowedFd<'r>, u64)>,
    /// Quotes included. Without it there are no ranges either.
    pub(crate) etag: Option<&'r str>,
    /// Seconds since the epoch.
    pub(crate) last_modified: Option<i64>,
    pub(crate) content_type: &'static CStr,
    pub(crate) content_encoding: Option<&'static CStr>,
}

impl<'r> Request<'r> {
    /// # Safety
    ///
    /// `raw` is a request that nginx has just given to a function of `module`, which is this module,
    /// and `'r` ends before the request's pool.
    pub(crate) unsafe fn new(raw: *mut ngx_http_request_t, module: *const ngx_module_t) -> Self {
        Self { raw, module, pool: PhantomData }
    }

    fn get(&self) -> &ngx_http_request_t {
        // SAFETY: valid by the contract of `new`; the reference is used for one expression, during
        // which nothing else touches the request.
        unsafe { &*self.raw }
    }

    pub(super) fn pool(&self) -> *mut ngx_pool_t {
        self.get().pool
    }

    /// This location's configuration of the module.
    pub(crate) fn location_conf(&self) -> *mut c_void {
        // SAFETY: nginx gives every HTTP module in use a slot under its index.
        unsafe { *self.get().loc_conf.add((*self.module).ctx_index) }
    }

    /// The http block's configuration of the module.
    pub(crate) fn main_conf(&self) -> *mut c_void {
        // SAFETY: as above.
        unsafe { *self.get().main_conf.add((*self.module).ctx_index) }
    }

    /// Remembers what the request is answered with.
    pub(crate) fn set_answer(&self, answer: &'r Answer) {
        // SAFETY: as above; the slot is this module's own, and takes nothing else.
        unsafe {
            let slot = self.get().ctx.add((*self.module).ctx_index);
            *slot = (&raw const *answer).cast_mut().cast();
        }
    }

    /// What the request is answered with, once that is known.
    pub(crate) fn answer(&self) -> Option<&'r Answer> {
        // SAFETY: null, or what `set_answer` put there, which is good as long as the pool.
        unsafe { (*self.get().ctx.add((*self.module).ctx_index)).cast::<Answer>().as_ref() }
    }

    /// The normalized URI without its arguments.
    pub(crate) fn uri(&self) -> &'r [u8] {
        let uri = self.get().uri;
        if uri.len == 0 {
            return &[];
        }
        // SAFETY: the bytes are allocated in the request's pool or its connection's buffers, and
        // nginx replaces them, never changes them, while a handler runs.
        unsafe { std::slice::from_raw_parts(uri.data, uri.len) }
    }

    pub(crate) fn is_get_or_head(&self) -> bool {
        self.get().method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as ngx_uint_t != 0
    }

    /// Whether the header is on its way, after which no other status can be sent.
    pub(crate) fn header_sent(&self) -> bool {
        // SAFETY: the request is valid.
        unsafe { shim::ngx_http_simplestreams_header_sent(self.raw) != 0 }
    }

    /// Whether the location has an `error_page` for this status.
    pub(crate) fn has_error_page(&self, status: Status) -> bool {
        // SAFETY: the request is valid.
        unsafe { shim::ngx_http_simplestreams_error_page(self.raw, status) != 0 }
    }

    /// Reads the request's body, if there is one, and forgets it.
    pub(crate) fn discard_body(&self) -> Result<(), Status> {
        // SAFETY: the request is valid, and handlers are where nginx expects this call.
        match unsafe { ngx_http_discard_request_body(self.raw) } {
            status if status == NGX_OK as Status => Ok(()),
            status => Err(status),
        }
    }

    /// Adds a header line to the answer, whatever its status.
    pub(crate) fn push_header(&self, name: &'static CStr, value: &'r str) -> Result<(), Status> {
        self.push(name, value.as_bytes()).map(drop)
    }

    fn push(&self, name: &'static CStr, value: &'r [u8]) -> Result<*mut ngx_table_elt_t, Status> {
        // SAFETY: nginx initializes the list with the request, for elements of this type. Zero is
        // valid for them, in particular for the link that versions from 1.23 on have; key and value
        // live as long as the pool.
        unsafe {
            let line: *mut ngx_table_elt_t =
                ngx_list_push(&raw mut (*self.raw).headers_out.headers).cast();
            if line.is_null() {
                return Err(NO_MEMORY);
            }
            line.write(std::mem::zeroed());
            (*line).hash = 1;
            (*line).key = borrowed(name.to_bytes());
            (*line).value = borrowed(value);
            Ok(line)
        }
    }

    /// Keeps `value` until the request's pool goes, which is after the last byte has been sent.
    pub(crate) fn keep<T: 'static>(&self, value: T) -> Result<&'r T, Status> {
        self.keep_then(value, |_, _| ())
    }

    /// The same; `done` is called right before, with how the request ended: unless it is a subrequest,
    /// or an `error_page` had it [answered](Self::set_answer) once more, and that is what ended.
    pub(crate) fn keep_then<T: 'static>(
        &self,
        value: T,
        done: fn(&T, Outcome),
    ) -> Result<&'r T, Status> {
        struct Kept<T> {
            request: *mut ngx_http_request_t,
            module: *const ngx_module_t,
            done: fn(&T, Outcome),
            value: T,
        }
        unsafe extern "C" fn let_go<T>(data: *mut c_void) {
            let end = || {
                // SAFETY: a Kept<T> was written there, and nginx calls a cleanup once. The request is
                // in the pool whose cleanups run, of which nothing is freed before the last of them.
                unsafe {
                    let in_place: *const T = &raw const (*data.cast::<Kept<T>>()).value;
                    let kept = std::ptr::read(data.cast::<Kept<T>>());
                    let answer = *(*kept.request).ctx.add((*kept.module).ctx_index);
                    if !answer.is_null() && !std::ptr::eq(answer, in_place.cast()) {
                        return;
                    }
                    let mut bytes = 0;
                    let status = shim::ngx_http_simplestreams_outcome(kept.request, &raw mut bytes);
                    if status != 0 {
                        (kept.done)(&kept.value, Outcome { status: status as u64, bytes });
                    }
                }
            };
            guard(|| (), end);
        }
        const { assert!(align_of::<Kept<T>>() <= align_of::<u64>(), "as nginx's pools align") };
        // SAFETY: the pool is valid with its request, and gives memory of this size, aligned for any
        // word, or null. The reference is good for 'r, since the value is dropped with the pool.
        unsafe {
            let cleanup = ngx_pool_cleanup_add(self.pool(), size_of::<Kept<T>>());
            if cleanup.is_null() {
                return Err(NO_MEMORY);
            }
            let kept: *mut Kept<T> = (*cleanup).data.cast();
            kept.write(Kept { request: self.raw, module: self.module, done, value });
            (*cleanup).handler = Some(let_go::<T>);
            Ok(&(*kept).value)
        }
    }

    /// Says once that the answer depends on Accept-Encoding. With `gzip_vary on` nginx writes the
    /// line itself, and its gzip filter would even if we did not ask for it.
    pub(crate) fn vary_by_encoding(&self) -> Result<(), Status> {
        // SAFETY: the request is valid and has its location's configuration.
        if unsafe { shim::ngx_http_simplestreams_vary(self.raw) != 0 } {
            return Ok(());
        }
        self.push_header(c"Vary", "Accept-Encoding")
    }

    /// Whether the client takes gzip, by nginx's rules: Accept-Encoding, and the directives
    /// `gzip_http_version`, `gzip_proxied` and `gzip_disable`; not for subrequests.
    pub(crate) fn accepts_gzip(&self) -> bool {
        // SAFETY: the request is valid and has its location's configuration.
        unsafe { shim::ngx_http_simplestreams_accepts_gzip(self.raw) != 0 }
    }

    /// Answers 200 with `body`, of which nginx's filters may make 304 or 206.
    pub(crate) fn send(&self, body: &Body<'r>) -> Result<Status, Status> {
        let content_length = body.bytes.len().try_into().map_err(|_| NO_MEMORY)?;
        // SAFETY: the request is valid and has its location's configuration.
        let etag =
            body.etag.filter(|_| unsafe { shim::ngx_http_simplestreams_etag(self.raw) != 0 });
        let etag = match etag {
            Some(etag) => self.push(c"ETag", etag.as_bytes())?,
            None => null_mut(),
        };
        let encoding = match body.content_encoding {
            Some(encoding) => self.push(c"Content-Encoding", encoding.to_bytes())?,
            None => null_mut(),
        };
        // Whatever needs memory comes before the header: afterwards no error can be told.
        let (data, length) = (body.bytes.as_ptr().cast_mut(), body.bytes.len());
        let in_file = body.file.and_then(|(fd, at)| Some((fd.as_raw_fd(), at.try_into().ok()?)));
        let (fd, offset) = in_file.unwrap_or((NO_FILE, 0));
        // SAFETY: the request is valid; nginx does not write to such a buffer, and the bytes and the
        // descriptor live as long as the pool.
        let chain =
            unsafe { shim::ngx_http_simplestreams_body(self.raw, data, length, fd, offset) };
        if chain.is_null() {
            return Err(NO_MEMORY);
        }

        let content_type: ngx_str_t = borrowed(body.content_type.to_bytes());
        // SAFETY: the request is valid and nobody else's while its handler runs.
        let headers = unsafe { &mut (*self.raw).headers_out };
        headers.status = NGX_HTTP_OK as ngx_uint_t;
        headers.content_length_n = content_length;
        headers.last_modified_time = body.last_modified.unwrap_or(-1);
        headers.content_type = content_type;
        headers.content_type_len = content_type.len;
        headers.content_type_lowcase = null_mut();
        headers.etag = etag;
        headers.content_encoding = encoding;

        // SAFETY: the request is valid and its answer complete.
        let (status, header_only) = unsafe {
            if body.etag.is_some() {
                shim::ngx_http_simplestreams_allow_ranges(self.raw);
            }
            let status = ngx_http_send_header(self.raw);
            (status, shim::ngx_http_simplestreams_header_only(self.raw) != 0)
        };
        if status == NGX_ERROR as Status || status > NGX_OK as Status || header_only {
            return Ok(status);
        }
        // SAFETY: links and buffers are in the request's pool.
        Ok(unsafe { ngx_http_output_filter(self.raw, chain) })
    }
}
