//! One of the four places of the core with `unsafe`: mapping a generation into memory.
//!
//! A mapping, and not a copy, because every worker process holds the same generation: mapped, they
//! share the pages.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

/// Maps the whole of `memory`, read-only.
///
/// # Errors
///
/// The error of `mmap(2)`; also for empty memory.
pub(super) fn map(memory: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: what is mapped must not change or shrink while the mapping lives. The kernel
    // guarantees it: the callers, in `Snapshot`, have the descriptor from `live::open` or from a `Live`,
    // which give out memory that is sealed against writing and shrinking, and against being
    // unsealed.
    unsafe { memmap2::Mmap::map(memory) }
}
