//! The tables that nginx reads, and the functions in them.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_ERROR, NGX_HTTP_INTERNAL_SERVER_ERROR,
    NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET, NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET,
    NGX_HTTP_MODULE, NGX_HTTP_SRV_CONF, NGX_OK, ngx_command_t, ngx_conf_t, ngx_cycle_t,
    ngx_event_t, ngx_http_module_t, ngx_http_request_t, ngx_int_t, ngx_module_t, ngx_msec_t,
    ngx_uint_t, ngx_variable_value_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use ngx::ngx_string;

use crate::barrier::guard;
use crate::conf::{LocConf, MainConf, StatePath};
use crate::directives::{self, Outcome, Wrong};
use crate::ffi::{self, Conf, Request, StatePathError};
use crate::variables::Variable;
use crate::{allocator, error_log, handler, runtime, status};

/// What nginx looks for in a loaded library.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static mut ngx_modules: [*const ngx_module_t; 2] =
    [&raw const ngx_http_simplestreams_module, null()];

#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static mut ngx_module_names: [*const c_char; 2] =
    [c"ngx_http_simplestreams_module".as_ptr(), null()];

/// Nobody's handler has to come before or after ours.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static mut ngx_module_order: [*const c_char; 1] = [null()];

/// The module; nginx writes its indexes into it.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static mut ngx_http_simplestreams_module: ngx_module_t = ngx_module_t {
    ctx: (&raw const CONTEXT).cast_mut().cast(),
    commands: (&raw const COMMANDS).cast_mut().cast(),
    type_: NGX_HTTP_MODULE as ngx_uint_t,
    init_module: Some(ngx_http_simplestreams_init_module),
    init_process: Some(ngx_http_simplestreams_init_process),
    exit_process: Some(ngx_http_simplestreams_exit_process),
    ..ngx_module_t::default()
};

/// How many configurations there are: that in force, the one being read, old ones.
static CONFIGURATIONS: AtomicUsize = AtomicUsize::new(0);

/// One of [`CONFIGURATIONS`].
///
/// nginx gives a module its places among others when it is loaded first, and reads them again at each
/// reload. It takes for granted that a module which is not in a configuration any more is unmapped with
/// them. This library stays (see `build.rs`), and another module may have the places by the time that
/// it is loaded again: so they go with the last configuration.
struct Configuration;

impl Configuration {
    fn new() -> Self {
        CONFIGURATIONS.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        if CONFIGURATIONS.fetch_sub(1, Ordering::Relaxed) == 1 {
            let unset = ngx_module_t::default();
            // SAFETY: nginx reads and writes them on the main thread, which is this one, and only
            // where a configuration has the module in it.
            unsafe {
                ngx_http_simplestreams_module.index = unset.index;
                ngx_http_simplestreams_module.ctx_index = unset.ctx_index;
            }
        }
    }
}

const MODULE: *const ngx_module_t = &raw const ngx_http_simplestreams_module;

static CONTEXT: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(ngx_http_simplestreams_preconfiguration),
    postconfiguration: Some(ngx_http_simplestreams_postconfiguration),
    create_main_conf: Some(ngx_http_simplestreams_create_main_conf),
    init_main_conf: None,
    create_srv_conf: None,
    merge_srv_conf: None,
    create_loc_conf: Some(ngx_http_simplestreams_create_loc_conf),
    merge_loc_conf: Some(ngx_http_simplestreams_merge_loc_conf),
};

const HTTP: u32 = NGX_HTTP_MAIN_CONF;
const EVERYWHERE: u32 = NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF;

/// Makes the entry of one directive, and the function that nginx calls for it.
macro_rules! directive {
    ($name:literal, $contexts:expr, $arguments:expr, $level:ident, $read:path) => {{
        unsafe extern "C" fn ngx_http_simplestreams_set(
            cf: *mut ngx_conf_t,
            _: *mut ngx_command_t,
            conf: *mut c_void,
        ) -> *mut c_char {
            guard(
                || NGX_CONF_ERROR,
                || {
                    // SAFETY: nginx passes the configuration being read, and of ours the level that
                    // `offset` below asks for, made by the create function of that type.
                    let (cf, conf) = unsafe { (Conf::new(cf), &mut *conf.cast::<$level>()) };
                    said(&cf, $name, $read(&cf, conf))
                },
            )
        }
        ngx_command_t {
            name: ngx_string!($name),
            type_: ($contexts | $arguments) as ngx_uint_t,
            set: Some(ngx_http_simplestreams_set),
            conf: <$level as Level>::OFFSET,
            offset: 0,
            post: null_mut(),
        }
    }};
}

trait Level {
    const OFFSET: usize;
}

impl Level for MainConf {
    const OFFSET: usize = NGX_HTTP_MAIN_CONF_OFFSET;
}

impl Level for LocConf {
    const OFFSET: usize = NGX_HTTP_LOC_CONF_OFFSET;
}

static mut COMMANDS: [ngx_command_t; 9] = [
    directive!("simplestreams", EVERYWHERE, NGX_CONF_TAKE1, LocConf, directives::simplestreams),
    directive!("simplestreams_streams", EVERYWHERE, NGX_CONF_1MORE, LocConf, directives::streams),
    directive!("simplestreams_state_path", HTTP, NGX_CONF_TAKE1, MainConf, directives::state_path),
    directive!("simplestreams_aliases", EVERYWHERE, NGX_CONF_1MORE, LocConf, directives::aliases),
    directive!("simplestreams_settle", EVERYWHERE, NGX_CONF_TAKE1, LocConf, directives::settle),
    directive!("simplestreams_rescan", EVERYWHERE, NGX_CONF_TAKE1, LocConf, directives::rescan),
    directive!("simplestreams_threads", HTTP, NGX_CONF_TAKE1, MainConf, directives::threads),
    directive!(
        "simplestreams_status",
        NGX_HTTP_LOC_CONF,
        NGX_CONF_NOARGS | NGX_CONF_TAKE1,
        LocConf,
        directives::status
    ),
    ngx_command_t::empty(),
];

/// Reports what is wrong with a directive the way nginx does.
fn said(cf: &Conf, directive: &str, outcome: Outcome) -> *mut c_char {
    match outcome {
        Ok(()) => return NGX_CONF_OK,
        // nginx makes `"simplestreams" directive is duplicate in file:line` of it.
        Err(Wrong::Duplicate) => return c"is duplicate".as_ptr().cast_mut(),
        Err(Wrong::Value(value, None)) => {
            cf.error(&format!("\"{directive}\" directive invalid value \"{value}\""));
        }
        Err(Wrong::Value(value, Some(reason))) => {
            cf.error(&format!("\"{directive}\" directive invalid value \"{value}\", {reason}"));
        }
        Err(Wrong::Memory) => {}
    }
    NGX_CONF_ERROR
}

unsafe extern "C" fn ngx_http_simplestreams_create_main_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    // The first that nginx calls.
    allocator::set_up();
    guard(null_mut, || {
        error_log::install();
        // SAFETY: nginx passes the configuration being read.
        let cf = unsafe { Conf::new(cf) };
        if cf.boxed(Configuration::new()).is_none() {
            return null_mut();
        }
        cf.boxed(MainConf::default()).map_or(null_mut(), <*mut MainConf>::cast)
    })
}

unsafe extern "C" fn ngx_http_simplestreams_create_loc_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    guard(null_mut, || {
        // SAFETY: nginx passes the configuration being read.
        let cf = unsafe { Conf::new(cf) };
        cf.boxed(LocConf::default()).map_or(null_mut(), <*mut LocConf>::cast)
    })
}

unsafe extern "C" fn ngx_http_simplestreams_merge_loc_conf(
    cf: *mut ngx_conf_t,
    above: *mut c_void,
    conf: *mut c_void,
) -> *mut c_char {
    guard(
        || NGX_CONF_ERROR,
        || {
            // SAFETY: nginx passes the configuration being read, and two of what our create function
            // made, which are never the same.
            let (cf, above, conf) =
                unsafe { (Conf::new(cf), &*above.cast::<LocConf>(), &mut *conf.cast::<LocConf>()) };
            // SAFETY: made by our create function; only one entry of ours runs at a time.
            let main = unsafe { &mut *cf.main_conf(MODULE).cast::<MainConf>() };
            match conf.merge(above, &cf.place(), main) {
                Ok(()) => NGX_CONF_OK,
                Err((text, named)) => {
                    cf.error_at(&text, &named);
                    NGX_CONF_ERROR
                }
            }
        },
    )
}

unsafe extern "C" fn ngx_http_simplestreams_postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    guard(
        || NGX_ERROR as ngx_int_t,
        || {
            // SAFETY: nginx passes the configuration being read, in which our create function has
            // made the main configuration; only one entry of ours runs at a time.
            let (cf, main) = unsafe {
                let cf = Conf::new(cf);
                let main: *mut MainConf = cf.main_conf(MODULE).cast();
                (cf, main)
            };
            match configured(&cf, main) {
                Some(()) => NGX_OK as ngx_int_t,
                None => NGX_ERROR as ngx_int_t,
            }
        },
    )
}

/// Registers handler and state directory, if there is any index. None after an error, which has
/// been reported.
fn configured(cf: &Conf, raw: *mut MainConf) -> Option<()> {
    // SAFETY: the caller has it from nginx.
    let main = unsafe { raw.as_mut()? };
    if main.indexes().is_empty() {
        return Some(());
    }
    cf.add_content_handler(Some(ngx_http_simplestreams_handler))?;
    let state = main.state_path.get_or_insert_with(|| StatePath {
        path: beside_nginx_state(cf).unwrap_or_default(),
        named: None,
    });
    let path = state.path.display().to_string();
    let named = state.named.clone();
    let manager = Some(ngx_http_simplestreams_manager as _);
    let problem = match cf.add_path(&state.path, named.as_ref(), manager, raw.cast()) {
        Ok(()) => return Some(()),
        Err(StatePathError::Reported) => return None,
        Err(StatePathError::Taken) => format!("\"{path}\" holds other files of nginx already"),
        Err(StatePathError::Missing(err)) => format!("\"{path}\" cannot be created ({err})"),
    };
    let text = format!("\"simplestreams_state_path\" {problem}");
    match named {
        Some(named) => cf.error_at(&text, &named),
        None => cf.error(&text),
    }
    None
}

/// The default of `simplestreams_state_path`.
fn beside_nginx_state(cf: &Conf) -> Option<std::path::PathBuf> {
    let temp: &CStr = nginx_sys::NGX_HTTP_CLIENT_TEMP_PATH;
    let temp = cf.full_path(temp.to_bytes())?;
    Some(temp.parent().unwrap_or(Path::new("/")).join("simplestreams"))
}

unsafe extern "C" fn ngx_http_simplestreams_preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    guard(
        || NGX_ERROR as ngx_int_t,
        || {
            // SAFETY: nginx passes the configuration being read.
            let cf = unsafe { Conf::new(cf) };
            let added = Variable::ALL.iter().all(|(variable, name)| {
                let get: unsafe extern "C" fn(_, _, _) -> _ = match variable {
                    Variable::Generation => ngx_http_simplestreams_generation,
                    Variable::Age => ngx_http_simplestreams_age,
                };
                cf.add_variable(name, Some(get)).is_some()
            });
            if added { NGX_OK as ngx_int_t } else { NGX_ERROR as ngx_int_t }
        },
    )
}

unsafe extern "C" fn ngx_http_simplestreams_generation(
    r: *mut ngx_http_request_t,
    v: *mut ngx_variable_value_t,
    _: usize,
) -> ngx_int_t {
    // SAFETY: nginx passes a request and the variable that it asks for.
    unsafe { variable(r, v, Variable::Generation) }
}

unsafe extern "C" fn ngx_http_simplestreams_age(
    r: *mut ngx_http_request_t,
    v: *mut ngx_variable_value_t,
    _: usize,
) -> ngx_int_t {
    // SAFETY: as above.
    unsafe { variable(r, v, Variable::Age) }
}

/// # Safety
///
/// `r` is a valid request, and `v` what nginx has given to a variable's function for it.
unsafe fn variable(
    r: *mut ngx_http_request_t,
    v: *mut ngx_variable_value_t,
    variable: Variable,
) -> ngx_int_t {
    guard(
        || NGX_ERROR as ngx_int_t,
        || {
            // SAFETY: by contract; the configuration is made by our create function, and changed only
            // while configuration is read.
            unsafe {
                let request = Request::new(r, MODULE);
                let conf = &*request.location_conf().cast::<LocConf>();
                let value = variable.value(request.answer(), conf);
                match request.set_variable(v, value.as_deref()) {
                    true => NGX_OK as ngx_int_t,
                    false => NGX_ERROR as ngx_int_t,
                }
            }
        },
    )
}

unsafe extern "C" fn ngx_http_simplestreams_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request that is valid until its pool is destroyed, which no handler
    // lives to see.
    let request = unsafe { Request::new(r, MODULE) };
    handle(&request, || {
        // SAFETY: made by our create function, and changed only while configuration is read.
        let conf = unsafe { &*request.location_conf().cast::<LocConf>() };
        handler::handle(&request, conf)
    })
}

/// The handler of locations with `simplestreams_status`.
pub(crate) unsafe extern "C" fn ngx_http_simplestreams_status_handler(
    r: *mut ngx_http_request_t,
) -> ngx_int_t {
    // SAFETY: as above.
    let request = unsafe { Request::new(r, MODULE) };
    handle(&request, || {
        // SAFETY: made by our create functions, and changed only while configuration is read.
        let (main, conf) = unsafe {
            let conf: *const LocConf = request.location_conf().cast();
            (&*request.main_conf().cast::<MainConf>(), &*conf)
        };
        status::handle(&request, main, conf.status.unwrap_or(status::Format::Json))
    })
}

/// Runs a handler; a panic is a 500, unless a header is on its way.
fn handle(request: &Request<'_>, handler: impl FnOnce() -> ngx_int_t) -> ngx_int_t {
    guard(
        || match request.header_sent() {
            true => NGX_ERROR as ngx_int_t,
            false => NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t,
        },
        handler,
    )
}

unsafe extern "C" fn ngx_http_simplestreams_init_module(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    // What is shared goes on: nginx cannot be stopped by us from reloading.
    guard(
        || NGX_OK as ngx_int_t,
        || {
            if !ffi::testing_configuration() {
                // SAFETY: nginx passes the cycle that is about to be in force.
                runtime::configured(unsafe { main_conf(cycle) });
            }
            NGX_OK as ngx_int_t
        },
    )
}

unsafe extern "C" fn ngx_http_simplestreams_init_process(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    // A worker without us still serves everything else.
    guard(
        || NGX_OK as ngx_int_t,
        || {
            // SAFETY: nginx passes the cycle in force.
            runtime::process_started(unsafe { main_conf(cycle) });
            NGX_OK as ngx_int_t
        },
    )
}

unsafe extern "C" fn ngx_http_simplestreams_exit_process(_: *mut ngx_cycle_t) {
    guard(|| (), runtime::process_exits);
}

pub(crate) unsafe extern "C" fn ngx_http_simplestreams_timer(_: *mut ngx_event_t) {
    guard(|| (), runtime::timer_fired);
}

/// Called in the cache manager process; returns in how many milliseconds it is to be called again.
unsafe extern "C" fn ngx_http_simplestreams_manager(data: *mut c_void) -> ngx_msec_t {
    let next = runtime::TICK.as_millis() as ngx_msec_t;
    guard(
        || next,
        || {
            // SAFETY: what `configured` gave to nginx, in the pool of the cycle in force.
            runtime::helper_called(unsafe { &*data.cast::<MainConf>() });
            next
        },
    )
}

/// # Safety
///
/// `cycle` is valid for as long as the result is used.
unsafe fn main_conf<'a>(cycle: *mut ngx_cycle_t) -> Option<&'a MainConf> {
    // SAFETY: by contract; our create function has made it, if there is an http block.
    unsafe { ffi::main_conf(cycle, MODULE).cast::<MainConf>().as_ref() }
}
