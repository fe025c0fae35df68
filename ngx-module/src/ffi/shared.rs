//! Memory that all processes of this nginx share, from the master's first configuration on.
//!
//! Not one of nginx's shared memory zones: those are unmapped when a reload drops or resizes them,
//! also under requests that are still being answered where there is only one process. This memory
//! stays where it is until the last process ends, so references to it are good for ever.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What may lie in shared memory.
///
/// # Safety
///
/// All bits zero are a valid value, and nothing but atomic operations changes one; so it has neither
/// pointers nor anything to drop.
pub(crate) unsafe trait Shared: Sync + 'static {}

// SAFETY: zero is a valid integer.
unsafe impl Shared for std::sync::atomic::AtomicU64 {}
// SAFETY: an array is valid if its elements are.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// A stretch of shared memory, given out from its beginning and never taken back.
pub(crate) struct Region {
    base: *mut u8,
    size: usize,
    used: AtomicUsize,
}

// SAFETY: the pointer is to memory that is never unmapped, and what is given out of it never
// overlaps.
unsafe impl Send for Region {}
// SAFETY: as above; `used` is atomic.
unsafe impl Sync for Region {}

impl Region {
    /// `size` bytes of zeros, which cost memory only when they are touched. None without memory.
    pub(crate) fn new(size: usize) -> Option<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let base = unsafe { libc::mmap(null_mut(), size, protection, flags, -1, 0) };
        let used = AtomicUsize::new(0);
        (base != libc::MAP_FAILED).then(|| Self { base: base.cast(), size, used })
    }

    /// `count` values, all zero. None if there is no room left.
    pub(crate) fn give<T: Shared>(&self, count: usize) -> Option<&'static [T]> {
        let start = self.used.load(Ordering::Relaxed).next_multiple_of(align_of::<T>());
        let end = start.checked_add(size_of::<T>().checked_mul(count)?)?;
        if end > self.size {
            return None;
        }
        self.used.store(end, Ordering::Relaxed);
        // SAFETY: inside of the mapping, which stays; aligned, since the mapping begins at a page;
        // zero, which `T` says is a value; and given out once, for only the master calls this.
        Some(unsafe { std::slice::from_raw_parts(self.base.add(start).cast(), count) })
    }
}
