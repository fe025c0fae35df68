//! Looks into a tarball: is it an image with metadata and root in one, and of which type?
//!
//! Names do not tell: distrobuilder calls a unified image `lxd.tar.xz`, as it calls split metadata,
//! and `image export` calls it after its fingerprint. A virtual machine in one tarball must not be
//! listed, because clients before Incus 7.1 would take it for a container (`CLIENTS.md`).

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};

use flate2::read::MultiGzDecoder;

/// Most bytes that are unpacked to find out. `metadata.yaml` and templates come before the root, or
/// the root comes first: either way it takes some kilobytes.
const MAX_BYTES: u64 = 16 << 20;

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

/// Looks into `file`.
///
/// # Errors
///
/// Those of reading the file; that it cannot be unpacked is no error.
pub fn look(mut file: &File) -> io::Result<Inside> {
    let mut magic = [0_u8; 6];
    file.seek(SeekFrom::Start(0))?;
    let length = file.read(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let input = BufReader::new(file);
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
    Ok(found)
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
            let inside = |names: &[&str]| look(&tarball(names, pack)).unwrap();
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
            assert_ne!(look(&file).unwrap(), Inside::Container, "{content:?}");
            assert_ne!(look(&file).unwrap(), Inside::VirtualMachine, "{content:?}");
        }
    }
}
