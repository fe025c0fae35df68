//! Memory of this library. nginx, and all else in its processes, keeps what it has.
//!
//! Building an index makes and drops many small pieces of memory on several threads, of which glibc
//! gives each an arena that grows page by page, with a lock that others who drop them wait for. With
//! `mimalloc` a start is a fifth shorter. It is a feature, for valgrind and AddressSanitizer see each
//! piece of memory only without it.

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// To be called before anything else of this library that needs memory.
#[cfg(feature = "mimalloc")]
#[allow(unsafe_code)]
pub(crate) fn set_up() {
    unsafe extern "C" {
        /// In `allocator.c`.
        fn ngx_http_simplestreams_set_up_allocator();
    }
    // SAFETY: it sets two numbers, and may be called at any time.
    unsafe { ngx_http_simplestreams_set_up_allocator() }
}

#[cfg(not(feature = "mimalloc"))]
pub(crate) fn set_up() {}
