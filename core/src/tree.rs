//! The tree on disk, seen from its root: paths, symbolic links and the identity of files.
//!
//! Paths inside the core are relative to the root, valid UTF-8, with `/` between components: as
//! they stand in the index. This module is the only place that turns them into paths of the system.

use std::fs::{self, File, Metadata};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxFlags, StatxTimestamp,
};
use rustix::io::Errno;

/// What identifies the content of a file without reading it.
///
/// Times are as far as 64 bits go, from 1677 to 2262. That of the inode cannot be set to others.
///
/// Equal stamps mean equal content as long as nobody writes within the granularity of the file
/// system's clock; the watcher covers that gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change of content, in nanoseconds since the epoch.
    pub modified: i64,
    /// Time of the last change of content or inode, in nanoseconds since the epoch.
    pub changed: i64,
    /// Time at which the inode was made, in nanoseconds since the epoch, where the file system
    /// keeps it. Inode numbers are handed out again as soon as they are free.
    pub born: Option<i64>,
}

impl Stamp {
    /// The stamp in a file's metadata.
    pub fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: nanoseconds(meta.mtime(), meta.mtime_nsec()),
            changed: nanoseconds(meta.ctime(), meta.ctime_nsec()),
            born: meta.created().ok().map(since_epoch),
        }
    }

    fn of_statx(found: &Statx) -> Self {
        let time = |at: StatxTimestamp| nanoseconds(at.tv_sec, at.tv_nsec.into());
        let knows_birth = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        Self {
            device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            size: found.stx_size,
            modified: time(found.stx_mtime),
            changed: time(found.stx_ctime),
            born: knows_birth.then(|| time(found.stx_btime)),
        }
    }
}

fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Nanoseconds since the epoch; the nearest there is before 1677 and after 2262.
pub fn since_epoch(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX),
    }
}

/// A tree, by its root.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Arc<Path>,
}

/// What a directory entry turned out to be, symbolic links followed.
#[derive(Debug)]
pub enum Entry {
    /// A directory.
    Directory {
        /// Where it really is, if the name is a symbolic link to it.
        link: Option<PathBuf>,
    },
    /// A regular file.
    File {
        /// Its identity.
        stamp: Stamp,
        /// Number of names that it has.
        links: u64,
    },
    /// A FIFO, socket or device.
    Special,
    /// A symbolic link whose target is outside of the root.
    Outside,
    /// A symbolic link whose target does not exist, or one of a loop.
    Dangling,
}

/// What [`Anchor::plain`] found.
#[derive(Debug)]
pub enum Plain {
    /// A directory.
    Directory(Stamp),
    /// As [`Entry::File`].
    File {
        /// Its identity.
        stamp: Stamp,
        /// Number of names that it has.
        links: u64,
    },
}

impl Tree {
    /// The tree under `root`, which need not exist yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of the system for a path in the tree; empty for the root itself.
    pub fn absolute(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.to_path_buf() } else { self.root.join(path) }
    }

    /// Looks at `path`, following symbolic links as long as they stay below the root.
    ///
    /// # Errors
    ///
    /// When the entry cannot be looked at; `NotFound` if it went away.
    pub fn entry(&self, path: &str) -> io::Result<Entry> {
        let absolute = self.absolute(path);
        let meta = fs::symlink_metadata(&absolute)?;
        if !meta.is_symlink() {
            return Ok(Self::sort(meta, None));
        }
        let target = match fs::canonicalize(&absolute) {
            Ok(target) => target,
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied || is_passing(&err) => {
                return Err(err);
            }
            Err(_) => return Ok(Entry::Dangling),
        };
        if !target.starts_with(fs::canonicalize(&self.root)?) {
            return Ok(Entry::Outside);
        }
        let meta = fs::metadata(&target)?;
        Ok(Self::sort(meta, Some(target)))
    }

    fn sort(meta: Metadata, link: Option<PathBuf>) -> Entry {
        if meta.is_dir() {
            Entry::Directory { link }
        } else if meta.is_file() {
            Entry::File { stamp: Stamp::of(&meta), links: meta.nlink() }
        } else {
            Entry::Special
        }
    }

    /// Finds the root.
    ///
    /// # Errors
    ///
    /// When it cannot be had; `NotFound` if it is not there.
    pub fn anchor(&self) -> Result<Anchor, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&*self.root, flags, Mode::empty())?;
        Ok(Anchor { tree: self.clone(), fd: Arc::new(fd) })
    }

    /// Whether `path`, with every symbolic link on the way followed, lies below the root.
    pub fn contains(&self, path: &str) -> bool {
        let real = |path: &Path| fs::canonicalize(path).ok();
        real(&self.absolute(path))
            .zip(real(&self.root))
            .is_some_and(|(path, root)| path.starts_with(root))
    }

    /// The stamp of what `path` leads to, symbolic links followed.
    ///
    /// # Errors
    ///
    /// When it cannot be looked at; `NotFound` if it is not there.
    pub fn stamp(&self, path: &str) -> io::Result<Stamp> {
        Ok(Stamp::of(&fs::metadata(self.absolute(path))?))
    }

    /// Whether what was opened as `path` lies below the root.
    fn is_inside(&self, fd: &OwnedFd, path: &str) -> io::Result<bool> {
        // What was opened, not what is there by now; where the kernel tells.
        match fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
            Ok(opened) => Ok(opened.starts_with(fs::canonicalize(&*self.root)?)),
            Err(_) => Ok(self.contains(path)),
        }
    }

    /// As [`Anchor::open`].
    ///
    /// # Errors
    ///
    /// Those of [`Anchor::open`].
    pub fn open(&self, path: &str, stamp: &Stamp) -> io::Result<Option<File>> {
        open_at(CWD, &self.absolute(path), stamp)
    }
}

/// Where a tree is. Tens of thousands may wait for something with it.
#[derive(Clone, Debug)]
pub enum Place {
    /// By its root's name.
    Tree(Tree),
    /// By its root, which is open: for those who share one, for each by itself would be a descriptor.
    Anchor(Anchor),
}

impl Place {
    /// Its root, open.
    ///
    /// # Errors
    ///
    /// When the root cannot be opened.
    pub fn anchor(&self) -> io::Result<Anchor> {
        match self {
            Self::Anchor(anchor) => Ok(anchor.clone()),
            Self::Tree(tree) => Ok(tree.anchor()?),
        }
    }

    /// Whether both are the same tree.
    pub fn is_of(&self, other: &Self) -> bool {
        self.tree().root == other.tree().root
    }

    fn tree(&self) -> &Tree {
        match self {
            Self::Anchor(anchor) => anchor.tree(),
            Self::Tree(tree) => tree,
        }
    }
}

/// A directory of the tree, open: its entries are looked at without a walk from the root to each.
#[derive(Debug)]
pub struct Directory<'a> {
    tree: &'a Tree,
    path: &'a str,
    fd: OwnedFd,
}

/// The root of a tree, as it is now: where thousands of directories and files are opened, the way to it
/// is gone once. What is opened by it is of this directory, even if another one has the root's name by
/// then.
#[derive(Clone, Debug)]
pub struct Anchor {
    tree: Tree,
    fd: Arc<OwnedFd>,
}

impl Anchor {
    /// The tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// As [`Tree::stamp`].
    ///
    /// # Errors
    ///
    /// Those of [`Tree::stamp`].
    pub fn stamp(&self, path: &str) -> io::Result<Stamp> {
        match rustix::fs::statx(&self.fd, path, AtFlags::empty(), IDENTITY) {
            Ok(found) => Ok(Stamp::of_statx(&found)),
            // This system has no such call.
            Err(Errno::NOSYS | Errno::PERM) => self.tree.stamp(path),
            Err(err) => Err(err.into()),
        }
    }

    /// The directory or regular file at `path` itself: `None` if a symbolic link has its name, or anything
    /// else, or it cannot be looked at. Links above it are followed, out of the root even: for what was
    /// found in a directory a moment ago, with a watch that tells of what happened meanwhile.
    pub fn plain(&self, path: &str) -> Option<Plain> {
        let found = rustix::fs::statx(&self.fd, path, AtFlags::SYMLINK_NOFOLLOW, IDENTITY).ok()?;
        let (stamp, links) = (Stamp::of_statx(&found), found.stx_nlink.into());
        match FileType::from_raw_mode(found.stx_mode.into()) {
            FileType::Directory => Some(Plain::Directory(stamp)),
            FileType::RegularFile => Some(Plain::File { stamp, links }),
            _ => None,
        }
    }

    /// Opens the regular file at `path`, provided it still is the one with `stamp`.
    ///
    /// The stamp was taken after the checks of [`Directory::entry`], so a path that now leads
    /// elsewhere, out of the root even, is noticed before a byte is read. Opening never blocks,
    /// should a FIFO have taken the file's place.
    ///
    /// # Errors
    ///
    /// `Ok(None)` if it is another file by now, otherwise the error of the system.
    pub fn open(&self, path: &str, stamp: &Stamp) -> io::Result<Option<File>> {
        open_at(self.fd.as_fd(), Path::new(path), stamp)
    }

    /// Opens the directory at `path`, symbolic links followed as long as they stay below the root.
    ///
    /// # Errors
    ///
    /// When it cannot be read; `NotFound` if it went away, or out of the root.
    pub fn directory<'a>(&'a self, path: &'a str) -> io::Result<Directory<'a>> {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = match rustix::fs::openat2(&self.fd, path, DIRECTORY, Mode::empty(), beneath) {
            // It leads out of the root; or by an absolute link, which may lead back into it; or this
            // system has no such call.
            Err(Errno::XDEV | Errno::NOSYS | Errno::PERM) => {
                let fd = rustix::fs::openat(&self.fd, path, DIRECTORY, Mode::empty())?;
                self.tree.is_inside(&fd, path)?.then_some(fd).ok_or(Errno::NOENT)?
            }
            other => other?,
        };
        Ok(Directory { tree: &self.tree, path, fd })
    }
}

/// How directories are opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Directory<'_> {
    /// Its stamp.
    ///
    /// # Errors
    ///
    /// When it cannot be looked at.
    pub fn stamp(&self) -> io::Result<Stamp> {
        match rustix::fs::statx(&self.fd, "", AtFlags::EMPTY_PATH, IDENTITY) {
            Ok(found) => Ok(Stamp::of_statx(&found)),
            Err(_) => self.tree.stamp(self.path),
        }
    }

    /// Its entries' names, sorted, without those that begin with a dot; `.requirements` alone is
    /// seen. Each with whether it is a directory and no link to one, as far as the file system says
    /// so by itself.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn names(&self) -> io::Result<Vec<(Vec<u8>, bool)>> {
        let mut names = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut entries = RawDir::new(&self.fd, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !name.starts_with(b".") || name == b".requirements" {
                names.push((name.to_vec(), entry.file_type() == FileType::Directory));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// As [`Tree::entry`], of the entry called `name`.
    ///
    /// # Errors
    ///
    /// Those of [`Tree::entry`].
    pub fn entry(&self, name: &str) -> io::Result<Entry> {
        let found = rustix::fs::statx(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW, IDENTITY);
        match found.map(|found| (FileType::from_raw_mode(found.stx_mode.into()), found)) {
            Ok((FileType::RegularFile, found)) => {
                Ok(Entry::File { stamp: Stamp::of_statx(&found), links: found.stx_nlink.into() })
            }
            Ok((FileType::Directory, _)) => Ok(Entry::Directory { link: None }),
            // A link, or a system that has no such call: the way that goes everywhere.
            _ => self.tree.entry(&join(self.path, name)),
        }
    }
}

/// What a stamp is made of.
const IDENTITY: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

fn open_at(directory: BorrowedFd<'_>, path: &Path, stamp: &Stamp) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(directory, path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    Ok((meta.is_file() && Stamp::of(&meta) == *stamp).then_some(file))
}

/// Whether an error is of this process and this moment, out of descriptors or memory, and says nothing
/// about what is on disk.
pub fn is_passing(err: &io::Error) -> bool {
    // A stale handle is that of a directory which another host replaced.
    let passing =
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::INTR, Errno::STALE];
    err.raw_os_error().is_some_and(|code| passing.iter().any(|of| of.raw_os_error() == code))
}

/// `directory/name`, or `name` where the directory is the root.
pub fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// Whether `path` is `directory` or lies below it.
pub fn is_below(path: &str, directory: &str) -> bool {
    directory.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_inside_and_refused_outside() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("f"), "x").unwrap();
        fs::write(root.join("a/f"), "x").unwrap();
        symlink("../outside/f", root.join("relative-out")).unwrap();
        symlink(&outside, root.join("absolute-out")).unwrap();
        symlink(root.join("a/f"), root.join("absolute-in")).unwrap();
        symlink("a/b", root.join("dir-in")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();

        let tree = Tree::new(&root);
        let entry = |path: &str| {
            let found = tree.entry(path).unwrap();
            let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
            let anchor = tree.anchor().unwrap();
            let directory = if directory.is_empty() { "." } else { directory };
            let same = anchor.directory(directory).unwrap().entry(name).unwrap();
            assert_eq!(format!("{found:?}"), format!("{same:?}"), "by way of its directory");
            found
        };
        assert!(matches!(entry("a/f"), Entry::File { .. }));
        assert!(matches!(entry("a/b"), Entry::Directory { link: None }));
        assert!(matches!(entry("relative-out"), Entry::Outside));
        assert!(matches!(entry("absolute-out"), Entry::Outside));
        assert!(matches!(entry("absolute-in"), Entry::File { .. }));
        assert!(matches!(entry("dir-in"), Entry::Directory { link: Some(_) }));
        assert!(matches!(entry("loop"), Entry::Dangling));
        assert!(matches!(entry("dangling"), Entry::Dangling));
        assert_eq!(tree.entry("gone").unwrap_err().kind(), io::ErrorKind::NotFound);

        fs::create_dir(outside.join("d")).unwrap();
        symlink("../outside/d", root.join("dir-out")).unwrap();
        symlink(outside.join("d"), root.join("absolute-dir-out")).unwrap();
        symlink(root.join("a"), root.join("absolute-dir-in")).unwrap();
        let anchor = tree.anchor().unwrap();
        for path in ["a/b", "dir-in", "absolute-dir-in", "absolute-dir-in/b"] {
            anchor.directory(path).unwrap();
        }
        for path in ["dir-out", "absolute-dir-out", "gone"] {
            let err = anchor.directory(path).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::NotFound, "{path}");
        }
    }

    #[test]
    fn a_file_that_was_swapped_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(dir.path());
        fs::write(dir.path().join("f"), "one").unwrap();
        let stamp = Stamp::of(&fs::metadata(dir.path().join("f")).unwrap());
        assert!(tree.open("f", &stamp).unwrap().is_some());
        fs::remove_file(dir.path().join("f")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("f"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(tree.open("f", &stamp).unwrap().is_none(), "and it did not block");
    }

    #[test]
    fn below_means_whole_components() {
        assert!(
            is_below("images/a", "images") && is_below("images", "images") && is_below("x", "")
        );
        assert!(!is_below("images-daily/a", "images"));
    }
}
