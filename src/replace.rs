//! Replaces a file by another one, so that a reader finds the one or the other, whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Where the new file is made: beside its place, under a name that begins with a dot, so that neither web
/// servers nor mirrors take it for anything.
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// Makes the file at `path`, with these bytes and this mode, whatever the umask is, and has it on disk
/// when it returns. What stood there before is removed, never written to: it may be another name of
/// anything.
///
/// # Errors
///
/// Of the system; what was made so far is left.
pub fn stage(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {} // Left behind by one that was killed.
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Puts a file with these bytes at `path`. After a crash the file is the old or the new one.
///
/// # Errors
///
/// Of the system; the old file stays then, and nothing is left beside it.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    let done = stage(&beside, bytes, 0o644).and_then(|()| fs::rename(&beside, path));
    if done.is_err() {
        // The first error is the one to report.
        drop(fs::remove_file(&beside));
    }
    done
}

/// Has the names in `dir` on disk.
///
/// # Errors
///
/// Of the system.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_way_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("state.json"), dir.path().join("other"));
        fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, beside(&path)).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"precious");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read(&path).unwrap(), b"new");
        fs::create_dir(beside(&path)).unwrap();
        assert!(replace(&path, b"newer").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
