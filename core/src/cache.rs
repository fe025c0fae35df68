//! Remembers hashes, so that nothing is read twice, not even after a restart.
//!
//! What a hash belongs to is the file, not its path: device, inode, size, and the times of its
//! birth and of the last change of content and of inode. A rename or a hard link changes the inode's time as well; where
//! all else is equal and the *path* is another one, that explains it, and the hash stays. Whoever
//! rewrites a file in place with the same size, sets its time back to the nanosecond *and* gives it
//! another name fools this; so do they `rsync`. An index that is opened once, which is to hash everything,
//! is not fooled.
//!
//! A hash taken within the granularity of the file system's clock after the last change says little:
//! another change may follow with the same times. It is kept in memory, where the watcher's next
//! event voids it, and goes to disk after a while. That of a file whose last change was long ago when its
//! hashing began goes there at once.

mod census;
mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use foldhash::HashMap;
use xxhash_rust::xxh3::xxh3_64;

use crate::Digest;
use crate::scan::FoundFile;
use crate::tree::{Stamp, since_epoch};

use census::{Census, Present};
use store::{Ahead, Forgotten, Store};

/// How long ago a file must have changed before its hash goes to disk: longer than the clocks of file
/// systems are coarse.
pub(crate) const STAND: Duration = Duration::from_secs(3);

/// How often it is tried to have the file that could not be had, or was given up: its disk may have been
/// full for a moment, an old process may have had it.
const RETRY: Duration = Duration::from_secs(60);

/// Hashes that wait for being written, at most, before they are, however young the others; and most that
/// are written at a time.
const BATCH: usize = 4096;

/// Hashes by the identity of files. Shared by all hashing threads.
#[derive(Debug, Default)]
pub struct HashCache {
    inner: Mutex<Inner>,
    /// See [`HashCache::keep_links_only`].
    links_only: AtomicBool,
}

/// One hashing of a version.
#[derive(Debug)]
pub struct Attempt {
    begun: SystemTime,
    is_void: AtomicBool,
}

impl Attempt {
    /// It begins now.
    pub fn begin() -> Self {
        Self { begun: SystemTime::now(), is_void: AtomicBool::new(false) }
    }

    /// A file was written to meanwhile: what was read may be neither what it was nor what it is, and its
    /// clock may be too coarse to show it. Nothing of it is to be remembered from now on; what was before
    /// is to be [forgotten](HashCache::forget).
    pub fn make_void(&self) {
        self.is_void.store(true, Ordering::Release);
    }
}

/// What a file's identity comes to, beside the time of its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    size: u64,
    modified: i64,
    born: Option<i64>,
}

/// A file's hash, and what it was when it was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    digest: Digest,
    changed: i64,
    /// XXH3 of the path.
    path: u64,
}

#[derive(Debug, Default)]
struct Inner {
    /// With the time from which on they may go to disk.
    files: HashMap<Key, (Record, Instant)>,
    pairs: HashMap<(Digest, Digest), Digest>,
    texts: HashMap<String, Vec<u8>>,
    store: Option<Store>,
    /// All that the store has, while indexes look at whole trees for the first time.
    ahead: Option<Ahead>,
    /// How many do.
    first_looks: usize,
    /// Where to have one, and when to try again if there is none.
    path: Option<(PathBuf, Instant)>,
    /// What a file that is had later must not have.
    forgotten: Forgotten,
    census: Option<Census>,
}

impl HashCache {
    /// Keeps hashes in the file at `path` from now on, and finds those that are there. Trouble with
    /// the file is logged; hashes are then kept in memory alone, or the file is begun anew. A cache
    /// that has a file keeps it.
    pub fn persist(&self, path: &Path) {
        let mut inner = self.inner();
        if inner.store.is_none() {
            inner.store = Store::open(path);
            inner.path = Some((path.to_owned(), Instant::now() + RETRY));
        }
    }

    /// An index is going to look at a whole tree: tens of thousands of hashes are read faster in a row
    /// than one by one. To be followed by [`end_first_look`](Self::end_first_look).
    pub fn begin_first_look(&self) {
        let mut inner = self.inner();
        if inner.first_looks == 0 {
            inner.ahead = inner.store.as_mut().and_then(Store::all);
        }
        inner.first_looks += 1;
    }

    /// An index has looked at its tree.
    pub fn end_first_look(&self) {
        let mut inner = self.inner();
        inner.first_looks -= 1;
        if inner.first_looks == 0 {
            inner.ahead = None;
        }
    }

    /// SHA-256 of the file at `path` with this stamp.
    pub fn file(&self, path: &str, stamp: &Stamp) -> Option<Digest> {
        let mut inner = self.inner();
        let key = Key::of(stamp);
        let known = inner.files.get(&key).map(|(record, _)| *record);
        let known = known.or_else(|| inner.ahead.as_ref()?.files.get(&key).copied());
        let record = known.or_else(|| inner.store.as_mut()?.file(&key))?;
        let path = xxh3_64(path.as_bytes());
        if record.changed != stamp.changed {
            // Without a time of birth the inode's number may be another file's by now; and who keeps
            // files with several names only has seen all of them in this moment.
            if record.path == path
                || stamp.born.is_none()
                || self.links_only.load(Ordering::Relaxed)
            {
                return None;
            }
            // Renamed, or another link to it: known under this name from now on.
            let record = Record { changed: stamp.changed, path, ..record };
            inner.forget_ahead(&key);
            inner.files.insert(key, (record, stands_from(stamp, SystemTime::now())));
        }
        Some(record.digest)
    }

    /// sha256(metadata ‖ root), by the hashes of both.
    pub fn pair(&self, metadata: Digest, root: Digest) -> Option<Digest> {
        let mut inner = self.inner();
        let known = inner.pairs.get(&(metadata, root)).copied();
        let known = known.or_else(|| inner.ahead.as_ref()?.pairs.get(&(metadata, root)).copied());
        known.or_else(|| inner.store.as_mut()?.pair(metadata, root))
    }

    /// Remembers the hash of the file at `path`.
    pub fn put_file(&self, path: &str, file: &FoundFile, digest: Digest, of: &Attempt) {
        let mut inner = self.inner();
        if self.keeps(file) && !of.is_void.load(Ordering::Acquire) {
            let stamp = &file.stamp;
            let record = Record { digest, changed: stamp.changed, path: xxh3_64(path.as_bytes()) };
            let key = Key::of(stamp);
            inner.forget_ahead(&key);
            inner.files.insert(key, (record, stands_from(stamp, of.begun)));
        }
    }

    /// Remembers the hash of a pair.
    pub fn put_pair(
        &self,
        metadata: Digest,
        (root, file): (Digest, &FoundFile),
        digest: Digest,
        of: &Attempt,
    ) {
        let mut inner = self.inner();
        if self.keeps(file) && !of.is_void.load(Ordering::Acquire) {
            inner.pairs.insert((metadata, root), digest);
        }
    }

    /// Remembers files with several names alone from now on: the others will not be asked for again.
    pub fn keep_links_only(&self) {
        self.links_only.store(true, Ordering::Relaxed);
    }

    /// Whether the hash of this file is remembered, once it is known.
    pub fn keeps(&self, file: &FoundFile) -> bool {
        !self.links_only.load(Ordering::Relaxed) || file.links > 1
    }

    /// Forgets the file with this stamp: somebody wrote to it, and its clock may be too coarse to
    /// show it.
    pub fn forget(&self, stamp: &Stamp) {
        let mut inner = self.inner();
        let key = Key::of(stamp);
        inner.files.remove(&key);
        inner.forget_ahead(&key);
        if let Some(forgotten) = inner.forgotten() {
            forgotten.files.insert(key);
        }
    }

    /// What the file of overrides at `path`, an absolute one, said when it was last understood.
    pub fn text(&self, path: &str) -> Option<Vec<u8>> {
        let mut inner = self.inner();
        let known = inner.texts.get(path).cloned();
        known.or_else(|| inner.store.as_mut()?.text(path))
    }

    /// The file of overrides at `path`, an absolute one, is gone.
    pub fn forget_text(&self, path: &str) {
        let mut inner = self.inner();
        inner.texts.remove(path);
        if let Some(forgotten) = inner.forgotten() {
            forgotten.texts.insert(path.to_owned());
        }
    }

    /// Remembers what the file of overrides at `path`, an absolute one, says.
    pub fn put_text(&self, path: String, text: Vec<u8>) {
        self.inner().texts.insert(path, text);
    }

    /// Writes some of what has stood for long enough; says whether there is more. Without a file to write
    /// to, does nothing. Nobody learns a hash meanwhile, so it is not all at once.
    pub fn flush(&self) -> bool {
        let now = Instant::now();
        self.write(|at| at <= now)
    }

    /// Writes all there is, however young.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn flush_young(&self) {
        while self.write(|_| true) {}
    }

    fn write(&self, is_due: impl Fn(Instant) -> bool) -> bool {
        let mut inner = self.inner();
        if let Some(broken) = inner.store.take_if(|store| store.is_broken()) {
            // What is written there would not be found again.
            inner.store = broken.begin_anew();
        }
        inner.try_again(Instant::now());
        let Inner { files, pairs, texts, store: Some(store), .. } = &mut *inner else {
            return false;
        };
        let crowded = files.len() > BATCH;
        let due: Vec<(Key, Record)> = files
            .iter()
            .filter(|(_, (_, at))| crowded || is_due(*at))
            .map(|(key, (record, _))| (*key, *record))
            .take(BATCH)
            .collect();
        if due.is_empty() && texts.is_empty() && !store.has_forgotten() {
            return false;
        }
        let some: Vec<_> =
            pairs.iter().map(|(pair, digest)| (*pair, *digest)).take(BATCH).collect();
        if store.write(&due, &some, texts) {
            for (key, _) in &due {
                files.remove(key);
            }
            for (pair, _) in &some {
                pairs.remove(pair);
            }
            texts.clear();
            return due.len() == BATCH || !pairs.is_empty();
        }
        if !store.is_broken() {
            inner.give_up_store();
        }
        false
    }

    /// From now on, hashes of files that none of the indexes with these ids has are dropped after a
    /// time, counted from `now`.
    pub fn shared_by(&self, indexes: BTreeSet<String>, now: Instant) {
        self.inner().census = Some(Census::new(indexes, now));
    }

    /// Whether the index is to [tell](Self::present) which files it has.
    pub fn asks(&self, index: &str, now: Instant) -> bool {
        let inner = self.inner();
        inner.store.is_some()
            && inner.census.as_ref().is_some_and(|census| census.wants(index, now))
    }

    /// Which files, and which files of overrides by their absolute paths, the index has.
    pub fn present<'a>(
        &self,
        index: &str,
        files: impl Iterator<Item = &'a Stamp>,
        texts: impl Iterator<Item = String>,
        now: (Instant, SystemTime),
    ) {
        let present = Present { files: files.map(Key::of).collect(), texts: texts.collect() };
        let mut inner = self.inner();
        let Inner { files, store: Some(store), census: Some(census), .. } = &mut *inner else {
            return;
        };
        let Some(present) = census.count(index, present, now.0) else {
            return;
        };
        let young = files.values().map(|(record, _)| record.digest).collect();
        if !store.prune(&present, young, now.1) {
            inner.give_up_store();
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Each change is one insertion: a thread that panicked left nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// After a failure, which has been logged: what is on disk may be anything now.
    fn give_up_store(&mut self) {
        log::warn!("keeping hashes in memory only");
        if let Some(store) = self.store.take() {
            self.forgotten = store.forgotten;
        }
    }

    /// What was read ahead of this file is old.
    fn forget_ahead(&mut self, key: &Key) {
        if let Some(ahead) = &mut self.ahead {
            ahead.files.remove(key);
        }
    }

    /// Where is noted what is forgotten, if there is a file that may have it, now or later.
    fn forgotten(&mut self) -> Option<&mut Forgotten> {
        match &mut self.store {
            Some(store) => Some(&mut store.forgotten),
            None => self.path.is_some().then_some(&mut self.forgotten),
        }
    }

    /// Tries to have the file, if that is due.
    fn try_again(&mut self, now: Instant) {
        if self.store.is_none()
            && let Some((path, when)) = &mut self.path
            && *when <= now
        {
            *when = now + RETRY;
            self.store = Store::open_now(path);
            if let Some(store) = &mut self.store {
                store.forgotten = std::mem::take(&mut self.forgotten);
            }
        }
    }
}

/// From when on the hash of a file with this stamp may go to disk, if its hashing had `begun` then.
fn stands_from(stamp: &Stamp, begun: SystemTime) -> Instant {
    // A clock that was set back puts the change into the future.
    let age = since_epoch(begun).saturating_sub(stamp.changed);
    let age = Duration::from_nanos(u64::try_from(age).unwrap_or(0));
    Instant::now() + STAND.saturating_sub(age)
}

impl Key {
    fn of(stamp: &Stamp) -> Self {
        let Stamp { device, inode, size, modified, born, .. } = *stamp;
        Self { device, inode, size, modified, born }
    }
}

#[cfg(test)]
mod tests;
