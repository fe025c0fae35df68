//! One writer per directory of index files, and one watch per pid file.
//!
//! Both are files that are locked (`flock`) for as long as their holder lives: the kernel releases
//! them however that ends. What is written in them is for people, and for `reload`.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::unistd::{Uid, User};
use rustix::fs::OFlags;

use crate::exit::{Exit, Stop};

/// In the directory of index files: whoever may write those may write this. It begins with a dot,
/// so that neither web servers nor mirrors take it for a part of the index.
const LOCK: &str = ".lxd-image-server.lock";

/// Longest line that is shown of such a file, in bytes.
const MAX_LINE: u64 = 512;

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Makes this process the one that writes index files into `streams_dir`.
///
/// # Errors
///
/// [`Exit::Locked`], with the holder, if another one is; a failure if the file cannot be had.
pub fn streams(streams_dir: &Path) -> Result<Lock> {
    let path = streams_dir.join(LOCK);
    let what = || format!("cannot lock \"{}\"", path.display());
    let mut file = open(&path).map_err(|err| refused(err, streams_dir)).with_context(what)?;
    match file.try_lock() {
        Ok(()) => {
            let command: Vec<String> = std::env::args().collect();
            write(&mut file, &format!("{} {}\n", std::process::id(), command.join(" ")))
                .with_context(what)?;
            Ok(Lock { _file: file })
        }
        Err(TryLockError::WouldBlock) => {
            let holder = read_start(&file);
            let (pid, command) = holder.trim().split_once(' ').unwrap_or(("unknown", "unknown"));
            let remedy = match command.split(' ').any(|word| word == "watch") {
                true => {
                    "it keeps the index up to date by itself; to do it by hand, stop it first (the \
                     service: systemctl stop lxd-image-server)"
                }
                false => "try again when it has ended",
            };
            Err(Stop::with(
                Exit::Locked,
                format!(
                    "the index in \"{}\" is written by another process: pid {pid}, \"{command}\"; \
                     {remedy}",
                    streams_dir.display()
                ),
            ))
        }
        Err(TryLockError::Error(err)) => Err(err).with_context(what),
    }
}

/// An error of opening a file in `dir`; where this user may not, with who may.
fn refused(err: io::Error, dir: &Path) -> anyhow::Error {
    if err.kind() != io::ErrorKind::PermissionDenied {
        return err.into();
    }
    let Ok(owner) = fs::metadata(dir).map(|meta| meta.uid()) else {
        return err.into();
    };
    let user = User::from_uid(Uid::from_raw(owner)).ok().flatten();
    let user = user.map_or_else(|| owner.to_string(), |user| user.name);
    let (dir, root) = (dir.display(), if owner == 0 { "" } else { ", or as root" });
    anyhow!(
        "{err}; run this as {user}, who owns \"{dir}\"{root}; or give that and what is in it to the \
         user who is to write there (chown -R)"
    )
}

/// Opens the lock file. One that root makes belongs to the directory's owner, so that the service
/// can lock it afterwards. Nobody else can open it: whoever can read a file can lock it too.
///
/// That owner may have put anything there, for root to write to and give away: only a file with one
/// name is taken, and only one that was made here changes hands.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(flags);
    let file = match options.clone().create_new(true).open(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
            let file = options.open(path)?;
            let meta = file.metadata()?;
            if !meta.is_file() || meta.nlink() > 1 {
                return Err(io::Error::other("it is no plain file with one name; remove it"));
            }
            let euid = rustix::process::geteuid();
            if meta.mode() & 0o077 != 0 && (euid.is_root() || euid.as_raw() == meta.uid()) {
                // Of an earlier version.
                file.set_permissions(Permissions::from_mode(0o600))?;
            }
            return Ok(file);
        }
        file => file?,
    };
    if rustix::process::geteuid().is_root()
        && let Some(parent) = path.parent()
    {
        let owner = fs::metadata(parent)?;
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(file)
}

/// Whether `path` leads to this file.
fn leads_to(path: &Path, file: &File) -> bool {
    let identity = |meta: io::Result<fs::Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
    let there = identity(fs::metadata(path));
    there.is_some() && there == identity(file.metadata())
}

/// The first line of a file, or the beginning of it: others may have written there what they like.
fn read_start(file: &File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is not known, which is what it says then.
    drop(file.take(MAX_LINE).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    text.lines().next().unwrap_or_default().to_owned()
}

fn write(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

/// A pid file that this process holds. Dropping it removes the file.
#[derive(Debug)]
pub struct PidFile {
    path: std::path::PathBuf,
    _file: File,
}

impl PidFile {
    /// Writes the process id to `path`, whose directory is made if it is missing.
    ///
    /// # Errors
    ///
    /// [`Exit::Locked`] if a running watch has it; a failure if it cannot be written.
    pub fn take(path: &Path) -> Result<Self> {
        let what = || format!("cannot write pid file \"{}\"", path.display());
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(what)?;
        }
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut file = open(path).map_err(|err| refused(err, dir)).with_context(what)?;
        match file.try_lock() {
            // Its holder may have removed it between the two.
            Ok(()) if !leads_to(path, &file) => Self::take(path),
            Ok(()) => {
                write(&mut file, &format!("{}\n", std::process::id())).with_context(what)?;
                Ok(Self { path: path.to_owned(), _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let pid = read_start(&file);
                let (path, pid) = (path.display(), pid.trim());
                let message = format!(
                    "pid file \"{path}\" belongs to a running watch: pid {pid}; stop that first, or \
                     give this one a --pid-file of its own"
                );
                Err(Stop::with(Exit::Locked, message))
            }
            Err(TryLockError::Error(err)) => Err(err).with_context(what),
        }
    }

    /// The process that holds `path`; none if no process does, whatever the file says.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub fn holder(path: &Path) -> Result<Option<i32>> {
        let what = || format!("cannot read pid file \"{}\"", path.display());
        let file = match File::open(path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err).with_context(what),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => {
                let pid: Option<i32> = read_start(&file).trim().parse().ok().filter(|pid| *pid > 0);
                let pid = pid.with_context(|| format!("no pid in \"{}\"", path.display()))?;
                // The service's user writes this file, and root believes it: a process that has
                // not even opened it is none of ours.
                ensure!(
                    !rustix::process::geteuid().is_root() || has_open(pid, &file),
                    "\"{}\" names process {pid}, which does not hold it",
                    path.display()
                );
                Ok(Some(pid))
            }
            Err(TryLockError::Error(err)) => Err(err).with_context(what),
        }
    }
}

/// Whether process `pid` has this file open, as far as this user may see.
fn has_open(pid: i32, file: &File) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|descriptor| leads_to(&descriptor.path(), file))
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_file(&self.path) {
            log::warn!("cannot remove pid file \"{}\" ({err})", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_learns_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = streams(dir.path()).unwrap();
        let err = streams(dir.path()).unwrap_err();
        assert_eq!(crate::exit::code_of(&err), Exit::Locked);
        assert!(err.to_string().contains(&format!("pid {}, ", std::process::id())), "{err}");
        drop(first);
        streams(dir.path()).unwrap();
    }

    #[test]
    fn a_pid_file_that_nobody_holds_means_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/pidfile");
        assert_eq!(PidFile::holder(&path).unwrap(), None);
        let held = PidFile::take(&path).unwrap();
        assert_eq!(PidFile::holder(&path).unwrap(), Some(std::process::id().cast_signed()));
        assert!(PidFile::take(&path).is_err());
        drop(held);
        assert!(!path.exists());
        fs::write(&path, "1\n").unwrap();
        assert_eq!(PidFile::holder(&path).unwrap(), None, "process 1 holds no lock on it");
        if rustix::process::geteuid().is_root() {
            let held = File::open(&path).unwrap();
            held.try_lock().unwrap();
            let err = PidFile::holder(&path).unwrap_err();
            assert!(err.to_string().contains("names process 1, which does not hold it"), "{err}");
        }
    }

    #[test]
    fn what_was_put_in_the_way_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (other, path) = (dir.path().join("other"), dir.path().join(LOCK));
        fs::write(&other, "precious").unwrap();
        fs::hard_link(&other, &path).unwrap();
        assert!(streams(dir.path()).is_err(), "a second name");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(streams(dir.path()).is_err(), "a link");
        assert_eq!(fs::read(&other).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();
        streams(dir.path()).unwrap();
    }
}
