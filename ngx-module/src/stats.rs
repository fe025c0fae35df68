//! What processes of one nginx tell each other for `simplestreams_status`: counts of requests, and
//! how workers and builder are.
//!
//! Everything is an atomic number in [shared memory](crate::ffi::Region), each for itself: nobody
//! waits, and a process that is killed leaves nothing locked. The table of what lies where is made
//! by the master before it makes other processes, which inherit it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Mutex, PoisonError};

use simplestreams::Progress;
use simplestreams::status::{BuilderStatus, Failure, Traffic};

use crate::conf::MainConf;
use crate::ffi::{Outcome, Region, Shared};

/// Most workers that are told of one by one.
pub(crate) const MAX_WORKERS: usize = 256;

/// After so many milliseconds of silence a worker is not told of any more.
const FORGOTTEN: u64 = 3_600_000;

/// Bytes of shared memory: room for several hundred indexes, counting those of configurations before
/// a reload.
const REGION: usize = 8 << 20;

/// The statuses that are counted apart; the last counter is for all others.
const STATUSES: [u16; 10] = [200, 206, 304, 404, 405, 412, 416, 499, 500, 503];
const OTHER: usize = STATUSES.len();

/// What was sent: a document as it is, its gzip variant, or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Identity,
    Gzip,
    Error,
}

const SENT: [(Sent, &str); 3] =
    [(Sent::Identity, "identity"), (Sent::Gzip, "gzip"), (Sent::Error, "none")];

#[repr(C)]
struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// The counters of one document.
#[repr(C)]
pub(crate) struct DocumentCounters([[Counter; OTHER + 1]; SENT.len()]);

impl DocumentCounters {
    /// A request for the document was answered.
    pub(crate) fn count(&self, sent: Sent, outcome: Outcome) {
        let status = STATUSES.iter().position(|status| u64::from(*status) == outcome.status);
        let counter = &self.0[sent as usize][status.unwrap_or(OTHER)];
        counter.requests.fetch_add(1, Relaxed);
        counter.bytes.fetch_add(outcome.bytes, Relaxed);
    }
}

/// Numbers of a [`Progress`], in the order of [`numbers`].
const NUMBERS: usize = 16;

/// What is shared about one index.
#[repr(C)]
pub(crate) struct IndexShared {
    builder: AtomicU64,
    builder_seen: AtomicU64,
    progress: [AtomicU64; NUMBERS],
    /// The generation that each worker serves.
    served: [AtomicU64; MAX_WORKERS],
}

/// What is shared about a worker.
#[repr(C)]
struct WorkerShared {
    pid: AtomicU64,
    seen: AtomicU64,
    note: Note,
}

#[repr(C)]
pub(crate) struct ServerShared {
    workers: [WorkerShared; MAX_WORKERS],
    builder: Note,
}

/// Words of a note's text.
const WORDS: usize = 64;

/// The last error of one process. During a reload two may write at once, and one may be killed while
/// it does: what does not match its check is no note.
#[repr(C)]
struct Note {
    /// 0 for none.
    check: AtomicU64,
    at: AtomicU64,
    length: AtomicU64,
    words: [AtomicU64; WORDS],
}

#[allow(unsafe_code)]
mod shared {
    use super::*;
    // SAFETY: structures of atomic integers alone, for which zero is valid; here and below.
    unsafe impl Shared for IndexShared {}
    // SAFETY: as above.
    unsafe impl Shared for ServerShared {}
    // SAFETY: as above.
    unsafe impl Shared for DocumentCounters {}
}

impl Note {
    fn write(&self, at: u64, text: &str) {
        let mut end = text.len().min(WORDS * 8);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text.as_bytes()[..end];
        self.at.store(at, Relaxed);
        self.length.store(end as u64, Relaxed);
        for (word, bytes) in self.words.iter().zip(text.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(padded), Relaxed);
        }
        self.check.store(check(at, text), Release);
    }

    fn read(&self) -> Option<(u64, String)> {
        let expected = self.check.load(Acquire);
        let at = self.at.load(Relaxed);
        let length = usize::try_from(self.length.load(Relaxed)).unwrap_or(0).min(WORDS * 8);
        let mut text: Vec<u8> =
            self.words.iter().flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
        text.truncate(length);
        let whole = expected == check(at, &text);
        whole.then(|| (at, String::from_utf8_lossy(&text).into_owned()))
    }
}

fn check(at: u64, text: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (at, text).hash(&mut hasher);
    hasher.finish().max(1)
}

/// What is counted of one index.
#[derive(Clone, Copy)]
pub(crate) struct IndexStats {
    shared: &'static IndexShared,
    /// `index.json`, the streams in their order, and whatever else was asked for.
    documents: &'static [DocumentCounters],
}

impl IndexStats {
    /// The counters of the document called `name`, where there are these streams.
    pub(crate) fn document(
        &self,
        name: &[u8],
        streams: &[String],
    ) -> Option<&'static DocumentCounters> {
        let stem = name.strip_suffix(b".json");
        let at = match stem {
            Some(b"index") => Some(0),
            Some(stem) => streams.iter().position(|s| s.as_bytes() == stem).map(|at| at + 1),
            None => None,
        };
        self.documents.get(at.unwrap_or(streams.len() + 1))
    }

    /// This process builds the index, and is so far.
    pub(crate) fn tell_progress(&self, progress: &Progress) {
        if !progress.active {
            return;
        }
        for (cell, number) in self.shared.progress.iter().zip(numbers(progress)) {
            cell.store(number, Relaxed);
        }
        self.shared.builder_seen.store(now(), Relaxed);
        self.shared.builder.store(u64::from(std::process::id()), Release);
    }

    /// Worker `number` serves this generation.
    pub(crate) fn tell_served(&self, number: usize, generation: u64) {
        if let Some(cell) = self.shared.served.get(number) {
            cell.store(generation, Relaxed);
        }
    }

    pub(crate) fn served(&self, number: usize) -> u64 {
        self.shared.served.get(number).map_or(0, |cell| cell.load(Relaxed))
    }

    /// Who builds the index, if some process of this nginx has.
    pub(crate) fn builder(&self) -> Option<BuilderStatus> {
        let pid = self.shared.builder.load(Acquire);
        let seen = self.shared.builder_seen.load(Relaxed);
        let numbers = self.shared.progress.each_ref().map(|cell| cell.load(Relaxed));
        (pid != 0).then(|| BuilderStatus { pid, seen, progress: progress(numbers) })
    }

    /// What was asked for at all.
    pub(crate) fn traffic<'a>(&self, names: &'a [String]) -> Vec<Traffic<'a>> {
        let mut traffic = Vec::new();
        for (counters, document) in self.documents.iter().zip(names) {
            for (sent, variant) in SENT {
                for (at, counter) in counters.0[sent as usize].iter().enumerate() {
                    let requests = counter.requests.load(Relaxed);
                    if requests > 0 {
                        traffic.push(Traffic {
                            document,
                            variant,
                            status: STATUSES.get(at).copied().unwrap_or(0),
                            requests,
                            bytes: counter.bytes.load(Relaxed),
                        });
                    }
                }
            }
        }
        traffic
    }
}

/// Stands for "none" among numbers.
const NONE: u64 = u64::MAX;

fn numbers(progress: &Progress) -> [u64; NUMBERS] {
    let Progress {
        active,
        looks,
        last_look,
        generation,
        found,
        hashing,
        waiting,
        bytes_hashed,
        files_to_hash,
        bytes_to_hash,
        seconds_left,
        files_hashed,
        files_known,
        watches,
        unwatched,
        overflows,
        // No part of the status.
        hashed_in_vain: _,
    } = *progress;
    [
        u64::from(active),
        looks,
        last_look,
        generation,
        found,
        hashing,
        waiting,
        bytes_hashed,
        files_to_hash,
        bytes_to_hash,
        seconds_left.unwrap_or(NONE),
        files_hashed,
        files_known,
        watches,
        unwatched,
        overflows,
    ]
}

fn progress(numbers: [u64; NUMBERS]) -> Progress {
    let [
        active,
        looks,
        last_look,
        generation,
        found,
        hashing,
        waiting,
        bytes_hashed,
        files_to_hash,
        bytes_to_hash,
        seconds_left,
        files_hashed,
        files_known,
        watches,
        unwatched,
        overflows,
    ] = numbers;
    Progress {
        active: active != 0,
        looks,
        last_look,
        generation,
        found,
        hashing,
        waiting,
        bytes_hashed,
        files_to_hash,
        bytes_to_hash,
        seconds_left: Some(seconds_left).filter(|seconds| *seconds != NONE),
        files_hashed,
        files_known,
        watches,
        unwatched,
        overflows,
        hashed_in_vain: 0,
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now() -> u64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or(u64::MAX)
}

/// What lies where.
struct Table {
    region: Region,
    server: &'static ServerShared,
    indexes: BTreeMap<String, IndexStats>,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

fn with_table<T>(f: impl FnOnce(&mut Option<Table>) -> T) -> T {
    f(&mut TABLE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Makes room for what is counted about the indexes of a configuration, in which somebody asks for
/// it. Indexes that a configuration before had keep their counts.
pub(crate) fn configure(conf: &MainConf) {
    if !conf.status {
        return;
    }
    with_table(|table| {
        if table.is_none() {
            *table = Region::new(REGION).and_then(|region| {
                let server = region.give(1)?.first()?;
                Some(Table { region, server, indexes: BTreeMap::new() })
            });
        }
        for index in conf.indexes() {
            let stats = table.as_mut().and_then(|table| {
                let id = index.settings.id();
                if let Some(known) = table.indexes.get(&id) {
                    return Some(*known);
                }
                let shared = table.region.give(1)?.first()?;
                let documents = table.region.give(index.settings.streams.len() + 2)?;
                let stats = IndexStats { shared, documents };
                table.indexes.insert(id, stats);
                Some(stats)
            });
            match stats {
                // Set before only if this very configuration came here before.
                Some(stats) => drop(index.stats.set(stats)),
                None => log::warn!(
                    "no shared memory for the status of \"{}\", which a restart gives",
                    index.settings.root.display()
                ),
            }
        }
    });
}

/// What is shared about the processes; none where nobody asks for it.
pub(crate) fn server() -> Option<&'static ServerShared> {
    with_table(|table| table.as_ref().map(|table| table.server))
}

impl ServerShared {
    /// Worker `number` is this process, and is well.
    pub(crate) fn tell_worker(&self, number: usize) {
        if let Some(worker) = self.workers.get(number) {
            worker.pid.store(u64::from(std::process::id()), Relaxed);
            worker.seen.store(now(), Relaxed);
        }
    }

    /// Worker `number` leaves, unless another process has taken its place.
    pub(crate) fn worker_leaves(&self, number: usize) {
        if let Some(worker) = self.workers.get(number) {
            let own = u64::from(std::process::id());
            // Fails if another one has it.
            let _ = worker.pid.compare_exchange(own, 0, Relaxed, Relaxed);
        }
    }

    /// The workers' numbers, ids, and times of their last sign of life. One that was killed while a
    /// reload took its place away is told of for an hour.
    pub(crate) fn workers(&self) -> impl Iterator<Item = (usize, u64, u64)> {
        let now = now();
        let known = move |(number, worker): (usize, &WorkerShared)| {
            let (pid, seen) = (worker.pid.load(Relaxed), worker.seen.load(Relaxed));
            (pid != 0 && now.saturating_sub(seen) < FORGOTTEN).then_some((number, pid, seen))
        };
        self.workers.iter().enumerate().filter_map(known)
    }

    /// The process of this worker, or the builder's, logged an error.
    pub(crate) fn tell_failure(&self, worker: Option<usize>, at: u64, text: &str) {
        match worker.map(|number| self.workers.get(number)) {
            None => self.builder.write(at, text),
            Some(Some(worker)) => worker.note.write(at, text),
            Some(None) => {}
        }
    }

    /// The last of all errors.
    pub(crate) fn last_failure(&self) -> Option<Failure> {
        let of_workers = self.workers.iter().enumerate().filter_map(|(number, worker)| {
            let (at, text) = worker.note.read()?;
            Some(Failure { at, process: format!("worker {number}"), text })
        });
        let of_builder = self.builder.read();
        let of_builder =
            of_builder.map(|(at, text)| Failure { at, process: "builder".to_owned(), text });
        of_workers.chain(of_builder).max_by_key(|failure| failure.at)
    }
}
