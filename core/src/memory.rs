//! Memory without a name that processes can share (`memfd_create(2)`), written by system calls: what
//! is in it does not count as memory of the process that wrote it, and goes from one to another
//! without passing through it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, copy_file_range};

/// Bytes that are copied at a time where the kernel does not do it.
const BUFFER: usize = 256 * 1024;

/// A piece of memory that grows. Clones are the same memory, as long as it was when they were made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// None as long as it is empty.
    file: Option<Arc<File>>,
    length: u64,
}

impl Memory {
    /// All of `file`: such memory, or one to copy from.
    ///
    /// # Errors
    ///
    /// When it does not tell its length.
    pub(crate) fn of(file: Arc<File>) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file: Some(file), length })
    }

    /// Its length, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The file, if anything was written.
    pub(crate) fn into_file(self) -> Option<Arc<File>> {
        self.file
    }

    /// Appends `bytes`; says where they are.
    ///
    /// # Errors
    ///
    /// When there is no memory or no descriptor.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.length;
        self.file()?.write_all_at(bytes, at)?;
        self.length += bytes.len() as u64;
        Ok(at)
    }

    /// Writes over what is at `offset`.
    ///
    /// # Errors
    ///
    /// As for [`append`](Self::append).
    pub(crate) fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.length = self.length.max(offset + bytes.len() as u64);
        self.file()?.write_all_at(bytes, offset)
    }

    /// Reads `length` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// When they are not there.
    pub(crate) fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        if let Some(file) = &self.file {
            file.read_exact_at(&mut bytes, offset)?;
        }
        Ok(bytes)
    }

    /// Appends `length` bytes of `other`.
    ///
    /// # Errors
    ///
    /// When they are not there, or there is no memory.
    pub(crate) fn append_from(&mut self, other: &Self, offset: u64, length: u64) -> io::Result<()> {
        let from = other.file.as_ref().ok_or(io::ErrorKind::UnexpectedEof)?;
        let to = Arc::clone(self.file()?);
        let (mut offset, end) = (offset, self.length + length);
        while self.length < end {
            let rest = usize::try_from(end - self.length).unwrap_or(usize::MAX);
            let mut at = self.length;
            let copied = match copy_file_range(from, Some(&mut offset), &to, Some(&mut at), rest) {
                Ok(copied) if copied > 0 => copied,
                // An old kernel, or a sandbox that does not know the call.
                _ => {
                    let mut buffer = vec![0; rest.min(BUFFER)];
                    from.read_exact_at(&mut buffer, offset)?;
                    to.write_all_at(&buffer, self.length)?;
                    offset += buffer.len() as u64;
                    buffer.len()
                }
            };
            self.length += copied as u64;
        }
        Ok(())
    }

    fn file(&mut self) -> io::Result<&Arc<File>> {
        if self.file.is_none() {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let memory = rustix::fs::memfd_create("simplestreams", flags)?;
            self.file = Some(Arc::new(File::from(memory)));
        }
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_from_one_to_another() {
        let (mut one, mut other) = (Memory::default(), Memory::default());
        assert_eq!(one.append(b"0123456789").unwrap(), 0);
        assert_eq!(other.append(b"ab").unwrap(), 0);
        other.append_from(&one, 3, 4).unwrap();
        other.append_from(&one, 0, 1).unwrap();
        other.write(b"AB", 0).unwrap();
        assert_eq!(other.read(0, 7).unwrap(), b"AB34560");
        assert_eq!(other.length(), 7);
        assert!(other.append_from(&one, 9, 2).is_err() && one.read(9, 2).is_err());
        let large: Vec<u8> = (0..3 * BUFFER).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let at = one.append(&large).unwrap();
        let mut copy = Memory::default();
        copy.append_from(&one, at, large.len() as u64).unwrap();
        assert_eq!(copy.read(0, large.len()).unwrap(), large);
    }
}
