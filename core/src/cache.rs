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
//! event voids it, and goes to disk when it has stood for a while.

mod census;
mod store;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use xxhash_rust::xxh3::xxh3_64;

use crate::Digest;
use crate::scan::FoundFile;
use crate::tree::Stamp;

use census::{Census, Present};
use store::{Ahead, Forgotten, Store};

/// How long a hash must have stood before it goes to disk: longer than the clocks of file systems
/// are coarse.
pub const STAND: Duration = Duration::from_secs(3);

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
    files: HashMap<Key, (Record, Instant)>,
    pairs: HashMap<(Digest, Digest), Digest>,
    texts: HashMap<String, Vec<u8>>,
    store: Option<Store>,
    /// All that the store has, while indexes look at whole trees for the first time, and how many do.
    ahead: (Option<Ahead>, usize),
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
        let Inner { store, ahead: (ahead, looks), .. } = &mut *inner;
        if *looks == 0 {
            *ahead = store.as_mut().and_then(Store::all);
        }
        *looks += 1;
    }

    /// An index has looked at its tree.
    pub fn end_first_look(&self) {
        let (ahead, looks) = &mut self.inner().ahead;
        *looks = looks.saturating_sub(1);
        ahead.take_if(|_| *looks == 0);
    }

    /// SHA-256 of the file at `path` with this stamp.
    pub fn file(&self, path: &str, stamp: &Stamp) -> Option<Digest> {
        let mut inner = self.inner();
        let key = Key::of(stamp);
        let known = inner.files.get(&key).map(|(record, _)| *record);
        let known = known.or_else(|| inner.ahead.0.as_ref()?.files.get(&key).copied());
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
            inner.files.insert(key, (record, Instant::now()));
        }
        Some(record.digest)
    }

    /// sha256(metadata ‖ root), by the hashes of both.
    pub fn pair(&self, metadata: Digest, root: Digest) -> Option<Digest> {
        let mut inner = self.inner();
        let known = inner.pairs.get(&(metadata, root)).copied();
        let known = known.or_else(|| inner.ahead.0.as_ref()?.pairs.get(&(metadata, root)).copied());
        known.or_else(|| inner.store.as_mut()?.pair(metadata, root))
    }

    /// Remembers the hash of the file at `path`.
    pub fn put_file(&self, path: &str, file: &FoundFile, digest: Digest) {
        if self.keeps(file) {
            let (stamp, mut inner) = (&file.stamp, self.inner());
            let record = Record { digest, changed: stamp.changed, path: xxh3_64(path.as_bytes()) };
            let key = Key::of(stamp);
            inner.forget_ahead(&key);
            inner.files.insert(key, (record, Instant::now()));
        }
    }

    /// Remembers the hash of a pair.
    pub fn put_pair(&self, metadata: Digest, (root, file): (Digest, &FoundFile), digest: Digest) {
        if self.keeps(file) {
            self.inner().pairs.insert((metadata, root), digest);
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

    /// Writes some of what has stood for `stand`; says whether there is more. Without a file to write to,
    /// does nothing. Nobody learns a hash meanwhile, so it is not all at once.
    pub fn flush(&self, stand: Duration) -> bool {
        let mut inner = self.inner();
        if let Some(broken) = inner.store.take_if(|store| store.is_broken()) {
            // What is written there would not be found again.
            inner.store = broken.begin_anew();
        }
        inner.try_again(Instant::now());
        let Inner { files, pairs, texts, store: Some(store), .. } = &mut *inner else {
            return false;
        };
        let stands = |since: &Instant| since.elapsed() >= stand || files.len() > BATCH;
        let due: Vec<(Key, Record)> = files
            .iter()
            .filter(|(_, (_, since))| stands(since))
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
        if let Some(ahead) = &mut self.ahead.0 {
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

impl Key {
    fn of(stamp: &Stamp) -> Self {
        let Stamp { device, inode, size, modified, born, .. } = *stamp;
        Self { device, inode, size, modified, born }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A file with this stamp.
    fn file(stamp: &Stamp) -> FoundFile {
        FoundFile::new("rootfs.squashfs".to_owned(), *stamp, 1)
    }

    const STAMP: Stamp =
        Stamp { device: 1, inode: 2, size: 3, modified: 4, changed: 5, born: Some(6) };

    #[test]
    fn a_rename_keeps_the_hash_and_a_rewrite_does_not() {
        let cache = HashCache::default();
        let digest = Digest::of(b"x");
        cache.put_file("a", &file(&STAMP), digest);
        assert_eq!(cache.file("a", &STAMP), Some(digest));
        let touched = Stamp { changed: 6, ..STAMP };
        assert_eq!(cache.file("a", &touched), None, "the same name with another time");
        assert_eq!(cache.file("b", &touched), Some(digest), "another name");
        assert_eq!(cache.file("a", &touched), Some(digest), "and both names, once linked");
        for other in [
            Stamp { device: 9, ..STAMP },
            Stamp { inode: 9, ..STAMP },
            Stamp { size: 9, ..STAMP },
            Stamp { modified: 9, ..STAMP },
            // The number of an inode that was freed, with everything else the same.
            Stamp { born: Some(9), ..STAMP },
        ] {
            assert_eq!(cache.file("b", &other), None, "{other:?}");
        }
        cache.forget(&touched);
        assert_eq!(cache.file("b", &touched), None);
        let unborn = Stamp { born: None, ..STAMP };
        cache.put_file("a", &file(&unborn), digest);
        assert_eq!(cache.file("a", &unborn), Some(digest));
        assert_eq!(
            cache.file("b", &Stamp { changed: 6, ..unborn }),
            None,
            "it may be another file"
        );
    }

    fn filled(path: &Path) {
        let cache = HashCache::default();
        cache.persist(path);
        for number in 0..500 {
            let stamp = Stamp { inode: number, ..STAMP };
            cache.put_file("a", &file(&stamp), Digest::of(&number.to_le_bytes()));
        }
        cache.put_pair(Digest::of(b"m"), (Digest::of(b"r"), &file(&STAMP)), Digest::of(b"mr"));
        cache.flush(Duration::ZERO);
    }

    /// Right answers among `0..500`; a wrong one fails the test.
    fn found(path: &Path) -> usize {
        let cache = HashCache::default();
        cache.persist(path);
        let known = (0..500_u64).filter(|number| {
            let known = cache.file("a", &Stamp { inode: *number, ..STAMP });
            known.is_some_and(|known| {
                assert_eq!(known, Digest::of(&number.to_le_bytes()), "a wrong hash");
                true
            })
        });
        known.count()
    }

    #[test]
    fn what_was_written_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes");
        filled(&path);
        assert_eq!(found(&path), 500);
        let cache = HashCache::default();
        cache.persist(&path);
        assert_eq!(cache.pair(Digest::of(b"m"), Digest::of(b"r")), Some(Digest::of(b"mr")));
        cache.forget(&Stamp { inode: 7, ..STAMP });
        cache.put_text("/a".into(), b"text".to_vec());
        cache.flush(Duration::ZERO);
        drop(cache);
        assert_eq!(found(&path), 499, "forgotten on disk too");
        let cache = HashCache::default();
        cache.persist(&path);
        assert_eq!(cache.text("/a").as_deref(), Some(&b"text"[..]));
    }

    /// A file that is gone, and its pairs, go after a time; one that is there, or comes back, stays.
    #[test]
    fn what_is_gone_for_long_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes");
        let digest = |number: u64| Digest::of(&number.to_le_bytes());
        filled(&path);
        let cache = HashCache::default();
        cache.persist(&path);
        cache.put_pair(digest(1), (digest(2), &file(&STAMP)), Digest::of(b"12"));
        cache.put_pair(digest(1), (digest(400), &file(&STAMP)), Digest::of(b"1400"));
        cache.put_text("/a".into(), b"a".to_vec());
        cache.put_text("/b".into(), b"b".to_vec());
        cache.flush(Duration::ZERO);
        // Hashed a moment ago, and not on disk yet.
        cache.put_file("x", &file(&Stamp { inode: 1000, ..STAMP }), Digest::of(b"x"));
        cache.put_pair(Digest::of(b"x"), (digest(3), &file(&STAMP)), Digest::of(b"x3"));
        cache.put_text("/a".into(), b"a".to_vec());
        cache.flush(STAND);
        let start = (Instant::now(), SystemTime::now());
        cache.shared_by(BTreeSet::from(["one".to_owned(), "two".to_owned()]), start.0);
        let mut passed = Duration::ZERO;
        let mut count = |of_one: std::ops::Range<u64>, texts: &[&str], later: Duration| {
            passed += later;
            let now = (start.0 + passed, start.1 + passed);
            for (index, inodes) in [("one", of_one), ("two", 0..10)] {
                assert!(cache.asks(index, now.0), "{index}");
                let stamps: Vec<_> = inodes.map(|inode| Stamp { inode, ..STAMP }).collect();
                let texts = texts.iter().map(|text| (*text).to_owned());
                cache.present(index, stamps.iter(), texts, now);
            }
            let known = |number: &u64| {
                cache.file("a", &Stamp { inode: *number, ..STAMP }) == Some(digest(*number))
            };
            (0..500_u64).filter(known).count()
        };
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(count(0..500, &["/a", "/b"], day), 500);
        assert_eq!(count(0..300, &["/a"], day), 500, "gone, but not for long");
        assert_eq!(count(0..350, &["/a"], census::KEEP - day), 500, "fifty are back");
        assert_eq!(count(0..300, &["/a"], day), 350, "and gone anew");
        assert_eq!(cache.pair(digest(1), digest(2)), Some(Digest::of(b"12")));
        assert_eq!(cache.pair(digest(1), digest(400)), None);
        assert_eq!(cache.pair(Digest::of(b"x"), digest(3)), Some(Digest::of(b"x3")));
        assert_eq!(cache.text("/a").as_deref(), Some(&b"a"[..]));
        assert_eq!(cache.text("/b"), None);
        assert_eq!(count(0..300, &["/a"], census::KEEP), 300);
        drop(cache);
        assert_eq!(found(&path), 300, "on disk too");
    }

    #[test]
    fn files_with_one_name_need_not_be_remembered() {
        let cache = HashCache::default();
        cache.keep_links_only();
        let linked = FoundFile { links: 2, ..file(&Stamp { inode: 9, ..STAMP }) };
        for file in [file(&STAMP), linked] {
            let digest = Digest::of(&file.links.to_le_bytes());
            cache.put_file("a", &file, digest);
            cache.put_pair(digest, (digest, &file), digest);
            let is_kept = file.links > 1;
            assert_eq!(cache.file("a", &file.stamp).is_some(), is_kept);
            assert_eq!(cache.file("b", &file.stamp).is_some(), is_kept, "another name of it");
            let touched = Stamp { changed: 99, ..file.stamp };
            assert_eq!(cache.file("b", &touched), None, "it may have been written to");
            assert_eq!(cache.pair(digest, digest).is_some(), is_kept);
        }
    }

    /// While an index looks at its tree for the first time, what changes is not known by what was read
    /// before.
    #[test]
    fn what_is_read_ahead_does_not_outlive_what_it_is_about() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes");
        let of = |inode: u64| Stamp { inode, ..STAMP };
        filled(&path);
        let cache = HashCache::default();
        cache.persist(&path);
        cache.begin_first_look();
        cache.begin_first_look();
        cache.end_first_look();
        assert_eq!(cache.inner().ahead.0.as_ref().map(|ahead| ahead.files.len()), Some(500));
        assert_eq!(cache.file("a", &of(8)), Some(Digest::of(&8_u64.to_le_bytes())));
        let renamed = Stamp { changed: 6, ..of(10) };
        assert_eq!(cache.file("b", &renamed), Some(Digest::of(&10_u64.to_le_bytes())));
        assert_eq!(cache.pair(Digest::of(b"m"), Digest::of(b"r")), Some(Digest::of(b"mr")));
        cache.forget(&of(7));
        cache.put_file("b", &file(&Stamp { changed: 9, ..of(8) }), Digest::of(b"new"));
        cache.flush(Duration::ZERO);
        assert_eq!(cache.file("a", &of(7)), None);
        assert_eq!(cache.file("b", &Stamp { changed: 9, ..of(8) }), Some(Digest::of(b"new")));
        assert_eq!(cache.file("b", &Stamp { changed: 7, ..renamed }), None, "written to since");
        cache.end_first_look();
        assert!(cache.inner().ahead.0.is_none());
        assert_eq!(cache.file("a", &of(9)), Some(Digest::of(&9_u64.to_le_bytes())));
    }

    /// While another process has the file, hashes are kept in memory; they go there when it is free.
    #[test]
    fn a_file_that_could_not_be_had_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes");
        let (before, cache) = (HashCache::default(), HashCache::default());
        before.persist(&path);
        cache.persist(&path);
        assert!(cache.inner().store.is_none(), "the other has it");
        let written = Stamp { inode: 77, ..STAMP };
        before.put_file("b", &file(&written), Digest::of(b"old"));
        before.flush(Duration::ZERO);
        cache.forget(&written);
        cache.put_file("a", &file(&STAMP), Digest::of(b"x"));
        cache.flush(Duration::ZERO);
        let later = Instant::now() + RETRY;
        cache.inner().try_again(later);
        assert!(cache.inner().store.is_none(), "the other has it still");
        drop(before);
        cache.inner().try_again(later);
        assert!(cache.inner().store.is_none(), "tried a moment ago");
        cache.inner().try_again(later + RETRY);
        assert_eq!(cache.file("b", &written), None, "it was forgotten meanwhile");
        cache.flush(Duration::ZERO);
        drop(cache);
        let cache = HashCache::default();
        cache.persist(&path);
        assert_eq!(cache.file("a", &STAMP), Some(Digest::of(b"x")));
        assert_eq!(cache.file("b", &written), None, "on disk too");
    }

    #[test]
    fn what_is_young_stays_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes");
        let cache = HashCache::default();
        cache.persist(&path);
        cache.put_file("a", &file(&STAMP), Digest::of(b"x"));
        cache.flush(STAND);
        drop(cache);
        let cache = HashCache::default();
        cache.persist(&path);
        assert_eq!(cache.file("a", &STAMP), None);
    }

    /// Has all files counted as present.
    fn count_all(path: &Path) {
        let cache = HashCache::default();
        cache.persist(path);
        let now = (Instant::now() + Duration::from_secs(3600), SystemTime::now());
        cache.shared_by(BTreeSet::new(), Instant::now());
        let stamps: Vec<_> = (0..500).map(|inode| Stamp { inode, ..STAMP }).collect();
        cache.present("", stamps.iter(), std::iter::empty(), now);
    }

    /// Damage anywhere may cost hashes, but gives neither a wrong one nor a panic.
    #[test]
    fn damage_never_gives_a_wrong_hash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes");
        filled(&path);
        let good = fs::read(&path).unwrap();
        let mut lost = 0;
        for step in 0..150 {
            let mut bad = good.clone();
            let at = (step * 7919 * 13) % bad.len();
            bad[at] ^= 1 << (step % 8);
            fs::write(&path, &bad).unwrap();
            if step % 5 == 0 {
                count_all(&path);
            }
            lost += 500 - found(&path);
        }
        for cut in [0, 1, 100, 4096, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..cut]).unwrap();
            lost += 500 - found(&path);
        }
        assert!(lost > 0, "nothing was damaged");
        fs::write(&path, b"something else altogether").unwrap();
        assert_eq!(found(&path), 0);
        filled(&path);
        assert_eq!(found(&path), 500, "begun anew");
    }
}
