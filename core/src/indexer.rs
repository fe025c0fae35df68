//! The one owner of an index's mutable state: what is on disk, how far each version has come, and
//! what was published last.
//!
//! It runs on one thread and is moved by [`Event`]s only. None of them carries a fact about the
//! tree but that one should look again, and where.

mod anchors;
mod deadlines;
mod directories;
mod events;
mod gather;
mod hashing;
mod hashing_log;
mod inherited;
mod look;
mod override_files;
mod publish;
mod rehash;
mod report;
mod saver;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::entry::Plan;
use crate::hash::Outcome;
use crate::parallel::Later;
use crate::pool::Pool;
use crate::progress::{Gauges, Progress};
use crate::quiet::Writers;
use crate::recall::Recall;
use crate::tree::{Anchor, Tree};
use crate::version::Version;
use crate::watch::{RawEvent, Watcher};
use crate::{Problem, Settings, fields};

use anchors::Anchors;
use deadlines::Deadlines;
use directories::Directories;
use hashing::Results;
use hashing_log::HashingLog;
use publish::Publisher;
pub(crate) use publish::{Signal, Sink, StateFiles};
use rehash::Rehash;
use report::Tally;

/// How long after a result is void because a file changed without an event a new look is taken, at
/// least.
const RETRY: Duration = Duration::from_millis(200);

/// How often the hash cache is written. A kill costs what was hashed since.
const FLUSH: Duration = Duration::from_secs(1);

/// How long hashes are written at the end, at most: whoever stops us waits.
const LAST_FLUSH: Duration = Duration::from_millis(600);

/// The one name with a dot that is looked at.
const REQUIREMENTS: &str = ".requirements";

/// Events taken in before the next look at deadlines and publishing: a flood of them must not keep
/// a finished version from being published.
const BATCH: usize = 256;

/// Versions that one thread looks at before it takes more.
const SHARE: NonZeroUsize = NonZeroUsize::new(32).expect("is not zero");

/// While more versions than that are being hashed, results are taken in by the handful.
const CROWD: u64 = 64;

/// What moves an indexer.
pub(crate) enum Event {
    /// The watcher saw something.
    Files(Vec<RawEvent>),
    /// There are results of hashing.
    Hashed,
    /// What is not known by now is not waited for. Let go of when what is known is published.
    PublishNow(Sender<()>),
    /// Time to go.
    Stop,
}

/// How the hashing of a version ended.
struct Hashed {
    /// The version's directory.
    path: Arc<str>,
    /// Which of its hashings.
    ticket: u64,
    outcome: Outcome,
}

/// See the module.
pub(crate) struct Indexer {
    settings: Settings,
    tree: Tree,
    /// With `once`, during a look: the root, for all that is hashed. Others open it for each version again,
    /// for a descriptor that waits with the last of them would keep the root from being unmounted.
    anchor: Option<Anchor>,
    /// Directories that need not be read, and which are to be remembered.
    recall: Option<Recall>,
    directories: Directories,
    pool: Arc<Pool>,
    /// Hashes, for the first look. Nobody asks for any before they are there.
    read_ahead: Option<Later<()>>,
    /// The requirements of the whole tree are to be looked at, once hashes are there.
    are_requirements_due: bool,
    sender: Sender<Event>,
    results: Results,
    watcher: Option<Watcher>,
    writers: Writers,
    anchors: Anchors,
    versions: BTreeMap<Arc<str>, Version>,
    overrides: fields::Files,
    /// Problems of directories, each with the directory whose walk finds it.
    problems: Vec<(String, Problem)>,
    /// Paths at which something happened.
    dirty: BTreeSet<String>,
    deadlines: Deadlines,
    tally: Tally,
    /// Versions whose hashing failed in the first look, for a reason that passes.
    interrupted: Vec<(Arc<str>, Arc<Plan>)>,
    /// Versions of which the catalog does not know yet how they are now; those that are there know
    /// that they are among them.
    changed: Vec<Arc<str>>,
    /// Directories in which overrides changed since the catalog was told.
    overridden: BTreeSet<String>,
    /// What is wrong with versions, by their paths; of those in `changed` as it was.
    wrong: BTreeMap<Arc<str>, Vec<Problem>>,
    tickets: u64,
    next_rescan: Option<Instant>,
    next_flush: Instant,
    /// The last one was not of all that was due.
    flush_goes_on: bool,
    /// See [`IndexOptions::once`](crate::IndexOptions::once).
    once: bool,
    /// With `once`: when all that the first look found has stood for the settle time, unless it is
    /// still written to.
    settled: Option<Instant>,
    /// Who wait for what is known to be published.
    askers: Vec<Sender<()>>,
    /// There are no events at all.
    unwatched: bool,
    /// A look failed for a reason that passes.
    is_blind: bool,
    /// When the log said last that a look had failed.
    complained: Option<Instant>,
    publisher: Publisher,
    rehash: Rehash,
    hashing_log: HashingLog,
    gauges: Arc<Gauges>,
}

impl Indexer {
    /// An indexer that has not looked yet. `sender` is the other end of what [`run`](Self::run)
    /// receives. Hashes are kept in the file `hashes`, unless the pool's have a file already.
    pub(crate) fn new(
        settings: Settings,
        pool: Arc<Pool>,
        sender: Sender<Event>,
        sink: Sink,
        gauges: Arc<Gauges>,
        hashes: Option<PathBuf>,
    ) -> Self {
        let tree = Tree::new(&settings.root);
        let anchors = Anchors::new(&settings.streams);
        let rehash = Rehash::new(sink.state.as_ref());
        let once = sink.once;
        let files = sink.state.as_ref().filter(|_| !once);
        let directories = Directories::new(files.map(|files| files.directories.clone()));
        let publisher = Publisher::new(&settings, sink);
        // Not before servers that start at this moment have a generation to share: to open the file
        // takes a while after a process that was killed.
        let of_pool = Arc::clone(&pool);
        let read_ahead = Later::begin("ss-ahead", move || {
            if let Some(path) = &hashes {
                of_pool.cache().persist(path);
            }
            of_pool.cache().begin_first_look();
        });
        Self {
            tree,
            anchor: None,
            recall: None,
            directories,
            pool,
            read_ahead: Some(read_ahead),
            are_requirements_due: false,
            results: Results::new(sender.clone()),
            sender,
            watcher: None,
            writers: Writers::default(),
            anchors,
            versions: BTreeMap::new(),
            overrides: fields::Files::default(),
            problems: Vec::new(),
            dirty: BTreeSet::new(),
            deadlines: Deadlines::default(),
            tally: Tally::default(),
            interrupted: Vec::new(),
            changed: Vec::new(),
            overridden: BTreeSet::new(),
            wrong: BTreeMap::new(),
            tickets: 0,
            next_rescan: None,
            next_flush: Instant::now(),
            flush_goes_on: false,
            once,
            settled: None,
            askers: Vec::new(),
            unwatched: false,
            is_blind: false,
            complained: None,
            publisher,
            rehash,
            hashing_log: HashingLog::default(),
            gauges,
            settings,
        }
    }

    /// Works until told to stop.
    pub(crate) fn run(mut self, events: &Receiver<Event>) {
        self.work(events);
        self.write_down_directories(Instant::now(), true);
        // Or they would be found out again by the next process.
        let end = Instant::now() + LAST_FLUSH;
        while self.pool.cache().flush() && Instant::now() < end {}
    }

    fn work(&mut self, events: &Receiver<Event>) {
        self.gauges.report(Progress { active: true, ..Progress::default() });
        self.anchors.check(&self.tree);
        self.look_at_everything(false);
        self.read_ahead = None;
        self.pool.cache().end_first_look();
        // What could not be looked at must not seem to be gone.
        while std::mem::take(&mut self.is_blind) {
            match events.recv_timeout(RETRY) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.look_at_everything(false);
        }
        self.end_first_look();
        self.settled = self.once.then(|| Instant::now() + self.settings.settle);
        self.list_what_was_listed();
        loop {
            let now = Instant::now();
            self.publish(now);
            if self.publisher.is_up_to_date() {
                self.askers.clear();
            }
            self.end_rehash();
            self.log_hashing(now);
            self.report(now);
            if self.next_flush <= now {
                self.flush_goes_on = self.pool.cache().flush();
                self.tell_cache(now);
                self.next_flush = now + if self.flush_goes_on { FLUSH / 50 } else { FLUSH };
            }
            match events.recv_timeout(self.wait(now)) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.tally.hashing.versions > CROWD {
                // To wake up for each result costs more than to take it in.
                thread::sleep(Duration::from_millis(1));
            }
            for event in events.try_iter().take(BATCH) {
                if matches!(event, Event::Stop) {
                    return;
                }
                self.handle(event);
            }
            self.look_where_needed();
        }
    }

    fn start_watcher(&mut self) {
        let sender = self.sender.clone();
        let sink = move |events| {
            // Fails only when the indexer is gone, which stops this thread too.
            drop(sender.send(Event::Files(events)));
        };
        match Watcher::spawn(sink) {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.unwatched = false;
            }
            Err(_) if self.unwatched => {}
            Err(err) => {
                self.unwatched = true;
                log::error!(
                    "cannot watch \"{}\" ({err}), relying on rescans alone; raise \
                 fs.inotify.max_user_instances",
                    self.settings.root.display()
                );
            }
        }
    }

    /// Whether what was found at first will be looked at again before it has stood long enough: an
    /// index that is opened for one generation waits for that, so that files that were finished a
    /// moment ago are in it.
    fn is_settling(&self) -> bool {
        let next = self.deadlines.next();
        next.zip(self.settled).is_some_and(|(next, settled)| next <= settled)
    }

    /// How long there is nothing to do.
    fn wait(&self, now: Instant) -> Duration {
        let deadline = self.deadlines.next();
        let publish = self.publisher.next(self.tally.hashing.versions, now);
        let publish = publish.filter(|_| !self.is_settling());
        let line = self.hashing_log.next();
        let flush = self.flush_goes_on.then_some(self.next_flush);
        let times = [deadline, publish, line, flush, self.next_rescan, Some(self.anchors.next())];
        let next = times.into_iter().flatten().min().unwrap_or(now);
        next.saturating_duration_since(now)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Files(events) => {
                if let Some(watcher) = &self.watcher {
                    watcher.taken(&events);
                }
                events.iter().for_each(|event| self.seen(event));
            }
            Event::Hashed => self.take_results(),
            Event::PublishNow(asker) => {
                self.settled = None;
                self.publisher.wait_no_longer();
                self.askers.push(asker);
            }
            Event::Stop => {}
        }
    }

    /// Looks where something happened or a time has come.
    fn look_where_needed(&mut self) {
        let now = Instant::now();
        let ticked = self.anchors.due(now);
        if ticked {
            self.check_anchors();
        }
        if ticked && self.tally.stalled_changed(now) {
            self.publisher.touch();
        }
        if ticked && self.rehash.is_asked_for() {
            self.begin_rehash();
        }
        if self.next_rescan.is_some_and(|when| when <= now) {
            self.dirty.clear();
            self.look_at_everything(true);
        }
        while let Some(path) = self.deadlines.take(now) {
            self.dirty.insert(path);
        }
        for path in std::mem::take(&mut self.dirty) {
            self.look_at(&path);
        }
        self.writers.expire(now, self.settings.settle);
        if ticked {
            self.write_down_directories(now, false);
        }
    }

    /// Finds out whether root and streams are still the same; if not, everything is due for a look.
    fn check_anchors(&mut self) {
        if self.anchors.check(&self.tree) {
            log::warn!("\"{}\" is another directory now", self.settings.root.display());
            self.next_rescan = Some(Instant::now());
        }
    }

    /// Tells the hash cache, should it ask, which files there are.
    fn tell_cache(&self, now: Instant) {
        let (cache, id) = (self.pool.cache(), self.settings.id());
        if cache.asks(&id, now) {
            let stamps = self.versions.values().flat_map(Version::stamps);
            let texts = self.overrides.below("").into_iter();
            let texts = texts.map(|path| self.tree.absolute(&path).to_string_lossy().into_owned());
            cache.present(&id, stamps, texts, (now, SystemTime::now()));
        }
    }
}

/// Whether the version at `path` is the newest of its product that is known so far.
fn is_newest(versions: &BTreeMap<Arc<str>, Version>, path: &str) -> bool {
    let Some((product, name)) = path.rsplit_once('/') else {
        return true;
    };
    // Siblings sort behind it; a deeper path, of a longer product, has one more slash.
    !paths_from(versions, path)
        .skip(1)
        .map_while(|other| other.strip_prefix(product)?.strip_prefix('/'))
        .any(|other| !other.contains('/') && other > name)
}

/// The paths of versions from `path` on.
fn paths_from<'a>(
    versions: &'a BTreeMap<Arc<str>, Version>,
    path: &str,
) -> impl Iterator<Item = &'a Arc<str>> {
    let bounds = (Bound::Included(path), Bound::Unbounded);
    versions.range::<str, _>(bounds).map(|(path, _)| path)
}
