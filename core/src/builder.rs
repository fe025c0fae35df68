//! Keeps the snapshots of several indexes fresh in one state directory, for readers in other
//! processes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::index::Running;
use crate::indexer::{Event, Indexer, Sink, StateFiles};
use crate::pool::{Pool, Prepare};
use crate::progress::{Gauges, Progress};
use crate::{Settings, state};

/// How often a builder that waits for another one to go looks whether it did.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// After this long, waiting is worth a line in the log: on a reload the two helpers overlap anyway.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Name of the hash cache in the state directory. All indexes of a builder share it.
const HASHES: &str = "hashes.redb";

/// What a [`Builder`] builds, and where.
#[derive(Clone, Debug)]
pub struct BuilderOptions {
    /// Existing directory for snapshots and locks, writable by this process.
    pub state_dir: PathBuf,
    /// The indexes.
    pub indexes: Vec<Settings>,
    /// How many threads hash.
    pub threads: NonZeroUsize,
    /// What the hashing threads call when they start.
    pub prepare: Prepare,
}

/// Running threads that scan, hash, watch and publish.
///
/// For each index one builder at a time is active, however many processes try: it holds a lock in
/// the state directory, and the next one takes over when it goes. Dropping the builder stops and
/// joins its threads, and writes hashes that wait for it; all of that within a second.
#[derive(Debug)]
pub struct Builder {
    indexers: Vec<Running>,
    sweeper: Running,
    gauges: Vec<Arc<Gauges>>,
    pool: Arc<Pool>,
}

impl Builder {
    /// Starts the threads. They inherit the signal mask of the caller.
    ///
    /// # Errors
    ///
    /// When a thread or descriptor cannot be had. Trouble with a tree or the state directory is no
    /// error here: it is logged, and tried again.
    pub fn spawn(options: BuilderOptions) -> io::Result<Self> {
        let pool = Arc::new(Pool::spawn(options.threads, options.prepare)?);
        let own: BTreeSet<String> = options.indexes.iter().map(Settings::id).collect();
        pool.cache().shared_by(own.clone(), Instant::now());
        if is_open_to_others(&options.state_dir) {
            log::warn!(
                "others may write to \"{0}\", and so decide what is served; chmod go-w \"{0}\"",
                options.state_dir.display()
            );
        }
        let sweeper = spawn_sweeper(options.state_dir.clone(), own)?;
        let mut builder = Self { indexers: Vec::new(), sweeper, gauges: Vec::new(), pool };
        for settings in options.indexes {
            let (sender, events) = channel();
            let (own, pool) = (sender.clone(), Arc::clone(&builder.pool));
            let state_dir = options.state_dir.clone();
            let gauges = Arc::<Gauges>::default();
            builder.gauges.push(Arc::clone(&gauges));
            builder.indexers.push(Running::spawn(sender, "ss-index", move || {
                let Some(_lock) = lock(&state_dir, &settings, &events) else {
                    return;
                };
                state::sweep::remove_unfinished(&state_dir, &settings.id());
                let hashes = Some(state_dir.join(HASHES));
                let state = Some(StateFiles::new(&state_dir, &settings.id()));
                let sink = Sink { state, ..Sink::default() };
                Indexer::new(settings, pool, own, sink, gauges, hashes).run(&events);
            })?);
        }
        Ok(builder)
    }

    /// How far each index is behind the disk, in the order of
    /// [`indexes`](BuilderOptions::indexes). While another process builds one, its numbers are
    /// zero.
    pub fn progress(&self) -> Vec<Progress> {
        self.gauges.iter().map(|gauges| gauges.read()).collect()
    }
}

impl Builder {
    /// Whether all of its threads run; one ends by itself only after a failure, which has been
    /// logged. A builder that is not alive is to be dropped and started again.
    pub fn is_alive(&self) -> bool {
        self.sweeper.is_alive() && self.indexers.iter().all(Running::is_alive)
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        self.indexers.iter().chain([&self.sweeper]).for_each(Running::ask_to_stop);
        self.pool.stop();
    }
}

/// Whoever can write hashes and snapshots decides what is served.
fn is_open_to_others(state_dir: &Path) -> bool {
    fs::metadata(state_dir).is_ok_and(|meta| meta.mode() & 0o022 != 0)
}

/// Starts the thread that keeps the state directory tidy; `own` are the ids of the indexes in use.
fn spawn_sweeper(state_dir: PathBuf, own: BTreeSet<String>) -> io::Result<Running> {
    let (sender, events) = channel();
    Running::spawn(sender, "ss-sweep", move || {
        loop {
            state::sweep::sweep(&state_dir, &own);
            match events.recv_timeout(state::sweep::EVERY) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(_) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    })
}

/// Waits until no other process builds this index; `None` if told to stop first.
fn lock(state_dir: &Path, settings: &Settings, events: &Receiver<Event>) -> Option<File> {
    let path = state::lock_path(state_dir, &settings.id());
    let start = Instant::now();
    let mut told = false;
    loop {
        match state::try_lock(&path) {
            Ok(Some(lock)) => return Some(lock),
            Ok(None) if !told && start.elapsed() >= LOCK_PATIENCE => {
                log::info!(
                    "another process builds the index of \"{}\", taking over when it ends",
                    settings.root.display()
                );
                told = true;
            }
            Err(err) if !told => {
                log::error!(
                    "cannot lock \"{}\" ({err}), trying again; let the directory belong to the user \
                     of the server's worker processes",
                    path.display()
                );
                told = true;
            }
            _ => {}
        }
        match events.recv_timeout(LOCK_POLL) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::{ReadOnlyDatabase, ReadableDatabase as _, ReadableTableMetadata as _};

    /// Far more than anything here takes.
    const DEADLINE: Duration = Duration::from_secs(30);

    #[track_caller]
    fn wait(what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done() {
            assert!(Instant::now() < deadline, "{what} did not happen");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Entries of a table of the hash cache; none while a builder has it.
    fn entries(state_dir: &Path, table: &str) -> Option<u64> {
        let database = ReadOnlyDatabase::open(state_dir.join(HASHES)).ok()?;
        let table = redb::TableDefinition::<&[u8], &[u8]>::new(table);
        database.begin_read().ok()?.open_table(table).ok()?.len().ok()
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_known() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        for (mode, open) in [(0o700, false), (0o755, false), (0o775, true), (0o1777, true)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_open_to_others(dir.path()), open, "{mode:o}");
        }
    }

    /// Where other programs want all processors, threads at idle priority may not come to anything.
    #[test]
    fn what_the_threads_have_no_time_for_is_hashed_all_the_same() {
        static HELD_UP: std::sync::Mutex<()> = std::sync::Mutex::new(());
        fn hold_up() {
            drop(HELD_UP.lock());
        }
        let (root, state_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let version = root.path().join("images/a/1/amd64/b/20240101");
        fs::create_dir_all(&version).unwrap();
        fs::write(version.join("lxd.tar.xz"), "metadata").unwrap();
        fs::write(version.join("rootfs.squashfs"), vec![b'x'; 3 << 20]).unwrap();
        let builder;
        // Let go before the builder waits for its threads.
        let _held_up = HELD_UP.lock();
        builder = Builder::spawn(BuilderOptions {
            state_dir: state_dir.path().to_owned(),
            indexes: vec![Settings { settle: Duration::ZERO, ..Settings::new(root.path()) }],
            threads: NonZeroUsize::new(2).unwrap(),
            prepare: Prepare { threads: Some(hold_up), relief: None },
        })
        .unwrap();
        wait("hashing", || builder.progress()[0].files_hashed == 2);
    }

    /// The cache is told of the files of every index, and so finds out which are gone.
    #[test]
    fn indexes_tell_which_files_there_are() {
        let (root, state_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state_dir = state_dir.path();
        let version = |day: u32| root.path().join(format!("images/a/1/amd64/b/2024010{day}"));
        for day in 1..=3 {
            fs::create_dir_all(version(day)).unwrap();
            fs::write(version(day).join("lxd.tar.xz"), "metadata").unwrap();
            fs::write(version(day).join("rootfs.squashfs"), day.to_string()).unwrap();
            fs::write(version(day).join("metadata.json"), "{}").unwrap();
        }
        let settings = Settings { settle: Duration::ZERO, ..Settings::new(root.path()) };
        let other = Settings { streams: vec!["other".to_owned()], ..settings.clone() };
        let ids = BTreeSet::from([settings.id(), other.id()]);
        let spawn = || {
            let builder = Builder::spawn(BuilderOptions {
                state_dir: state_dir.to_owned(),
                indexes: vec![settings.clone(), other.clone()],
                threads: NonZeroUsize::MIN,
                prepare: Prepare::default(),
            });
            let builder = builder.unwrap();
            wait("a look", || builder.progress().iter().all(Progress::is_idle));
            builder
        };
        let builder = spawn();
        builder.pool.cache().flush_young();
        drop(builder);
        assert_eq!(
            (entries(state_dir, "files1"), entries(state_dir, "texts1")),
            (Some(6), Some(3))
        );

        fs::remove_dir_all(version(1)).unwrap();
        let builder = spawn();
        let cache = builder.pool.cache();
        // As if it had run for long.
        let earlier = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        cache.shared_by(ids.clone(), earlier);
        wait("both tell", || ids.iter().all(|id| !cache.asks(id, Instant::now())));
        drop(builder);
        assert_eq!(entries(state_dir, "gone1"), Some(3), "two files, and one of overrides");
    }
}
