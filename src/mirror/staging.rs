//! What rsync reads on its way to a mirror, laid out as below the mirror's root: index files, and the
//! files of versions, held open.
//!
//! Whoever may write to the tree could replace a listed file by a symbolic link in the moment before
//! rsync opens it, and have any file sent that this process may read. So rsync is not given the tree:
//! each file is opened here, and it is looked where it really is, which must be below the root; rsync
//! gets a link to what was opened, `/proc/PID/fd/N`, which nobody can lead elsewhere.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink,
};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::OFlags;

use crate::streams;

/// A directory below the mirror's root in the making. Dropping it removes it.
pub struct Staging {
    dir: PathBuf,
    held: Vec<Held>,
}

/// A file that rsync reads.
struct Held {
    /// Where it was found.
    path: PathBuf,
    /// What it was then.
    stamp: Stamp,
    /// For as long as it is needed.
    _file: File,
}

/// What changes when a file does.
type Stamp = (u64, u64, u64, i64, i64);

impl Staging {
    /// An empty one, for the mirror `name`.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    fn new(data_dir: &Path, name: &str) -> Result<Self> {
        let dir = data_dir.join("mirrors").join(format!("{name}.staging"));
        let make = || {
            // Left behind by one that was killed.
            match fs::remove_dir_all(&dir) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
            fs::create_dir_all(data_dir.join("mirrors"))?;
            DirBuilder::new().mode(0o700).create(&dir)
        };
        make().with_context(|| format!("cannot make \"{}\"", dir.display()))?;
        // The mirror's root gets this mode, if it is made now.
        let staging = Self { dir, held: Vec::new() };
        fs::set_permissions(&staging.dir, Permissions::from_mode(0o755))?;
        Ok(staging)
    }

    /// With `files` as `streams/v1/NAME`.
    ///
    /// # Errors
    ///
    /// When that cannot be written.
    pub fn of_index(data_dir: &Path, name: &str, files: &[(String, Vec<u8>)]) -> Result<Self> {
        let staging = Self::new(data_dir, name)?;
        let dir = staging.dir.join("streams/v1");
        fs::create_dir_all(&dir)?;
        let files: Vec<_> = files.iter().map(|(name, bytes)| (name.clone(), &bytes[..])).collect();
        streams::write_files(&dir, &files)?;
        Ok(staging)
    }

    /// With the files at `paths` of the tree at `root`, under the same paths.
    ///
    /// # Errors
    ///
    /// When one of them is not there, is no file, or lies elsewhere.
    pub fn of_files<'p>(
        data_dir: &Path,
        name: &str,
        root: &Path,
        paths: impl Iterator<Item = &'p str>,
    ) -> Result<Self> {
        let mut staging = Self::new(data_dir, name)?;
        let real = root.canonicalize().with_context(|| format!("\"{}\"", root.display()))?;
        for path in paths {
            staging
                .hold(root, &real, path)
                .with_context(|| format!("cannot push \"{}\"", root.join(path).display()))?;
        }
        Ok(staging)
    }

    fn hold(&mut self, root: &Path, real: &Path, path: &str) -> Result<()> {
        let from = root.join(path);
        // A mere name of the file: whatever it is, opening it does nothing.
        let flags = OFlags::PATH.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&from)?;
        let number = file.as_raw_fd();
        let place = fs::read_link(format!("/proc/self/fd/{number}"))?;
        ensure!(place.starts_with(real), "it leads out of the tree, to \"{}\"", place.display());
        let meta = file.metadata()?;
        ensure!(meta.is_file(), "it is no file");
        let link = self.dir.join(path);
        if let Some(parent) = Path::new(path).parent() {
            self.directory(root, parent)?;
        }
        symlink(format!("/proc/{}/fd/{number}", std::process::id()), link)?;
        self.held.push(Held { path: from, stamp: stamp(&meta), _file: file });
        Ok(())
    }

    /// Makes the directory `path` with the mode that it has below `root`, which the mirror's gets.
    fn directory(&self, root: &Path, path: &Path) -> io::Result<()> {
        let dir = self.dir.join(path);
        if path.as_os_str().is_empty() || dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(root, parent)?;
        }
        fs::create_dir(&dir)?;
        let mode = fs::metadata(root.join(path))?.mode() & 0o7777;
        fs::set_permissions(&dir, Permissions::from_mode(mode | 0o700))
    }

    /// Whether each file still is where it was found, and was not changed.
    pub fn is_unchanged(&self) -> bool {
        self.held.iter().all(|held| {
            fs::metadata(&held.path).is_ok_and(|meta| meta.is_file() && stamp(&meta) == held.stamp)
        })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }
}

fn stamp(meta: &fs::Metadata) -> Stamp {
    (meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec())
}

impl Drop for Staging {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.dir) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove \"{}\" ({err})", self.dir.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_what_was_looked_at() {
        let (data, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (data, root) = (data.path(), root.path());
        let secret = data.join("secret");
        fs::write(&secret, "secret").unwrap();
        fs::create_dir_all(root.join("images/a")).unwrap();
        fs::set_permissions(root.join("images/a"), Permissions::from_mode(0o2550)).unwrap();
        let path = root.join("images/a/root.squashfs");
        fs::write(&path, "image").unwrap();
        symlink("root.squashfs", root.join("images/a/link")).unwrap();
        let paths = ["images/a/root.squashfs", "images/a/link"];
        let staging = || Staging::of_files(data, "m", root, paths.into_iter());
        let held = staging().unwrap();
        assert!(held.is_unchanged());
        let mode = fs::metadata(held.path().join("images/a")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o2750);

        fs::remove_file(&path).unwrap();
        symlink(&secret, &path).unwrap();
        for path in paths {
            assert_eq!(fs::read(held.path().join(path)).unwrap(), b"image", "{path}");
        }
        assert!(!held.is_unchanged());
        let dir = held.path().to_owned();
        drop(held);
        assert!(!dir.exists());
        let err = format!("{:#}", staging().err().unwrap());
        assert!(err.contains("it leads out of the tree, to") && err.contains("secret"), "{err}");
        // A directory on the way, too.
        fs::remove_dir_all(root.join("images/a")).unwrap();
        fs::rename(&secret, data.join("root.squashfs")).unwrap();
        symlink(data, root.join("images/a")).unwrap();
        assert!(staging().is_err());
        assert!(!dir.exists());
    }
}
