//! The configuration being read: arguments, errors, levels, the state path.

use std::ffi::{OsStr, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::ptr::{self, null_mut};

use nginx_sys::{
    NGX_LOG_EMERG, NGX_OK, ngx_add_path, ngx_conf_full_name, ngx_conf_log_error, ngx_conf_t,
    ngx_cycle_t, ngx_http_conf_ctx_t, ngx_http_core_loc_conf_t, ngx_http_core_main_conf_t,
    ngx_http_core_module, ngx_http_core_srv_conf_t, ngx_http_handler_pt, ngx_http_location_queue_t,
    ngx_http_module, ngx_http_phases_NGX_HTTP_CONTENT_PHASE, ngx_int_t, ngx_module_t,
    ngx_path_manager_pt, ngx_path_t, ngx_pcalloc, ngx_pnalloc, ngx_pool_cleanup_add, ngx_str_t,
    ngx_uint_t,
};

use super::{borrowed, shim};
use crate::barrier::guard;
use crate::conf::{Named, Place};

/// The configuration in the middle of being read.
pub(crate) struct Conf {
    raw: *mut ngx_conf_t,
}

/// Why the state directory cannot be had.
pub(crate) enum StatePathError {
    /// Another directive keeps its files there.
    Taken,
    /// It does not exist and cannot be made, for this reason.
    Missing(io::Error),
    /// nginx has said why.
    Reported,
}

impl Conf {
    /// # Safety
    ///
    /// `raw` is what nginx has just given to one of our configuration functions.
    pub(crate) unsafe fn new(raw: *mut ngx_conf_t) -> Self {
        Self { raw }
    }

    pub(super) fn raw(&self) -> *mut ngx_conf_t {
        self.raw
    }

    fn get(&self) -> &ngx_conf_t {
        // SAFETY: valid by the contract of `new`; nginx reads configuration on one thread.
        unsafe { &*self.raw }
    }

    /// The arguments of the directive being read, without its name.
    pub(crate) fn arguments(&self) -> Vec<&[u8]> {
        // SAFETY: while a directive is read, args is an array of ngx_str_t whose first is its name.
        let all: &[ngx_str_t] = unsafe { (*self.get().args).as_slice() };
        all.iter().skip(1).map(ngx_str_t::as_bytes).collect()
    }

    /// The line that nginx has read up to.
    pub(crate) fn here(&self) -> Named {
        // SAFETY: inside of a block there always is a file.
        let file = unsafe { &*self.get().conf_file };
        Named {
            file: String::from_utf8_lossy(file.file.name.as_bytes()).into_owned(),
            line: file.line,
        }
    }

    /// Reports `text` as the error of the directive being read; nginx adds file and line.
    pub(crate) fn error(&self, text: &str) {
        let text = borrowed(text.as_bytes());
        // SAFETY: %V takes a pointer to an ngx_str_t, which nginx only reads, during the call.
        unsafe {
            let level = NGX_LOG_EMERG as ngx_uint_t;
            ngx_conf_log_error(level, self.raw, 0, c"%V".as_ptr(), &raw const text);
        }
    }

    /// Reports `text` as an error of the directive at `named`, which was read earlier.
    pub(crate) fn error_at(&self, text: &str, named: &Named) {
        let text = format!("{text} in {}:{}", named.file, named.line);
        let text = borrowed(text.as_bytes());
        // SAFETY: as above; the log is valid as long as the configuration is read.
        unsafe {
            let (level, log) = (NGX_LOG_EMERG as ngx_uint_t, self.get().log);
            nginx_sys::ngx_log_error_core(level, log, 0, c"%V".as_ptr(), &raw const text);
        }
    }

    /// A time such as `2s` or `5m`, in milliseconds.
    pub(crate) fn milliseconds(text: &[u8]) -> Option<u64> {
        let mut text = borrowed(text);
        // SAFETY: nginx only reads the string.
        u64::try_from(unsafe { nginx_sys::ngx_parse_time(&raw mut text, 0) }).ok()
    }

    /// `path` if it is absolute, else below nginx's prefix.
    pub(crate) fn full_path(&self, path: &[u8]) -> Option<PathBuf> {
        let mut name = self.copied(path)?;
        // SAFETY: the name is in the pool, ended by a zero byte, and the cycle is valid.
        let status = unsafe { ngx_conf_full_name(self.get().cycle, &raw mut name, 0) };
        (status == NGX_OK as ngx_int_t).then(|| PathBuf::from(OsStr::from_bytes(name.as_bytes())))
    }

    /// `bytes` in the configuration's pool, with a zero byte behind them.
    fn copied(&self, bytes: &[u8]) -> Option<ngx_str_t> {
        // SAFETY: the pool is valid; the memory is one byte longer than what is copied.
        unsafe {
            let data: *mut u8 = ngx_pnalloc(self.get().pool, bytes.len() + 1).cast();
            if data.is_null() {
                return None;
            }
            ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
            *data.add(bytes.len()) = 0;
            Some(ngx_str_t { len: bytes.len(), data })
        }
    }

    /// A value that lives as long as this configuration. None without memory.
    pub(crate) fn boxed<T>(&self, value: T) -> Option<*mut T> {
        unsafe extern "C" fn destroy<T>(data: *mut c_void) {
            // SAFETY: data came from Box::into_raw below, and nginx calls a cleanup once.
            guard(|| (), || drop(unsafe { Box::from_raw(data.cast::<T>()) }));
        }
        // SAFETY: the configuration's pool is valid, and so is what it gives unless that is null.
        unsafe {
            let cleanup = ngx_pool_cleanup_add(self.get().pool, 0).as_mut()?;
            let value = Box::into_raw(Box::new(value));
            cleanup.data = value.cast();
            cleanup.handler = Some(destroy::<T>);
            Some(value)
        }
    }

    fn context(&self) -> &ngx_http_conf_ctx_t {
        // SAFETY: inside of http, and in an HTTP module's functions, this is what the context is.
        unsafe { &*self.get().ctx.cast() }
    }

    /// The http block's configuration of the module.
    ///
    /// # Safety
    ///
    /// `module` points to an HTTP module in use.
    pub(crate) unsafe fn main_conf(&self, module: *const ngx_module_t) -> *mut c_void {
        // SAFETY: nginx gives every HTTP module in use a slot under its index.
        unsafe { *self.context().main_conf.add((*module).ctx_index) }
    }

    /// What the location being merged is like.
    pub(crate) fn place(&self) -> Place<'_> {
        // SAFETY: while levels are merged, the context holds the server's and the location's
        // configurations, in which the core module, merged before all others, has its own.
        let (location, server) = unsafe {
            let core = ngx_http_core_module.ctx_index;
            let location: &ngx_http_core_loc_conf_t = &*(*self.context().loc_conf.add(core)).cast();
            let server: &ngx_http_core_srv_conf_t = &*(*self.context().srv_conf.add(core)).cast();
            (location, &*(*(*server.ctx).loc_conf.add(core)).cast::<ngx_http_core_loc_conf_t>())
        };
        // SAFETY: a valid location, by what was said above.
        let (unnamed, inside) = unsafe {
            (
                shim::ngx_http_simplestreams_unnamed(location) != 0,
                shim::ngx_http_simplestreams_inside(location) != 0,
            )
        };
        Place {
            name: (!unnamed).then(|| location.name.as_bytes()),
            root: location
                .root_lengths
                .is_null()
                .then(|| Path::new(OsStr::from_bytes(location.root.as_bytes()))),
            inside,
            alias: (location.alias != 0).then_some(location.alias),
            covered: ptr::eq(location, server) && has_location_for_all(server),
            taken: location.handler.is_some(),
        }
    }

    /// Lets `handler` answer every request of the location being read.
    pub(crate) fn answer_with(&self, handler: ngx_http_handler_pt) {
        // SAFETY: while a location is read, the context holds its configurations, among which the
        // core module's is.
        unsafe {
            let core = ngx_http_core_module.ctx_index;
            let location: *mut ngx_http_core_loc_conf_t =
                (*self.context().loc_conf.add(core)).cast();
            (*location).handler = handler;
        }
    }

    /// Puts `handler` among those that make content.
    pub(crate) fn add_content_handler(&self, handler: ngx_http_handler_pt) -> Option<()> {
        // SAFETY: the core module's main configuration is there and its phases' arrays hold handlers
        // of this type.
        unsafe {
            let core: *mut ngx_http_core_main_conf_t =
                self.main_conf(&raw const ngx_http_core_module).cast();
            let phase = ngx_http_phases_NGX_HTTP_CONTENT_PHASE as usize;
            let handlers = &raw mut (*core).phases[phase].handlers;
            let slot: *mut ngx_http_handler_pt = nginx_sys::ngx_array_push(handlers).cast();
            if slot.is_null() {
                return None;
            }
            slot.write(handler);
            Some(())
        }
    }

    /// Lets nginx create the directory `path` for its workers, and call `manager` with `data` in its
    /// cache manager process. While configuration is only tested, checks that this could be done.
    pub(crate) fn add_path(
        &self,
        path: &Path,
        named: Option<&Named>,
        manager: ngx_path_manager_pt,
        data: *mut c_void,
    ) -> Result<(), StatePathError> {
        let bytes = path.as_os_str().as_bytes();
        // SAFETY: the cycle is valid, and its paths are an array of pointers to paths.
        let paths: &[*mut ngx_path_t] = unsafe { (*self.get().cycle).paths.as_slice() };
        // nginx would report this too, but crashes where the other is a default and has no line.
        // SAFETY: each pointer is to a path in the configuration's pool.
        if paths.iter().any(|other| unsafe { (**other).name.as_bytes() } == bytes) {
            return Err(StatePathError::Taken);
        }
        if super::testing_configuration() {
            // nginx -t creates such directories; what it did not create it cannot leave behind.
            return could_be_created(path).map_err(StatePathError::Missing);
        }
        // SAFETY: the pool is valid; zeroed memory is a path without levels, loader and purger; all
        // that it points to lives in the pool.
        unsafe {
            let raw: *mut ngx_path_t = ngx_pcalloc(self.get().pool, size_of::<ngx_path_t>()).cast();
            let slot = raw.as_mut().ok_or(StatePathError::Reported)?;
            slot.name = self.copied(bytes).ok_or(StatePathError::Reported)?;
            slot.manager = manager;
            slot.data = data;
            if let Some(named) = named {
                let file = self.copied(named.file.as_bytes()).ok_or(StatePathError::Reported)?;
                slot.conf_file = file.data;
                slot.line = named.line;
            }
            let mut slot = raw;
            if ngx_add_path(self.raw, &raw mut slot) != NGX_OK as ngx_int_t {
                return Err(StatePathError::Reported);
            }
        }
        Ok(())
    }
}

fn could_be_created(path: &Path) -> io::Result<()> {
    let directory = |path: &Path| match path.metadata()?.is_dir() {
        true => Ok(()),
        false => Err(io::Error::from(io::ErrorKind::NotADirectory)),
    };
    match directory(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            directory(path.parent().unwrap_or(path))
        }
        done => done,
    }
}

/// Whether the server has a prefix location that every request falls into at least.
fn has_location_for_all(server: &ngx_http_core_loc_conf_t) -> bool {
    let head = server.locations;
    if head.is_null() {
        return false;
    }
    // SAFETY: until nginx sorts them, after merging, a server's locations are a ring of
    // ngx_http_location_queue_t, which begin with their link; the head is only a link.
    unsafe {
        let mut link = (*head).next;
        while !ptr::eq(link, head) {
            let location: &ngx_http_location_queue_t = &*link.cast();
            if let Some(prefix) = location.inclusive.as_ref()
                && matches!(prefix.name.as_bytes(), b"" | b"/")
            {
                return true;
            }
            link = (*link).next;
        }
    }
    false
}

/// The http block's configuration of `module` in a cycle; null if there is no such block.
///
/// # Safety
///
/// `cycle` is valid and `module` points to an HTTP module in use.
pub(crate) unsafe fn main_conf(
    cycle: *mut ngx_cycle_t,
    module: *const ngx_module_t,
) -> *mut c_void {
    // SAFETY: the http module's slot holds the http block's context or null.
    unsafe {
        let http = *(*cycle).conf_ctx.add(ngx_http_module.index);
        match http.cast::<ngx_http_conf_ctx_t>().as_ref() {
            Some(http) => *http.main_conf.add((*module).ctx_index),
            None => null_mut(),
        }
    }
}
