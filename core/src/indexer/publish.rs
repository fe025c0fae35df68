//! When a generation is published, and how.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::catalog::Catalog;
use crate::entry::Entry;
use crate::follow::SnapshotCell;
use crate::live::{self, Live};
use crate::settings::Aliases;
use crate::snapshot::{self, Lineage, Snapshot, SnapshotError};
use crate::{Problem, Settings, fields, render, state};

/// While versions are being hashed, a generation is published at most this often, and not more
/// often than publishing itself takes times ten.
const INTERVAL: Duration = Duration::from_secs(1);
const COST_FACTOR: u32 = 10;

/// How long the first generation waits for the newest version of every product.
const FIRST: Duration = Duration::from_secs(1);

/// How long what an earlier process published stays, at most, while it is being hashed again (the
/// hash cache was lost, or something changed at the last moment).
const INHERITED: Duration = Duration::from_secs(3600);

/// How long to wait after a generation could not be written.
const RETRY: Duration = Duration::from_secs(5);

/// Most problems that a generation carries, and that are logged for it.
const MAX_PROBLEMS: usize = 10_000;
const MAX_LOGGED: usize = 50;

/// Where generations go.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    /// For other processes and the next start.
    pub(crate) state: Option<StateFiles>,
    /// For readers in this process.
    pub(crate) cell: Option<Arc<(SnapshotCell, Signal)>>,
}

/// The files of an index in the state directory.
#[derive(Clone, Debug)]
pub(crate) struct StateFiles {
    /// The last generation, for the next start.
    pub(crate) snapshot: PathBuf,
    /// Where the current one is, for running processes.
    pub(crate) live: PathBuf,
    /// Where somebody asks for everything to be hashed anew.
    pub(crate) rehash: state::Request,
}

impl StateFiles {
    pub(crate) fn new(state_dir: &Path, id: &str) -> Self {
        Self {
            snapshot: snapshot::path(state_dir, id),
            live: live::path(state_dir, id),
            rehash: state::Request::new(state_dir, id),
        }
    }
}

/// What an earlier process published.
#[derive(Debug)]
struct Inherited {
    /// When, in nanoseconds since the epoch.
    published: i128,
    /// The versions it listed.
    listed: HashSet<String>,
}

/// Wakes those who wait for a generation.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    lock: Mutex<()>,
    changed: Condvar,
}

impl Signal {
    fn notify(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until `done` gives something, or until `deadline`.
    pub(crate) fn wait<T>(&self, deadline: Instant, done: impl Fn() -> Option<T>) -> Option<T> {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = done() {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            guard = self
                .changed
                .wait_timeout(guard, left)
                .map_or_else(|err| err.into_inner().0, |(guard, _)| guard);
        }
    }
}

#[derive(Debug)]
pub(super) struct Publisher {
    root: PathBuf,
    streams: Vec<String>,
    aliases: Aliases,
    sink: Sink,
    /// What readers have mapped, or may be about to.
    live: Option<Live>,
    /// The snapshot file is older than what is served.
    unsaved: Option<Vec<u8>>,
    lineage: Lineage,
    compressor: render::Compressor,
    /// What the last generation listed as problems.
    problems: Vec<Problem>,
    /// Problems that are in the log already.
    logged: BTreeSet<Problem>,
    /// Something may have changed since the last generation.
    dirty: bool,
    /// A version was unlisted, which does not wait for hashing.
    urgent: bool,
    /// What an earlier process published.
    inherited: Option<Inherited>,
    /// Versions that it listed, that did not change, and that are still being hashed: what it
    /// published stays until they are, at most until the given time.
    pending: Option<(BTreeSet<String>, Instant)>,
    /// The list was not empty when this process started, and was found empty: probably not mounted
    /// yet.
    awaiting: Option<Instant>,
    /// The first generation waits until then for the newest versions.
    held: Option<Instant>,
    last: Instant,
    cost: Duration,
    retry: Option<Instant>,
}

impl Publisher {
    pub(super) fn new(settings: &Settings, sink: Sink) -> Self {
        let mut publisher = Self {
            root: settings.root.clone(),
            streams: settings.streams.clone(),
            aliases: settings.aliases,
            sink,
            live: None,
            unsaved: None,
            lineage: Lineage::of(settings),
            compressor: render::Compressor::default(),
            problems: Vec::new(),
            logged: BTreeSet::new(),
            dirty: true,
            urgent: false,
            inherited: None,
            pending: None,
            awaiting: None,
            held: None,
            last: Instant::now(),
            cost: Duration::ZERO,
            retry: None,
        };
        publisher.inherit();
        publisher
    }

    fn inherit(&mut self) {
        let Some(files) = self.sink.state.clone() else {
            return;
        };
        match Snapshot::open(&files.snapshot) {
            Ok(snapshot) => {
                // Workers that start from now on share it instead of copying the file. Unless it is
                // older than what running ones have: the process before could not save that.
                let served = live::generation(&files.live).unwrap_or(0);
                if served > snapshot.generation() {
                    log::warn!("\"{}\" is older than what is served", files.snapshot.display());
                } else if let Err(err) =
                    self.announce(snapshot.encoded(), snapshot.generation(), &files.live)
                {
                    log::warn!("cannot share \"{}\" ({err})", files.snapshot.display());
                }
                self.lineage = Lineage::from(&snapshot);
                self.lineage.pass(served);
                self.problems = snapshot.problems();
                self.inherited = Some(Inherited {
                    published: i128::from(snapshot.published()) * 1_000_000,
                    listed: snapshot.listed(),
                });
                if snapshot.counts().versions > 0 {
                    self.awaiting = Some(Instant::now() + super::anchors::GRACE);
                }
            }
            Err(SnapshotError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(err) => log::warn!("{err}; making a new one"),
        }
    }

    /// Until when, in nanoseconds since the epoch, an earlier process vouches for the version at
    /// `path`. For the first look at the tree.
    pub(super) fn vouched(&self, path: &str) -> Option<i128> {
        let inherited = self.inherited.as_ref()?;
        inherited.listed.contains(path).then_some(inherited.published)
    }

    /// The first look at the tree is over, and of the versions that were vouched for, `pending` did
    /// not change and have to be hashed.
    pub(super) fn started(&mut self, pending: BTreeSet<String>) {
        self.inherited = None;
        self.last = Instant::now();
        self.pending = (!pending.is_empty()).then(|| (pending, self.last + INHERITED));
    }

    /// Tells which versions are still being hashed.
    pub(super) fn settle_pending(&mut self, now: Instant, is_hashing: impl Fn(&str) -> bool) {
        self.pending.take_if(|(pending, until)| {
            pending.retain(|path| is_hashing(path));
            pending.is_empty() || *until <= now
        });
    }

    /// Something may have changed.
    pub(super) fn touch(&mut self) {
        self.dirty = true;
    }

    /// Number of the generation that was published last; 0 before the first.
    pub(super) fn generation(&self) -> u64 {
        self.lineage.generation()
    }

    /// Whether something waits to be published.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// A version was unlisted.
    pub(super) fn hurry(&mut self) {
        self.dirty = true;
        self.urgent = true;
    }

    /// Whether to publish now, while `hashing` versions are being hashed.
    pub(super) fn due(&mut self, hashing: u64, now: Instant) -> bool {
        self.dirty |= self.held.take_if(|until| *until <= now).is_some();
        self.dirty && self.next(hashing, now).is_some_and(|when| when <= now)
    }

    /// When to publish next.
    pub(super) fn next(&self, hashing: u64, now: Instant) -> Option<Instant> {
        if !self.dirty || self.pending.is_some() {
            let retry = self.retry.filter(|_| self.unsaved.is_some());
            return [retry, self.held].into_iter().flatten().min();
        }
        let when = if hashing == 0 || self.urgent {
            now
        } else if self.lineage.generation() == 0 {
            // See `holds`: worth a look whenever something was hashed.
            now
        } else {
            self.last + INTERVAL.max(self.cost * COST_FACTOR)
        };
        // What cannot be saved does not keep the next generation from being served.
        let retry = self.retry.filter(|_| self.unsaved.is_none());
        Some(retry.map_or(when, |retry| when.max(retry)))
    }

    /// Whether the very first generation waits: until the first of the versions on their way is
    /// listed, and, for a moment, for the newest ones.
    pub(super) fn holds(
        &mut self,
        on_their_way: bool,
        any_listed: bool,
        newest_pending: impl FnOnce() -> bool,
        now: Instant,
    ) -> bool {
        // An empty list is worse than none: clients believe it for an hour.
        let holds = self.lineage.generation() == 0
            && on_their_way
            && (!any_listed || now < self.last + FIRST && newest_pending());
        if holds {
            // The next result, or the end of the wait, makes it dirty again.
            self.dirty = false;
            self.held = any_listed.then(|| self.last + FIRST);
        }
        holds
    }

    /// Publishes what `entries` make, unless it is what was published last.
    pub(super) fn publish<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a Arc<Entry>>,
        overrides: &fields::Files,
        mut problems: Vec<Problem>,
        root_missing: bool,
    ) {
        let start = Instant::now();
        let (catalog, more) = Catalog::new(entries, overrides, self.aliases);
        if catalog.products.is_empty() && self.awaiting.is_some_and(|until| start < until) {
            if self.dirty {
                log::error!(
                    "\"{}\" is empty, but was not when it was last indexed; keeping that index \
                     for up to {} minutes",
                    self.root.display(),
                    super::anchors::GRACE.as_secs() / 60
                );
            }
            self.dirty = false;
            return;
        }
        self.awaiting = None;
        problems.extend(more);
        tidy(&mut problems);
        // Without a root there is nothing to say: no document, which a server answers as
        // "not available", rather than an empty list, which clients would believe for an hour.
        let nothing = root_missing && self.lineage.generation() == 0;
        let documents = if nothing {
            Vec::new()
        } else {
            render::render(&catalog, &self.streams, &mut self.compressor)
        };
        if self.lineage.generation() > 0
            && self.lineage.serves(&documents)
            && problems == self.problems
        {
            self.dirty = false;
            self.urgent = false;
            // What an earlier process reported may be in a log that was rotated away.
            self.log(&problems);
            return;
        }
        let counts = render::count(&catalog);
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let clock = u64::try_from(clock.as_millis()).unwrap_or(u64::MAX);
        let (bytes, lineage) =
            snapshot::encode_next(&documents, &problems, counts, &self.lineage, clock);
        drop((documents, catalog));
        if let Err(err) = self.store(bytes, lineage) {
            log::error!("{err}; the generation before stays in service");
            self.retry = Some(Instant::now() + RETRY);
            return;
        }
        if self.unsaved.is_none() {
            self.retry = None;
        }
        self.dirty = false;
        self.urgent = false;
        self.last = Instant::now();
        self.cost = start.elapsed();
        log::info!(
            "generation {} of \"{}\": {} products, {} versions, {} problems",
            self.lineage.generation(),
            self.root.display(),
            counts.products,
            counts.versions,
            problems.len()
        );
        self.log(&problems);
        self.problems = problems;
    }

    fn store(&mut self, bytes: Vec<u8>, lineage: Lineage) -> Result<(), SnapshotError> {
        if let Some(files) = self.sink.state.clone() {
            let failed = |source| SnapshotError::Write { path: files.live.clone(), source };
            // Readers first: syncing a file takes longer than all the rest.
            self.announce(&bytes, lineage.generation(), &files.live).map_err(failed)?;
            self.lineage = lineage;
            self.unsaved = Some(bytes);
            self.save();
            return Ok(());
        }
        let snapshot = Snapshot::from_bytes(bytes)?;
        self.lineage = lineage;
        if let Some(cell) = &self.sink.cell {
            cell.0.store(Some(Arc::new(snapshot)));
            cell.1.notify();
        }
        Ok(())
    }

    fn announce(&mut self, bytes: &[u8], generation: u64, path: &Path) -> io::Result<()> {
        let live = Live::new(bytes)?;
        live.announce(path, generation)?;
        // The one before goes only now that nobody is told of it any more.
        self.live = Some(live);
        Ok(())
    }

    /// Writes the snapshot file, should it be behind. If that fails, it is tried again later;
    /// readers have the generation all the same.
    fn save(&mut self) {
        let (Some(files), Some(bytes)) = (&self.sink.state, &self.unsaved) else {
            return;
        };
        match snapshot::write_file(&files.snapshot, bytes) {
            Ok(()) => {
                self.unsaved = None;
                self.retry = None;
            }
            Err(err) => {
                log::error!(
                    "cannot write snapshot \"{}\" ({err}); the generation is served, but a restart \
                     would begin with an older one",
                    files.snapshot.display()
                );
                self.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Tries again to write what could not be written.
    pub(super) fn retry(&mut self, now: Instant) {
        if self.unsaved.is_some() && self.retry.is_some_and(|when| when <= now) {
            self.save();
        }
    }

    fn log(&mut self, problems: &[Problem]) {
        self.logged.retain(|known| problems.binary_search(known).is_ok());
        let new: Vec<&Problem> = problems.iter().filter(|p| !self.logged.contains(p)).collect();
        for problem in new.iter().take(MAX_LOGGED) {
            log::error!(target: Problem::LOG_TARGET, "in \"{}\": {problem}", self.root.display());
        }
        if let Some(rest) = new.len().checked_sub(MAX_LOGGED).filter(|rest| *rest > 0) {
            log::error!(
                target: Problem::LOG_TARGET,
                "in \"{}\": {rest} more problems; see to those before, the rest shows then",
                self.root.display()
            );
        }
        self.logged.extend(new.into_iter().take(MAX_LOGGED).cloned());
    }
}

/// Sorts problems, drops double ones, and keeps their number bounded.
fn tidy(problems: &mut Vec<Problem>) {
    problems.sort_unstable();
    problems.dedup();
    if let Some(rest) = problems.len().checked_sub(MAX_PROBLEMS).filter(|rest| *rest > 0) {
        problems.truncate(MAX_PROBLEMS);
        problems.push(Problem::new(
            Path::new("."),
            format!("{rest} more problems"),
            "see to those before; the rest shows then",
        ));
    }
}
