//! Looks into a tarball: is it an image with metadata and root in one, and of which type?
//!
//! Names do not tell: distrobuilder calls a unified image `lxd.tar.xz`, as it calls split metadata,
//! and `image export` calls it after its fingerprint. A virtual machine in one tarball must not be
//! listed, because clients before Incus 7.1 would take it for a container (`CLIENTS.md`).

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Take};

use flate2::read::MultiGzDecoder;

/// Most bytes that are unpacked to find out. `metadata.yaml` and templates come before the root, or
/// the root comes first: either way it takes some kilobytes.
const MAX_BYTES: u64 = 16 << 20;

/// Most bytes that are read for it. Some packings can go on for ever without unpacking to anything: an xz file
/// may end in zeros, a gzip file may consist of empty members.
const MAX_READ: u64 = 2 * MAX_BYTES;

/// Most memory, in KiB, that unpacking xz may take; `xz -9` takes 65 MiB. More is a bomb.
const XZ_MEMORY: u32 = 100 << 10;

/// What a tarball is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// A container: it has `rootfs/`.
    Container,
    /// A virtual machine: it has `rootfs.img`.
    VirtualMachine,
    /// No root in it.
    NoRoot,
    /// Packed in a way that cannot be looked into, damaged, or the root is too far in.
    Unknown,
}

/// What is unpacked: the beginning of a file, as long as `go_on` says yes.
struct Packed<'a> {
    file: Take<&'a File>,
    go_on: &'a dyn Fn() -> bool,
    /// What the system said first: to those who unpack, it would be damage.
    failure: &'a Cell<Option<io::Error>>,
}

impl Read for Packed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.go_on)() {
            return Err(io::Error::other("stopped"));
        }
        self.file.read(buffer).inspect_err(|err| {
            if let Some(code) = err.raw_os_error()
                && err.kind() != io::ErrorKind::Interrupted
            {
                self.failure.set(Some(io::Error::from_raw_os_error(code)));
            }
        })
    }
}

/// Looks into `file`. Once `go_on`, asked with every read, says no, what comes out means nothing.
///
/// # Errors
///
/// Those of reading the file; that it cannot be unpacked is no error.
pub fn look(file: &File, go_on: &dyn Fn() -> bool) -> io::Result<Inside> {
    look_within(file, MAX_READ, go_on)
}

fn look_within(mut file: &File, limit: u64, go_on: &dyn Fn() -> bool) -> io::Result<Inside> {
    let mut magic = [0_u8; 6];
    file.seek(SeekFrom::Start(0))?;
    let length = file.read(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let failure = Cell::new(None);
    let input = BufReader::new(Packed { file: file.take(limit), go_on, failure: &failure });
    let found = match &magic[..length] {
        [0x1f, 0x8b, ..] => entries(MultiGzDecoder::new(input)),
        b"\xfd7zXZ\0" => entries(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => match ruzstd::decoding::StreamingDecoder::new(input) {
            Ok(unpacked) => entries(unpacked),
            Err(_) => Inside::Unknown,
        },
        _ => entries(input),
    };
    file.seek(SeekFrom::Start(0))?;
    failure.into_inner().map_or(Ok(found), Err)
}

fn entries(unpacked: impl Read) -> Inside {
    let mut archive = tar::Archive::new(unpacked.take(MAX_BYTES));
    let Ok(entries) = archive.entries() else {
        return Inside::Unknown;
    };
    let mut any = false;
    for entry in entries {
        let Ok(entry) = entry else {
            return Inside::Unknown;
        };
        any = true;
        let path = entry.path_bytes();
        let path = path.strip_prefix(b"./").unwrap_or(&path);
        if path == b"rootfs.img" {
            return Inside::VirtualMachine;
        }
        if path == b"rootfs" || path.starts_with(b"rootfs/") {
            return Inside::Container;
        }
    }
    if any { Inside::NoRoot } else { Inside::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// A tarball with these entries, packed by the program that users pack with.
    fn tarball(names: &[&str], pack: &[&str]) -> File {
        let mut tar = tar::Builder::new(Vec::new());
        for name in names {
            let content = if name.ends_with('/') { &b""[..] } else { b"content" };
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_entry_type(match name.ends_with('/') {
                true => tar::EntryType::Directory,
                false => tar::EntryType::Regular,
            });
            tar.append_data(&mut header, name, content).unwrap();
        }
        let plain = tar.into_inner().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        match pack {
            [] => file.write_all(&plain).unwrap(),
            [program, options @ ..] => {
                let mut child = Command::new(program)
                    .args(options)
                    .stdin(Stdio::piped())
                    .stdout(file.try_clone().unwrap())
                    .spawn()
                    .unwrap();
                child.stdin.take().unwrap().write_all(&plain).unwrap();
                assert!(child.wait().unwrap().success(), "{program}");
            }
        }
        file
    }

    #[test]
    fn what_is_inside_is_found_in_every_packing() {
        let packings: &[&[&str]] = &[&[], &["gzip", "-c"], &["xz", "-c"], &["zstd", "-q", "-c"]];
        for pack in packings {
            let inside = |names: &[&str]| look(&tarball(names, pack), &|| true).unwrap();
            // As published by a daemon: metadata first.
            let published = ["metadata.yaml", "rootfs/", "rootfs/etc", "templates/"];
            assert_eq!(inside(&published), Inside::Container, "{pack:?}");
            assert_eq!(
                inside(&["metadata.yaml", "rootfs.img"]),
                Inside::VirtualMachine,
                "{pack:?}"
            );
            // As made by distrobuilder: metadata last.
            let built = ["rootfs/", "rootfs/bin/sh", "metadata.yaml"];
            assert_eq!(inside(&built), Inside::Container, "{pack:?}");
            assert_eq!(
                inside(&["rootfs.img", "metadata.yaml"]),
                Inside::VirtualMachine,
                "{pack:?}"
            );
            let split = ["metadata.yaml", "templates/", "templates/hostname.tpl"];
            assert_eq!(inside(&split), Inside::NoRoot, "{pack:?}");
            assert_eq!(inside(&["./metadata.yaml", "./rootfs/"]), Inside::Container, "{pack:?}");
        }
    }

    #[test]
    fn what_is_no_tarball_is_unknown() {
        for content in
            [&b""[..], b"x", b"\x1f\x8bgarbage", b"\xfd7zXZ\0garbage", b"\x28\xb5\x2f\xfd"]
        {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content).unwrap();
            let inside = look(&file, &|| true).unwrap();
            assert_ne!(inside, Inside::Container, "{content:?}");
            assert_ne!(inside, Inside::VirtualMachine, "{content:?}");
        }
    }

    /// A terabyte of zeros may follow an xz file by its format, and takes no room on the disk.
    #[test]
    fn what_unpacks_to_nothing_is_not_read_to_its_end() {
        let pack = |program: &str| {
            let packed = Command::new(program).arg("-c").stdin(Stdio::null()).output().unwrap();
            assert!(packed.status.success(), "{program}");
            packed.stdout
        };
        const LIMIT: u64 = 1 << 20;
        let xz = tempfile::tempfile().unwrap();
        (&xz).write_all(&pack("xz")).unwrap();
        xz.set_len(1 << 40).unwrap();
        let gzip = tempfile::tempfile().unwrap();
        (&gzip).write_all(&pack("gzip").repeat(1 << 17)).unwrap();
        assert!(gzip.metadata().unwrap().len() > 2 * LIMIT);
        for file in [xz, gzip] {
            let reads = Cell::new(0);
            let count = || {
                reads.set(reads.get() + 1);
                true
            };
            assert_eq!(look_within(&file, LIMIT, &count).unwrap(), Inside::Unknown);
            assert!(reads.get() <= LIMIT / 4096, "{} reads", reads.get());
            let once = || reads.replace(reads.get() + 1) == 0;
            reads.set(0);
            look(&file, &once).unwrap();
            assert!(reads.get() < 9, "{} reads after it was told to stop", reads.get());
        }
    }
}
