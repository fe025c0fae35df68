//! Keeps panics out of nginx.
//!
//! A panic that crosses an `extern "C"` boundary aborts the worker, and every connection with it.
//! Each entry from nginx therefore runs inside [`guard`], and answers with what its caller takes
//! for a failure. What the panic said has by then been put into the log queue by the hook that
//! [`crate::error_log::install`] sets.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `entry` on nginx's main thread; if it panics, logs that and returns what `failed` gives.
///
/// Nothing is used after a panic that it could have left half changed: the runtime's state is
/// behind a `RefCell` whose guard is released by the unwinding, and configuration that failed is
/// thrown away by nginx.
pub(crate) fn guard<T>(failed: impl FnOnce() -> T, entry: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(entry)).unwrap_or_else(|payload| {
        // Its destructor could panic in its turn.
        std::mem::forget(payload);
        crate::error_log::drain();
        failed()
    })
}
