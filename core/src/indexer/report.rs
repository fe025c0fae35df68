//! What the indexer tells of itself: how many versions are on their way, and what has been done.
//!
//! Kept while versions change, not counted anew: an index may have tens of thousands of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::Indexer;
use super::hashing_log::Amount;
use crate::Problem;
use crate::progress::Progress;
use crate::version::Version;

/// How long a version may wait for its writers before that is a problem: longer than uploads take, and
/// than a writer that does nothing is waited for.
const STALLED: Duration = Duration::from_secs(1800);

/// Versions on their way, and counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// What is being hashed or waits for it.
    pub(super) hashing: Amount,
    /// Versions that are listed.
    pub(super) listed: u64,
    /// Versions that wait for their writers, by their paths, and since when.
    waiting: BTreeMap<String, Instant>,
    /// How many of them have waited for long, when that was asked last.
    stalled: usize,
    /// The last report has another set of waiting versions.
    waiting_changed: bool,
    /// The last report said that there is nothing to do.
    told_idle: bool,
    /// As in [`Progress`].
    pub(super) looks: u64,
    pub(super) last_look: u64,
    pub(super) files_hashed: u64,
    pub(super) files_known: u64,
    pub(super) hashed_in_vain: u64,
    pub(super) unwatched: u64,
    pub(super) overflows: u64,
}

impl Tally {
    /// A look at the whole tree is over; so many directories could not be watched.
    pub(super) fn looked(&mut self, unwatched: u64) {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
        self.looks += 1;
        self.last_look = u64::try_from(now).unwrap_or(u64::MAX);
        self.unwatched = unwatched;
    }

    /// A version at `path` was of the first state and is of the second; none: it is not there.
    fn moved(&mut self, path: &str, before: Standing, after: Standing) {
        self.hashing -= before.hashing;
        self.hashing += after.hashing;
        self.listed = self.listed - u64::from(before.listed) + u64::from(after.listed);
        if before.waiting == after.waiting {
            return;
        }
        self.waiting_changed = true;
        if after.waiting {
            self.waiting.insert(path.to_owned(), Instant::now());
        } else {
            self.waiting.remove(path);
        }
    }

    pub(super) fn is_any_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Versions that have waited for long, by their paths.
    fn long_waiting(&self, now: Instant) -> impl Iterator<Item = &str> {
        let long = move |since: Instant| now.saturating_duration_since(since) >= STALLED;
        let waiting = self.waiting.iter().filter(move |(_, since)| long(**since));
        waiting.map(|(path, _)| path.as_str())
    }

    /// The same, as problems.
    pub(super) fn stalled(&self, now: Instant) -> impl Iterator<Item = Problem> {
        self.long_waiting(now).map(|path| {
            Problem::new(
                Path::new(path),
                "it is not listed, for its files have been written to for more than half an hour",
                "let the upload end, or end it and remove the version",
            )
        })
    }

    /// Whether there are more or less of them than the last time.
    pub(super) fn stalled_changed(&mut self, now: Instant) -> bool {
        let stalled = self.long_waiting(now).count();
        std::mem::replace(&mut self.stalled, stalled) != stalled
    }
}

/// What a version adds to the tally.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    hashing: Amount,
    waiting: bool,
    listed: bool,
}

impl Standing {
    fn of(version: &Version) -> Self {
        let hashing = version.plan().filter(|_| version.is_hashing()).map(|plan| Amount::of(plan));
        Self {
            hashing: hashing.unwrap_or_default(),
            waiting: version.is_waiting(),
            listed: version.entry().is_some(),
        }
    }
}

impl Indexer {
    /// Changes a version, and keeps the tally. Every change of a version goes through here.
    pub(super) fn update<T>(
        &mut self,
        path: &str,
        change: impl FnOnce(&mut Version) -> T,
    ) -> Option<T> {
        let version = self.versions.get_mut(path)?;
        let before = Standing::of(version);
        let value = change(version);
        self.tally.moved(path, before, Standing::of(version));
        if !std::mem::replace(&mut version.is_news, true) {
            self.changed.push(Arc::clone(&version.found.path));
        }
        Some(value)
    }

    /// Adds a version that nobody has looked at yet, unless it is there.
    pub(super) fn add(&mut self, found: crate::scan::FoundVersion) {
        let path = Arc::clone(&found.path);
        if !self.versions.contains_key(&path) {
            let version = Version::new(found);
            self.tally.moved(&path, Standing::default(), Standing::of(&version));
            self.versions.insert(path, version);
        }
    }

    /// Forgets a version.
    pub(super) fn take(&mut self, path: &str) -> Option<Version> {
        let version = self.versions.remove(path)?;
        self.tally.moved(path, Standing::of(&version), Standing::default());
        self.changed.push(Arc::clone(&version.found.path));
        Some(version)
    }

    /// Tells how far things are. Whoever sees an idle index finds it all published, so what looks idle
    /// is told after publishing only.
    pub(super) fn report(&mut self, now: Instant) {
        let Self { tally, gauges, .. } = self;
        let looks_idle = tally.hashing.versions == 0 && tally.waiting.is_empty();
        if looks_idle && self.publisher.is_dirty() {
            return;
        }
        if std::mem::take(&mut tally.waiting_changed) {
            let names = tally.waiting.keys().cloned().collect();
            *gauges.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        }
        let read = gauges.bytes_hashed.load(Ordering::Relaxed);
        let left = self.hashing_log.seconds_left(read, tally.hashing, now);
        let watches = self.watcher.as_ref().map_or(0, crate::watch::Watcher::directories);
        gauges.report(Progress {
            active: true,
            looks: tally.looks,
            last_look: tally.last_look,
            generation: self.publisher.generation(),
            found: self.versions.len() as u64,
            hashing: tally.hashing.versions,
            waiting: tally.waiting.len() as u64,
            bytes_hashed: read,
            files_to_hash: tally.hashing.files,
            bytes_to_hash: tally.hashing.bytes,
            seconds_left: left,
            files_hashed: tally.files_hashed,
            files_known: tally.files_known,
            hashed_in_vain: tally.hashed_in_vain,
            watches: watches as u64,
            unwatched: tally.unwatched,
            overflows: tally.overflows,
        });
        let was_idle = std::mem::replace(&mut tally.told_idle, looks_idle);
        if looks_idle && !was_idle {
            self.publisher.wake_readers();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_waits_for_long_is_a_problem() {
        let mut tally = Tally::default();
        let waits = Standing { waiting: true, ..Standing::default() };
        tally.moved("images/a", Standing::default(), waits);
        let (now, later) = (Instant::now(), Instant::now() + STALLED);
        assert!(!tally.stalled_changed(now) && tally.stalled(now).next().is_none());
        assert!(tally.stalled_changed(later) && !tally.stalled_changed(later));
        let problems: Vec<String> = tally.stalled(later).map(|of| of.to_string()).collect();
        assert!(
            matches!(&problems[..], [one] if one.starts_with("\"images/a\": ")),
            "{problems:?}"
        );
        tally.moved("images/a", waits, Standing::default());
        assert!(tally.stalled_changed(later) && tally.stalled(later).next().is_none());
    }
}
