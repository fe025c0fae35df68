//! Pushes images to mirrors, by rsync over ssh.
//!
//! ```text
//! watch ──release──▶ Mirrors ──┬─▶ Worker "a" ──▶ push: rsync, rsync, …
//!                              └─▶ Worker "b" ──▶ …
//! ```
//!
//! Each mirror has a thread of its own, which pushes the newest release that there is and skips those
//! between; a bounded number pushes at once. A mirror that is down is tried again with growing pauses
//! and delays nobody else. What is known of each is on the [`board`], which `lxd-image-server
//! mirrors` reads. At no moment may a mirror list what it has not got; how that is kept is told in
//! [`push`].

pub mod board;
mod memory;
mod prune;
mod push;
mod rsync;
mod ssh;
mod staging;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use simplestreams::Snapshot;

pub use ssh::is_installed;

use crate::config::{Mirror, Mirroring};
use crate::listing::Listing;
use crate::tree::Tree;
use board::Board;
use worker::Worker;

/// A generation on its way to mirrors.
#[derive(Debug)]
pub struct Release {
    /// Counts the generations of this host, over restarts; see [`Board::number`].
    pub number: u64,
    pub tree: Tree,
    pub snapshot: Arc<Snapshot>,
    pub listing: Listing,
}

/// All mirrors. Dropping this ends every push, and waits for it.
#[derive(Debug)]
pub struct Mirrors {
    workers: BTreeMap<String, Worker>,
    board: Arc<Board>,
    slots: Arc<Slots>,
    data_dir: PathBuf,
    retry_max: std::time::Duration,
    latest: Option<Arc<Release>>,
}

impl Mirrors {
    pub fn new(data_dir: &Path, mirroring: Mirroring) -> Self {
        raise_limit();
        Self {
            workers: BTreeMap::new(),
            board: Arc::new(Board::open(data_dir)),
            slots: Arc::new(Slots::new(mirroring.concurrency)),
            data_dir: data_dir.to_owned(),
            retry_max: mirroring.retry_max,
            latest: None,
        }
    }

    /// Starts mirrors that are new, ends and forgets those that are gone, and restarts changed ones.
    pub fn configure(&mut self, mirrors: &BTreeMap<String, Mirror>, mirroring: Mirroring) {
        self.slots.resize(mirroring.concurrency);
        let same_pace = self.retry_max == mirroring.retry_max;
        self.retry_max = mirroring.retry_max;
        // All are told before any is waited for.
        let leaves = |name: &String, worker: &Worker| {
            !same_pace || mirrors.get(name) != Some(&worker.mirror)
        };
        let (gone, kept) = std::mem::take(&mut self.workers)
            .into_iter()
            .partition(|(name, worker)| leaves(name, worker));
        self.workers = kept;
        let gone: BTreeMap<String, Worker> = gone;
        gone.values().for_each(Worker::ask_to_stop);
        for (name, worker) in gone {
            drop(worker);
            if !mirrors.contains_key(&name) {
                log::info!("mirror {name} is forgotten");
                memory::forget(&self.data_dir, &name);
            }
        }
        self.board.keep_only(mirrors);
        for (name, mirror) in mirrors {
            if self.workers.contains_key(name) {
                continue;
            }
            let worker = Worker::spawn(
                name.clone(),
                mirror.clone(),
                Arc::clone(&self.board),
                Arc::clone(&self.slots),
                self.data_dir.clone(),
                self.retry_max,
            );
            match worker {
                Ok(worker) => {
                    if let Some(latest) = &self.latest {
                        worker.offer(Arc::clone(latest));
                    }
                    self.workers.insert(name.clone(), worker);
                }
                Err(err) => log::error!("cannot start pushing to mirror {name} ({err})"),
            }
        }
    }

    /// A new generation; mirrors get the newest.
    pub fn publish(&mut self, tree: &Tree, snapshot: &Arc<Snapshot>) {
        let number = self.board.number(snapshot);
        let release = Arc::new(Release {
            number,
            tree: tree.clone(),
            snapshot: Arc::clone(snapshot),
            listing: Listing::of(snapshot),
        });
        self.workers.values().for_each(|worker| worker.offer(Arc::clone(&release)));
        self.latest = Some(release);
    }
}

impl Drop for Mirrors {
    fn drop(&mut self) {
        self.workers.values().for_each(Worker::ask_to_stop);
        self.workers.clear();
        self.board.close();
    }
}

/// Files that one push holds open at most, wherever more are allowed.
const MAX_HELD: usize = 1 << 16;

/// Allows this process as many open files as it may allow itself, for those that are being pushed.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Without it they are pushed in smaller batches.
    if let Err(err) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::debug!("cannot raise the limit of open files ({err})");
    }
}

/// So many may push at once.
#[derive(Debug)]
pub struct Slots {
    /// Taken, and how many there are.
    counts: Mutex<(u32, u32)>,
    changed: Condvar,
}

/// A place that is held until this is dropped.
pub struct Slot<'s>(&'s Slots);

impl Slots {
    fn new(count: u32) -> Self {
        Self { counts: Mutex::new((0, count)), changed: Condvar::new() }
    }

    fn resize(&self, count: u32) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).1 = count;
        self.changed.notify_all();
    }

    /// How many files each that pushes may hold open.
    pub fn descriptors(&self) -> usize {
        let count = self.counts.lock().unwrap_or_else(PoisonError::into_inner).1;
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // Half of them is for everything else.
        let share = limit / 2 / u64::from(count.max(1));
        usize::try_from(share).unwrap_or(MAX_HELD).clamp(1, MAX_HELD)
    }

    /// Waits for a place; none once `stopped` says so.
    pub fn take(&self, stopped: impl Fn() -> bool) -> Option<Slot<'_>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if stopped() {
                return None;
            }
            if counts.0 < counts.1 {
                counts.0 += 1;
                return Some(Slot(self));
            }
            // Whoever stops a worker does not know that it waits here.
            let waited = self.changed.wait_timeout(counts, std::time::Duration::from_millis(200));
            counts = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner).0 -= 1;
        self.0.changed.notify_one();
    }
}
