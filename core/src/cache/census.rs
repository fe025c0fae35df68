//! Counts, once a day, which files there still are, so that the hashes of others can go.
//!
//! Several indexes share a cache, and a hash is some file's of one of them: only when every index
//! has told which files it knows, something is known to be gone. What is gone is not dropped at once
//! (see [`KEEP`]).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use foldhash::HashSet;

use super::Key;

/// How long the hash of a file that is gone is kept: a disk that is not mounted for a while, or an
/// index that is configured again, is not to be hashed anew.
pub(super) const KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

/// From the start to the first count: what is needed then is more urgent.
const FIRST: Duration = Duration::from_secs(600);

/// From one count to the next.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Present {
    /// Files of versions.
    pub(super) files: HashSet<Key>,
    /// Absolute paths of files of overrides.
    pub(super) texts: HashSet<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Census {
    indexes: BTreeSet<String>,
    /// Those that have told.
    told: BTreeSet<String>,
    present: Present,
    next: Instant,
}

impl Census {
    /// Of the indexes with these ids.
    pub(super) fn new(indexes: BTreeSet<String>, now: Instant) -> Self {
        let (told, present) = (BTreeSet::new(), Present::default());
        Self { indexes, told, present, next: now + FIRST }
    }

    /// Whether the index is to tell.
    pub(super) fn wants(&self, index: &str, now: Instant) -> bool {
        self.next <= now && !self.told.contains(index)
    }

    /// Takes in what an index told; gives the whole once it was the last one.
    pub(super) fn count(&mut self, index: &str, present: Present, now: Instant) -> Option<Present> {
        self.present.files.extend(present.files);
        self.present.texts.extend(present.texts);
        self.told.insert(index.to_owned());
        if !self.told.is_superset(&self.indexes) {
            return None;
        }
        self.told.clear();
        self.next = now + EVERY;
        Some(std::mem::take(&mut self.present))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_is_asked_once_a_day() {
        let start = Instant::now();
        let ids = ["a", "b"].map(str::to_owned);
        let mut census = Census::new(BTreeSet::from(ids), start);
        assert!(!census.wants("a", start));
        let text = |path: &str| Present {
            texts: HashSet::from_iter([path.to_owned()]),
            ..Present::default()
        };
        for day in 0..3 {
            let now = start + FIRST + EVERY * day;
            assert!(census.wants("a", now) && census.wants("b", now));
            assert!(census.count("a", text("/a"), now).is_none());
            assert!(!census.wants("a", now) && census.wants("b", now));
            let whole = census.count("b", text("/b"), now).unwrap();
            assert_eq!(whole.texts, HashSet::from_iter(["/a", "/b"].map(str::to_owned)));
            assert!(!census.wants("a", now) && !census.wants("b", now));
        }
    }
}
