//! What other processes may do in the state directory of a [`Builder`](crate::Builder): find out what
//! is built there, and have it hashed anew.
//!
//! Whoever asks makes the file `<id>.rehash`. The builder looks for it every second, renames it to
//! `<id>.rehashing`, and removes that when the generation that followed is published, or found equal
//! to the one before. Two names, so that a request that comes meanwhile is a new one. A builder that
//! is killed in between leaves the second file, and the next one carries the request out.

pub(crate) mod sweep;

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::{Snapshot, snapshot};

/// A request to hash everything anew, by the names of its files.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    asked: PathBuf,
    taken: PathBuf,
}

impl Request {
    pub(crate) fn new(state_dir: &Path, id: &str) -> Self {
        let path = |extension| state_dir.join(format!("{id}.{extension}"));
        Self { asked: path("rehash"), taken: path("rehashing") }
    }

    /// Takes it; false if there is none.
    pub(crate) fn take(&self) -> io::Result<bool> {
        match fs::rename(&self.asked, &self.taken) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
            taken => taken.map(|()| true),
        }
    }

    pub(crate) fn is_taken(&self) -> bool {
        fs::symlink_metadata(&self.taken).is_ok()
    }

    /// It has been carried out.
    pub(crate) fn finish(&self) -> io::Result<()> {
        fs::remove_file(&self.taken)
    }
}

/// Path of the file that the builder of the index `id` locks.
pub(crate) fn lock_path(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(format!("{id}.lock"))
}

/// Takes the lock; `None` while another process has it. The kernel releases it when its holder
/// ends, however that ends.
pub(crate) fn try_lock(path: &Path) -> io::Result<Option<File>> {
    // The mode is given, for nginx's processes have no umask.
    let open = || File::options().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = match open() {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            // Of another user, who had the directory before: it is ours now.
            fs::remove_file(path)?;
            open()?
        }
        other => other?,
    };
    match file.try_lock() {
        // Who comes next locks what has the name.
        Ok(()) => Ok(is_named(&file, path)?.then_some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(err)) => Err(err),
    }
}

/// Whether the file still has the name that it was opened by.
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match fs::symlink_metadata(path) {
        Ok(named) => Ok(identity(named) == identity(file.metadata()?)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(err),
    }
}

/// The [ids](crate::Settings::id) of the indexes of `root` that some process builds in `state_dir` at
/// the moment, sorted. Roots are the same if they are the same directory.
///
/// # Errors
///
/// When the directory cannot be read. Files in it that cannot be used are passed over.
pub fn find(state_dir: &Path, root: &Path) -> io::Result<Vec<String>> {
    let same = |other: &str| match (fs::canonicalize(other), fs::canonicalize(root)) {
        (Ok(other), Ok(root)) => other == root,
        _ => Path::new(other) == root,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(state_dir)? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".snapshot")) else {
            continue;
        };
        // First, for what was left by other settings is not worth reading.
        if !is_built(state_dir, id)? {
            continue;
        }
        match Snapshot::open(&snapshot::path(state_dir, id)) {
            Ok(snapshot) if !snapshot.root().is_empty() && same(snapshot.root()) => {
                found.push(id.to_owned());
            }
            Ok(_) => {}
            Err(err) => log::debug!("{err}"),
        }
    }
    found.sort();
    Ok(found)
}

/// Whether some process builds the index `id`: it holds the lock.
///
/// # Errors
///
/// When the lock is there and cannot be looked at.
pub fn is_built(state_dir: &Path, id: &str) -> io::Result<bool> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let path = lock_path(state_dir, id);
    let lock = match File::options().read(true).custom_flags(flags).open(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(false),
        lock => lock?,
    };
    match lock.try_lock_shared() {
        // Given back at once. A builder that tries in this moment tries again a moment later.
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(err)) => Err(err),
    }
}

/// Asks the builder of the index `id` to hash every file anew. What is listed stays so meanwhile.
///
/// # Errors
///
/// When the request cannot be written, which only the user of the directory may, and root.
pub fn request_rehash(state_dir: &Path, id: &str) -> io::Result<()> {
    let Request { asked, .. } = Request::new(state_dir, id);
    match fs::remove_file(&asked) {
        // One that nobody has taken yet.
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let file = File::options().write(true).create_new(true).mode(0o600).open(&asked)?;
    if rustix::process::geteuid().is_root() {
        let owner = fs::metadata(state_dir)?;
        fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Whether a request for the index `id` has not been carried out yet.
pub fn is_rehashing(state_dir: &Path, id: &str) -> bool {
    let Request { asked, taken } = Request::new(state_dir, id);
    // In this order: it is renamed from the one to the other.
    [asked, taken].iter().any(|path| fs::symlink_metadata(path).is_ok())
}
