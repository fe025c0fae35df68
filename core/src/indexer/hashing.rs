//! Versions on their way through the pool: what has to be read, and what becomes of the results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use super::hashing_log::Amount;
use super::{Event, Hashed, Indexer, RETRY, is_newest};
use crate::cache::Attempt;
use crate::entry::{Entry, Hashes, Plan};
use crate::hash::{self, Outcome};
use crate::pool::{Job, Priority};
use crate::tree::Place;

/// Results on their way from the pool. What waits here is taken in when there is time for it, also in
/// the middle of a look at a large tree.
pub(super) struct Results {
    sender: Sender<Hashed>,
    receiver: Receiver<Hashed>,
    events: Sender<Event>,
    /// The indexer has been told that there are some.
    is_told: Arc<AtomicBool>,
}

impl Results {
    /// None yet; `events` is told of them.
    pub(super) fn new(events: Sender<Event>) -> Self {
        let (sender, receiver) = channel();
        Self { sender, receiver, events, is_told: Arc::default() }
    }

    /// Takes a result, on any thread.
    fn taker(&self) -> impl FnOnce(Hashed) + Send + use<> {
        let (sender, events) = (self.sender.clone(), self.events.clone());
        let is_told = Arc::clone(&self.is_told);
        move |result| {
            // Both fail only when the indexer is gone, and with it everyone who wants to know.
            drop(sender.send(result));
            if !is_told.swap(true, Ordering::AcqRel) {
                drop(events.send(Event::Hashed));
            }
        }
    }

    /// Those that are there.
    fn take(&self) -> Vec<Hashed> {
        // Before the look: of what comes after it, somebody tells. Whoever did not tell, because this was
        // set, did so before this swap, which sees what they sent.
        self.is_told.swap(false, Ordering::AcqRel);
        self.receiver.try_iter().collect()
    }
}

impl Indexer {
    pub(super) fn take_results(&mut self) {
        for Hashed { path, ticket, outcome } in self.results.take() {
            self.hashed(&path, ticket, outcome);
        }
    }

    pub(super) fn hash(&mut self, path: &str, plan: Arc<Plan>) {
        if let Some(hashes) = hash::cached(path, &plan, self.pool.cache()) {
            self.tally.files_known += Amount::of(&plan).files;
            return self.list(path, plan, &hashes);
        }
        self.submit(path, plan);
    }

    /// Has the files of `plan` read, but for those whose hashes the cache knows.
    pub(super) fn submit(&mut self, path: &str, plan: Arc<Plan>) {
        let Some((_, name)) = path.rsplit_once('/') else {
            return;
        };
        let priority = Priority {
            older: !is_newest(&self.versions, path),
            version: std::cmp::Reverse(name.to_owned()),
        };
        self.hashing_log.begin(self.gauges.bytes_hashed.load(Ordering::Relaxed), Instant::now());
        self.tickets += 1;
        let ticket = self.tickets;
        let attempt = Arc::new(Attempt::begin());
        self.update(path, |version| {
            version.hashing(ticket, Arc::clone(&plan), Arc::clone(&attempt));
        });
        let Some(path) = self.key(path) else {
            return;
        };
        let (take, of) = (self.results.taker(), Arc::clone(&path));
        self.pool.submit(
            priority,
            Job {
                tree: self
                    .anchor
                    .clone()
                    .map_or_else(|| Place::Tree(self.tree.clone()), Place::Anchor),
                path,
                plan,
                attempt,
                gauges: Arc::clone(&self.gauges),
                // See `doubt_what_changed`.
                seen_to: self.once,
                done: Box::new(move |outcome| take(Hashed { path: of, ticket, outcome })),
            },
        );
    }

    /// The path of a version that is known, as those share it who know it.
    fn key(&self, path: &str) -> Option<Arc<str>> {
        self.versions.get(path).map(|version| Arc::clone(&version.found.path))
    }

    fn hashed(&mut self, path: &str, ticket: u64, outcome: Outcome) {
        let Some(Some(plan)) = self.update(path, |version| version.hashed(ticket)) else {
            self.tally.hashed_in_vain += 1;
            return;
        };
        self.publisher.touch();
        let amount = Amount::of(&plan);
        self.hashing_log.done(amount);
        match outcome {
            Outcome::Hashed(hashes) => {
                self.tally.files_hashed += amount.files;
                self.list(path, plan, &hashes);
            }
            Outcome::Broken(problem) => {
                if self.update(path, |version| version.broken(plan, problem)) == Some(true) {
                    self.publisher.hurry();
                }
            }
            Outcome::Changed => {
                self.tally.hashed_in_vain += 1;
                if self.rehash.is_under_way() {
                    // It is not to end with what this was listed by.
                    self.dirty.insert(path.to_owned());
                }
                if self.publisher.vouched(path).is_some() {
                    self.interrupted.extend(self.key(path).map(|path| (path, plan)));
                }
                self.deadlines.add(Instant::now() + RETRY, path);
            }
            Outcome::Stopped => {}
        }
    }

    pub(super) fn list(&mut self, path: &str, plan: Arc<Plan>, hashes: &Hashes) {
        let listed = self.update(path, |version| {
            let entry = Entry::new(&version.found, &plan, hashes);
            entry.map(|entry| version.list(plan, Arc::new(entry)))
        });
        if listed.flatten().is_some() {
            self.publisher.touch();
        }
    }
}
