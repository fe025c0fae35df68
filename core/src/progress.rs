//! How far an index is behind the disk, in numbers that any thread may read.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far an index is behind the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How often the whole tree has been looked at. Before the first time, the other numbers say
    /// nothing.
    pub looks: u64,
    /// Versions being hashed, or waiting for it.
    pub hashing: u64,
    /// Versions not listed because a file in them is being written, or not quiet yet.
    pub waiting: u64,
    /// Bytes read for hashing so far.
    pub bytes_hashed: u64,
    /// Bytes of the files in versions being hashed or waiting for it; what the cache knows or what
    /// has been read already counts too, so this is an upper bound.
    pub bytes_to_hash: u64,
}

impl Progress {
    /// Whether everything on disk has been looked at, and is either listed or a problem.
    pub fn is_idle(&self) -> bool {
        self.looks > 0 && self.hashing == 0 && self.waiting == 0
    }
}

/// The same numbers as one thread writes and others read them: each for itself, not as of one
/// moment.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) looks: AtomicU64,
    pub(crate) hashing: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) bytes_hashed: AtomicU64,
    pub(crate) bytes_to_hash: AtomicU64,
    /// The versions that `waiting` counts, by their paths.
    pub(crate) names: Mutex<Vec<String>>,
}

impl Gauges {
    pub(crate) fn read(&self) -> Progress {
        // `looks` first: whoever sees it counted sees at least the state after that look.
        let looks = self.looks.load(Ordering::Acquire);
        let of = |gauge: &AtomicU64| gauge.load(Ordering::Acquire);
        Progress {
            looks,
            hashing: of(&self.hashing),
            waiting: of(&self.waiting),
            bytes_hashed: of(&self.bytes_hashed),
            bytes_to_hash: of(&self.bytes_to_hash),
        }
    }
}
