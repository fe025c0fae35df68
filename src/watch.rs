//! `lxd-image-server watch`: keeps index files up to date, and feeds the mirrors.
//!
//! One loop: signals, changed configuration files, new generations. A configuration that is wrong, or
//! that names directories that cannot be used, changes nothing; the last good one stays in force.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::geteuid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use simplestreams::{Index, IndexOptions, Snapshot, default_threads};

use crate::cli::{Cli, Watch};
use crate::config::{Config, Sources, Stamp};
use crate::lock::{Lock, PidFile};
use crate::mirror::Mirrors;
use crate::notify::{Watchdog, notify, reloading};
use crate::tree::Tree;
use crate::{lock, streams};

/// How often signals are looked at while nothing is published.
const TICK: Duration = Duration::from_millis(100);

/// How often configuration files are looked at.
const CONFIG_TICK: Duration = Duration::from_secs(1);

/// How long to wait after index files could not be written, or indexing could not be started.
const RETRY: Duration = Duration::from_secs(5);

/// How long a tree that is empty when the watch starts, and was not when its index was written, is
/// taken for one that is not mounted yet. As the core has it for trees that vanish.
const GRACE: Duration = Duration::from_secs(3600);

/// In the directory of data: what was hashed, so that a restart reads nothing again that did not
/// change.
const HASHES: &str = "hashes.redb";

/// Keeps on until SIGTERM or SIGINT. `stamp` is that of the files that `config` was read from.
///
/// # Errors
///
/// Only at the start: wrong usage, a lock that another process holds, a pid file that was asked for
/// and cannot be written.
pub fn run(
    cli: &Cli,
    args: &Watch,
    sources: &Sources,
    mut stamp: Stamp,
    mut config: Config,
) -> Result<()> {
    let signals = Signals::register().context("cannot handle signals")?;
    let tree = Tree::new(&args.tree, &config)?;
    let lock = lock::streams(&tree.streams_dir)?;
    let _pid_file = pid_file(args, &config)?;
    let data_dir = config.data_dir.clone();
    let hashes = make_data_dir(&config).then(|| data_dir.join(HASHES));
    let mut session = Session::new(tree, lock, hashes)?;
    let mut mirrors = Mirrors::new(&data_dir, config.mirroring);
    mirrors.configure(&config.mirrors, config.mirroring);
    let mut watchdog = Watchdog::from_env();
    let mut next_look = Instant::now() + CONFIG_TICK;
    log::info!("watching \"{}\"", session.tree.img_dir().display());
    while !signals.stop.load(Ordering::Relaxed) {
        watchdog.tick();
        let mut reload = signals.reload.swap(false, Ordering::Relaxed);
        if Instant::now() >= next_look {
            next_look = Instant::now() + CONFIG_TICK;
            reload |= sources.stamp() != stamp;
        }
        if reload {
            stamp = sources.stamp();
            reloading();
            log::info!("reading the configuration again");
            match reconfigure(args, sources, &mut session, &config) {
                Ok(new) => {
                    config = new;
                    mirrors.configure(&config.mirrors, config.mirroring);
                }
                Err(err) => log::error!("{err:#}; the last good configuration stays"),
            }
            // In any case: a file may have been rotated.
            if let Err(err) = crate::log_as(cli, &config.log) {
                log::error!("{err:#}");
            }
            std::mem::take(&mut config.notes).iter().for_each(|note| log::warn!("{note}"));
            // One that was not ready yet tells so itself.
            if session.ready {
                notify("READY=1");
            }
        }
        if let Some(snapshot) = session.step() {
            mirrors.publish(&session.tree, &snapshot);
        }
    }
    notify("STOPPING=1\nSTATUS=stopping");
    log::info!("stopping");
    Ok(())
}

/// Makes the directory of data; false if it cannot be had.
fn make_data_dir(config: &Config) -> bool {
    let dir = &config.data_dir;
    let Err(err) = fs::create_dir_all(dir) else {
        let owner = fs::metadata(dir).map_or(0, |meta| meta.uid());
        let foreign = geteuid().is_root() && owner != 0;
        if foreign {
            // Who owns it may have put links there, and root would follow them.
            log::warn!(
                "\"{}\" belongs to user {owner}, so root keeps no hashes there; run the watch as that \
                 user",
                dir.display()
            );
        }
        return !foreign;
    };
    let what = if config.mirrors.is_empty() { "hashes are" } else { "hashes and mirrors are" };
    log::warn!("cannot make \"{}\" ({err}); {what} not remembered over a restart", dir.display());
    false
}

/// One tree being watched.
struct Session {
    tree: Tree,
    /// None while it cannot be started.
    index: Option<Index>,
    /// Of the directory of index files.
    _lock: Lock,
    /// Where hashes are kept.
    hashes: Option<PathBuf>,
    /// The newest generation taken from the index.
    seen: u64,
    /// It, until it is written.
    pending: Option<Arc<Snapshot>>,
    /// What an earlier process wrote, which lists something, and stays until this one knows better.
    inherited: Option<Instant>,
    /// Nothing is written, or started, before.
    retry: Option<Instant>,
    told_empty: bool,
    ready: bool,
}

impl Session {
    fn new(tree: Tree, lock: Lock, hashes: Option<PathBuf>) -> Result<Self> {
        let mut session = Self {
            tree,
            index: None,
            _lock: lock,
            hashes,
            seen: 0,
            pending: None,
            inherited: None,
            retry: None,
            told_empty: false,
            ready: false,
        };
        session.start()?;
        Ok(session)
    }

    /// Begins to index the tree.
    fn start(&mut self) -> Result<()> {
        // First, for one index at a time has the file of hashes.
        self.index = None;
        let threads = self.tree.threads.unwrap_or_else(default_threads);
        let options =
            IndexOptions { threads, hash_cache: self.hashes.clone(), ..IndexOptions::default() };
        let index = Index::open_with(self.tree.settings.clone(), options);
        self.index = Some(index.context("cannot start indexing")?);
        let lists_any =
            |stream: &str| crate::listing::lists_any(&self.tree.written(&format!("{stream}.json")));
        self.inherited = self.tree.streams().any(lists_any).then(Instant::now);
        self.seen = 0;
        self.pending = None;
        self.told_empty = false;
        Ok(())
    }

    /// Waits for a moment; the generation that was written, if one was.
    fn step(&mut self) -> Option<Arc<Snapshot>> {
        let waits = self.retry.is_some_and(|when| Instant::now() < when);
        let Some(index) = self.index.as_ref().filter(|index| index.is_alive()) else {
            if !waits {
                log::error!("indexing has stopped; starting it again");
                self.retry = Some(Instant::now() + RETRY);
                if let Err(err) = self.start() {
                    log::error!("{err:#}");
                }
            }
            std::thread::sleep(TICK);
            return None;
        };
        if let Some(snapshot) = index.wait_newer(self.seen, TICK) {
            self.seen = snapshot.generation();
            self.pending = Some(snapshot);
        }
        let snapshot = self.pending.clone()?;
        if self.holds(&snapshot) {
            self.tell_ready("hashing; the index of the last run stays until it is done");
            return None;
        }
        if waits {
            return None;
        }
        match streams::write(&self.tree.streams_dir, &snapshot) {
            Ok(written) => {
                let dir = self.tree.streams_dir.display();
                log::debug!("index in \"{dir}\" {}", if written { "written" } else { "is right" });
                self.pending = None;
                self.inherited = None;
                self.retry = None;
                let counts = snapshot.counts();
                let text = format!("{} products, {} versions", counts.products, counts.versions);
                self.tell_ready(&text);
                Some(snapshot)
            }
            Err(err) => {
                log::error!("{err:#}; the index before stays");
                notify("STATUS=the index cannot be written, see the log");
                self.retry = Some(Instant::now() + RETRY);
                None
            }
        }
    }

    /// Whether the index of an earlier run stays: while everything is hashed anew, for an index of
    /// half the tree would make clients believe that the rest was withdrawn; and for a while if the
    /// tree has nothing in it.
    fn holds(&mut self, snapshot: &Snapshot) -> bool {
        let (Some(since), Some(index)) = (self.inherited, &self.index) else {
            return false;
        };
        let progress = index.progress();
        // What was written to a moment before the start becomes quiet only now.
        let settling = progress.waiting > 0 && since.elapsed() < self.tree.settings.settle * 2;
        if progress.looks == 0 || progress.hashing > 0 || settling {
            return true;
        }
        let empty = snapshot.counts().versions == 0 && since.elapsed() < GRACE;
        if empty && !self.told_empty {
            self.told_empty = true;
            log::error!(
                "\"{}\" lists nothing, but did when its index was written; keeping that index for \
                 up to {} minutes, in case it is not mounted yet (\"update\" does not wait)",
                self.tree.img_dir().display(),
                GRACE.as_secs() / 60
            );
        }
        empty
    }

    fn tell_ready(&mut self, status: &str) {
        if !self.ready {
            self.ready = true;
            notify("READY=1");
        }
        notify(&format!("STATUS={status}"));
    }

    /// Goes on with another tree or other settings.
    fn replace(&mut self, tree: Tree) -> Result<()> {
        if tree.streams_dir != self.tree.streams_dir {
            self._lock = lock::streams(&tree.streams_dir)?;
        }
        self.tree = tree;
        // From here on there is no way back; what fails is tried again.
        if let Err(err) = self.start() {
            log::error!("{err:#}");
        }
        Ok(())
    }
}

/// Takes over what can be taken over of a changed configuration, and gives it.
fn reconfigure(
    args: &Watch,
    sources: &Sources,
    session: &mut Session,
    before: &Config,
) -> Result<Config> {
    let config = sources.load()?;
    let tree = Tree::new(&args.tree, &config)?;
    if tree != session.tree {
        session.replace(tree)?;
        log::info!("watching \"{}\" from now on", session.tree.img_dir().display());
    }
    let fixed = [
        ("pid_file", &before.pid_file, &config.pid_file),
        ("data_dir", &before.data_dir, &config.data_dir),
    ];
    for (key, before, now) in fixed {
        if before != now {
            log::warn!("\"{key}\" takes effect when the watch is started again");
        }
    }
    Ok(config)
}

struct Signals {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Signals {
    fn register() -> std::io::Result<Self> {
        let signals = Self { stop: Arc::default(), reload: Arc::default() };
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&signals.stop))?;
        }
        signal_hook::flag::register(SIGHUP, Arc::clone(&signals.reload))?;
        Ok(signals)
    }
}

/// The pid file. One that was asked for must be there; without the default one `reload` cannot find
/// this process, which is said.
fn pid_file(args: &Watch, config: &Config) -> Result<Option<PidFile>> {
    let path = args.pid_file.as_deref().unwrap_or(&config.pid_file);
    let taken = PidFile::take(path);
    let asked_for = args.pid_file.is_some() || config.pid_file_named;
    match taken {
        Ok(file) => Ok(Some(file)),
        Err(err) if asked_for || err.is::<crate::exit::Stop>() => Err(err),
        Err(err) => {
            log::warn!("{err:#}; \"reload\" will not find this process");
            Ok(None)
        }
    }
}
