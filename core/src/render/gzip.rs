//! Gzip variants of documents, of which only what changed is compressed anew.
//!
//! A document is cut where its bytes say so, each chunk is compressed with the 32 KiB before it as
//! dictionary, and the results make one gzip member: raw deflate streams (RFC 1951) that end on a byte
//! boundary can follow each other. Cuts and dictionaries depend on the document's bytes alone, so a
//! document compresses to the same bytes whatever was compressed before it.

use std::collections::HashMap;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use crate::Digest;

/// Compression level. Chunks are compressed once for each change, while every client pays for the
/// bytes.
const LEVEL: u32 = 9;

/// How far back deflate refers, in bytes.
const WINDOW: usize = 32 * 1024;

/// Bounds of a chunk, in bytes. Each chunk costs about a hundred bytes of block headers, and a change
/// costs the compression of one or two.
const MIN: usize = 64 * 1024;
const MAX: usize = 512 * 1024;

/// A cut is where these bits of the rolling hash are zero: once in 128 KiB. The top bits, which the
/// last 64 bytes have a say in.
const CUT: u64 = !0 << (64 - 17);

/// RFC 1952: deflate, no flags, no time, slowest algorithm, unknown file system; what equal documents
/// have in common.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];

/// RFC 1951: the last block, empty, with fixed codes.
const LAST_BLOCK: [u8; 2] = [3, 0];

/// Values of bytes in the rolling hash: SplitMix64 of their number.
const GEAR: [u64; 256] = {
    let mut gear = [0; 256];
    let mut state = 0_u64;
    let mut byte = 0;
    while byte < gear.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        gear[byte] = value ^ (value >> 31);
        byte += 1;
    }
    gear
};

/// Compresses documents, and remembers the chunks of the last ones.
#[derive(Debug, Default)]
pub(crate) struct Compressor {
    /// By the SHA-256 of dictionary and chunk: uploaders choose much of the text.
    known: HashMap<(Digest, Digest), Chunk>,
    /// Those of the documents that are being compressed.
    used: HashMap<(Digest, Digest), Chunk>,
}

#[derive(Debug)]
struct Chunk {
    deflated: Box<[u8]>,
    crc: Crc,
}

impl Compressor {
    /// One gzip member, without name or time.
    pub(crate) fn gzip(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = HEADER.to_vec();
        let mut crc = Crc::new();
        let mut start = 0;
        while start < bytes.len() {
            let end = start + cut(&bytes[start..]);
            let dictionary = &bytes[start.saturating_sub(WINDOW)..start];
            let plain = &bytes[start..end];
            let key = (Digest::of(dictionary), Digest::of(plain));
            let known = &mut self.known;
            let chunk = self.used.entry(key).or_insert_with(|| {
                known.remove(&key).unwrap_or_else(|| Chunk::new(dictionary, plain))
            });
            out.extend_from_slice(&chunk.deflated);
            crc.combine(&chunk.crc);
            start = end;
        }
        out.extend_from_slice(&LAST_BLOCK);
        out.extend_from_slice(&crc.sum().to_le_bytes());
        out.extend_from_slice(&crc.amount().to_le_bytes());
        out
    }

    /// Forgets the chunks that were not used since the last call.
    pub(crate) fn turn(&mut self) {
        self.known = std::mem::take(&mut self.used);
    }
}

impl Chunk {
    fn new(dictionary: &[u8], plain: &[u8]) -> Self {
        let mut deflate = Compress::new(Compression::new(LEVEL), false);
        // The dictionary is compressed first, and what comes of it is dropped: what follows may refer
        // to it.
        let mut deflated = Vec::new();
        append(&mut deflate, dictionary, &mut deflated);
        deflated.clear();
        append(&mut deflate, plain, &mut deflated);
        let mut crc = Crc::new();
        crc.update(plain);
        Self { deflated: deflated.into_boxed_slice(), crc }
    }
}

/// Appends `plain`, compressed, up to a byte boundary.
fn append(deflate: &mut Compress, plain: &[u8], out: &mut Vec<u8>) {
    if plain.is_empty() {
        return;
    }
    let mut rest = plain;
    loop {
        out.reserve(rest.len() / 2 + 1024);
        let before = deflate.total_in();
        // Only a wrong order of calls is an error, and there is none here.
        let status =
            deflate.compress_vec(rest, out, FlushCompress::Sync).expect("deflate takes every byte");
        let taken = usize::try_from(deflate.total_in() - before).unwrap_or(rest.len());
        rest = &rest[taken..];
        // It is flushed when it leaves room in the output.
        if rest.is_empty() && (status == Status::BufError || out.len() < out.capacity()) {
            return;
        }
    }
}

/// The length of the first chunk of `bytes`, which are not empty.
fn cut(bytes: &[u8]) -> usize {
    let end = bytes.len().min(MAX);
    let mut hash = 0_u64;
    // The hash forgets what is more than 64 bytes back.
    for at in MIN.saturating_sub(64)..end {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(bytes[at])]);
        if at >= MIN && hash & CUT == 0 {
            return at;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::io::{Read as _, Write as _};

    use super::*;

    /// Text like that of a document: `products` products, of which `changed` is longer.
    fn text(products: u32, changed: Option<u32>) -> Vec<u8> {
        let mut text = String::from("{");
        for product in 0..products {
            let hash = Digest::of(&product.to_le_bytes());
            let _ = write!(
                text,
                "\"os:{product}:amd64:default\":{{\"arch\":\"amd64\",\"sha256\":\"{hash}\",\"path\":\"images/os/{product}\"}},"
            );
            if changed == Some(product) {
                text.push_str("\"variant\":\"changed\",");
            }
        }
        text.into_bytes()
    }

    fn gunzip(bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        // Of one member: the end of a document is the end of the input.
        let mut decoder = flate2::bufread::GzDecoder::new(bytes);
        decoder.read_to_end(&mut plain).expect("valid");
        assert!(decoder.into_inner().is_empty(), "one member and no more");
        plain
    }

    #[test]
    fn every_length_reads_back() {
        let text = text(12_000, None);
        assert!(text.len() > 2 * MAX);
        let lengths = [0, 1, 2, WINDOW, MIN - 1, MIN, MIN + 1, MAX, MAX + 1, text.len()];
        for length in lengths {
            let plain = &text[..length];
            assert_eq!(gunzip(&Compressor::default().gzip(plain)), plain, "{length} bytes");
        }
    }

    #[test]
    fn bytes_without_cuts_or_patterns_read_back() {
        let zeros = vec![0; 3 * MAX];
        assert_eq!(gunzip(&Compressor::default().gzip(&zeros)), zeros);
        let noise: Vec<u8> =
            (0_u32..40_000).flat_map(|n| *Digest::of(&n.to_le_bytes()).as_bytes()).collect();
        assert_eq!(gunzip(&Compressor::default().gzip(&noise)), noise);
    }

    #[test]
    fn a_change_compresses_few_chunks_and_gives_the_bytes_of_a_fresh_start() {
        // One of the changes is in the dictionary of the second chunk, whose bytes stay.
        let plain = text(40_000, None);
        let before = &plain[..cut(&plain) - WINDOW / 2];
        let products = before.iter().filter(|byte| **byte == b'{').count();
        let in_dictionary = u32::try_from(products).expect("few") - 2;
        for changed in [0, in_dictionary, 20_000, 39_999] {
            let mut compressor = Compressor::default();
            compressor.gzip(&plain);
            compressor.turn();
            let chunks = compressor.known.len();
            assert!(chunks > 20, "{chunks}");
            let text = text(40_000, Some(changed));
            let gzip = compressor.gzip(&text);
            let made = compressor.used.len() + compressor.known.len() - chunks;
            assert!((1..=4).contains(&made), "{made} of {chunks} chunks");
            assert_eq!(gzip, Compressor::default().gzip(&text));
            assert_eq!(gunzip(&gzip), text);
        }
    }

    #[test]
    fn hardly_larger_than_the_whole_in_one_go() {
        let text = text(40_000, None);
        let mut whole = flate2::write::GzEncoder::new(Vec::new(), Compression::new(LEVEL));
        whole.write_all(&text).expect("memory");
        let whole = whole.finish().expect("memory").len();
        let chunked = Compressor::default().gzip(&text).len();
        assert!(chunked <= whole + whole / 200, "{chunked} of {whole} bytes");
    }
}
