//! Whether a file is whole, as far as its format tells.
//!
//! Formats that announce their own length or end let us see an upload that was cut short, also
//! when nobody watched it. A file that does not begin as its name says tells nothing here: clients
//! go by content, not by name.

mod qcow2;

use std::fs::File;
use std::io::{self, Read as _};

/// What is looked at: a file, or all of its bytes.
pub trait Content {
    /// Reads from `offset` on as much as there is and `buffer` takes, or less; nothing at the end.
    ///
    /// # Errors
    ///
    /// Those of reading.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Content for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }
}

impl Content for [u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        rest.unwrap_or_default().read(buffer)
    }
}

/// Why a file cannot be whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutShort(pub String);

const SQUASHFS_MAGIC: &[u8] = b"hsqs";
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
/// The end of every xz stream (The .xz File Format 1.2.1, section 2.1.2.4).
const XZ_END: &[u8] = b"YZ";
const GZIP_MAGIC: &[u8] = b"\x1f\x8b\x08";

/// How far a gzip file is unpacked: this many times its own length, and some more for short ones.
/// Images shrink to a third or so; what goes beyond is made to keep a processor busy (gzip can shrink
/// to a thousandth), and is not looked at to its end.
const GZIP_RATIO: u64 = 64;
const GZIP_ALWAYS: u64 = 64 << 20;

/// Looks at a file, which is `size` bytes long, and no further once `go_on` says so.
///
/// # Errors
///
/// Those of reading; `Ok(Err(…))` says that and why the file is not whole.
pub fn check<C: Content + ?Sized>(
    file: &C,
    size: u64,
    go_on: &dyn Fn() -> bool,
) -> io::Result<Result<(), CutShort>> {
    if size == 0 {
        return Ok(Err(CutShort("it is empty".to_owned())));
    }
    let mut head = [0_u8; 96];
    let head = read_at(file, &mut head, 0)?;
    if head.starts_with(SQUASHFS_MAGIC) {
        return Ok(squashfs(head, size));
    }
    if head.starts_with(XZ_MAGIC) {
        return xz(file, size);
    }
    if head.starts_with(GZIP_MAGIC) {
        return gzip(file, size, go_on);
    }
    if head.starts_with(qcow2::MAGIC) {
        return qcow2::check(file, head, size, go_on);
    }
    Ok(Ok(()))
}

/// The trailer's length and CRC say nothing about bytes that are not there: only unpacking finds
/// out that they are missing. Unified tarballs alone are packed this way.
fn gzip<C: Content + ?Sized>(
    file: &C,
    size: u64,
    go_on: &dyn Fn() -> bool,
) -> io::Result<Result<(), CutShort>> {
    // Members that unpack to nothing are read over within one call.
    let mut unpacked = flate2::read::MultiGzDecoder::new(ReadAt { file, offset: 0, go_on });
    let mut buffer = vec![0; 1 << 18];
    let mut left = size.saturating_mul(GZIP_RATIO).saturating_add(GZIP_ALWAYS);
    while left > 0 && go_on() {
        match unpacked.read(&mut buffer) {
            Ok(0) => return Ok(Ok(())),
            Ok(read) => left = left.saturating_sub(read as u64),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if !go_on() => break,
            Err(err) if err.raw_os_error().is_some() => return Err(err),
            Err(err) => return Ok(Err(CutShort(format!("it cannot be unpacked ({err})")))),
        }
    }
    Ok(Ok(()))
}

/// Reads without moving the file's own position, as long as `go_on` says yes.
struct ReadAt<'a, C: ?Sized> {
    file: &'a C,
    offset: u64,
    go_on: &'a dyn Fn() -> bool,
}

impl<C: Content + ?Sized> io::Read for ReadAt<'_, C> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.go_on)() {
            return Err(io::Error::other("stopped"));
        }
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// The superblock, 96 bytes, holds the bytes used at offset 40.
fn squashfs(head: &[u8], size: u64) -> Result<(), CutShort> {
    let Some(used) = head.get(40..48).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
    else {
        return Err(CutShort(format!("it ends inside of its superblock, at {size} bytes")));
    };
    if used > size {
        return Err(CutShort(format!("it has {size} of the {used} bytes its superblock names")));
    }
    Ok(())
}

/// The last stream ends in `YZ`; padding by zeros, in fours, may follow.
fn xz<C: Content + ?Sized>(file: &C, size: u64) -> io::Result<Result<(), CutShort>> {
    const PADDING: u64 = 4096;
    let mut tail = [0_u8; PADDING as usize];
    let tail = read_at(file, &mut tail, size.saturating_sub(PADDING))?;
    let end = tail.len() - tail.iter().rev().take_while(|&&b| b == 0).count();
    let padding = tail.len() - end;
    if size.is_multiple_of(4) && padding.is_multiple_of(4) && tail[..end].ends_with(XZ_END) {
        Ok(Ok(()))
    } else {
        Ok(Err(CutShort("it does not end as an xz file ends".to_owned())))
    }
}

/// As many bytes from `offset` as `buffer` or the file has.
///
/// # Errors
///
/// Those of the system.
pub fn read_at<'a, C: Content + ?Sized>(
    file: &C,
    buffer: &'a mut [u8],
    offset: u64,
) -> io::Result<&'a [u8]> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(&buffer[..filled])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn verdict(content: &[u8]) -> Result<(), CutShort> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let size = content.len() as u64;
        let verdict = check(&file, size, &|| true).unwrap();
        assert_eq!(check(content, size, &|| true).unwrap(), verdict, "by its bytes");
        verdict
    }

    fn squashfs_of(used: u64, size: usize) -> Vec<u8> {
        let mut image = vec![7_u8; size.max(96)];
        image[..4].copy_from_slice(SQUASHFS_MAGIC);
        image[40..48].copy_from_slice(&used.to_le_bytes());
        image.truncate(size);
        image
    }

    /// An xz file of the five bytes `hello`, made by xz 5.4.
    const HELLO: &[u8] =
        b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46\x02\0\x21\x01\x16\0\0\0\x74\x2f\xe5\xa3\
        \x01\0\x04hello\0\0\0\0\xb1\x37\xb9\xdb\xe5\xda\x1e\x9b\0\x01\x1d\x05\xb8\x2d\x80\xaf\
        \x1f\xb6\xf3\x7d\x01\0\0\0\0\x04YZ";

    #[test]
    fn squashfs_says_its_length() {
        assert_eq!(verdict(&squashfs_of(4000, 4096)), Ok(()), "padded to a block");
        assert_eq!(verdict(&squashfs_of(4096, 4096)), Ok(()));
        assert!(verdict(&squashfs_of(4097, 4096)).is_err());
        assert!(verdict(&squashfs_of(4096, 40)).is_err(), "cut inside of the superblock");
    }

    #[test]
    fn xz_ends_in_its_footer_at_every_length() {
        assert_eq!(HELLO.len() % 4, 0, "the fixture is whole");
        assert_eq!(verdict(HELLO), Ok(()));
        let padded = [HELLO, &[0; 8]].concat();
        assert_eq!(verdict(&padded), Ok(()));
        for length in XZ_MAGIC.len()..HELLO.len() {
            assert!(verdict(&HELLO[..length]).is_err(), "cut at {length}");
        }
        assert!(verdict(&[HELLO, &[0; 3]].concat()).is_err());
    }

    #[test]
    fn gzip_is_unpacked_to_its_end() {
        let mut packed = Vec::new();
        for _ in 0..2 {
            let level = flate2::Compression::fast();
            let mut member = flate2::GzBuilder::new().write(packed, level);
            member.write_all(&[b'x'; 3000]).unwrap();
            packed = member.finish().unwrap();
        }
        assert_eq!(verdict(&packed), Ok(()), "two members");
        let length = packed.len();
        for cut in [length - 1, length - 8, length - 9, length / 2 + 5, 12] {
            assert!(verdict(&packed[..cut]).is_err(), "cut at {cut} of {length}");
        }
    }

    #[test]
    fn gzip_is_not_unpacked_without_end() {
        let level = flate2::Compression::best();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), level);
        std::io::copy(&mut std::io::repeat(0).take(GZIP_ALWAYS * 2), &mut packed).unwrap();
        let packed = packed.finish().unwrap();
        assert!((packed.len() as u64) < GZIP_ALWAYS / GZIP_RATIO, "it would be unpacked");
        assert_eq!(verdict(&packed[..packed.len() - 1]), Ok(()), "its end is not looked at");
    }

    #[test]
    fn gzip_that_unpacks_to_nothing_is_left_when_told_to() {
        let member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let members = member.finish().unwrap().repeat(1 << 17);
        let left = std::cell::Cell::new(5);
        let go_on = || left.replace(left.get().max(1) - 1) > 0;
        let verdict = check(&members[..], members.len() as u64, &go_on).unwrap();
        assert_eq!(
            (verdict, left.get()),
            (Ok(()), 0),
            "not read to its end, nor found to be broken"
        );
    }

    #[test]
    fn nothing_is_whole_if_empty_and_the_unknown_passes() {
        assert!(verdict(b"").is_err());
        assert_eq!(verdict(b"x"), Ok(()));
        assert_eq!(verdict(&[0_u8; 5000]), Ok(()));
    }
}
