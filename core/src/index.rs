//! An index in one's own process: the front door for programs that embed this library.

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::follow::SnapshotCell;
use crate::indexer::{Event, Indexer, Signal, Sink};
use crate::pool::{Pool, Prepare};
use crate::progress::{Gauges, Progress};
use crate::{Settings, Snapshot};

/// How an [`Index`] works, beside what it is made of.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// How many threads hash; half of the processors by default.
    pub threads: NonZeroUsize,
    /// A file that keeps hashes from one process to the next, so that what did not change meanwhile
    /// is not read again; none by default. One index at a time can have it. Whoever can write it
    /// decides what is listed, so it belongs into a directory of this user's.
    pub hash_cache: Option<PathBuf>,
    /// It is opened for one generation of all that is there now: nothing is published while versions
    /// are being hashed, nor while one may yet turn out to be quiet within the settle time after
    /// opening, and what is added meanwhile may go unnoticed. Files that are written to and versions
    /// that go are noticed, before that generation is published at the latest. False by default.
    pub once: bool,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { threads: default_threads(), hash_cache: None, once: false }
    }
}

/// A live index, kept in memory. Dropping it stops and joins its threads, and writes hashes that wait for
/// it; all of that within a second.
///
/// ```no_run
/// # use std::time::Duration;
/// let index = simplestreams::Index::open(simplestreams::Settings::new("/var/www/simplestreams"))?;
/// let mut seen = 0;
/// while let Some(snapshot) = index.wait_newer(seen, Duration::from_secs(3600)) {
///     seen = snapshot.generation();
///     let images = snapshot.document("images.json").expect("the root exists");
///     println!("generation {seen}: {} bytes", images.identity.bytes.len());
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Index {
    root: PathBuf,
    cell: Arc<(SnapshotCell, Signal)>,
    gauges: Arc<Gauges>,
    pool: Arc<Pool>,
    indexer: Running,
}

impl Index {
    /// Starts indexing and watching with half of the processors, at least one, for hashing.
    ///
    /// # Errors
    ///
    /// When a thread cannot be had. A root that is missing is no error but a
    /// [problem](Snapshot::problems).
    pub fn open(settings: Settings) -> io::Result<Self> {
        Self::with_threads(settings, default_threads())
    }

    /// As [`open`](Self::open), with a number of hashing threads.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn with_threads(settings: Settings, threads: NonZeroUsize) -> io::Result<Self> {
        Self::open_with(settings, IndexOptions { threads, ..IndexOptions::default() })
    }

    /// As [`open`](Self::open), with options.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open). Trouble with the file of hashes is none: it is logged, and
    /// hashes are kept in memory.
    pub fn open_with(settings: Settings, options: IndexOptions) -> io::Result<Self> {
        let cell = Arc::<(SnapshotCell, Signal)>::default();
        let pool = Arc::new(Pool::spawn(options.threads, Prepare::default())?);
        pool.cache().shared_by(BTreeSet::from([settings.id()]), Instant::now());
        let sink = Sink { cell: Some(Arc::clone(&cell)), once: options.once, ..Sink::default() };
        let (sender, events) = channel();
        let (own, hashing) = (sender.clone(), Arc::clone(&pool));
        let gauges = Arc::<Gauges>::default();
        let shown = Arc::clone(&gauges);
        let root = settings.root.clone();
        let indexer = Running::spawn(sender, "ss-index", move || {
            if options.hash_cache.is_none() && options.once {
                hashing.cache().keep_links_only();
            }
            Indexer::new(settings, hashing, own, sink, shown, options.hash_cache).run(&events);
        })?;
        Ok(Self { root, cell, gauges, pool, indexer })
    }

    /// The root that is indexed.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The current generation; `None` before the first.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.cell.0.load_full()
    }

    /// How far the index is behind the disk. Once it is idle, the [current
    /// generation](Self::snapshot) is one of all that is on disk.
    pub fn progress(&self) -> Progress {
        self.gauges.read()
    }

    /// The versions that [`Progress::waiting`] counts, as paths below the root, sorted.
    pub fn waiting(&self) -> Vec<String> {
        self.gauges.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it still follows the tree. Its thread ends by itself only after a failure, which the
    /// panic hook has reported; such an index is to be dropped and opened again.
    pub fn is_alive(&self) -> bool {
        self.indexer.is_alive()
    }

    /// Tells it to stop and does not wait for that: its threads end by themselves, and with them what they
    /// know. For a process that has what it wanted, and something else to do or nothing more.
    pub fn abandon(self) {
        self.indexer.ask_to_stop();
        self.pool.stop();
        std::mem::forget(self);
    }

    /// Has a generation published of what is known now, though versions are still being hashed or written
    /// to, and waits for that, for `timeout` at most. For an index that is opened
    /// [once](IndexOptions::once), which would wait for them. False if it took longer.
    pub fn publish_now(&self, timeout: Duration) -> bool {
        let (asker, published) = channel();
        self.indexer.tell(Event::PublishNow(asker));
        // It sends nothing, but lets go of its end.
        published.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected)
    }

    /// Waits until the index is [idle](Progress::is_idle), for `timeout` at most; says whether it is.
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        let is_idle = || self.progress().is_idle().then_some(());
        self.cell.1.wait(Instant::now() + timeout, is_idle).is_some()
    }

    /// Waits for a generation with a number above `generation` (0 for any); `None` if there is
    /// none within `timeout`.
    pub fn wait_newer(&self, generation: u64, timeout: Duration) -> Option<Arc<Snapshot>> {
        self.cell.1.wait(Instant::now() + timeout, || {
            self.snapshot().filter(|snapshot| snapshot.generation() > generation)
        })
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.indexer.ask_to_stop();
        self.pool.stop();
    }
}

/// Half of the processors, at least one: hashing must leave room for serving.
pub fn default_threads() -> NonZeroUsize {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(processors / 2).unwrap_or(NonZeroUsize::MIN)
}

/// A thread that ends when it is told to by an event. Dropping it stops and joins the thread.
#[derive(Debug)]
pub(crate) struct Running {
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn spawn(
        events: Sender<Event>,
        name: &str,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { events, thread: Some(thread) })
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    pub(crate) fn ask_to_stop(&self) {
        self.tell(Event::Stop);
    }

    fn tell(&self, event: Event) {
        // Fails only if the thread is gone already.
        drop(self.events.send(event));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}
