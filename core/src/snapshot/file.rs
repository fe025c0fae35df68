//! Files of the state directory: read without waiting, written beside and renamed into place.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// The content of a regular file.
///
/// # Errors
///
/// Those of [`open_regular`], and of reading.
pub(crate) fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path, limit)?;
    let length = file.metadata()?.len();
    let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// Opens a regular file to be read. That never waits for anything, whatever took the file's place.
///
/// # Errors
///
/// Those of the system; also for anything but a regular file of at most `limit` bytes.
pub(super) fn open_regular(path: &Path, limit: u64) -> io::Result<fs::File> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file of its kind"));
    }
    Ok(file)
}

/// Writes an encoded snapshot beside `path` and renames it into place.
///
/// The data is synced before the rename: after a power cut the name holds either the old generation
/// or the new one, whole. The rename itself may be lost, and with it one generation, which the next
/// scan makes again.
///
/// # Errors
///
/// The first error of the system; what was written beside is removed and `path` untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, true)
}

/// As [`write_file`]; without `sync` for files that mean nothing after a restart.
pub(crate) fn replace(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    replace_by(path, sync, |file| file.write_all(bytes))
}

pub(super) fn replace_by(
    path: &Path,
    sync: bool,
    content: impl Fn(&mut fs::File) -> io::Result<()>,
) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let write = || {
        // Left behind by a builder that was killed; the lock makes it ours alone.
        match fs::remove_file(&beside) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(&beside)?;
        content(&mut file)?;
        if sync {
            file.sync_data()?;
        }
        fs::rename(&beside, path)
    };
    write().inspect_err(|_| {
        // The first error is the one to report; that the clean-up fails too adds nothing to it.
        drop(fs::remove_file(&beside));
    })
}
