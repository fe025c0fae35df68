//! A document in chunks.
//!
//! A document ends a chunk where its pieces say so, so that chunks depend on what is in the document
//! and not on how it came to be. When a piece changes, the chunk around it is made anew, and further
//! ones until a chunk begins where one began before; the rest stays: its text in the last generation,
//! its compressed bytes here, its hashes in the entity tags.

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use foldhash::HashMap;
use xxhash_rust::xxh3::xxh3_64;

use super::deflate::{self, HEADER, Packed, WINDOW};
use super::earlier::{self, Earlier, Key};
use super::pieces::{At, Before, Of, Writer};
use crate::catalog::Catalog;
use crate::digest::Hasher;
use crate::memory::Memory;
use crate::name::ProductName;
use crate::snapshot::{Placed, Span, Tags};
use crate::{Digest, fields, parallel};

/// Lengths of chunks, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// A chunk has at least so many.
    pub(super) min: usize,
    /// A chunk that has so many ends; pieces are never cut.
    pub(super) max: usize,
    /// Between them, it ends behind one byte of so many, as the pieces have it.
    pub(super) average: u64,
}

impl Bounds {
    /// Every chunk costs a few bytes of block headers, and a change costs the compression of one or
    /// two.
    pub(super) const USUAL: Self = Self { min: 64 * 1024, max: 512 * 1024, average: 128 * 1024 };
}

#[derive(Debug)]
pub(super) struct Document {
    of: Of,
    bounds: Bounds,
    /// None before the first time.
    chunks: Vec<Chunk>,
    /// For the first time.
    earlier: Earlier,
}

#[derive(Clone, Debug)]
struct Chunk {
    /// Its first and last piece; none in a document without.
    first: Option<At>,
    end: Option<At>,
    before: Before,
    text: Text,
    length: usize,
    digest: Digest,
    /// Of the last [`WINDOW`] bytes before it, and of its own.
    dictionary: Digest,
    tail: Digest,
    /// Whether the document ends with it.
    last: bool,
    packed: Arc<Packed>,
}

impl Chunk {
    /// What its compressed bytes depend on.
    fn key(&self) -> Key {
        Key { text: self.digest, dictionary: self.dictionary, last: self.last }
    }
}

/// Where a text is.
#[derive(Clone, Copy, Debug)]
enum Text {
    /// Among those that no generation holds yet.
    Fresh(u64),
    /// In the last generation.
    Kept(u64),
}

/// Where texts are.
pub(super) struct Store<'a> {
    pub(super) fresh: &'a mut Memory,
    pub(super) last: Option<&'a Memory>,
}

impl Store<'_> {
    fn read(&self, text: Text, skip: usize, length: usize) -> io::Result<Vec<u8>> {
        match text {
            Text::Fresh(at) => self.fresh.read(at + skip as u64, length),
            Text::Kept(at) => {
                self.last.ok_or(io::ErrorKind::NotFound)?.read(at + skip as u64, length)
            }
        }
    }
}

impl Document {
    pub(super) fn new(of: Of, bounds: Bounds) -> Self {
        Self { of, bounds, chunks: Vec::new(), earlier: Earlier::default() }
    }

    /// Its file name.
    pub(super) fn file(&self) -> String {
        self.of.file()
    }

    /// Takes over what an earlier process compressed, for the first [update](Self::update).
    pub(super) fn inherit(&mut self, earlier: Earlier) {
        self.earlier = earlier;
    }

    /// Renders what `changed`.
    pub(super) fn update(
        &mut self,
        catalog: &Catalog,
        overrides: &fields::Files,
        changed: &BTreeSet<ProductName>,
        store: Store<'_>,
    ) -> io::Result<()> {
        // After a failure everything is rendered again.
        let old = std::mem::take(&mut self.chunks);
        if !old.is_empty() && !changed.iter().any(|product| self.of.has(product)) {
            self.chunks = old;
            return Ok(());
        }
        let known = old.iter().enumerate().map(|(at, chunk)| (chunk.digest, at)).collect();
        let writer = Writer::new(&self.of, catalog, overrides);
        let mut cutting = Cutting {
            of: &self.of,
            bounds: self.bounds,
            catalog,
            changed,
            known,
            old,
            new: Vec::new(),
            taken: 0,
            unpacked: Vec::new(),
            earlier: std::mem::take(&mut self.earlier),
            writer,
            store,
        };
        if cutting.old.is_empty() {
            cutting.cut_all(overrides)?;
        }
        for product in changed.iter().filter(|product| self.of.has(product)) {
            let at = At { product: product.clone(), version: "".into() };
            let behind = |chunk: &Chunk| chunk.first.as_ref().is_none_or(|first| *first <= at);
            let chunk = cutting.old.partition_point(behind).saturating_sub(1);
            if !cutting.old.is_empty() && chunk >= cutting.taken {
                cutting.cut(chunk)?;
            }
        }
        cutting.pack();
        cutting.take_until(usize::MAX);
        self.chunks = cutting.new;
        Ok(())
    }

    /// Entity tags: hashes of the chunks' hashes, so that they cost as much as what changed. Cuts
    /// depend on the document, and so do they.
    pub(super) fn tags(&self) -> Tags {
        let (mut plain, mut packed) = (Hasher::default(), Hasher::default());
        for chunk in &self.chunks {
            plain.update(&(chunk.length as u64).to_le_bytes());
            plain.update(chunk.digest.as_bytes());
            packed.update(&(chunk.packed.bytes.len() as u64).to_le_bytes());
            packed.update(chunk.packed.digest.as_bytes());
        }
        let tag = |hasher: Hasher| format!("\"{:.32}\"", hasher.finish());
        Tags { name: self.of.file(), identity: tag(plain), gzip: tag(packed) }
    }

    /// Appends the document in its variants to `to`.
    pub(super) fn place(
        &self,
        fresh: &Memory,
        last: Option<&Memory>,
        to: &mut Memory,
    ) -> io::Result<Placed> {
        let start = to.length();
        let mut rest = &self.chunks[..];
        while let Some(chunk) = rest.first() {
            let (from, at) = match chunk.text {
                Text::Fresh(at) => (fresh, at),
                Text::Kept(at) => (last.ok_or(io::ErrorKind::NotFound)?, at),
            };
            // Those that follow each other there as well go in one step.
            let mut length = 0;
            while let Some((chunk, behind)) = rest.split_first() {
                let follows = match (chunk.text, rest[0].text) {
                    _ if length == 0 => true,
                    (Text::Fresh(this), _) => std::ptr::eq(from, fresh) && this == at + length,
                    (Text::Kept(this), _) => !std::ptr::eq(from, fresh) && this == at + length,
                };
                if !follows {
                    break;
                }
                length += chunk.length as u64;
                rest = behind;
            }
            to.append_from(from, at, length)?;
        }
        let identity = Span::between(start, to.length());
        let start = to.length();
        to.append(&HEADER)?;
        for chunk in &self.chunks {
            to.append(&chunk.packed.bytes)?;
        }
        to.append(&deflate::trailer(self.chunks.iter().map(|chunk| &*chunk.packed)))?;
        let gzip = Span::between(start, to.length());
        let start = to.length();
        to.append(&earlier::table(self.chunks.iter().map(|chunk| (chunk.key(), &*chunk.packed))))?;
        let chunks = Span::between(start, to.length());
        Ok(Placed { tags: self.tags(), identity, gzip, chunks: Some(chunks) })
    }

    /// The text is now kept, from `at` on.
    pub(super) fn keep(&mut self, mut at: u64) {
        for chunk in &mut self.chunks {
            chunk.text = Text::Kept(at);
            at += chunk.length as u64;
        }
    }
}

/// A chunk that waits for being compressed.
struct Unpacked {
    /// Which of the new ones.
    number: usize,
    dictionary: Vec<u8>,
    text: Vec<u8>,
    last: bool,
}

/// How many chunks are compressed at a time, where there are so many: a few megabytes of text.
const AT_A_TIME: usize = 8;

/// How long a text is rendered before it is handed on to be cut, in bytes, and how many of them wait for
/// that at most.
const SHARE: usize = 64 * 1024;
const AHEAD: usize = 8;

/// Some pieces, in their order.
#[derive(Default)]
struct Rendered {
    text: Vec<u8>,
    /// Each with its end in the text.
    pieces: Vec<(At, usize)>,
}

/// Cuts a document anew where it changed.
struct Cutting<'a> {
    of: &'a Of,
    bounds: Bounds,
    catalog: &'a Catalog,
    changed: &'a BTreeSet<ProductName>,
    old: Vec<Chunk>,
    /// Old chunks by the digests of their text.
    known: HashMap<Digest, usize>,
    new: Vec<Chunk>,
    /// How many of the old chunks are in `new` or replaced.
    taken: usize,
    unpacked: Vec<Unpacked>,
    earlier: Earlier,
    writer: Writer<'a>,
    store: Store<'a>,
}

impl Cutting<'_> {
    /// Takes old chunks over, up to the one with this number.
    fn take_until(&mut self, chunk: usize) {
        let end = chunk.min(self.old.len());
        if self.taken < end {
            self.new.extend_from_slice(&self.old[self.taken..end]);
            self.taken = end;
        }
    }

    /// Cuts the whole document, of which there are no old chunks, while another thread renders.
    fn cut_all(&mut self, overrides: &fields::Files) -> io::Result<()> {
        let (of, catalog) = (self.of, self.catalog);
        let render = |hand_on: &mut dyn FnMut(Rendered) -> bool| {
            let mut writer = Writer::new(of, catalog, overrides);
            let mut rendered = Rendered::default();
            let mut before = None;
            for at in of.pieces(catalog, None) {
                writer.piece(before.as_ref(), &at, &mut rendered.text);
                rendered.pieces.push((at.clone(), rendered.text.len()));
                before = Some(at);
                if rendered.text.len() >= SHARE && !hand_on(std::mem::take(&mut rendered)) {
                    return;
                }
            }
            hand_on(rendered);
        };
        let (mut open, mut before) = (Open::default(), None);
        let mut cut = Ok(());
        parallel::ahead(AHEAD, render, |Rendered { text, pieces }| {
            let mut start = 0;
            for (at, end) in pieces {
                if open.ends(self.bounds) {
                    cut = self.close(std::mem::take(&mut open), before.clone(), false);
                    if cut.is_err() {
                        return false;
                    }
                }
                open.add(before.as_ref(), &at, |out| out.extend(&text[start..end]));
                (before, start) = (Some(at), end);
            }
            true
        });
        cut?;
        self.writer.end(before.as_ref(), &mut open.text);
        self.close(open, before, true)
    }

    /// Cuts from the old chunk with this number on, until an old chunk can be gone on with.
    fn cut(&mut self, chunk: usize) -> io::Result<()> {
        let of = self.of;
        self.take_until(chunk);
        let mut from = self.old.get(chunk).and_then(|chunk| chunk.first.clone());
        from = from.filter(|_| !self.new.is_empty());
        while from.is_some() && of.pieces(self.catalog, from.as_ref()).next().is_none() {
            // The chunk before ends the document now.
            self.pack();
            let before = self.new.pop().and_then(|chunk| chunk.first);
            from = before.filter(|_| !self.new.is_empty());
        }
        let pieces = of.pieces(self.catalog, from.as_ref());
        let mut before = self.new.last().and_then(|chunk| chunk.end.clone());
        let mut open = Open::default();
        for at in pieces {
            if open.ends(self.bounds) {
                self.close(std::mem::take(&mut open), before.clone(), false)?;
                if self.goes_on(before.as_ref(), &at)? {
                    return Ok(());
                }
            }
            open.add(before.as_ref(), &at, |out| self.writer.piece(before.as_ref(), &at, out));
            before = Some(at);
        }
        self.writer.end(before.as_ref(), &mut open.text);
        self.close(open, before, true)?;
        self.taken = self.old.len();
        Ok(())
    }

    /// Whether the old chunk that begins with this piece, if there is one, can follow.
    fn goes_on(&mut self, before: Option<&At>, at: &At) -> io::Result<bool> {
        let behind = |chunk: &Chunk| chunk.first.as_ref().is_none_or(|first| first < at);
        let number = self.old.partition_point(behind).max(self.taken);
        let Some(chunk) = self.old.get(number).filter(|chunk| chunk.first.as_ref() == Some(at))
        else {
            return Ok(false);
        };
        if chunk.before != Before::of(before, at) || self.changed.contains(&at.product) {
            return Ok(false);
        }
        // A piece that begins a stream names those without a product in front of it as well, so it
        // matters which stream was before.
        let of = |at: Option<&At>| at.map(|at| at.product.stream().to_owned());
        let was = number.checked_sub(1).and_then(|before| self.old[before].end.as_ref());
        if chunk.before == Before::Stream && of(was) != of(before) {
            return Ok(false);
        }
        let dictionary = self.new.last().map_or_else(|| Digest::of(b""), |chunk| chunk.tail);
        if chunk.dictionary != dictionary {
            let text = self.store.read(chunk.text, 0, chunk.length)?;
            let packed = Packed::new(&self.tail()?, &text, chunk.last);
            let chunk = &mut self.old[number];
            (chunk.dictionary, chunk.packed) = (dictionary, Arc::new(packed));
        }
        self.taken = number;
        Ok(true)
    }

    fn close(&mut self, open: Open, end: Option<At>, last: bool) -> io::Result<()> {
        let Open { first, before, text, .. } = open;
        let digest = Digest::of(&text);
        let dictionary = self.new.last().map_or_else(|| Digest::of(b""), |chunk| chunk.tail);
        let known = self.known.get(&digest).map(|at| &self.old[*at]);
        let (place, tail) = match known {
            Some(known) => (known.text, known.tail),
            None => {
                let tail = Digest::of(&text[text.len() - text.len().min(WINDOW)..]);
                (Text::Fresh(self.store.fresh.append(&text)?), tail)
            }
        };
        let length = text.len();
        let packed = match known.filter(|of| of.dictionary == dictionary && of.last == last) {
            Some(known) => Arc::clone(&known.packed),
            None => Arc::new(self.packed(Key { text: digest, dictionary, last }, text)?),
        };
        self.new.push(Chunk {
            end: first.is_some().then_some(end).flatten(),
            first,
            before: before.unwrap_or(Before::Nothing),
            text: place,
            length,
            digest,
            dictionary,
            tail,
            last,
            packed,
        });
        if self.unpacked.len() == AT_A_TIME {
            self.pack();
        }
        Ok(())
    }

    /// The next chunk, compressed, or to be [compressed later](Self::pack).
    fn packed(&mut self, key: Key, text: Vec<u8>) -> io::Result<Packed> {
        let (number, last, dictionary) = (self.new.len(), key.last, self.tail()?);
        let earlier = self.earlier.take(key, &text, || Packed::new(&dictionary, &text, last));
        Ok(earlier.unwrap_or_else(|| {
            self.unpacked.push(Unpacked { number, dictionary, text, last });
            Packed::later()
        }))
    }

    /// Compresses what waits for it.
    fn pack(&mut self) {
        let waiting = std::mem::take(&mut self.unpacked);
        let packed = parallel::map(&waiting, NonZeroUsize::MIN, |of| {
            Packed::new(&of.dictionary, &of.text, of.last)
        });
        for (waiting, packed) in waiting.iter().zip(packed) {
            self.new[waiting.number].packed = Arc::new(packed);
        }
    }

    /// The last bytes of what is cut so far.
    fn tail(&self) -> io::Result<Vec<u8>> {
        self.new.last().map_or(Ok(Vec::new()), |chunk| {
            let length = chunk.length.min(WINDOW);
            self.store.read(chunk.text, chunk.length - length, length)
        })
    }
}

/// A chunk that pieces are being added to.
#[derive(Default)]
struct Open {
    first: Option<At>,
    before: Option<Before>,
    text: Vec<u8>,
    /// Hash and length of its last piece.
    hash: u64,
    piece: usize,
}

impl Open {
    /// Has the piece at `at`, which stands behind `before`, appended.
    fn add(&mut self, before: Option<&At>, at: &At, append: impl FnOnce(&mut Vec<u8>)) {
        if self.first.is_none() {
            self.before = Some(Before::of(before, at));
            self.first = Some(at.clone());
        }
        let start = self.text.len();
        append(&mut self.text);
        self.hash = xxh3_64(&self.text[start..]);
        self.piece = self.text.len() - start;
    }

    /// Whether it ends behind its last piece: long pieces more often than short ones, so that a
    /// chunk's length does not depend on the length of pieces.
    fn ends(&self, Bounds { min, max, average }: Bounds) -> bool {
        let length = self.text.len();
        length >= max || length >= min && self.hash / (u64::MAX / average) < self.piece as u64
    }
}
