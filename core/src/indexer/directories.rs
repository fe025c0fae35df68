//! When it is written down which directories there are, for the next start.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Indexer;
use crate::recall::{Recall, Record};
use crate::snapshot;
use crate::tree::Tree;

/// The file is written when one of so many directories is not in it as it is.
const PART: usize = 16;

/// Not more often than that; it is done by the thread that has everything else to do.
const PAUSE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Directories {
    /// None where nothing is remembered.
    path: Option<PathBuf>,
    is_first_look: bool,
    next: Option<Instant>,
}

impl Directories {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path, is_first_look: true, next: None }
    }

    /// What helps with a look at the whole tree and with those that follow it; `before`, what helped with
    /// the one before. A first look that failed is taken again with what it had.
    pub(super) fn begin_look(&self, tree: &Tree, before: Option<Recall>) -> Option<Recall> {
        let path = self.path.as_deref()?;
        let again = before.filter(|_| self.is_first_look);
        again.or_else(|| Recall::begin(tree, Some(path).filter(|_| self.is_first_look)))
    }
}

impl Indexer {
    /// All that an earlier process wrote down has been asked for.
    pub(super) fn end_first_look(&mut self) {
        self.directories.is_first_look = false;
        let recalled = self.recall.as_mut().map_or(0, Recall::end_first_look);
        if let Some(watcher) = &mut self.watcher {
            watcher.marks_are_known(recalled);
        }
    }

    /// Writes down which directories there are, if that is due. At the end of the process no pause is kept.
    pub(super) fn write_down_directories(&mut self, now: Instant, is_end: bool) {
        let (Some(path), Some(watcher)) = (&self.directories.path, &mut self.watcher) else {
            return;
        };
        let is_due = (is_end || self.directories.next.is_none_or(|next| next <= now))
            && watcher.unknown_marks() * PART > watcher.directories();
        // What is known of a version that is being looked at may be less than what is there.
        if !is_due || self.tally.hashing.versions > 0 || !self.dirty.is_empty() {
            return;
        }
        let mut record = Record::default();
        let recorded = watcher.marks().try_for_each(|(directory, mark)| {
            let Some(version) = self.versions.get(directory) else {
                return record.add(mark, watcher.below(directory));
            };
            let mut names: Vec<&str> = version.files().map(|(name, _)| name).collect();
            names.sort_unstable();
            record.add(mark, names.into_iter())
        });
        // After a power cut it may be anything, which its check tells.
        let write = || snapshot::replace(path, &record.encode(), false);
        let written = recorded.and_then(|()| write());
        if let Err(err) = &written {
            log::warn!("cannot write \"{}\" ({err}), a start will read more", path.display());
        }
        if written.is_ok() {
            watcher.marks_are_known(usize::MAX);
        }
        self.directories.next = Some(now + PAUSE);
    }
}
