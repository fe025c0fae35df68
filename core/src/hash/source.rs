//! Reads a file of several chunks once, and leaves the page cache as it was found.
//!
//! The same memory holds the images that are being downloaded. A file that was just uploaded is in
//! it and will be wanted next: it is read from there, and stays. A file that is not, as most of a
//! tree that is hashed for the first time, would push out what clients are fetching; of such a file
//! nothing stays. ARCHITECTURE.md, "Reading", has what was measured.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::whole;

/// Bytes of one read: the time to hash them is many times that of the system calls, and they still
/// fit into a processor's own cache.
pub(super) const CHUNK: usize = 512 << 10;

/// Where a file is looked at to see whether it is in memory, as fractions of its length.
const SAMPLES: u64 = 4;

/// Bytes that the disk is asked for ahead of the reader.
const AHEAD: u64 = 4 << 20;

/// The kernel takes at most its own read-ahead out of one request; this is its default.
const REQUEST: u64 = 128 << 10;

/// A file that is read from its beginning to its end.
#[derive(Debug)]
pub(super) struct Source {
    file: Arc<File>,
    offset: u64,
    /// Where the disk has been asked for bytes up to; `None` if the file was in memory.
    asked: Option<u64>,
}

impl Source {
    /// `file`, `size` bytes long, of which nothing has been read yet.
    pub(super) fn new(file: Arc<File>, size: u64) -> Self {
        let cold = !is_in_memory(&file, size);
        Self { file, offset: 0, asked: cold.then_some(0) }
    }

    /// Fills `buffer` as far as the file goes: with less than its length at the end, then with
    /// nothing.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.ask_ahead(buffer.len() as u64);
        let length = whole::read_at(&*self.file, buffer, self.offset)?.len();
        if self.asked.is_some() {
            advise(&self.file, self.offset, length as u64, Advice::DontNeed);
        }
        self.offset += length as u64;
        Ok(length)
    }

    fn ask_ahead(&mut self, length: u64) {
        let Some(asked) = &mut self.asked else {
            return;
        };
        while *asked < self.offset + length + AHEAD {
            advise(&self.file, *asked, REQUEST, Advice::WillNeed);
            *asked += REQUEST;
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if self.asked.is_some() {
            // What was asked for and not read, because hashing was stopped.
            advise(&self.file, self.offset, AHEAD, Advice::DontNeed);
        }
    }
}

/// Whether any sample of the file is in memory. Where the kernel does not say, it is taken to be.
fn is_in_memory(file: &File, size: u64) -> bool {
    // A look at a page that is not there makes the kernel read it; but for this advice, megabytes.
    advise(file, 0, 0, Advice::Random);
    let found = (0..SAMPLES).any(|n| {
        let page = &mut [0];
        let look = &mut [IoSliceMut::new(page)];
        match preadv2(file, look, size / SAMPLES * n, ReadWriteFlags::NOWAIT) {
            Err(Errno::AGAIN) => false,
            Ok(_) | Err(_) => true,
        }
    });
    advise(file, 0, 0, Advice::Sequential);
    found
}

/// Tells the kernel what will be done with some bytes of `file`, with all of them for a length of
/// zero. Whatever it makes of that, what is read is right.
fn advise(file: &File, offset: u64, length: u64, advice: Advice) {
    if let Err(err) = fadvise(file, offset, NonZeroU64::new(length), advice) {
        log::debug!("the kernel takes no advice on reading a file ({err})");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const SIZE: usize = 3 * CHUNK + 4321;

    /// Bytes of `file` that are in memory, looked at page by page.
    fn in_memory(file: &File) -> usize {
        advise(file, 0, 0, Advice::Random);
        let look = |page: usize| {
            let byte = &mut [0];
            let offset = (page * 4096) as u64;
            preadv2(file, &mut [IoSliceMut::new(byte)], offset, ReadWriteFlags::NOWAIT).is_ok()
        };
        // From the end: a look at a page that is not there makes the kernel read it, and maybe some
        // that follow.
        (0..SIZE.div_ceil(4096)).rev().filter(|&page| look(page)).count() * 4096
    }

    /// A file on a disk, and of it nothing in memory; `None` where `$TMPDIR` is memory, or another
    /// file system that lets go of nothing.
    fn cold_file() -> Option<Arc<File>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![b'x'; SIZE]).unwrap();
        file.sync_all().unwrap();
        advise(&file, 0, 0, Advice::DontNeed);
        (in_memory(&file) == 0).then(|| {
            advise(&file, 0, 0, Advice::DontNeed);
            Arc::new(file)
        })
    }

    fn read_all(file: &Arc<File>) -> usize {
        let mut source = Source::new(Arc::clone(file), SIZE as u64);
        let mut buffer = vec![0; CHUNK];
        let mut total = 0;
        loop {
            match source.read(&mut buffer).unwrap() {
                0 => return total,
                length => total += length,
            }
        }
    }

    #[test]
    fn what_was_not_in_memory_is_not_there_afterwards() {
        let Some(file) = cold_file() else {
            return;
        };
        assert_eq!(read_all(&file), SIZE);
        assert_eq!(in_memory(&file), 0);
    }

    #[test]
    fn what_was_in_memory_stays_there() {
        let Some(file) = cold_file() else {
            return;
        };
        std::io::copy(&mut &*file, &mut io::sink()).unwrap();
        let mut start = vec![0; SIZE];
        assert_eq!(whole::read_at(&*file, &mut start, 0).unwrap().len(), SIZE);
        assert_eq!(read_all(&file), SIZE);
        assert!(in_memory(&file) >= SIZE, "{} of {SIZE} bytes", in_memory(&file));
    }

    #[test]
    fn what_was_asked_for_and_not_read_is_not_there_either() {
        let Some(file) = cold_file() else {
            return;
        };
        let mut source = Source::new(Arc::clone(&file), SIZE as u64);
        assert_eq!(source.read(&mut vec![0; CHUNK]).unwrap(), CHUNK);
        // What is being read is in nobody's power.
        let mut rest = vec![0; SIZE];
        assert_eq!(whole::read_at(&*file, &mut rest, 0).unwrap().len(), SIZE);
        drop(source);
        assert_eq!(in_memory(&file), CHUNK, "the first chunk was just read by this test");
    }
}
