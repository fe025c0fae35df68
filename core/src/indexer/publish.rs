//! When a generation is published, and how.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use foldhash::HashSet;

use super::saver::Saver;
use crate::catalog::Catalog;
use crate::follow::SnapshotCell;
use crate::live::{self, Live};
use crate::name::ProductName;
use crate::parallel::Later;
use crate::render::Documents;
use crate::snapshot::{self, Lineage, Snapshot, SnapshotError};
use crate::{Problem, Settings, fields, recall, state};

/// While versions are being hashed, a generation is published at most this often, and not more
/// often than publishing itself takes times ten.
const INTERVAL: Duration = Duration::from_secs(1);
const COST_FACTOR: u32 = 10;

/// How long the first generation waits for the newest version of every product.
const FIRST: Duration = Duration::from_secs(1);

/// How often it is looked whether the newest versions are there, at most.
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// How long what an earlier process published stays, at most, while it is being hashed again because
/// it does not tell how to list what has not changed.
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
    /// See [`IndexOptions::once`](crate::IndexOptions::once).
    pub(crate) once: bool,
}

/// The files of an index in the state directory.
#[derive(Clone, Debug)]
pub(crate) struct StateFiles {
    /// The last generation, for the next start.
    pub(crate) snapshot: PathBuf,
    /// Where the current one is, for running processes.
    pub(crate) live: PathBuf,
    /// Which directories there are, for the next start.
    pub(crate) directories: PathBuf,
    /// Where somebody asks for everything to be hashed anew.
    pub(crate) rehash: state::Request,
}

impl StateFiles {
    pub(crate) fn new(state_dir: &Path, id: &str) -> Self {
        Self {
            snapshot: snapshot::path(state_dir, id),
            live: live::path(state_dir, id),
            directories: recall::path(state_dir, id),
            rehash: state::Request::new(state_dir, id),
        }
    }
}

/// What an earlier process published.
#[derive(Debug)]
struct Inherited {
    /// When, in nanoseconds since the epoch.
    published: i64,
    /// The versions it listed.
    listed: Later<HashSet<String>>,
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
    sink: Sink,
    /// What readers have mapped, or may be about to.
    live: Option<Live>,
    saver: Option<Saver>,
    lineage: Lineage,
    /// What is listed.
    pub(super) catalog: Catalog,
    documents: Documents,
    /// Products that `documents` may have as they were.
    changed: BTreeSet<ProductName>,
    /// What the last generation listed as problems.
    problems: Vec<Problem>,
    /// Problems that are in the log already.
    logged: BTreeSet<Problem>,
    /// Something may have changed since the last generation.
    dirty: bool,
    /// A version was unlisted, which does not wait for hashing.
    urgent: bool,
    /// Readers have a generation that the process before us could not save any more: even the
    /// documents that are known here are news to them.
    is_behind: bool,
    /// What an earlier process published.
    inherited: Option<Inherited>,
    /// Versions that it listed, that did not change, and of which it is not known how without hashing
    /// them: what it published stays until they are, at most until the given time.
    pending: Option<(BTreeSet<String>, Instant)>,
    /// The list was not empty when this process started, and was found empty: probably not mounted
    /// yet.
    awaiting: Option<Instant>,
    /// The first generation waits until then for the newest versions.
    held: Option<Instant>,
    /// When that was looked at last.
    looked: Option<Instant>,
    last: Instant,
    cost: Duration,
    retry: Option<Instant>,
}

impl Publisher {
    pub(super) fn new(settings: &Settings, sink: Sink) -> Self {
        let mut publisher = Self {
            root: settings.root.clone(),
            saver: sink.state.as_ref().map(|files| Saver::spawn(files.snapshot.clone())),
            sink,
            live: None,
            lineage: Lineage::of(settings),
            catalog: Catalog::new(settings.aliases),
            documents: Documents::new(&settings.streams),
            changed: BTreeSet::new(),
            problems: Vec::new(),
            logged: BTreeSet::new(),
            dirty: true,
            urgent: false,
            is_behind: false,
            inherited: None,
            pending: None,
            awaiting: None,
            held: None,
            looked: None,
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
        // What running workers have, and what comes next is later than, whatever became of the file.
        let served = live::generation(&files.live).unwrap_or(0);
        match Snapshot::open_shared(&files.snapshot) {
            Ok((snapshot, live)) => {
                // Workers that start from now on share it instead of copying the file. Unless it is
                // older than what running ones have: the process before could not save that.
                self.is_behind = served > snapshot.generation();
                if self.is_behind {
                    log::warn!("\"{}\" is older than what is served", files.snapshot.display());
                } else if let Err(err) =
                    live.and_then(|live| self.announce(live, snapshot.generation(), &files.live))
                {
                    log::warn!("cannot share \"{}\" ({err})", files.snapshot.display());
                }
                self.lineage = Lineage::from(&snapshot);
                if self.is_behind {
                    self.lineage.pass_documents(live::time(&files.live).unwrap_or(0));
                }
                self.documents.inherit(&snapshot);
                self.problems = snapshot.problems();
                if snapshot.counts().versions > 0 {
                    self.awaiting = Some(Instant::now() + super::anchors::GRACE);
                }
                let (published, snapshot) = (snapshot.published(), Mutex::new(Some(snapshot)));
                let published = i64::try_from(published).unwrap_or(i64::MAX);
                self.inherited = Some(Inherited {
                    published: published.saturating_mul(1_000_000),
                    // Once, so that it does not stay in memory.
                    listed: Later::begin("ss-inherit", move || {
                        let mut snapshot = snapshot.lock().unwrap_or_else(PoisonError::into_inner);
                        let listed = snapshot.as_ref().map(Snapshot::listed);
                        *snapshot = None;
                        listed.unwrap_or_default()
                    }),
                });
            }
            Err(SnapshotError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(err) => log::warn!("{err}; making a new one"),
        }
        self.lineage.pass(served);
    }

    /// Until when, in nanoseconds since the epoch, an earlier process vouches for the version at
    /// `path`. For the first look at the tree.
    pub(super) fn vouched(&self, path: &str) -> Option<i64> {
        let inherited = self.inherited.as_ref()?;
        inherited.listed.get().contains(path).then_some(inherited.published)
    }

    /// What an earlier process listed. For the first look at the tree.
    pub(super) fn earlier(&self) -> Option<Snapshot> {
        // Read again rather than kept: hardly ever is it asked for.
        let snapshot = Snapshot::open(&self.sink.state.as_ref()?.snapshot);
        let warn = |err: &_| log::warn!("{err}; what it lists stays until it is hashed");
        snapshot.inspect_err(warn).ok()
    }

    /// The first look at the tree is over, and of the versions that were vouched for, `pending` did
    /// not change, but have to be hashed before anybody can say how they are listed.
    /// `listed` are those that are listed now.
    pub(super) fn started<'a>(
        &mut self,
        pending: BTreeSet<String>,
        listed: impl Iterator<Item = &'a str>,
    ) {
        if let Some(inherited) = self.inherited.take() {
            let before = inherited.listed.get();
            self.urgent |= listed.filter(|path| before.contains(*path)).count() < before.len();
        }
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

    /// Those who wait in this process look again at how things are.
    pub(super) fn wake_readers(&self) {
        if let Some(cell) = &self.sink.cell {
            cell.1.notify();
        }
    }

    /// Something may have changed.
    pub(super) fn touch(&mut self) {
        self.dirty = true;
    }

    /// Number of the generation that was published last; 0 before the first.
    pub(super) fn generation(&self) -> u64 {
        self.lineage.generation()
    }

    /// Whether nothing waits to be published, nor for the newest versions to be with it.
    pub(super) fn is_up_to_date(&self) -> bool {
        !self.dirty && self.held.is_none()
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

    /// From now on, what is being hashed is not waited for.
    pub(super) fn wait_no_longer(&mut self) {
        self.sink.once = false;
        self.dirty = true;
    }

    /// Whether to publish now, while `hashing` versions are being hashed.
    pub(super) fn due(&mut self, hashing: u64, now: Instant) -> bool {
        self.dirty |= self.held.take_if(|until| *until <= now).is_some();
        self.dirty && self.next(hashing, now).is_some_and(|when| when <= now)
    }

    /// When to publish next.
    pub(super) fn next(&self, hashing: u64, now: Instant) -> Option<Instant> {
        if !self.dirty || self.pending.is_some() {
            return self.held;
        }
        if self.sink.once && hashing > 0 {
            return None;
        }
        let when = if hashing == 0 || self.urgent {
            now
        } else if self.lineage.generation() == 0 {
            // See `holds`: worth a look when something was hashed.
            self.looked.map_or(now, |looked| looked + FIRST_LOOK)
        } else {
            self.last + INTERVAL.max(self.cost * COST_FACTOR)
        };
        Some(self.retry.map_or(when, |retry| when.max(retry)))
    }

    /// Whether the first generation waits: until the first of the versions on their way is listed, and,
    /// if there was none before, for a moment for the newest ones.
    pub(super) fn holds(
        &mut self,
        on_their_way: bool,
        any_listed: bool,
        newest_pending: impl FnOnce() -> bool,
        now: Instant,
    ) -> bool {
        // An empty list is worse than none: clients believe it for an hour.
        let is_first = self.lineage.generation() == 0;
        let waits_for_any =
            !any_listed && (is_first || self.awaiting.is_some_and(|until| now < until));
        let waits_for_newest = || is_first && now < self.last + FIRST && newest_pending();
        let holds = on_their_way && (waits_for_any || waits_for_newest());
        self.looked = Some(now);
        if holds {
            // The next result, or the end of the wait, makes it dirty again.
            self.dirty = false;
            self.held = any_listed.then(|| self.last + FIRST);
        }
        holds
    }

    /// Judges what the catalog was told of, as far as it is easy.
    pub(super) fn settle_what_is_alone(&mut self, overrides: &fields::Files) {
        self.changed.append(&mut self.catalog.settle_what_is_alone(overrides));
    }

    /// Publishes what the catalog lists, unless it is what was published last.
    pub(super) fn publish(
        &mut self,
        overrides: &fields::Files,
        mut problems: Vec<Problem>,
        root_missing: bool,
    ) {
        let start = Instant::now();
        self.changed.append(&mut self.catalog.settle(overrides));
        let counts = self.catalog.counts();
        if counts.products == 0 && self.awaiting.is_some_and(|until| start < until) {
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
        problems.extend(self.catalog.problems().cloned());
        tidy(&mut problems);
        // Without a root there is nothing to say: no document, which a server answers as
        // "not available", rather than an empty list, which clients would believe for an hour.
        let nothing = root_missing && self.lineage.generation() == 0;
        match self.make(overrides, &problems, nothing) {
            Ok(true) => {}
            Ok(false) => {
                self.dirty = false;
                self.urgent = false;
                // What an earlier process reported may be in a log that was rotated away.
                self.log(&problems);
                return;
            }
            Err(err) => {
                log::error!("{err}; the generation before stays in service");
                self.retry = Some(Instant::now() + RETRY);
                return;
            }
        }
        self.retry = None;
        self.dirty = false;
        self.urgent = false;
        self.is_behind = false;
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

    /// Makes a generation, without documents if there is `nothing` to say, and hands it to readers;
    /// false if it would be as the one before.
    fn make(
        &mut self,
        overrides: &fields::Files,
        problems: &[Problem],
        nothing: bool,
    ) -> Result<bool, SnapshotError> {
        let path = self.sink.state.as_ref().map_or(&self.root, |files| &files.live).clone();
        let failed = |source| SnapshotError::Write { path: path.clone(), source };
        self.documents.update(&self.catalog, overrides, &self.changed).map_err(failed)?;
        self.changed.clear();
        let tags = if nothing { Vec::new() } else { self.documents.tags() };
        if self.lineage.generation() > 0
            && !self.is_behind
            && self.lineage.serves(&tags)
            && problems == self.problems
        {
            if let Some(live) = self.live.as_ref().filter(|_| self.documents.has_fresh_text()) {
                let snapshot = Snapshot::of_memory(live)?;
                self.documents.keep_that_of(live.memory().map_err(failed)?, &snapshot);
            }
            return Ok(false);
        }
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let clock = u64::try_from(clock.as_millis()).unwrap_or(u64::MAX);
        let counts = self.catalog.counts();
        let mut memory = snapshot::begin().map_err(failed)?;
        let mut placed = Vec::new();
        if !nothing {
            placed = self.documents.place(&mut memory).map_err(failed)?;
        }
        let lineage =
            snapshot::finish(&mut memory, &placed, problems, counts, &self.lineage, clock);
        let lineage = lineage.map_err(failed)?;
        if !nothing {
            self.documents.keep(memory.clone(), &placed);
        }
        let live = Live::seal(memory).map_err(failed)?;
        if let Some(files) = self.sink.state.clone() {
            self.announce(live.clone(), lineage.generation(), &files.live).map_err(failed)?;
        }
        if let Some(cell) = &self.sink.cell {
            cell.0.store(Some(Arc::new(Snapshot::of_memory(&live)?)));
        }
        self.wake_readers();
        if let Some(saver) = &self.saver {
            saver.save(live);
        }
        self.lineage = lineage;
        Ok(true)
    }

    fn announce(&mut self, live: Live, generation: u64, path: &Path) -> io::Result<()> {
        live.announce(path, generation)?;
        // The one before goes only now that nobody is told of it any more.
        self.live = Some(live);
        Ok(())
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
