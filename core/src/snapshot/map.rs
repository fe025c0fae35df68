//! The one place of the core with `unsafe`: mapping a snapshot file into memory.
//!
//! A mapping, and not a copy, because every worker process holds the same generation: mapped, they
//! share the pages.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

/// Maps the whole of `file`, read-only.
///
/// # Errors
///
/// The error of `mmap(2)`; also for an empty file.
pub(super) fn map(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: the mapping must not change or shrink while it lives. The publisher gives that
    // guarantee: it creates each snapshot file under a name of its own with mode 0400, writes it
    // once, renames it into place, and never opens it for writing again (`snapshot::write_file`);
    // a new generation is a new inode, and unlinking the old one leaves its mappings whole.
    unsafe { memmap2::Mmap::map(file) }
}
