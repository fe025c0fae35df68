//! Variables, for logs and headers.

use std::ffi::CStr;

use nginx_sys::{
    NGX_HTTP_VAR_NOCACHEABLE, ngx_http_add_variable, ngx_http_get_variable_pt, ngx_pnalloc,
    ngx_uint_t, ngx_variable_value_t,
};

use super::{Conf, Request, borrowed, shim};

impl Conf {
    /// Adds a variable whose value is asked for anew each time. None after an error, which has been
    /// reported.
    pub(crate) fn add_variable(
        &self,
        name: &'static CStr,
        get: ngx_http_get_variable_pt,
    ) -> Option<()> {
        let mut name = borrowed(name.to_bytes());
        // SAFETY: nginx copies the name; what it gives is in the configuration's pool, or null.
        unsafe {
            let flags = NGX_HTTP_VAR_NOCACHEABLE as ngx_uint_t;
            let variable = ngx_http_add_variable(self.raw(), &raw mut name, flags).as_mut()?;
            variable.get_handler = get;
        }
        Some(())
    }
}

impl Request<'_> {
    /// Gives a variable its value; none says that it has no value here. False without memory.
    ///
    /// # Safety
    ///
    /// `variable` is what nginx has just given to a variable's function for this request.
    pub(crate) unsafe fn set_variable(
        &self,
        variable: *mut ngx_variable_value_t,
        value: Option<&str>,
    ) -> bool {
        // SAFETY: the variable is valid by contract; the pool is valid with its request, and gives
        // as many bytes as are copied, or null.
        unsafe {
            let Some(value) = value else {
                shim::ngx_http_simplestreams_set_variable(variable, std::ptr::null_mut(), 0);
                return true;
            };
            let data: *mut u8 = ngx_pnalloc(self.pool(), value.len()).cast();
            if data.is_null() {
                return false;
            }
            std::ptr::copy_nonoverlapping(value.as_ptr(), data, value.len());
            shim::ngx_http_simplestreams_set_variable(variable, data, value.len());
            true
        }
    }
}
