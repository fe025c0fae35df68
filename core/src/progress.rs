//! How far an index is behind the disk, in numbers that any thread may read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How far an index is behind the disk, and what it took to get there. Counts are of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether this process builds the index. If not, another one holds its lock, and the other
    /// numbers are zero.
    pub active: bool,
    /// How often the whole tree has been looked at. Before the first time, the other numbers say
    /// nothing.
    pub looks: u64,
    /// When that was the last time, in milliseconds since the epoch.
    pub last_look: u64,
    /// Number of the generation that was published last; 0 before the first.
    pub generation: u64,
    /// Versions found on disk, listed or not.
    pub found: u64,
    /// Versions being hashed, or waiting for it.
    pub hashing: u64,
    /// Versions not listed because a file in them is being written, or not quiet yet.
    pub waiting: u64,
    /// Bytes read for hashing so far.
    pub bytes_hashed: u64,
    /// Files in versions being hashed or waiting for it.
    pub files_to_hash: u64,
    /// Bytes of these files; what the cache knows or what has been read already counts too, so this
    /// is an upper bound.
    pub bytes_to_hash: u64,
    /// Seconds until they are hashed, at the speed of this run of hashing so far; none if nothing is
    /// being hashed, or nothing was read yet.
    pub seconds_left: Option<u64>,
    /// Files in versions that were hashed.
    pub files_hashed: u64,
    /// Files in versions whose hashes were all known, so that nothing was read.
    pub files_known: u64,
    /// How often the hashing of a version was in vain, because its files changed meanwhile.
    pub hashed_in_vain: u64,
    /// Directories whose events are watched.
    pub watches: u64,
    /// Directories that could not be watched when the whole tree was looked at last, since a limit
    /// was reached; they are seen by rescans alone.
    pub unwatched: u64,
    /// How often events were lost because the kernel's queue was full.
    pub overflows: u64,
}

impl Progress {
    /// Whether everything on disk has been looked at, and is either listed or a problem.
    pub fn is_idle(&self) -> bool {
        self.looks > 0 && self.hashing == 0 && self.waiting == 0
    }
}

/// What the indexer's thread, the hashing threads and readers share.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    /// Written by the hashing threads.
    pub(crate) bytes_hashed: AtomicU64,
    reported: Mutex<Progress>,
    /// The versions that `waiting` counts, by their paths.
    pub(crate) names: Mutex<Vec<String>>,
}

impl Gauges {
    pub(crate) fn read(&self) -> Progress {
        // A report is a plain value, stored whole: a panic leaves nothing half done.
        let reported = *self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        Progress { bytes_hashed: self.bytes_hashed.load(Ordering::Relaxed), ..reported }
    }

    pub(crate) fn report(&self, progress: Progress) {
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }
}
