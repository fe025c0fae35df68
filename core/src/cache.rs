//! Remembers hashes, so that nothing is read twice.
//!
//! A hash belongs to a [`Stamp`], not to a path: a file that was renamed or moved together with its
//! directory keeps it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Digest;
use crate::tree::Stamp;

/// Hashes by the identity of files. Shared by all hashing threads.
#[derive(Debug, Default)]
pub struct HashCache {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    files: HashMap<Stamp, Digest>,
    /// sha256(metadata ‖ root), by the metadata's hash and the root's identity.
    pairs: HashMap<(Digest, Stamp), Digest>,
}

impl HashCache {
    /// SHA-256 of the file with this stamp.
    pub fn file(&self, stamp: &Stamp) -> Option<Digest> {
        self.inner().files.get(stamp).copied()
    }

    /// sha256(metadata ‖ root).
    pub fn pair(&self, metadata: Digest, root: &Stamp) -> Option<Digest> {
        self.inner().pairs.get(&(metadata, *root)).copied()
    }

    /// Remembers the hash of a file.
    pub fn put_file(&self, stamp: Stamp, digest: Digest) {
        self.inner().files.insert(stamp, digest);
    }

    /// Remembers the hash of a pair.
    pub fn put_pair(&self, metadata: Digest, root: Stamp, digest: Digest) {
        self.inner().pairs.insert((metadata, root), digest);
    }

    /// Forgets everything about the file with this stamp: somebody wrote to it, and its clock may
    /// be too coarse to show it.
    pub fn forget(&self, stamp: &Stamp) {
        let mut inner = self.inner();
        if inner.files.remove(stamp).is_some() {
            inner.pairs.retain(|(_, root), _| root != stamp);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Each change is one insertion: a thread that panicked left nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
