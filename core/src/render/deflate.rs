//! Gzip (RFC 1952) from chunks that are compressed one by one.
//!
//! Each chunk is compressed with the 32 KiB before it as dictionary, and the results make one gzip
//! member: raw deflate streams (RFC 1951) that end on a byte boundary can follow each other. What
//! comes of a chunk depends on it, its dictionary and its being the last one, and on nothing that
//! was compressed before.

mod tuned;

use flate2::Crc;

use crate::Digest;
use tuned::Deflate;

/// How far back deflate refers, in bytes.
pub(super) const WINDOW: usize = 32 * 1024;

/// Deflate, no flags, no time, slowest algorithm, unknown file system; what equal documents have in
/// common.
pub(super) const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];

/// A compressed chunk.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) bytes: Box<[u8]>,
    /// Of `bytes`.
    pub(super) digest: Digest,
    /// Of the text.
    pub(super) crc: Crc,
}

impl Packed {
    /// In the place of one that is not compressed yet.
    pub(super) fn later() -> Self {
        Self { bytes: Box::default(), digest: Digest::from_bytes([0; 32]), crc: Crc::new() }
    }

    /// Compresses `text`, which stands behind `dictionary` and, if it is `last`, ends the document.
    pub(super) fn new(dictionary: &[u8], text: &[u8], last: bool) -> Self {
        let bytes = Deflate::new(dictionary).compress(text, last);
        Self::of(bytes.into_boxed_slice(), text)
    }

    /// `text` compressed to `bytes`.
    pub(super) fn of(bytes: Box<[u8]>, text: &[u8]) -> Self {
        let mut crc = Crc::new();
        crc.update(text);
        Self { digest: Digest::of(&bytes), bytes, crc }
    }
}

/// All that stands behind the compressed chunks.
pub(super) fn trailer<'a>(chunks: impl Iterator<Item = &'a Packed>) -> [u8; 8] {
    let mut crc = Crc::new();
    chunks.for_each(|chunk| crc.combine(&chunk.crc));
    let mut trailer = [0; 8];
    trailer[..4].copy_from_slice(&crc.sum().to_le_bytes());
    trailer[4..].copy_from_slice(&crc.amount().to_le_bytes());
    trailer
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn gzip(text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let (mut out, mut start, mut all) = (HEADER.to_vec(), 0, Vec::new());
        for &end in cuts.iter().chain([&text.len()]) {
            let dictionary = &text[start - start.min(WINDOW)..start];
            all.push(Packed::new(dictionary, &text[start..end], end == text.len()));
            out.extend(&all[all.len() - 1].bytes);
            start = end;
        }
        out.extend(trailer(all.iter()));
        out
    }

    #[test]
    fn chunks_of_any_length_make_one_member() {
        let noise = |length: u32| -> Vec<u8> {
            (0..length).flat_map(|n| *Digest::of(&n.to_le_bytes()).as_bytes()).collect()
        };
        let pattern: Vec<u8> = noise(100).repeat(100);
        for text in [noise(20_000), pattern, vec![0; 3 << 20], b"x".to_vec(), Vec::new()] {
            for cuts in [&[][..], &[1, 2], &[WINDOW - 1, WINDOW, 2 * WINDOW + 1], &[100_000]] {
                let cuts: Vec<usize> = cuts.iter().copied().filter(|at| *at < text.len()).collect();
                let gzip = gzip(&text, &cuts);
                let mut plain = Vec::new();
                // Of one member: the end of a document is the end of the input.
                let mut decoder = flate2::bufread::GzDecoder::new(&gzip[..]);
                decoder.read_to_end(&mut plain).expect("valid");
                assert!(decoder.into_inner().is_empty(), "one member and no more");
                assert_eq!(plain, text, "{cuts:?}");
            }
        }
    }
}
