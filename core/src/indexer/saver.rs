//! Writes generations to the snapshot file, for the next start, on a thread of its own: syncing a
//! large file takes longer than all the rest, and keeps neither readers nor the next generation
//! waiting.
//!
//! Only the newest generation is written, and writing takes at most a fifth of the time: a start that
//! finds an older one looks at the tree and goes on from there.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::live::Live;
use crate::snapshot;

/// How long to wait after a generation could not be written.
const RETRY: Duration = Duration::from_secs(5);

/// From the end of writing to the next beginning, as a multiple of the time that it took.
const PAUSE_FACTOR: u32 = 4;

/// Dropping it writes what is to be written, and joins the thread.
#[derive(Debug)]
pub(super) struct Saver {
    shared: Arc<Shared>,
    /// None if it could not be had; generations are then written at once.
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    order: Mutex<Order>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Order {
    next: Option<Live>,
    stop: bool,
}

impl Saver {
    /// Writes to the file at `path`.
    pub(super) fn spawn(path: PathBuf) -> Self {
        let (order, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { path, order, changed });
        let of = Arc::clone(&shared);
        let thread = thread::Builder::new().name("ss-save".into()).spawn(move || of.run());
        let thread = thread.inspect_err(|err| {
            log::warn!("cannot start a thread ({err}), snapshots are written without");
        });
        Self { shared, thread: thread.ok() }
    }

    /// Has this generation written, in place of any that waits for it.
    pub(super) fn save(&self, generation: Live) {
        if self.thread.is_none() {
            self.shared.write(&generation);
            return;
        }
        self.shared.order().next = Some(generation);
        self.shared.changed.notify_all();
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.shared.order().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut order = self.order();
            while order.next.is_none() && !order.stop {
                order = self.changed.wait(order).unwrap_or_else(PoisonError::into_inner);
            }
            let Some(generation) = order.next.take() else {
                return;
            };
            drop(order);
            let start = Instant::now();
            let written = self.write(&generation);
            if !written {
                self.order().next.get_or_insert(generation);
            }
            let pause = if written { start.elapsed() * PAUSE_FACTOR } else { RETRY };
            let until = Instant::now() + pause;
            let mut order = self.order();
            while !order.stop && Instant::now() < until {
                let left = until.saturating_duration_since(Instant::now());
                order = self
                    .changed
                    .wait_timeout(order, left)
                    .map_or_else(|err| err.into_inner().0, |(order, _)| order);
            }
            if order.stop && !written {
                return;
            }
        }
    }

    /// Says whether that went well.
    fn write(&self, generation: &Live) -> bool {
        let written = snapshot::save(&self.path, generation.sealed());
        if let Err(err) = &written {
            log::error!(
                "cannot write snapshot \"{}\" ({err}); the generation is served, but a restart \
                 would begin with an older one",
                self.path.display()
            );
        }
        written.is_ok()
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        // Each change is one assignment: a panic leaves nothing half done.
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
