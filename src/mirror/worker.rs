//! The thread of one mirror: what is newest is pushed, then the next one is waited for.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::board::{self, Board};
use super::memory::Memory;
use super::push::{Outcome, Push};
use super::rsync::Fault;
use super::{Release, Slots, ssh};
use crate::config::{Mirror, RETRY_MIN};

/// A mirror's thread. Dropping it ends what it does, and joins it.
#[derive(Debug)]
pub struct Worker {
    pub mirror: Mirror,
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub fn spawn(
        name: String,
        mirror: Mirror,
        board: Arc<Board>,
        slots: Arc<Slots>,
        data_dir: PathBuf,
        retry_max: Duration,
    ) -> io::Result<Self> {
        let inbox = Arc::<Inbox>::default();
        let (own, of) = (Arc::clone(&inbox), mirror.clone());
        let thread = thread::Builder::new().name(format!("mirror-{name:.8}")).spawn(move || {
            let memory = Memory::load(&data_dir, &name, &ssh::target(&of));
            Loop { name, mirror: of, board, slots, data_dir, retry_max, inbox: own }.run(memory);
        })?;
        Ok(Self { mirror, inbox, thread: Some(thread) })
    }

    /// There is something newer to push.
    pub fn offer(&self, release: Arc<Release>) {
        self.inbox.change(|content| content.latest = Some(release));
    }

    pub fn ask_to_stop(&self) {
        self.inbox.change(|content| content.stop = true);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

#[derive(Debug, Default)]
struct Content {
    latest: Option<Arc<Release>>,
    stop: bool,
}

#[derive(Debug, Default)]
struct Inbox {
    content: Mutex<Content>,
    changed: Condvar,
}

impl Inbox {
    fn change(&self, change: impl FnOnce(&mut Content)) {
        change(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn stopped(&self) -> bool {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).stop
    }

    fn latest(&self) -> Option<Arc<Release>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).latest.clone()
    }

    /// Waits for a release other than `done`; none when told to stop.
    fn wait(&self, done: Option<&Arc<Release>>) -> Option<Arc<Release>> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if content.stop {
                return None;
            }
            let is_done = |release: &Arc<Release>| done.is_some_and(|d| Arc::ptr_eq(d, release));
            if let Some(release) = content.latest.as_ref().filter(|release| !is_done(release)) {
                return Some(Arc::clone(release));
            }
            content = self.changed.wait(content).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for `pause`, whatever is offered meanwhile, unless told to stop.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        while !content.stop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(content, left);
            content = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

struct Loop {
    name: String,
    mirror: Mirror,
    board: Arc<Board>,
    slots: Arc<Slots>,
    data_dir: PathBuf,
    retry_max: Duration,
    inbox: Arc<Inbox>,
}

impl Loop {
    fn run(self, mut memory: Memory) {
        let mut done: Option<Arc<Release>> = None;
        let mut failures = 0_u32;
        while let Some(release) = self.inbox.wait(done.as_ref()) {
            let stopped = || self.inbox.stopped();
            let Some(slot) = self.slots.take(stopped) else {
                return;
            };
            self.board.update(&self.name, |entry| entry.pushing = true);
            let push = Push {
                name: &self.name,
                mirror: &self.mirror,
                data_dir: &self.data_dir,
                release: &release,
                batch: self.slots.descriptors(),
                latest: &|| self.inbox.latest(),
                stopped: &stopped,
            };
            // Whatever it is that makes this software fail, the next try is worth it.
            let result = catch_unwind(AssertUnwindSafe(|| push.run(&mut memory)))
                .unwrap_or_else(|_| Err(Fault::Failed("this software failed; see the log".into())));
            drop(slot);
            self.board.update(&self.name, |entry| entry.pushing = false);
            match result {
                Ok(Outcome::Complete) => {
                    failures = 0;
                    self.succeeded(&release);
                    done = Some(release);
                }
                // At once, with the newer one.
                Ok(Outcome::Superseded) => {}
                Err(Fault::Stopped) => return,
                Err(Fault::Failed(reason)) => {
                    failures = failures.saturating_add(1);
                    self.failed(reason, failures);
                }
            }
        }
    }

    fn succeeded(&self, release: &Release) {
        log::info!("mirror {} has generation {}", self.name, release.number);
        self.board.update(&self.name, |entry| {
            entry.generation = release.number;
            entry.last_success = Some(board::now());
            entry.last_error = None;
            entry.last_failure = None;
            entry.failures = 0;
        });
    }

    fn failed(&self, reason: String, failures: u32) {
        // The pause after the first failure doubles with each further one.
        let doubled = RETRY_MIN.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
        let pause = doubled.min(self.retry_max);
        log::error!(
            "mirror {}: {reason}; trying again in {}",
            self.name,
            humantime::format_duration(pause)
        );
        self.board.update(&self.name, |entry| {
            entry.last_error = Some(reason);
            entry.last_failure = Some(board::now());
            entry.failures = failures;
        });
        self.inbox.pause(pause);
    }
}
