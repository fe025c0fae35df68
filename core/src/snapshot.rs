//! One published generation: every document of an index in every variant, immutable.
//!
//! # Why a file
//!
//! A generation must still be there after a restart, so that the first request is answered before
//! the tree has been looked at. While a builder runs, readers have the same bytes from it directly
//! (`live.rs`).
//!
//! # Layout (version 2, little-endian)
//!
//! | offset | length | content |
//! |---|---|---|
//! | 0 | 8 | `SSTRSNAP` |
//! | 8 | 4 | version of the layout, 2 |
//! | 12 | 4 | length of the head, *h* |
//! | 16 | 8 | offset of the head, *o* |
//! | 24 | 8 | XXH3-64 of the head |
//! | 32 | 8 | XXH3-64 of the body |
//! | 40 | *o*-40 | body: the documents' variants, tables of their chunks, and the list of problems |
//! | *o* | *h* | head: JSON, [`Head`] |
//!
//! The file's length is exactly *o* + *h*. XXH3 finds damage, not malice: the directory belongs to
//! the user that runs the workers. Sealed memory has the same layout, but a checksum of the body only
//! if it was read from a file: nothing can damage it, and workers need not look at forty megabytes
//! for each generation.
//!
//! # History
//!
//! 1. First version.
//! 2. The head behind the body, with a checksum of its own.

mod encode;
mod file;
mod listing;
mod map;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::live::Live;
use crate::memory::Memory;
use crate::{Problem, Report};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use encode::assemble;
pub use encode::{Lineage, encode};
pub(crate) use encode::{begin, finish};
pub use file::write_file;
pub(crate) use file::{read_regular, replace};
pub(crate) use listing::ListedVersion;

const MAGIC: &[u8; 8] = b"SSTRSNAP";
const LAYOUT: u32 = 2;
const PREAMBLE: usize = 40;

/// No generation comes this far: one each millisecond would take a quarter of a million years. Up to
/// here every JSON reader has the number exactly, and the next one never overflows.
const MAX_GENERATION: u64 = 1 << 53;

/// Why a snapshot file cannot be used. The path is part of every message.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read.
    #[error("cannot read snapshot \"{}\" ({source})", path.display())]
    Io {
        /// The snapshot file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write snapshot \"{}\" ({source})", path.display())]
    Write {
        /// The snapshot file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The content is not what was written.
    #[error("snapshot \"{}\" is damaged: {reason}", path.display())]
    Damaged {
        /// The snapshot file.
        path: PathBuf,
        /// Which check failed.
        reason: &'static str,
    },
    /// The file was written by another version of this software.
    #[error("snapshot \"{}\" has layout {found}, this version reads {LAYOUT}", path.display())]
    Layout {
        /// The snapshot file.
        path: PathBuf,
        /// The layout's version in the file.
        found: u32,
    },
}

/// The head of a snapshot: everything but the bytes themselves.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// Of the index; empty if nobody said.
    #[serde(default)]
    id: String,
    /// What is indexed, as text; empty if nobody said.
    #[serde(default)]
    root: String,
    generation: u64,
    /// Milliseconds since the epoch.
    published: u64,
    counts: Counts,
    documents: BTreeMap<String, DocumentHead>,
    problems: Span,
    /// How many problems are there; unknown in a snapshot of an older version.
    #[serde(default)]
    problem_count: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct DocumentHead {
    /// Seconds since the epoch.
    last_modified: i64,
    identity: VariantHead,
    gzip: VariantHead,
    /// Where the table of its chunks is (`render/earlier.rs`); not in a snapshot of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chunks: Option<Span>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct VariantHead {
    #[serde(flatten)]
    span: Span,
    etag: String,
}

/// A stretch, in bytes; in the head, of the body.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) offset: usize,
    pub(crate) length: usize,
}

impl Span {
    /// From `start` to `end`.
    pub(crate) fn between(start: u64, end: u64) -> Self {
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self { offset: size(start), length: size(end.saturating_sub(start)) }
    }

    /// The same stretch of the whole as one of the body.
    fn in_body(self) -> Self {
        Self { offset: self.offset.saturating_sub(PREAMBLE), ..self }
    }

    fn get<'a>(&self, body: &'a [u8]) -> Option<&'a [u8]> {
        body.get(self.offset..self.offset.checked_add(self.length)?)
    }
}

/// A document's name and the entity tags of its variants, quotes included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tags {
    pub(crate) name: String,
    pub(crate) identity: String,
    pub(crate) gzip: String,
}

/// Where a document's variants are, in the whole.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) tags: Tags,
    pub(crate) identity: Span,
    pub(crate) gzip: Span,
    /// The table of its chunks.
    pub(crate) chunks: Option<Span>,
}

/// How much an index lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Products that have at least one listed version.
    pub products: u64,
    /// Listed versions.
    pub versions: u64,
    /// Items of the listed versions.
    pub items: u64,
    /// Bytes of the files that the items name, each file once.
    pub bytes: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.products += other.products;
        self.versions += other.versions;
        self.items += other.items;
        self.bytes += other.bytes;
    }

    pub(crate) fn take(&mut self, other: Self) {
        self.products -= other.products;
        self.versions -= other.versions;
        self.items -= other.items;
        self.bytes -= other.bytes;
    }
}

/// A document in its variants, ready to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Document<'a> {
    /// Seconds since the epoch; changes whenever the document does.
    pub last_modified: i64,
    /// The document as it is.
    pub identity: Variant<'a>,
    /// The document as one gzip member.
    pub gzip: Variant<'a>,
}

/// The bytes of one variant of a document.
#[derive(Clone, Copy, Debug)]
pub struct Variant<'a> {
    /// What is sent.
    pub bytes: &'a [u8],
    /// Strong entity tag, quotes included, made of the bytes alone.
    pub etag: &'a str,
}

/// A document on its way into a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// File name under `streams/v1/`, such as `images.json`.
    pub name: String,
    /// The document.
    pub identity: Vec<u8>,
    /// The document as one gzip member.
    pub gzip: Vec<u8>,
}

/// One generation of an index.
pub struct Snapshot {
    backing: Backing,
    /// What is mapped, where readers have it from another process.
    memory: Option<fs::File>,
    head: Head,
}

enum Backing {
    Memory(Vec<u8>),
    Mapped(memmap2::Mmap),
}

impl Backing {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.head.generation)
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Reads and checks the snapshot file at `path`. The file is copied, since one that has a name
    /// may be truncated by whoever likes.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]: not readable, damaged, or of another layout.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        // In memory that goes at once when the next generation comes: an allocator may keep it.
        Self::open_shared(path).map(|(snapshot, _)| snapshot)
    }

    /// As [`open`](Self::open), with the memory that it is in, which can be shared; if there is none, what
    /// keeps it from being had.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub(crate) fn open_shared(path: &Path) -> Result<(Self, io::Result<Live>), SnapshotError> {
        let copied = file::open_regular(path, MAX_FILE).and_then(|file| {
            let mut memory = Memory::default();
            let checksum = copy(&file, |part| memory.append(part).map(drop))?;
            let live = Live::seal(memory)?;
            Ok((map::map(live.sealed())?, live, checksum))
        });
        match copied {
            Ok((map, live, checksum)) => {
                let snapshot = Self::check(Backing::Mapped(map), path, Some(checksum))?;
                Ok((snapshot.of_its_name(path)?, Ok(live)))
            }
            Err(err) => {
                let io = |source| SnapshotError::Io { path: path.to_owned(), source };
                let bytes = read_regular(path, MAX_FILE).map_err(io)?;
                Ok((Self::of_copy(bytes, path)?.of_its_name(path)?, Err(err)))
            }
        }
    }

    /// Maps and checks the generation that a running builder announces at `path` (see
    /// [`crate::live`]). Its pages are shared with every other process that does.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]: no builder runs, or as for [`open`](Self::open).
    pub(crate) fn open_live(path: &Path) -> Result<Self, SnapshotError> {
        let io = |source| SnapshotError::Io { path: path.to_owned(), source };
        let memory = crate::live::open(path).map_err(io)?;
        let mut snapshot = Self::map(&memory, path)?.of_its_name(path)?;
        snapshot.memory = Some(memory);
        Ok(snapshot)
    }

    /// Maps a generation in sealed memory of this process.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`], as for [`open`](Self::open).
    pub(crate) fn of_memory(memory: &Live) -> Result<Self, SnapshotError> {
        Self::map(memory.sealed(), Path::new("(memory)"))
    }

    fn map(sealed: &fs::File, path: &Path) -> Result<Self, SnapshotError> {
        let io = |source| SnapshotError::Io { path: path.to_owned(), source };
        Self::check(Backing::Mapped(map::map(sealed).map_err(io)?), path, None)
    }

    /// Makes sure that it is of the index whose file this is: a descriptor's number may be that of
    /// another index's memory by now, a file may have been copied.
    fn of_its_name(self, path: &Path) -> Result<Self, SnapshotError> {
        let id = self.head.id.as_str();
        if id.is_empty() || path.file_stem().is_some_and(|stem| stem == id) {
            Ok(self)
        } else {
            let reason = "it is of another index";
            Err(SnapshotError::Damaged { path: path.to_owned(), reason })
        }
    }

    /// Takes an encoded snapshot that lives in memory.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`], as for [`open`](Self::open).
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, SnapshotError> {
        Self::of_copy(bytes, Path::new("(memory)"))
    }

    fn of_copy(bytes: Vec<u8>, path: &Path) -> Result<Self, SnapshotError> {
        let checksum = bytes.get(..PREAMBLE).and_then(|preamble| {
            let end = usize::try_from(u64_at(preamble, 16)).ok()?;
            Some(xxh3_64(bytes.get(PREAMBLE..end)?))
        });
        // Without one, it is damaged in another way that is told first.
        Self::check(Backing::Memory(bytes), path, Some(checksum.unwrap_or_default()))
    }

    /// Makes sure of all but the body, which is as it was written if it has this checksum, or if nobody
    /// could have changed it.
    fn check(
        backing: Backing,
        path: &Path,
        body_checksum: Option<u64>,
    ) -> Result<Self, SnapshotError> {
        let damaged = |reason| SnapshotError::Damaged { path: path.to_owned(), reason };
        let bytes = backing.bytes();
        let preamble = bytes.get(..PREAMBLE).ok_or_else(|| damaged("shorter than its preamble"))?;
        if &preamble[..8] != MAGIC {
            return Err(damaged("it does not begin with SSTRSNAP"));
        }
        let found = u32_at(preamble, 8);
        if found != LAYOUT {
            return Err(SnapshotError::Layout { path: path.to_owned(), found });
        }
        let head_length = u32_at(preamble, 12) as usize;
        let end = usize::try_from(u64_at(preamble, 16)).unwrap_or(usize::MAX);
        if end < PREAMBLE || end.checked_add(head_length) != Some(bytes.len()) {
            return Err(damaged("its length is not what its preamble says"));
        }
        let (body, head) = (&bytes[PREAMBLE..end], &bytes[end..]);
        if xxh3_64(head) != u64_at(preamble, 24)
            || body_checksum.is_some_and(|checksum| checksum != u64_at(preamble, 32))
        {
            return Err(damaged("its checksum does not match"));
        }
        let head: Head =
            serde_json::from_slice(head).map_err(|_| damaged("its head cannot be understood"))?;
        if head.generation >= MAX_GENERATION {
            return Err(damaged("its generation is no number that is ever reached"));
        }
        let mut spans = vec![head.problems];
        for document in head.documents.values() {
            spans.extend([document.identity.span, document.gzip.span]);
            spans.extend(document.chunks);
        }
        if spans.iter().any(|span| span.get(body).is_none()) {
            return Err(damaged("a document lies outside of it"));
        }
        Ok(Self { head, backing, memory: None })
    }

    /// Number of this generation; every published one has a higher number than the last.
    pub fn generation(&self) -> u64 {
        self.head.generation
    }

    /// The root that was indexed, as text; empty if whoever encoded it did not say.
    pub fn root(&self) -> &str {
        &self.head.root
    }

    /// Whether it has any document. Without a root there is nothing to say, and a server answers
    /// "not available" rather than an empty list, which clients would believe for an hour.
    pub fn has_documents(&self) -> bool {
        !self.head.documents.is_empty()
    }

    /// When this generation was published, in milliseconds since the epoch.
    pub fn published(&self) -> u64 {
        self.head.published
    }

    /// How much this generation lists.
    pub fn counts(&self) -> Counts {
        self.head.counts
    }

    /// The document served as `streams/v1/<name>`, if there is one.
    pub fn document(&self, name: &str) -> Option<Document<'_>> {
        let head = self.head.documents.get(name)?;
        Some(Document {
            last_modified: head.last_modified,
            identity: self.variant(&head.identity)?,
            gzip: self.variant(&head.gzip)?,
        })
    }

    /// Where a document's text begins in the whole.
    pub(crate) fn text_at(&self, name: &str) -> Option<u64> {
        let span = self.head.documents.get(name)?.identity.span;
        Some((PREAMBLE + span.offset) as u64)
    }

    /// The table of a document's chunks, for the next start.
    pub(crate) fn chunks(&self, name: &str) -> Option<&[u8]> {
        self.head.documents.get(name)?.chunks?.get(self.body())
    }

    /// Names of all documents, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.head.documents.keys().map(String::as_str)
    }

    /// What is wrong with the tree, sorted by path.
    pub fn problems(&self) -> Vec<Problem> {
        // Checked by the checksum; a list that still cannot be read is one from another version
        // with the same layout, which does not happen.
        serde_json::from_slice(self.problems_json()).unwrap_or_default()
    }

    /// What is wrong with the tree, and since when, sorted by path.
    pub fn reports(&self) -> Vec<Report> {
        // As above.
        serde_json::from_slice(self.problems_json()).unwrap_or_default()
    }

    /// How many problems there are, without a look at each.
    pub fn problem_count(&self) -> u64 {
        self.head.problem_count.unwrap_or_else(|| self.problems().len() as u64)
    }

    /// The problems as a JSON array of objects with `path`, `reason`, `remedy`, and `since`, in
    /// milliseconds since the epoch.
    pub fn problems_json(&self) -> &[u8] {
        self.head.problems.get(self.body()).unwrap_or(b"[]")
    }

    /// The file that `bytes` of this snapshot are in, and at which offset, for `sendfile(2)`. None for
    /// one that was copied. The descriptor is open as long as the snapshot lives, and what it refers to
    /// is sealed, so it never changes.
    pub fn file_of(&self, bytes: &[u8]) -> Option<(BorrowedFd<'_>, u64)> {
        let (memory, whole) = (self.memory.as_ref()?, self.encoded());
        let offset = bytes.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
        let within = offset.checked_add(bytes.len())? <= whole.len();
        within.then_some((memory.as_fd(), u64::try_from(offset).ok()?))
    }

    /// The whole of it, as it was encoded.
    pub(crate) fn encoded(&self) -> &[u8] {
        self.backing.bytes()
    }

    fn variant<'a>(&'a self, head: &'a VariantHead) -> Option<Variant<'a>> {
        Some(Variant { bytes: head.span.get(self.body())?, etag: &head.etag })
    }

    /// All behind the preamble: what is of the body was checked.
    fn body(&self) -> &[u8] {
        &self.encoded()[PREAMBLE..]
    }
}

/// Writes the generation in `sealed` memory to the file at `path`, as [`write_file`] does, with the
/// checksum of its body.
pub(crate) fn save(path: &Path, sealed: &fs::File) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    file::replace_by(path, true, |file| {
        let checksum = copy(sealed, |part| file.write_all(part))?;
        file.write_all_at(&checksum.to_le_bytes(), 32)
    })
}

/// Gives `take` all of `file`, an encoded snapshot, piece by piece, and returns the checksum of its body:
/// of what is in the processor's cache just then.
fn copy(file: &fs::File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    use std::os::unix::fs::FileExt as _;

    let mut preamble = [0; PREAMBLE];
    file.read_exact_at(&mut preamble, 0)?;
    take(&preamble)?;
    let (end, length) = (u64_at(&preamble, 16), file.metadata()?.len());
    let (mut hasher, mut buffer) = (Xxh3::new(), vec![0; 256 * 1024]);
    let mut at = PREAMBLE as u64;
    while at < length {
        let stop = if at < end { end.min(length) } else { length };
        let room = buffer.len() - (at % buffer.len() as u64) as usize;
        let part = usize::try_from(stop - at).unwrap_or(usize::MAX).min(room);
        file.read_exact_at(&mut buffer[..part], at)?;
        if at < end {
            hasher.update(&buffer[..part]);
        }
        take(&buffer[..part])?;
        at += part as u64;
    }
    Ok(hasher.digest())
}

/// Most bytes of a snapshot file that are read: far more than an index of a million versions.
const MAX_FILE: u64 = 8 << 30;

/// Path of the snapshot file of the index `id` ([`Settings::id`](crate::Settings::id)).
pub fn path(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(format!("{id}.snapshot"))
}

fn to_json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    // Only strings, numbers and maps with string keys are ever given here, which always serialize.
    serde_json::to_vec(value).expect("plain data serializes")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}
