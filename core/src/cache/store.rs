//! The file of the hash cache, a redb database.
//!
//! # Why, and what is in it
//!
//! Forty thousand versions must be current again a second after a restart. Tables of bytes to
//! bytes, integers little-endian, every value followed by the XXH3-64 of key and value: redb finds
//! torn writes, but a bit that flips at rest must not become a hash that is served.
//!
//! | table | key | value |
//! |---|---|---|
//! | `files1` | device 8, inode 8, size 8, modified 16, born 16 | digest 32, changed 16, path 8, check 8 |
//! | `pairs1` | metadata digest 32, root digest 32 | digest 32, check 8 |
//! | `texts1` | absolute path of a file of overrides | its content when last understood, check 8 |
//! | `gone1` | `f` or `t`, key of `files1` or `texts1` | since when it is known to be gone, in seconds since the epoch, 8, check 8 |
//!
//! The digit in a table's name is the version of its layout; tables of others are ignored.
//!
//! # History
//!
//! 1. First version.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use foldhash::{HashMap, HashSet};
use redb::{
    Database, ReadOnlyTable, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    TableDefinition,
};
use xxhash_rust::xxh3::Xxh3Default;

use super::census::{KEEP, Present};
use super::{Key, Record};
use crate::Digest;

type Bytes = &'static [u8];
const FILES: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("files1");
const PAIRS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("pairs1");
const TEXTS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("texts1");
const GONE: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("gone1");

/// Memory that redb may use for pages, in bytes.
const CACHE: usize = 8 << 20;

/// Most hashes that are read in a row: about a hundred bytes of memory each.
const MAX_AHEAD: u64 = 400_000;

/// How long to wait for the process before us to let go of the file: a reload's two helpers overlap
/// for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    tables: Held,
    /// What the file has and must not be found there, until it is removed.
    pub(super) forgotten: Forgotten,
    broken: bool,
}

/// Files and texts of which nothing is known any more.
#[derive(Debug, Default)]
pub(super) struct Forgotten {
    pub(super) files: HashSet<Key>,
    /// By their paths.
    pub(super) texts: HashSet<String>,
}

/// Hashes that were read in a row.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pub(super) files: HashMap<Key, Record>,
    pub(super) pairs: HashMap<(Digest, Digest), Digest>,
}

impl Forgotten {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.texts.is_empty()
    }
}

struct Tables {
    // Before the database, in the order of dropping.
    files: ReadOnlyTable<Bytes, Bytes>,
    pairs: ReadOnlyTable<Bytes, Bytes>,
    texts: ReadOnlyTable<Bytes, Bytes>,
    database: Database,
}

/// Tables, closed with care: closing writes, which panics over some damage that was met before.
struct Held(Option<Tables>);

impl Held {
    fn get(&mut self) -> Result<&mut Tables, Failure> {
        // It is there until it is dropped.
        self.0.as_mut().ok_or_else(|| Failure::Io(io::ErrorKind::NotConnected.into()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let tables = self.0.take();
        let closed = guarded(|| {
            drop(tables);
            Ok(())
        });
        if let Err(err) = closed {
            log::debug!("closing the hash cache: {err}");
        }
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tables")
    }
}

impl Store {
    /// Opens or makes the file at `path`; begins anew if it is damaged or not ours. `None` if there
    /// is no way to have it, which has been logged.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let deadline = Instant::now() + LOCK_WAIT;
        let mut begun_anew = false;
        loop {
            let why = match guarded(|| Tables::open(path)) {
                Ok(tables) => return Some(Self::new(path, tables)),
                Err(Failure::Locked) if Instant::now() < deadline => {
                    std::thread::park_timeout(Duration::from_millis(20));
                    continue;
                }
                Err(Failure::Locked) => "another process uses it".to_owned(),
                Err(Failure::Io(err)) => err.to_string(),
                Err(Failure::Damaged(why)) if !begun_anew => {
                    log::warn!(
                        "hash cache \"{}\" is damaged ({why}), beginning anew",
                        path.display()
                    );
                    begun_anew = true;
                    match std::fs::remove_file(path) {
                        Ok(()) => continue,
                        Err(err) => err.to_string(),
                    }
                }
                Err(Failure::Damaged(why)) => why,
            };
            log::warn!(
                "cannot use hash cache \"{}\" ({why}), keeping hashes in memory",
                path.display()
            );
            return None;
        }
    }

    /// As [`open`](Self::open), without waiting; that it still cannot be had is no news.
    pub(super) fn open_now(path: &Path) -> Option<Self> {
        let tables = guarded(|| Tables::open(path));
        let tables = tables.inspect_err(|err| log::debug!("hash cache: {err}")).ok()?;
        log::info!("keeping hashes in \"{}\" again", path.display());
        Some(Self::new(path, tables))
    }

    fn new(path: &Path, tables: Tables) -> Self {
        Self {
            path: path.to_owned(),
            tables: Held(Some(tables)),
            forgotten: Forgotten::default(),
            broken: false,
        }
    }

    /// Whether damage was found, which has been logged: nothing is found in it any more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// An empty one in its place; `None` as for [`open`](Self::open).
    pub(super) fn begin_anew(self) -> Option<Self> {
        let Self { path, tables, .. } = self;
        drop(tables);
        log::warn!("hash cache \"{}\" is damaged, beginning anew", path.display());
        match std::fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                log::warn!(
                    "cannot remove hash cache \"{}\" ({err}), keeping hashes in memory",
                    path.display()
                );
                None
            }
            _ => Self::open(&path),
        }
    }

    pub(super) fn file(&mut self, key: &Key) -> Option<Record> {
        if self.broken || self.forgotten.files.contains(key) {
            return None;
        }
        record(&self.get(|tables| &tables.files, &file_key(key))?)
    }

    pub(super) fn pair(&mut self, metadata: Digest, root: Digest) -> Option<Digest> {
        let value = self.get(|tables| &tables.pairs, &pair_key(metadata, root))?;
        Some(Digest::from_bytes(*value.first_chunk::<32>()?))
    }

    /// All hashes; `None` if they are too many to have them all, or there is damage, which whoever
    /// asks for a single one is told of.
    pub(super) fn all(&mut self) -> Option<Ahead> {
        let all = guarded(|| self.tables.get()?.all());
        let mut all = all.unwrap_or_else(|err| {
            log::debug!("reading the hash cache: {err}");
            None
        })?;
        all.files.retain(|key, _| !self.forgotten.files.contains(key));
        Some(all)
    }

    pub(super) fn text(&mut self, path: &str) -> Option<Vec<u8>> {
        if self.forgotten.texts.contains(path) {
            return None;
        }
        self.get(|tables| &tables.texts, path.as_bytes())
    }

    pub(super) fn has_forgotten(&self) -> bool {
        !self.forgotten.is_empty()
    }

    /// Writes all of it, or nothing; says whether it is on disk.
    pub(super) fn write(
        &mut self,
        files: &[(Key, Record)],
        pairs: &[((Digest, Digest), Digest)],
        texts: &HashMap<String, Vec<u8>>,
    ) -> bool {
        let forgotten = std::mem::take(&mut self.forgotten);
        let written = guarded(|| self.tables.get()?.write(files, pairs, texts, &forgotten));
        if let Err(err) = &written {
            log::error!("cannot write hash cache \"{}\" ({err})", self.path.display());
            self.broken |= matches!(err, Failure::Damaged(_));
            self.forgotten = forgotten;
        }
        written.is_ok()
    }

    /// Drops what belongs to files that are not `present` and were not for long, and pairs of what
    /// is neither known then nor among the `young` that are yet to be written. False after a failure,
    /// which has been logged.
    pub(super) fn prune(
        &mut self,
        present: &Present,
        young: HashSet<Digest>,
        now: SystemTime,
    ) -> bool {
        if self.broken {
            return true;
        }
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let dropped = guarded(|| self.tables.get()?.prune(present, young, now));
        match &dropped {
            Ok(0) => {}
            Ok(dropped) => log::info!(
                "dropped {dropped} entries from hash cache \"{}\": their files are gone",
                self.path.display()
            ),
            Err(err) => log::error!(
                "cannot drop old entries from hash cache \"{}\" ({err})",
                self.path.display()
            ),
        }
        dropped.is_ok()
    }

    /// The value without its check, if it is there and whole.
    fn get(
        &mut self,
        table: impl Fn(&Tables) -> &ReadOnlyTable<Bytes, Bytes>,
        key: &[u8],
    ) -> Option<Vec<u8>> {
        if self.broken {
            return None;
        }
        let found = guarded(|| {
            let value = table(self.tables.get()?).get(key)?;
            Ok(value.map(|value| value.value().to_vec()))
        });
        match found {
            Ok(value) => unchecked(key, &value?).map(<[u8]>::to_vec),
            Err(err) => {
                log::warn!(
                    "cannot read hash cache \"{}\" ({err}), hashing again",
                    self.path.display()
                );
                self.broken = true;
                None
            }
        }
    }
}

impl Tables {
    fn open(path: &Path) -> Result<Self, Failure> {
        make_private(path).map_err(Failure::Io)?;
        let database = Database::builder().set_cache_size(CACHE).create(path)?;
        let begin = database.begin_write()?;
        begin.open_table(FILES)?;
        begin.open_table(PAIRS)?;
        begin.open_table(TEXTS)?;
        begin.commit()?;
        let read = database.begin_read()?;
        let (files, pairs) = (read.open_table(FILES)?, read.open_table(PAIRS)?);
        let texts = read.open_table(TEXTS)?;
        Ok(Self { files, pairs, texts, database })
    }

    fn write(
        &mut self,
        files: &[(Key, Record)],
        pairs: &[((Digest, Digest), Digest)],
        texts: &HashMap<String, Vec<u8>>,
        forgotten: &Forgotten,
    ) -> Result<(), Failure> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(FILES)?;
            for key in &forgotten.files {
                table.remove(&file_key(key)[..])?;
            }
            for (key, record) in files {
                let key = file_key(key);
                let mut value = record.digest.as_bytes().to_vec();
                value.extend(i128::from(record.changed).to_le_bytes());
                value.extend(record.path.to_le_bytes());
                table.insert(&key[..], &checked(&key, value)[..])?;
            }
            let mut table = write.open_table(PAIRS)?;
            for ((metadata, root), digest) in pairs {
                let key = pair_key(*metadata, *root);
                table.insert(&key[..], &checked(&key, digest.as_bytes().to_vec())[..])?;
            }
            let mut table = write.open_table(TEXTS)?;
            for path in &forgotten.texts {
                table.remove(path.as_bytes())?;
            }
            for (path, text) in texts {
                table.insert(path.as_bytes(), &checked(path.as_bytes(), text.clone())[..])?;
            }
        }
        write.commit()?;
        self.reopen()
    }

    /// See [`Store::all`].
    fn all(&mut self) -> Result<Option<Ahead>, Failure> {
        let (files, pairs) = (self.files.len()?, self.pairs.len()?);
        if files + pairs > MAX_AHEAD {
            return Ok(None);
        }
        let mut all = Ahead::default();
        for entry in self.files.iter()? {
            let (key, value) = entry?;
            let value = unchecked(key.value(), value.value()).and_then(record);
            all.files.extend(key_of(key.value()).zip(value));
        }
        for entry in self.pairs.iter()? {
            let (key, value) = entry?;
            let (key, value) = (key.value(), unchecked(key.value(), value.value()));
            let digest = |bytes: &[u8]| bytes.first_chunk().copied().map(Digest::from_bytes);
            let (metadata, root) = key.split_at(key.len() / 2);
            all.pairs.extend(digest(metadata).zip(digest(root)).zip(value.and_then(digest)));
        }
        Ok(Some(all))
    }

    /// Makes what was written visible.
    fn reopen(&mut self) -> Result<(), Failure> {
        let read = self.database.begin_read()?;
        (self.files, self.pairs) = (read.open_table(FILES)?, read.open_table(PAIRS)?);
        self.texts = read.open_table(TEXTS)?;
        Ok(())
    }

    /// See [`Store::prune`]; `now` in seconds since the epoch. Says how many entries were dropped.
    fn prune(
        &mut self,
        present: &Present,
        mut digests: HashSet<Digest>,
        now: u64,
    ) -> Result<usize, Failure> {
        let mut dropped = 0;
        let files: HashSet<Vec<u8>> = present.files.iter().map(file_key).collect();
        let is_file = |key: &[u8]| files.contains(key);
        let is_text =
            |key: &[u8]| str::from_utf8(key).is_ok_and(|path| present.texts.contains(path));
        let kinds: [(u8, _, IsPresent<'_>); 2] = [(b'f', FILES, &is_file), (b't', TEXTS, &is_text)];
        let write = self.database.begin_write()?;
        {
            // What is gone and kept; rewritten each time, so that it holds nothing else.
            let mut kept = Vec::new();
            let mut gone = write.open_table(GONE)?;
            for (mark, table, is_present) in kinds {
                let mut table = write.open_table(table)?;
                let mut due = Vec::new();
                for entry in table.iter()? {
                    let (key, value) = entry?;
                    let (key, value) = (key.value(), value.value());
                    let marked = [&[mark], key].concat();
                    if !is_present(key) {
                        let since = gone.get(&marked[..])?;
                        let since = since.and_then(|value| seconds(&marked, value.value()));
                        // A clock that went back begins anew.
                        let since = since.filter(|since| *since <= now).unwrap_or(now);
                        if now - since >= KEEP.as_secs() {
                            due.push(key.to_vec());
                            continue;
                        }
                        kept.push((marked, since));
                    }
                    if let (b'f', Some(digest)) = (mark, value.first_chunk::<32>()) {
                        digests.insert(Digest::from_bytes(*digest));
                    }
                }
                dropped += due.len();
                for key in due {
                    table.remove(&key[..])?;
                }
            }
            gone.retain(|_, _| false)?;
            for (key, since) in kept {
                gone.insert(&key[..], &checked(&key, since.to_le_bytes().to_vec())[..])?;
            }
            let mut pairs = write.open_table(PAIRS)?;
            pairs.retain(|key, _| {
                let (metadata, root) = key.split_at(key.len() / 2);
                let keep = [metadata, root].iter().all(|digest| {
                    let digest = digest.first_chunk().copied().map(Digest::from_bytes);
                    digest.is_some_and(|digest| digests.contains(&digest))
                });
                dropped += usize::from(!keep);
                keep
            })?;
        }
        write.commit()?;
        self.reopen()?;
        Ok(dropped)
    }
}

/// Whether the file of a key is there.
type IsPresent<'a> = &'a dyn Fn(&[u8]) -> bool;

/// The time in a value of `gone1`, if it is whole.
fn seconds(key: &[u8], value: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*unchecked(key, value)?.first_chunk()?))
}

/// Makes sure that the file is there and this user's alone: nginx's processes have no umask, and whoever can
/// write hashes decides what is served.
fn make_private(path: &Path) -> io::Result<()> {
    let open = || {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    };
    let file = match open() {
        // Of another user, who had the directory before: it is ours now.
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            std::fs::remove_file(path)?;
            open()?
        }
        other => other?,
    };
    file.set_permissions(Permissions::from_mode(0o600))
}

fn file_key(key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(56);
    for part in [key.device, key.inode, key.size] {
        bytes.extend(part.to_le_bytes());
    }
    bytes.extend(i128::from(key.modified).to_le_bytes());
    bytes.extend(key.born.map_or(i128::MIN, i128::from).to_le_bytes());
    bytes
}

/// What a key of `files1` says.
fn key_of(bytes: &[u8]) -> Option<Key> {
    let (numbers, times) = bytes.split_first_chunk::<24>()?;
    let number = |at: usize| Some(u64::from_le_bytes(*numbers[at..].first_chunk()?));
    let time = |at: usize| Some(i128::from_le_bytes(*times.get(at..)?.first_chunk()?));
    let born = time(16)?;
    Some(Key {
        device: number(0)?,
        inode: number(8)?,
        size: number(16)?,
        modified: i64::try_from(time(0)?).ok()?,
        born: if born == i128::MIN { None } else { Some(i64::try_from(born).ok()?) },
    })
}

/// What a value of `files1` says, without its check.
fn record(value: &[u8]) -> Option<Record> {
    let (digest, rest) = value.split_first_chunk::<32>()?;
    let (changed, rest) = rest.split_first_chunk::<16>()?;
    let (path, _) = rest.split_first_chunk::<8>()?;
    Some(Record {
        digest: Digest::from_bytes(*digest),
        changed: i64::try_from(i128::from_le_bytes(*changed)).ok()?,
        path: u64::from_le_bytes(*path),
    })
}

/// The value without its check, if it is whole.
fn unchecked<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (value, check) = value.split_at_checked(value.len().checked_sub(8)?)?;
    (check == check_of(key, value).to_le_bytes()).then_some(value)
}

fn pair_key(metadata: Digest, root: Digest) -> Vec<u8> {
    [*metadata.as_bytes(), *root.as_bytes()].concat()
}

fn checked(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let check = check_of(key, &value);
    value.extend(check.to_le_bytes());
    value
}

fn check_of(key: &[u8], value: &[u8]) -> u64 {
    let mut hash = Xxh3Default::new();
    hash.update(key);
    hash.update(value);
    hash.digest()
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("another process uses it")]
    Locked,
    #[error("{0}")]
    Io(io::Error),
    #[error("{0}")]
    Damaged(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(err: E) -> Self {
        match err.into() {
            redb::Error::DatabaseAlreadyOpen => Self::Locked,
            // What redb says of a file that it does not know.
            redb::Error::Io(err) if err.kind() != io::ErrorKind::InvalidData => match err.kind() {
                io::ErrorKind::UnexpectedEof => Self::Damaged(err.to_string()),
                _ => Self::Io(err),
            },
            err => Self::Damaged(err.to_string()),
        }
    }
}

/// Runs what may panic: redb asserts what it expects of its own pages, and a damaged file must not
/// end the builder.
fn guarded<T>(run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // After a panic the database is not used again, so no broken invariant is seen.
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(Failure::Damaged("its pages make no sense".to_owned())))
}
