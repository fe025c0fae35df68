//! `lxd-image-server watch`: keeps index files up to date, and feeds the mirrors.
//!
//! One loop: signals, changed configuration files, new generations. A configuration that is wrong, or
//! that names directories that cannot be used, changes nothing; the last good one stays in force.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use simplestreams::{Index, Snapshot};

use crate::cli::{Cli, Watch};
use crate::config::{Config, Sources};
use crate::listing::Listing;
use crate::lock::{Lock, PidFile};
use crate::mirror::Mirrors;
use crate::notify::notify;
use crate::tree::Tree;
use crate::{lock, streams};

/// How often signals are looked at while nothing is published.
const TICK: Duration = Duration::from_millis(100);

/// How often configuration files are looked at.
const CONFIG_TICK: Duration = Duration::from_secs(1);

/// How long to wait after index files could not be written.
const RETRY: Duration = Duration::from_secs(5);

/// How long a tree that is empty when the watch starts, and was not when its index was written, is
/// taken for one that is not mounted yet. As the core has it for trees that vanish.
const GRACE: Duration = Duration::from_secs(3600);

/// Keeps on until SIGTERM or SIGINT.
///
/// # Errors
///
/// Only at the start: wrong usage, a lock that another process holds, a pid file that was asked for
/// and cannot be written.
pub fn run(cli: &Cli, args: &Watch, sources: &Sources, config: Config) -> Result<()> {
    let signals = Signals::register().context("cannot handle signals")?;
    let mut session = Session::open(Tree::new(&args.tree, &config)?)?;
    let _pid_file = pid_file(args, &config)?;
    if let Err(err) = std::fs::create_dir_all(&config.data_dir)
        && !config.mirrors.is_empty()
    {
        let dir = config.data_dir.display();
        log::warn!("cannot make \"{dir}\" ({err}); what mirrors have is not remembered");
    }
    let mut mirrors = Mirrors::new(&config.data_dir, config.mirroring);
    mirrors.configure(&config.mirrors, config.mirroring);
    let mut stamp = sources.stamp();
    let mut next_look = Instant::now() + CONFIG_TICK;
    log::info!("watching \"{}\"", session.tree.img_dir().display());
    while !signals.stop.load(Ordering::Relaxed) {
        let mut reload = signals.reload.swap(false, Ordering::Relaxed);
        if Instant::now() >= next_look {
            next_look = Instant::now() + CONFIG_TICK;
            reload |= sources.stamp() != stamp;
        }
        if reload {
            stamp = sources.stamp();
            reconfigure(cli, args, sources, &mut session, &mut mirrors);
        }
        if let Some(snapshot) = session.step() {
            mirrors.publish(&session.tree, &snapshot);
        }
    }
    notify("STOPPING=1");
    log::info!("stopping");
    Ok(())
}

/// One tree being watched.
struct Session {
    tree: Tree,
    index: Index,
    _lock: Lock,
    /// The newest generation taken from the index.
    seen: u64,
    /// It, until it is written.
    pending: Option<Arc<Snapshot>>,
    /// What an earlier process wrote, which lists something, and stays until this one knows better.
    inherited: Option<Instant>,
    retry: Option<Instant>,
    told_empty: bool,
    ready: bool,
}

impl Session {
    fn open(tree: Tree) -> Result<Self> {
        let lock = lock::streams(&tree.streams_dir)?;
        let index = Index::with_threads(tree.settings.clone(), tree.threads)
            .context("cannot start indexing")?;
        let before = Listing::read(&tree.streams_dir, &format!("{}.json", tree.stream()));
        let inherited = (!before.versions.is_empty()).then(Instant::now);
        Ok(Self {
            tree,
            index,
            _lock: lock,
            seen: 0,
            pending: None,
            inherited,
            retry: None,
            told_empty: false,
            ready: false,
        })
    }

    /// Waits for a moment; the generation that was written, if one was.
    fn step(&mut self) -> Option<Arc<Snapshot>> {
        if let Some(snapshot) = self.index.wait_newer(self.seen, TICK) {
            self.seen = snapshot.generation();
            self.pending = Some(snapshot);
        }
        let snapshot = self.pending.clone()?;
        if self.holds(&snapshot) {
            self.tell_ready("hashing; the index of the last run stays until it is done");
            return None;
        }
        if self.retry.is_some_and(|when| Instant::now() < when) {
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
                self.retry = Some(Instant::now() + RETRY);
                None
            }
        }
    }

    /// Whether the index of an earlier run stays: while everything is hashed anew, for an index of
    /// half the tree would make clients believe that the rest was withdrawn; and for a while if the
    /// tree has nothing in it.
    fn holds(&mut self, snapshot: &Snapshot) -> bool {
        let Some(since) = self.inherited else {
            return false;
        };
        let progress = self.index.progress();
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
}

/// Takes over what can be taken over of a changed configuration.
fn reconfigure(
    cli: &Cli,
    args: &Watch,
    sources: &Sources,
    session: &mut Session,
    mirrors: &mut Mirrors,
) {
    log::info!("reading the configuration again");
    let stays = |err: anyhow::Error| log::error!("{err:#}; the last good configuration stays");
    let config = match sources.load() {
        Ok(config) => config,
        Err(err) => return stays(err.into()),
    };
    let tree = match Tree::new(&args.tree, &config) {
        Ok(tree) => tree,
        Err(err) => return stays(err),
    };
    if tree != session.tree {
        if tree.streams_dir == session.tree.streams_dir {
            // The lock is held already, by the session that is to end.
            match session.replace(tree) {
                Ok(()) => {}
                Err(err) => return stays(err),
            }
        } else {
            match Session::open(tree) {
                Ok(other) => *session = other,
                Err(err) => return stays(err),
            }
        }
        log::info!("watching \"{}\" from now on", session.tree.img_dir().display());
    }
    if let Err(err) = crate::log_as(cli, &config.log) {
        log::error!("{err:#}");
    }
    config.notes.iter().for_each(|note| log::warn!("{note}"));
    mirrors.configure(&config.mirrors, config.mirroring);
}

impl Session {
    /// Goes on with another tree or other settings, and the same index files.
    fn replace(&mut self, tree: Tree) -> Result<()> {
        self.index = Index::with_threads(tree.settings.clone(), tree.threads)
            .context("cannot start indexing")?;
        let before = Listing::read(&tree.streams_dir, &format!("{}.json", tree.stream()));
        self.inherited = (!before.versions.is_empty()).then(Instant::now);
        self.tree = tree;
        self.seen = 0;
        self.pending = None;
        self.told_empty = false;
        Ok(())
    }
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
