//! Readers' side of the state directory: notices new snapshot files and swaps them in.
//!
//! What it does not do: build, repair or delete anything. A snapshot that cannot be used is logged
//! once, and the one before stays in service.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify;

use crate::tree::is_passing;
use crate::{Snapshot, SnapshotError, live};

/// Where the current generation of one index is found, without locks; `None` before the first.
pub type SnapshotCell = ArcSwapOption<Snapshot>;

/// How often the directory is looked at when no event can be had for it (inotify instances are
/// limited per user), and in any case, should an event be lost.
const POLL: Duration = Duration::from_millis(250);
const POLL_WITH_EVENTS: Duration = Duration::from_secs(5);

/// One index to follow.
#[derive(Clone, Debug)]
pub struct Followed {
    /// [`Settings::id`](crate::Settings::id) of the index.
    pub id: String,
    /// Where its snapshots go.
    pub cell: Arc<SnapshotCell>,
}

/// A thread that keeps cells current. Dropping it stops and joins the thread.
#[derive(Debug)]
pub struct Follower {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Loads what is there now, then starts the thread, which inherits the caller's signal mask.
    ///
    /// # Errors
    ///
    /// When the thread or its descriptor cannot be had; the cells have been loaded all the same.
    pub fn spawn(state_dir: &Path, followed: Vec<Followed>) -> io::Result<Self> {
        let mut files: Vec<_> =
            followed.into_iter().map(|f| FollowedFile::new(state_dir, f)).collect();
        // Watch first, load second: what is published in between is then seen twice, never missed.
        let events = watch(state_dir)
            .inspect_err(|err| {
                log::info!(
                    "cannot watch \"{}\" ({err}), looking every {} ms instead",
                    state_dir.display(),
                    POLL.as_millis()
                );
            })
            .ok();
        files.iter_mut().for_each(FollowedFile::look);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("ss-follow".into())
            .spawn(move || follow(&mut files, events.as_ref(), &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Follower {
    /// Whether its thread runs; it ends by itself only after a failure, which has been logged.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).is_err() {
            return; // Cannot happen with an eventfd; a join would hang.
        }
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

fn watch(dir: &Path) -> io::Result<OwnedFd> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&fd, dir, inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::ONLYDIR)?;
    Ok(fd)
}

fn follow(files: &mut [FollowedFile], events: Option<&OwnedFd>, stop: &OwnedFd) {
    let wait = if events.is_some() { POLL_WITH_EVENTS } else { POLL };
    let timeout = rustix::event::Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: wait.subsec_nanos().into(),
    };
    loop {
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        fds.extend(events.map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(err) => {
                log::error!("waiting for snapshots failed ({err}), the index is frozen");
                return;
            }
        }
        if fds[0].revents().contains(PollFlags::IN) {
            return;
        }
        if let Some(fd) = events {
            drain(fd);
        }
        files.iter_mut().for_each(FollowedFile::look);
    }
}

/// Reads and forgets what is queued: events only say "look again".
fn drain(events: &OwnedFd) {
    let mut buffer = [0_u8; 4096];
    while matches!(rustix::io::read(events, &mut buffer), Ok(n) if n > 0) {}
}

/// What one index has in the state directory.
struct FollowedFile {
    live: PathBuf,
    snapshot: PathBuf,
    cell: Arc<SnapshotCell>,
    seen_live: Option<live::Announcement>,
    seen_snapshot: Option<Identity>,
    failing: bool,
}

/// What tells one snapshot file from the next of its name: device, inode, and time of the last change.
type Identity = (u64, u64, i64, i64);

impl FollowedFile {
    fn new(state_dir: &Path, followed: Followed) -> Self {
        Self {
            live: live::path(state_dir, &followed.id),
            snapshot: crate::snapshot::path(state_dir, &followed.id),
            cell: followed.cell,
            seen_live: None,
            seen_snapshot: None,
            failing: false,
        }
    }

    fn look(&mut self) {
        // By what it says: inodes are used again, and clocks of file systems are coarse.
        let announced = live::announced(&self.live).ok().flatten();
        if let Some(seen) = announced.filter(|announced| self.seen_live != Some(*announced)) {
            match Snapshot::open_live(&self.live) {
                Ok(snapshot) => {
                    self.seen_live = Some(seen);
                    // The file says the same, later.
                    self.seen_snapshot = identity(&self.snapshot).ok();
                    self.failing = false;
                    return self.swap_in(snapshot);
                }
                // Out of descriptors or memory: that passes, and what is announced does not.
                Err(SnapshotError::Io { source, .. }) if is_passing(&source) => {
                    return self.failed(&source);
                }
                Err(err) => {
                    log::debug!("{err}; looking for a snapshot file");
                    self.seen_live = Some(seen);
                }
            }
        }
        let Some(seen) = changed(&self.snapshot, self.seen_snapshot) else {
            return;
        };
        if self.cell.load().is_some() && live::open(&self.live).is_ok() {
            // By the builder that runs, which has told us already.
            self.seen_snapshot = Some(seen);
            return;
        }
        match Snapshot::open(&self.snapshot) {
            Ok(snapshot) => {
                self.seen_snapshot = Some(seen);
                self.failing = false;
                // A builder writes its files after it has announced what is in them, and may have ended
                // in between: what it withdrew meanwhile must not come back. Numbers alone do not tell:
                // they begin anew where somebody emptied the directory.
                let is_earlier = self.cell.load().as_ref().is_some_and(|current| {
                    snapshot.generation() <= current.generation()
                        && snapshot.published() <= current.published()
                });
                if !is_earlier {
                    self.swap_in(snapshot);
                }
            }
            Err(SnapshotError::Io { source, .. }) => self.failed(&source),
            Err(err) => {
                self.seen_snapshot = Some(seen);
                log::error!("{err}; keeping the generation before");
            }
        }
    }

    /// Says once that something is in the way; the next look tries again.
    fn failed(&mut self, err: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            log::error!("cannot read \"{}\" ({err}), trying again", self.snapshot.display());
        }
    }

    fn swap_in(&self, snapshot: Snapshot) {
        log::debug!("generation {} of \"{}\"", snapshot.generation(), self.snapshot.display());
        self.cell.store(Some(Arc::new(snapshot)));
    }
}

/// The identity of the file, if there is one and it is not the one that was seen. A file that went
/// away is no news: what was taken from it stays good.
fn changed(path: &Path, seen: Option<Identity>) -> Option<Identity> {
    identity(path).ok().filter(|identity| seen != Some(*identity))
}

fn identity(path: &Path) -> io::Result<Identity> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path)?;
    Ok((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()))
}
