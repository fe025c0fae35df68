//! Compressed chunks of an earlier process: what it made of a text need not be made again after a
//! restart.
//!
//! A generation has a table of each document's chunks, in their order: who compressed them (8 bytes),
//! and for each chunk the SHA-256 of its text (32) and of its dictionary (32), its compressed length
//! (4, little-endian), and whether the document ends with it (1). What comes of a chunk depends on
//! these alone, and on who compresses.

use foldhash::{HashMap, HashMapExt as _};
use xxhash_rust::xxh3::xxh3_64;

use super::deflate::{HEADER, Packed};
use crate::Digest;

/// Another version, or another setting, may compress otherwise.
const COMPRESSOR: &str =
    concat!(env!("CARGO_PKG_VERSION"), ", zlib-rs, level 7, filtered, chains of 32");

/// What a compressed chunk depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) text: Digest,
    pub(super) dictionary: Digest,
    pub(super) last: bool,
}

const RECORD: usize = 32 + 32 + 4 + 1;

/// The table of a document with these chunks.
pub(super) fn table<'a>(chunks: impl Iterator<Item = (Key, &'a Packed)>) -> Vec<u8> {
    let mut table = xxh3_64(COMPRESSOR.as_bytes()).to_le_bytes().to_vec();
    for (Key { text, dictionary, last }, packed) in chunks {
        table.extend(text.as_bytes());
        table.extend(dictionary.as_bytes());
        // A chunk has half a megabyte, and the longest piece a few.
        table.extend(u32::try_from(packed.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        table.push(u8::from(last));
    }
    table
}

/// What an earlier process compressed.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    chunks: HashMap<Key, Box<[u8]>>,
    /// One of them was made anew, and came out the same.
    is_proved: bool,
}

impl Earlier {
    /// The chunks of a document, by its table; none if that is not of this version.
    pub(super) fn read(gzip: &[u8], table: &[u8]) -> Self {
        Self { chunks: chunks(gzip, table).unwrap_or_default(), is_proved: false }
    }

    /// The chunk of `text`, if it is there. The first that is asked for is made anew all the same: if it
    /// comes out otherwise, nothing of the earlier process is used.
    pub(super) fn take(
        &mut self,
        key: Key,
        text: &[u8],
        make: impl FnOnce() -> Packed,
    ) -> Option<Packed> {
        let bytes = self.chunks.remove(&key)?;
        if self.is_proved {
            return Some(Packed::of(bytes, text));
        }
        let made = make();
        if made.bytes == bytes {
            self.is_proved = true;
        } else {
            self.chunks.clear();
        }
        Some(made)
    }
}

fn chunks(gzip: &[u8], table: &[u8]) -> Option<HashMap<Key, Box<[u8]>>> {
    let (compressor, records) = table.split_first_chunk()?;
    if u64::from_le_bytes(*compressor) != xxh3_64(COMPRESSOR.as_bytes()) {
        return None;
    }
    let mut rest = gzip.get(HEADER.len()..)?;
    let mut chunks = HashMap::new();
    for record in records.chunks(RECORD) {
        let (text, record) = record.split_first_chunk()?;
        let (dictionary, record) = record.split_first_chunk()?;
        let (length, record) = record.split_first_chunk()?;
        let [last] = record else {
            return None;
        };
        let key = Key {
            text: Digest::from_bytes(*text),
            dictionary: Digest::from_bytes(*dictionary),
            last: *last != 0,
        };
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (bytes, behind) = rest.split_at_checked(length)?;
        chunks.insert(key, bytes.into());
        rest = behind;
    }
    Some(chunks)
}
