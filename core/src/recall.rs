//! Directories as an earlier process saw them: those that did not change since need not be read again.
//!
//! Names come into a directory and go out of it only with a new time of its inode, as file systems go
//! that are this machine's alone; the others, and those that are mounted below the root, are read. Like a
//! [hash](crate::cache), what was read within the granularity of the clock after the last change is not
//! remembered. Files are looked at in any case.
//!
//! It is for the first look of a process, and for nothing else: a rescan reads every directory.
//!
//! The file: eight bytes by which it is known, XXH3 of the version that wrote it, to which other names may
//! matter (8, little-endian as all numbers), XXH3 of what follows (8), the number of directories (8); for
//! each, in the order of the first, XXH3 of its stamp (8), and where its names begin (4) in the text with
//! which the file ends: names, each with a `/`, and a zero behind the last. Paths are not in it: a stamp has
//! the inode in it, and there are no two directories with one. Nor are the same names twice.

use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use foldhash::HashMap;
use rustix::fs::StatFs;
use xxhash_rust::xxh3::xxh3_64;

use crate::cache::STAND;
use crate::snapshot;
use crate::tree::{Anchor, Plain, Stamp, Tree, since_epoch};

const MAGIC: [u8; 8] = *b"ssdirs\0\x01";

/// Longest file that is read, in bytes: that of several million directories.
const MAX_BYTES: u64 = 512 << 20;

/// Bytes before the first directory.
const HEAD: usize = 8 + 8 + 8 + 8;

/// Where what the check is of begins.
const CHECKED: usize = 8 + 8 + 8;

/// Bytes of each.
const RECORD: usize = 8 + 4;

/// Directories are found by the first bits of the hash of their stamp first, of which there are so many
/// values.
const BUCKETS: usize = 1 << 16;

/// Magic numbers of file systems that keep the times of directories, and have nobody else change them:
/// ext2 to ext4, XFS, Btrfs, ZFS, F2FS, bcachefs, tmpfs (`statfs(2)`, and OpenZFS for its own).
const KEEP_TIMES: [u64; 7] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x2fc1_2fc1, 0xf2f5_2010, 0xca45_1a4e, 0x0102_1994];

/// What a directory was when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Hash of the names that matter in it.
    names: NonZeroU32,
    /// Hash of its stamp. As bytes, for there may be hundreds of thousands of marks, each beside
    /// another small number.
    stamp: [u8; 8],
}

impl Mark {
    /// `names` each with a `/`.
    fn new(stamp: u64, names: &str) -> Self {
        // Its lower half is as good as any.
        let names = xxh3_64(names.as_bytes()) as u32;
        let names = NonZeroU32::new(names).unwrap_or(NonZeroU32::MIN);
        Self { names, stamp: stamp.to_le_bytes() }
    }

    fn stamp(self) -> u64 {
        u64::from_le_bytes(self.stamp)
    }
}

/// As what a directory was read: other names matter in the one than in the other, and where a directory is
/// moved may make one of it that was the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Above versions.
    Above,
    /// That of a version.
    Version,
}

fn hash_of(stamp: &Stamp, role: Role) -> u64 {
    let Stamp { device, inode, size, modified, changed, born } = *stamp;
    let born = born.unwrap_or(0).cast_unsigned();
    let numbers = [device, inode, size, modified.cast_unsigned(), changed.cast_unsigned(), born];
    let mut bytes = [0; 49];
    for (bytes, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    bytes[48] = u8::from(role == Role::Version);
    xxh3_64(&bytes)
}

/// What is remembered of a tree's directories, and which may be.
#[derive(Debug)]
pub struct Recall {
    device: u64,
    known: Option<Known>,
    /// Directories that were.
    recalled: AtomicUsize,
}

impl Recall {
    /// For the tree as it is now, with what the file at `path` says, if one is given; `None` if nothing
    /// can be told of a directory by its times. Trouble with the file is logged, it is not needed.
    pub fn begin(tree: &Tree, path: Option<&Path>) -> Option<Self> {
        let stamp = tree.stamp("").ok()?;
        let StatFs { f_type, .. } = rustix::fs::statfs(tree.root()).ok()?;
        // Of other types on other processors.
        let keeps = u64::try_from(f_type).is_ok_and(|of| KEEP_TIMES.contains(&of));
        keeps.then(|| Self::new(stamp.device, path.and_then(Known::read)))
    }

    fn new(device: u64, known: Option<Known>) -> Self {
        Self { device, known, recalled: AtomicUsize::new(0) }
    }

    /// Nothing is known from now on, for what was read is newer. Says how many directories were as they are
    /// in the file.
    pub fn end_first_look(&mut self) -> usize {
        self.known = None;
        std::mem::take(self.recalled.get_mut())
    }

    /// The names that matter in the directory at `path`, if it did not change; with its mark. Where nothing is
    /// known, there is no look.
    pub fn look(
        &self,
        anchor: &Anchor,
        path: &str,
        role: Role,
    ) -> Option<(Mark, impl Iterator<Item = &str>)> {
        self.known.as_ref()?;
        match anchor.plain(path)? {
            Plain::Directory(stamp) => self.names(stamp, role),
            Plain::File { .. } => None,
        }
    }

    /// The names that matter in the directory that has this stamp, if it did not change; with its mark.
    fn names(&self, stamp: Stamp, role: Role) -> Option<(Mark, impl Iterator<Item = &str>)> {
        let stamp = hash_of(&stamp, role);
        let names = self.known.as_ref()?.find(stamp)?;
        self.recalled.fetch_add(1, Ordering::Relaxed);
        Some((Mark::new(stamp, names), names.split_terminator('/')))
    }

    /// The mark of a directory that had this stamp before it was read, at the time `now`, and these names
    /// then, sorted; none if it changed too short a time ago to tell.
    pub fn mark<'n>(
        &self,
        stamp: &Stamp,
        role: Role,
        now: SystemTime,
        names: impl Iterator<Item = &'n str>,
    ) -> Option<Mark> {
        let until = now.checked_sub(STAND).map_or(i64::MIN, since_epoch);
        let stands = stamp.device == self.device && stamp.changed < until;
        stands.then(|| {
            let mut text = String::new();
            names.for_each(|name| text.extend([name, "/"]));
            Mark::new(hash_of(stamp, role), &text)
        })
    }
}

/// The content of a file.
#[derive(Debug)]
struct Known {
    /// Behind what the file begins with.
    records: Vec<u8>,
    text: String,
    /// For each value of the first bits of hashes, which directories begin with it: from this number to
    /// the next.
    buckets: Vec<u32>,
}

impl Known {
    fn read(path: &Path) -> Option<Self> {
        let bytes = match snapshot::read_regular(path, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return None,
            Err(err) => {
                log::warn!("cannot read \"{}\" ({err}), reading all directories", path.display());
                return None;
            }
        };
        if bytes.get(8..16).is_some_and(|by| *by != made_by().to_le_bytes()) {
            log::debug!("\"{}\" is of another version", path.display());
            return None;
        }
        let known = Self::new(bytes);
        if known.is_none() {
            log::warn!("\"{}\" is damaged, reading all directories", path.display());
        }
        known
    }

    fn new(mut bytes: Vec<u8>) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (by, rest) = rest.split_first_chunk()?;
        let (check, rest) = rest.split_first_chunk()?;
        let is_ours = *magic == MAGIC && u64::from_le_bytes(*by) == made_by();
        if !is_ours || u64::from_le_bytes(*check) != xxh3_64(rest) {
            return None;
        }
        let (count, rest) = rest.split_first_chunk()?;
        let count = usize::try_from(u64::from_le_bytes(*count)).ok()?;
        let (records, _) = rest.split_at_checked(count.checked_mul(RECORD)?)?;
        let mut buckets = Vec::with_capacity(BUCKETS + 1);
        for (number, record) in records.chunks(RECORD).enumerate() {
            let bucket = bucket_of(parse(record)?.0);
            if bucket + 1 < buckets.len() {
                return None; // They are not in their order.
            }
            buckets.resize(bucket + 1, u32::try_from(number).ok()?);
        }
        buckets.resize(BUCKETS + 1, u32::try_from(count).ok()?);
        let text = String::from_utf8(bytes.split_off(HEAD + count * RECORD)).ok()?;
        Some(Self { records: bytes, text, buckets })
    }

    /// The names in the directory whose stamp had this hash, each with a `/`.
    fn find(&self, stamp: u64) -> Option<&str> {
        let [from, to] = *self.buckets.get(bucket_of(stamp)..)?.first_chunk()?;
        let range = HEAD + from as usize * RECORD..HEAD + to as usize * RECORD;
        let mut records = self.records.get(range)?.chunks(RECORD).filter_map(parse);
        let (_, at) = records.find(|(of, _)| *of == stamp)?;
        let (names, _) = self.text.get(at as usize..)?.split_once('\0')?;
        Some(names)
    }
}

fn bucket_of(stamp: u64) -> usize {
    (stamp >> (64 - BUCKETS.ilog2())) as usize
}

/// Hash of this version.
fn made_by() -> u64 {
    xxh3_64(env!("CARGO_PKG_VERSION").as_bytes())
}

/// The hash of a directory's stamp, and where its names begin.
fn parse(record: &[u8]) -> Option<(u64, u32)> {
    let (stamp, at) = record.split_first_chunk()?;
    Some((u64::from_le_bytes(*stamp), u32::from_le_bytes(*at.first_chunk()?)))
}

/// Gathers what a file is to say.
#[derive(Debug, Default)]
pub struct Record {
    /// Hashes of stamps, and where names begin.
    directories: Vec<(u64, u32)>,
    text: String,
    /// Where names are, by their hash: those of most directories are those of others too.
    places: HashMap<NonZeroU32, u32>,
}

impl Record {
    /// Adds a directory, and the names that matter in it by now, sorted: if they are others than those that
    /// were marked, it is left out.
    ///
    /// # Errors
    ///
    /// With more than four gigabytes of names.
    pub fn add<'n>(&mut self, mark: Mark, names: impl Iterator<Item = &'n str>) -> io::Result<()> {
        let Self { directories, text, places } = self;
        let end = text.len();
        names.for_each(|name| text.extend([name, "/"]));
        let is_as_marked = Mark::new(mark.stamp(), &text[end..]) == mark;
        text.push('\0');
        let known = places.get(&mark.names).copied();
        let known = known.filter(|at| text[*at as usize..end].starts_with(&text[end..]));
        if known.is_some() || !is_as_marked {
            text.truncate(end);
        }
        if is_as_marked {
            let new = || u32::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge);
            let place = known.map_or_else(new, Ok)?;
            places.insert(mark.names, place);
            directories.push((mark.stamp(), place));
        }
        Ok(())
    }

    /// What the file says.
    pub fn encode(mut self) -> Vec<u8> {
        self.directories.sort_unstable();
        let length = HEAD + self.directories.len() * RECORD + self.text.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(MAGIC);
        bytes.extend(made_by().to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend((self.directories.len() as u64).to_le_bytes());
        for (stamp, at) in self.directories {
            bytes.extend(stamp.to_le_bytes());
            bytes.extend(at.to_le_bytes());
        }
        bytes.extend(self.text.as_bytes());
        let check = xxh3_64(&bytes[CHECKED..]);
        bytes[CHECKED - 8..CHECKED].copy_from_slice(&check.to_le_bytes());
        bytes
    }
}

/// The path of the file for the index `id`.
pub fn path(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(format!("{id}.directories"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::scan;

    fn stamp(inode: u64) -> Stamp {
        Stamp { device: 1, inode, size: 3, modified: 4, changed: 5, born: Some(6) }
    }

    fn recall() -> Recall {
        Recall::new(1, None)
    }

    fn names(recall: &Recall, stamp: &Stamp) -> Option<Vec<String>> {
        recall.names(*stamp, Role::Above).map(|(_, names)| names.map(str::to_owned).collect())
    }

    fn marked(stamp: &Stamp, names: &[&str]) -> Mark {
        recall().mark(stamp, Role::Above, SystemTime::now(), names.iter().copied()).unwrap()
    }

    fn encoded() -> Vec<u8> {
        let mut record = Record::default();
        let mut add = |number: u64, marked_names: &[&str], names: &[&str]| {
            let mark = marked(&stamp(number), marked_names);
            record.add(mark, names.iter().copied()).unwrap();
        };
        add(1, &["c", "d"], &["c", "d"]);
        add(2, &["b"], &["b"]);
        add(3, &[], &[]);
        // One that was marked with other names.
        add(4, &["x", "y"], &["x"]);
        for number in 100..150 {
            add(number, &["c", "d"], &["c", "d"]);
        }
        record.encode()
    }

    #[test]
    fn what_did_not_change_is_remembered() {
        let recall = Recall::new(1, Known::new(encoded()));
        assert_eq!(names(&recall, &stamp(1)).unwrap(), ["c", "d"]);
        assert_eq!(names(&recall, &stamp(2)).unwrap(), ["b"]);
        assert_eq!(names(&recall, &stamp(3)).unwrap(), [""; 0]);
        for number in 100..150 {
            assert_eq!(names(&recall, &stamp(number)).unwrap(), ["c", "d"]);
        }
        for of in [
            Stamp { changed: 6, ..stamp(1) },
            Stamp { device: 2, ..stamp(1) },
            Stamp { born: None, ..stamp(1) },
            stamp(4),
            stamp(5),
        ] {
            assert_eq!(names(&recall, &of), None, "{of:?}");
        }
        assert!(encoded().len() < 1000, "the same names are in it once");
        assert!(recall.names(stamp(1), Role::Version).is_none(), "it was none");
        let (mark, _) = recall.names(stamp(1), Role::Above).unwrap();
        assert_eq!(mark, marked(&stamp(1), &["c", "d"]), "and stays so");
    }

    #[test]
    fn what_changed_a_moment_ago_is_not() {
        let (recall, now) = (recall(), SystemTime::now());
        let mark = |stamp: &Stamp| recall.mark(stamp, Role::Above, now, std::iter::empty());
        assert!(mark(&stamp(1)).is_some());
        assert!(mark(&Stamp { device: 2, ..stamp(1) }).is_none(), "another file system");
        let ago = |seconds: i64| Stamp {
            changed: since_epoch(now) - seconds * 1_000_000_000,
            ..stamp(1)
        };
        assert!(mark(&ago(4)).is_some());
        assert!(mark(&ago(2)).is_none() && mark(&ago(-1000)).is_none());
    }

    #[test]
    fn a_file_that_is_damaged_is_of_no_use_and_no_harm() {
        let good = encoded();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(Known::new(bad).is_none(), "byte {at}");
            assert!(Known::new(good[..at].to_vec()).is_none(), "cut off at {at}");
        }
        // Sound by its check, and nonsense all the same.
        let checked = |mut bytes: Vec<u8>| {
            let check = xxh3_64(&bytes[CHECKED..]);
            bytes[CHECKED - 8..CHECKED].copy_from_slice(&check.to_le_bytes());
            Known::new(bytes)
        };
        for at in CHECKED..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x80;
            let recall = Recall::new(1, checked(bad));
            for of in [1, 2, 3, 100] {
                names(&recall, &stamp(of));
            }
        }
        assert!(checked([&good[..CHECKED], &[0xff; 8]].concat()).is_none());
    }

    /// A tree with two versions, and what is remembered of its directories: other names than are in them.
    struct Site {
        dir: tempfile::TempDir,
        tree: Tree,
    }

    const PRODUCT: &str = "images/a/1/amd64/default";
    const FILES: [&str; 2] = ["lxd.tar.xz", "rootfs.squashfs"];

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let tree = Tree::new(dir.path());
            for version in ["20240101", "20240102"] {
                let version = dir.path().join(PRODUCT).join(version);
                fs::create_dir_all(&version).unwrap();
                FILES.iter().for_each(|name| fs::write(version.join(name), "x").unwrap());
            }
            Self { dir, tree }
        }

        /// As if these directories had been read long after their last change.
        fn recall(&self, directories: &[(&str, &[&str])]) -> Recall {
            let device = self.tree.stamp("").unwrap().device;
            let mut record = Record::default();
            for (path, names) in directories {
                let Some(Plain::Directory(stamp)) = self.tree.anchor().unwrap().plain(path) else {
                    panic!("no directory: {path}");
                };
                let later = SystemTime::now() + 2 * STAND;
                let is_version = path.split('/').count() == 6;
                let role = if is_version { Role::Version } else { Role::Above };
                let names = names.iter().copied();
                let mark =
                    Recall::new(device, None).mark(&stamp, role, later, names.clone()).unwrap();
                record.add(mark, names).unwrap();
            }
            Recall::new(device, Some(Known::new(record.encode()).unwrap()))
        }

        fn versions(&self, recall: &Recall) -> Vec<String> {
            let walk = scan::walk(&self.tree, "images", Some(recall), &|_| (), &mut |(), _| ());
            assert!(walk.cut_short.is_none() && walk.problems.is_empty(), "{walk:?}");
            walk.versions.iter().map(|version| version.name().to_owned()).collect()
        }

        fn files(&self, recall: &Recall) -> Vec<String> {
            let version = format!("{PRODUCT}/20240101");
            let files = scan::files(&self.tree.anchor().unwrap(), &version, Some(recall)).unwrap();
            files.images.iter().map(|file| file.name.clone()).collect()
        }
    }

    #[test]
    fn a_directory_that_did_not_change_is_not_read() {
        let site = Site::new();
        let recall = site.recall(&[(PRODUCT, &["20240102"])]);
        assert_eq!(site.versions(&recall), ["20240102"], "as remembered, not as it is");
        fs::create_dir(site.dir.path().join(PRODUCT).join("20240103")).unwrap();
        assert_eq!(site.versions(&recall), ["20240101", "20240102", "20240103"], "it changed");
        // What is remembered of a directory is good wherever it lies; it is not of another's place.
        let recall = site.recall(&[("images/a", &["1"]), ("images/a/1", &["amd64"])]);
        assert_eq!(site.versions(&recall).len(), 3);
        assert_eq!(recall.recalled.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn files_of_a_version_are_looked_at_in_any_case() {
        let site = Site::new();
        let version = format!("{PRODUCT}/20240101");
        let recall = site.recall(&[(&version, &FILES[1..])]);
        assert_eq!(site.files(&recall), FILES[1..], "as remembered, not as it is");
        let path = site.dir.path().join(&version).join(FILES[1]);
        fs::write(&path, "longer").unwrap();
        let anchor = site.tree.anchor().unwrap();
        let files = scan::files(&anchor, &version, Some(&recall)).unwrap();
        assert_eq!(files.images[0].stamp.size, 6, "its directory is the same, it is not");
        fs::remove_file(&path).unwrap();
        assert_eq!(site.files(&recall), FILES[..1], "it is gone, and the directory another");
    }

    #[test]
    fn what_cannot_be_as_it_is_remembered_is_read() {
        let site = Site::new();
        let version = format!("{PRODUCT}/20240101");
        // A file that matters was never one of these.
        for names in [&["none.tar.xz"][..], &[".."], &["readme"], &["image.yaml"], &["a/b"]] {
            let recall = site.recall(&[(&version, names)]);
            let mut files = site.files(&recall);
            files.sort();
            assert_eq!(files, FILES, "{names:?}");
        }
        for name in ["..", "not a component", ".hidden"] {
            let recall = site.recall(&[("images/a/1", &[name]), (PRODUCT, &["20240102"])]);
            assert_eq!(site.versions(&recall), ["20240102"], "{name}");
        }
        std::os::unix::fs::symlink(FILES[0], site.dir.path().join(&version).join("incus.tar.xz"))
            .unwrap();
        let recall = site.recall(&[(&version, &["incus.tar.xz"])]);
        assert_eq!(site.files(&recall).len(), 3, "a link is looked at with more care");
    }
}
