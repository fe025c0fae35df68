//! From catalog to bytes, deterministically: nothing in a document comes from a clock, so the same
//! tree gives the same bytes, and the same entity tags, on every mirror and after every restart.
//!
//! Documents are kept in chunks ([`chunks`]), of which only those are made anew that a change
//! touches.

mod chunks;
mod deflate;
mod earlier;
mod pieces;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;

use crate::catalog::Catalog;
use crate::fields;
use crate::memory::Memory;
use crate::name::ProductName;
use crate::snapshot::{Placed, Snapshot, Tags};

use chunks::{Bounds, Document, Store};
use earlier::Earlier;
use pieces::Of;

/// `index.json` and one document for each stream, in that order.
#[derive(Debug)]
pub struct Documents {
    documents: Vec<Document>,
    /// Where text is kept that no generation holds yet.
    fresh: Memory,
    /// The generation that holds the rest.
    last: Option<Memory>,
}

impl Documents {
    /// Documents that were not rendered yet.
    pub fn new(streams: &[String]) -> Self {
        Self::with_bounds(streams, Bounds::USUAL)
    }

    fn with_bounds(streams: &[String], bounds: Bounds) -> Self {
        let new = |of| Document::new(of, bounds);
        let mut documents = vec![new(Of::Index(streams.iter().cloned().collect()))];
        documents.extend(streams.iter().map(|stream| new(Of::Stream(stream.clone()))));
        Self { documents, fresh: Memory::default(), last: None }
    }

    /// Takes over what an earlier process compressed, as far as it comes out the same.
    pub fn inherit(&mut self, snapshot: &Snapshot) {
        for document in &mut self.documents {
            let name = document.file();
            let gzip = snapshot.document(&name).map(|document| document.gzip.bytes);
            if let Some((gzip, table)) = gzip.zip(snapshot.chunks(&name)) {
                document.inherit(Earlier::read(gzip, table));
            }
        }
    }

    /// Renders what `changed`: products that are listed, or were.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub fn update(
        &mut self,
        catalog: &Catalog,
        overrides: &fields::Files,
        changed: &BTreeSet<ProductName>,
    ) -> io::Result<()> {
        for document in &mut self.documents {
            let store = Store { fresh: &mut self.fresh, last: self.last.as_ref() };
            document.update(catalog, overrides, changed, store)?;
        }
        Ok(())
    }

    /// Name and entity tags of each document.
    pub fn tags(&self) -> Vec<Tags> {
        self.documents.iter().map(Document::tags).collect()
    }

    /// Puts all of it behind what `memory` holds; says where.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub fn place(&self, memory: &mut Memory) -> io::Result<Vec<Placed>> {
        let documents = self.documents.iter();
        documents.map(|of| of.place(&self.fresh, self.last.as_ref(), memory)).collect()
    }

    /// From now on `memory` is where everything is that was [placed](Self::place) there.
    pub fn keep(&mut self, memory: Memory, placed: &[Placed]) {
        for (document, placed) in self.documents.iter_mut().zip(placed) {
            document.keep(placed.identity.offset as u64);
        }
        self.last = Some(memory);
        self.fresh = Memory::default();
    }

    /// What was rendered is what `snapshot`, which lies in `memory`, has: one text is enough.
    pub fn keep_that_of(&mut self, memory: Memory, snapshot: &Snapshot) {
        let places = self.documents.iter().map(|of| snapshot.text_at(&of.file()));
        let Some(places) = places.collect::<Option<Vec<u64>>>() else {
            return;
        };
        for (document, at) in self.documents.iter_mut().zip(places) {
            document.keep(at);
        }
        self.last = Some(memory);
        self.fresh = Memory::default();
    }

    /// Whether there is text that no generation holds.
    pub fn has_fresh_text(&self) -> bool {
        self.fresh.length() > 0
    }
}
