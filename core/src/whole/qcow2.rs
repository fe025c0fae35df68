//! qcow2: the header names the tables, the tables name the clusters, and all of them must lie
//! inside of the file (QEMU's `docs/interop/qcow2.txt`).

use std::collections::HashSet;
use std::io;

use super::{Content, CutShort, read_at};

pub(super) const MAGIC: &[u8] = b"QFI\xfb";

/// Most bytes of a first-level table that are looked at, enough for a disk of 64 TiB. One that
/// claims more is not looked into.
const MAX_L1: u64 = 1 << 20;

/// Bits of a table entry that hold an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

pub(super) fn check<C: Content + ?Sized>(
    file: &C,
    head: &[u8],
    size: u64,
    go_on: &dyn Fn() -> bool,
) -> io::Result<Result<(), CutShort>> {
    let cut = |what: &str, end: u64| {
        Ok(Err(CutShort(format!("it has {size} bytes, but its {what} reaches to {end}"))))
    };
    let (Some(bits), Some(l1_size), Some(l1_offset), Some(refcounts), Some(clusters)) =
        (u32_at(head, 20), u32_at(head, 36), u64_at(head, 40), u64_at(head, 48), u32_at(head, 56))
    else {
        return Ok(Err(CutShort(format!("it ends inside of its header, at {size} bytes"))));
    };
    // The format allows 9 to 21; anything else is not for us to judge.
    if !(9..=21).contains(&bits) {
        return Ok(Ok(()));
    }
    let l1_bytes = u64::from(l1_size) * 8;
    let l1_end = l1_offset.saturating_add(l1_bytes);
    if l1_end > size {
        return cut("first table", l1_end);
    }
    let refcounts_end = refcounts.saturating_add(u64::from(clusters) << bits);
    if refcounts_end > size {
        return cut("table of reference counts", refcounts_end);
    }
    if l1_bytes > MAX_L1 {
        return Ok(Ok(()));
    }
    let mut l1 = vec![0; usize::try_from(l1_bytes).unwrap_or(0)];
    let mut l2 = vec![0; 1 << bits];
    let mut seen = HashSet::new();
    for entry in entries(read_at(file, &mut l1, l1_offset)?) {
        let table = entry & OFFSET;
        // Each table once: a small file can name the same one a million times.
        if table == 0 || !seen.insert(table) {
            continue;
        }
        if !go_on() {
            break;
        }
        let end = table.saturating_add(1 << bits);
        if end > size {
            return cut("second table", end);
        }
        for entry in entries(read_at(file, &mut l2, table)?) {
            // The last cluster may be shorter than others: its start has to be there.
            let start = if entry & COMPRESSED == 0 {
                entry & OFFSET
            } else {
                entry & ((1 << (62 - (bits - 8))) - 1)
            };
            if start != 0 && start >= size {
                return cut("data", start + 1);
            }
        }
    }
    Ok(Ok(()))
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.chunks_exact(8).map(|entry| u64::from_be_bytes(std::array::from_fn(|i| entry[i])))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::process::Command;

    use super::super::check;

    /// Real images, as `qemu-img` makes them, whole and cut.
    #[test]
    fn real_images_whole_and_cut() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("raw");
        let noise: Vec<u8> =
            (0..3_000_000_u32).flat_map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()).collect();
        fs::write(&raw, noise).unwrap();
        for options in [&["-O", "qcow2"][..], &["-c", "-O", "qcow2"]] {
            let image = dir.path().join("image");
            let made = Command::new("qemu-img")
                .arg("convert")
                .args(options)
                .args([&raw, &image])
                .status()
                .expect("qemu-img (package qemu-utils) can be run");
            assert!(made.success());
            let file = File::options().read(true).write(true).open(&image).unwrap();
            let size = file.metadata().unwrap().len();
            let verdict = |size| check(&file, size, &|| true).unwrap();
            assert_eq!(verdict(size), Ok(()), "{options:?}");
            for cut in [size / 2, size / 10, 4096, 60, 30] {
                file.set_len(cut).unwrap();
                assert!(verdict(cut).is_err(), "{options:?} cut at {cut} of {size}");
            }
        }
    }
}
