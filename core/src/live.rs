//! Hands a generation from the process that builds to those that serve, as memory that nobody can
//! change.
//!
//! Readers must not map a file that has a name: whoever truncates it, by mistake or in a test, makes
//! every process that sends from it die of `SIGBUS`. So the builder writes each generation into an
//! unnamed, sealed memory file (`memfd_create(2)`; sealed, it can neither shrink nor change), and
//! says in a small file, `<id>.live`, where it is: its own process, and a descriptor there. Readers
//! of the same user open it through `/proc`, check the seals, and map it. All of them share its pages,
//! and a mapping outlives the builder.
//!
//! Where that does not work (the builder is gone, `/proc` is not mounted), readers copy the snapshot
//! file into memory of their own.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, SealFlags};

use crate::memory::Memory;

/// What the memory must be sealed against before anybody maps it.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// Bytes of the file: three numbers, and blanks, so that it can be written over.
const LENGTH: usize = 64;

/// Path of the file that says where the current generation of the index `id` is.
pub fn path(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(format!("{id}.live"))
}

/// A generation in sealed memory; readers find it as long as this lives.
#[derive(Clone, Debug)]
pub struct Live {
    memory: Arc<File>,
}

impl Live {
    /// Puts `bytes` into sealed memory.
    ///
    /// # Errors
    ///
    /// When the memory or its descriptor cannot be had.
    #[cfg(test)]
    pub fn new(bytes: &[u8]) -> io::Result<Self> {
        let mut memory = Memory::default();
        memory.append(bytes)?;
        Self::seal(memory)
    }

    /// Seals `memory`.
    ///
    /// # Errors
    ///
    /// When it is empty, or the kernel refuses.
    pub fn seal(memory: Memory) -> io::Result<Self> {
        let memory = memory.into_file().ok_or(io::ErrorKind::UnexpectedEof)?;
        rustix::fs::fcntl_add_seals(&memory, SEALS)?;
        Ok(Self { memory })
    }

    /// The memory.
    pub fn sealed(&self) -> &File {
        &self.memory
    }

    /// The same, to read from.
    ///
    /// # Errors
    ///
    /// Those of [`Memory::of`].
    pub fn memory(&self) -> io::Result<Memory> {
        Memory::of(Arc::clone(&self.memory))
    }

    /// Tells readers, in the file at `path`.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; readers then keep what they have.
    pub fn announce(&self, path: &Path, generation: u64) -> io::Result<()> {
        let (process, descriptor) = (std::process::id(), self.memory.as_raw_fd());
        let mut text = format!("{process} {descriptor} {generation}\n");
        text.push_str(&" ".repeat(LENGTH.saturating_sub(text.len())));
        match crate::snapshot::replace(path, text.as_bytes(), false) {
            Err(err) if is_full(&err) => overwrite(path, text.as_bytes()).map_err(|_| err),
            replaced => replaced,
        }
    }
}

/// Whether there is no room for another file.
fn is_full(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Writes over the file at `path`, which has its room already; readers that see half of it find that
/// it tells of nothing, and look again when it is renamed.
fn overwrite(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    fs::rename(path, &beside)?;
    let write = || {
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
        fs::OpenOptions::new().write(true).open(&beside)?.write_all(text)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o400))
    };
    let written = write();
    fs::rename(&beside, path)?;
    written
}

/// The generation that the file at `path` tells of, whether or not it can still be had.
pub fn generation(path: &Path) -> Option<u64> {
    announced(path).ok().flatten().map(|[_, _, generation]| generation)
}

/// When the file at `path` was written, in seconds since the epoch.
pub fn time(path: &Path) -> Option<i64> {
    use std::os::unix::fs::MetadataExt as _;
    fs::symlink_metadata(path).ok().map(|meta| meta.mtime())
}

/// Process, descriptor and generation.
pub type Announcement = [u64; 3];

/// What the file at `path` tells of; `None` if that makes no sense.
///
/// # Errors
///
/// When it cannot be read.
pub fn announced(path: &Path) -> io::Result<Option<Announcement>> {
    let text = crate::snapshot::read_regular(path, LENGTH as u64)?;
    let text = str::from_utf8(&text).unwrap_or_default();
    let numbers: Option<Vec<u64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
    Ok(numbers.and_then(|numbers| numbers.try_into().ok()))
}

/// The memory that the file at `path` tells of.
///
/// # Errors
///
/// When there is no such file, or what it tells of is gone or not sealed.
pub fn open(path: &Path) -> io::Result<File> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let [process, descriptor, _] =
        announced(path)?.ok_or_else(|| invalid("not a process, a descriptor and a generation"))?;
    // A FIFO there would block, a terminal would take us over.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let memory = File::options()
        .read(true)
        .custom_flags(flags)
        .open(format!("/proc/{process}/fd/{descriptor}"))?;
    // The number may by now be another process's, or another file.
    let seals = rustix::fs::fcntl_get_seals(&memory)
        .map_err(|_| invalid("the builder's descriptor is something else by now"))?;
    if seals.contains(SEALS) { Ok(memory) } else { Err(invalid("the memory is not sealed")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;
    use std::io::Read as _;

    #[test]
    fn what_is_announced_can_be_opened_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "id");
        assert_eq!(open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let live = Live::new(b"generation").unwrap();
        live.announce(&path, 7).unwrap();
        assert_eq!(generation(&path), Some(7));
        let mut text = String::new();
        open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "generation");

        let inner = format!("/proc/self/fd/{}", live.memory.as_raw_fd());
        let writer = File::options().write(true).open(inner).unwrap();
        assert!(writer.set_len(1).is_err() && (&writer).write_all(b"x").is_err(), "sealed");
        drop(live);
        assert!(open(&path).is_err(), "gone with its builder");
    }

    #[test]
    fn nothing_else_is_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "id");
        let plain = File::open("/proc/self/status").unwrap();
        let unsealed = rustix::fs::memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
        let own = std::process::id();
        for text in [
            String::new(),
            "x y".into(),
            "1".into(),
            "../.. 3".into(),
            format!("{own} {} 1", plain.as_raw_fd()),
            format!("{own} {} 1", unsealed.as_raw_fd()),
            format!("{own} 4294967295 1"),
            format!("{own} 1 1 1"),
        ] {
            fs::write(&path, &text).unwrap();
            assert!(open(&path).is_err(), "{text:?}");
        }
    }
}
