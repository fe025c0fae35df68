//! Makes a generation that follows another.

use std::collections::BTreeMap;
use std::io;

use xxhash_rust::xxh3::xxh3_64;

use super::{
    Counts, DocumentHead, Head, LAYOUT, MAGIC, MAX_GENERATION, PREAMBLE, Placed, Rendered,
    Snapshot, Span, Tags, VariantHead, to_json,
};
use crate::memory::Memory;
use crate::{Digest, Problem, Report, Settings};

/// What the next generation has to know of the one before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Of the index; empty if it does not matter.
    id: String,
    /// As in [`Head`].
    root: String,
    generation: u64,
    /// Entity tag and modification time of each document.
    documents: BTreeMap<String, (String, i64)>,
    /// Since when each problem has been there, in milliseconds since the epoch.
    problems: BTreeMap<Problem, u64>,
}

impl Lineage {
    /// Nothing yet, of the index with these settings.
    pub fn of(settings: &Settings) -> Self {
        let root = settings.root.to_string_lossy().into_owned();
        Self { id: settings.id(), root, ..Self::default() }
    }

    /// Lets the next generation be later than `generation`, which somebody has seen. A number that
    /// is never reached is passed over: nobody has seen it.
    pub(crate) fn pass(&mut self, generation: u64) {
        if generation < MAX_GENERATION {
            self.generation = self.generation.max(generation);
        }
    }

    /// Somebody has seen documents of which nothing is known but that they were made at `time`, in
    /// seconds since the epoch, or before: those of the next generation are other ones, and later.
    pub(crate) fn pass_documents(&mut self, time: i64) {
        for (etag, modified) in self.documents.values_mut() {
            etag.clear();
            *modified = time.max(*modified);
        }
    }

    /// Number of the generation before; 0 if there was none.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether `documents` are what the generation before served.
    pub(crate) fn serves(&self, documents: &[Tags]) -> bool {
        documents.len() == self.documents.len()
            && documents.iter().all(|document| {
                let before = self.documents.get(&document.name);
                before.is_some_and(|(before, _)| *before == document.identity)
            })
    }
}

impl From<&Snapshot> for Lineage {
    fn from(snapshot: &Snapshot) -> Self {
        let documents = snapshot.head.documents.iter();
        Self {
            id: snapshot.head.id.clone(),
            root: snapshot.head.root.clone(),
            generation: snapshot.generation(),
            documents: documents
                .map(|(name, d)| (name.clone(), (d.identity.etag.clone(), d.last_modified)))
                .collect(),
            problems: snapshot.reports().into_iter().map(|r| (r.problem, r.since)).collect(),
        }
    }
}

/// Encodes a generation that follows `previous`.
///
/// A document whose bytes are those of `previous` keeps its modification time; any other gets
/// `now`, or one second more than it had if that is later, so that a changed document never has
/// the time of the one before (nginx compares it exactly).
///
/// `now` is in milliseconds since the epoch.
pub fn encode(
    documents: &[Rendered],
    problems: &[Problem],
    counts: Counts,
    previous: &Lineage,
    now: u64,
) -> Vec<u8> {
    let mut out = vec![0; PREAMBLE];
    let mut place = |bytes: &[u8]| {
        let offset = out.len();
        out.extend_from_slice(bytes);
        Span { offset, length: bytes.len() }
    };
    let etag = |bytes: &[u8]| format!("\"{:.32}\"", Digest::of(bytes));
    let mut placed = Vec::new();
    for Rendered { name, identity, gzip } in documents {
        let tags = Tags { name: name.clone(), identity: etag(identity), gzip: etag(gzip) };
        let (identity, gzip) = (place(identity), place(gzip));
        placed.push(Placed { tags, identity, gzip, chunks: None });
    }
    let reports = reports(problems, previous, now);
    let problems = place(&to_json(&reports));
    let (head, _) = head(&placed, problems, reports, counts, (previous, now));
    assemble(&head, &out[PREAMBLE..])
}

/// Memory for a generation: documents are to be appended.
pub(crate) fn begin() -> io::Result<Memory> {
    let mut memory = Memory::default();
    memory.append(&[0; PREAMBLE])?;
    Ok(memory)
}

/// Makes a generation of the documents that were placed in `memory`; gives what the one after it has
/// to know of it. See [`encode`].
pub(crate) fn finish(
    memory: &mut Memory,
    documents: &[Placed],
    problems: &[Problem],
    counts: Counts,
    previous: &Lineage,
    now: u64,
) -> io::Result<Lineage> {
    let reports = reports(problems, previous, now);
    let start = memory.append(&to_json(&reports))?;
    let end = memory.length();
    let problems = Span::between(start, end);
    let (head, lineage) = head(documents, problems, reports, counts, (previous, now));
    memory.append(&head)?;
    memory.write(&preamble(end, &head, 0), 0)?;
    Ok(lineage)
}

/// The problems with the times since when they have been there.
fn reports(problems: &[Problem], previous: &Lineage, now: u64) -> Vec<Report> {
    let report = |problem: &Problem| {
        let since = previous.problems.get(problem).copied().unwrap_or(now);
        Report { problem: problem.clone(), since }
    };
    problems.iter().map(report).collect()
}

/// The head of a generation that follows `previous`, and what the one after it has to know of it.
fn head(
    documents: &[Placed],
    problems: Span,
    reports: Vec<Report>,
    counts: Counts,
    (previous, now): (&Lineage, u64),
) -> (Vec<u8>, Lineage) {
    let mut heads = BTreeMap::new();
    for Placed { tags, identity, gzip, chunks } in documents {
        let seconds = i64::try_from(now / 1000).unwrap_or(i64::MAX);
        let last_modified = match previous.documents.get(&tags.name) {
            Some((etag, modified)) if *etag == tags.identity => *modified,
            Some((_, modified)) => seconds.max(modified.saturating_add(1)),
            None => seconds,
        };
        let identity = VariantHead { span: identity.in_body(), etag: tags.identity.clone() };
        let chunks = chunks.map(Span::in_body);
        let gzip = VariantHead { span: gzip.in_body(), etag: tags.gzip.clone() };
        heads.insert(tags.name.clone(), DocumentHead { last_modified, identity, gzip, chunks });
    }
    let generation = previous.generation + 1;
    let lineage = Lineage {
        id: previous.id.clone(),
        root: previous.root.clone(),
        generation,
        documents: heads
            .iter()
            .map(|(name, d)| (name.clone(), (d.identity.etag.clone(), d.last_modified)))
            .collect(),
        problems: reports.into_iter().map(|report| (report.problem, report.since)).collect(),
    };
    let head = Head {
        id: previous.id.clone(),
        root: previous.root.clone(),
        generation,
        published: now,
        counts,
        documents: heads,
        problems: problems.in_body(),
        problem_count: Some(lineage.problems.len() as u64),
    };
    (to_json(&head), lineage)
}

/// Puts the preamble before body and head.
pub(crate) fn assemble(head: &[u8], body: &[u8]) -> Vec<u8> {
    let preamble = preamble((PREAMBLE + body.len()) as u64, head, xxh3_64(body));
    [&preamble, body, head].concat()
}

fn preamble(offset: u64, head: &[u8], body: u64) -> [u8; PREAMBLE] {
    let mut preamble = [0; PREAMBLE];
    preamble[..8].copy_from_slice(MAGIC);
    preamble[8..12].copy_from_slice(&LAYOUT.to_le_bytes());
    preamble[12..16].copy_from_slice(&u32::try_from(head.len()).unwrap_or(u32::MAX).to_le_bytes());
    preamble[16..24].copy_from_slice(&offset.to_le_bytes());
    preamble[24..32].copy_from_slice(&xxh3_64(head).to_le_bytes());
    preamble[32..].copy_from_slice(&body.to_le_bytes());
    preamble
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an earlier process served and could not save is neither taken for what is served next, nor
    /// as old as that.
    #[test]
    fn documents_that_nobody_knows_are_passed() {
        let tags = |text: &str| Tags {
            name: "images.json".into(),
            identity: format!("\"{text}\""),
            gzip: format!("\"{text}-gzip\""),
        };
        let place = |text: &str| {
            let nothing = Span { offset: PREAMBLE, length: 0 };
            vec![Placed { tags: tags(text), identity: nothing, gzip: nothing, chunks: None }]
        };
        let finish = |lineage: &Lineage, text: &str, now: u64| {
            let mut memory = begin().unwrap();
            finish(&mut memory, &place(text), &[], Counts::default(), lineage, now).unwrap()
        };
        let modified = |lineage: &Lineage| lineage.documents["images.json"].1;
        let mut lineage = finish(&Lineage::default(), "a", 10_000);
        assert!(lineage.serves(&[tags("a")]));
        assert_eq!(modified(&finish(&lineage, "a", 99_000)), 10);
        lineage.pass(7);
        lineage.pass_documents(50);
        assert!(!lineage.serves(&[tags("a")]), "who knows what they were");
        let next = finish(&lineage, "a", 12_000);
        assert_eq!((next.generation(), modified(&next)), (8, 51));
        assert!(next.serves(&[tags("a")]));
    }
}
