//! What waits for the threads of the pool: versions to hash, and large files that another thread
//! may help with.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use super::{Job, Priority};
use crate::hash::Crew;

/// Waiting jobs that are looked at to find one that is small enough: the first of them should.
const LOOKED_AT: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Desk {
    waiting: Mutex<Waiting>,
    ready: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: BTreeMap<(Priority, u64), Job>,
    /// Jobs so far; equal ones are done in their order.
    sequence: u64,
    /// Large files that are being hashed, or were.
    crews: Vec<Weak<Crew>>,
    /// Threads that wait here.
    idle: usize,
    closed: bool,
}

/// What a thread is to do.
pub(super) enum Task {
    Hash(Priority, Box<Job>),
    /// The thread has joined it.
    Help(Arc<Crew>),
}

impl Desk {
    pub(super) fn submit(&self, priority: Priority, job: Job) {
        let mut waiting = self.waiting();
        waiting.sequence += 1;
        let sequence = waiting.sequence;
        waiting.jobs.insert((priority, sequence), job);
        drop(waiting);
        self.ready.notify_one();
    }

    /// Threads that have no job help with the file, as long as it is being hashed.
    pub(super) fn ask_for_help(&self, crew: &Arc<Crew>) {
        self.waiting().crews.push(Arc::downgrade(crew));
        self.ready.notify_all();
    }

    /// Whether a helper is wanted here.
    pub(super) fn has_jobs(&self) -> bool {
        let waiting = self.waiting();
        waiting.closed || !waiting.jobs.is_empty()
    }

    /// The next task, waiting for one; `None` when it is time to stop.
    pub(super) fn next(&self) -> Option<Task> {
        let mut waiting = self.waiting();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(((priority, _), job)) = waiting.jobs.pop_first() {
                return Some(Task::Hash(priority, Box::new(job)));
            }
            waiting.crews.retain(|crew| crew.strong_count() > 0);
            if let Some(crew) = waiting.crews.iter().filter_map(Weak::upgrade).find(|c| c.join()) {
                return Some(Task::Help(crew));
            }
            waiting.idle += 1;
            waiting = self.ready.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }

    /// A job of at most `bytes` that comes before `priority` and that no idle thread will take.
    pub(super) fn next_before(&self, priority: &Priority, bytes: u64) -> Option<(Priority, Job)> {
        let mut waiting = self.waiting();
        if waiting.closed || waiting.idle > 0 {
            return None;
        }
        let before = waiting.jobs.range(..(priority.clone(), 0)).take(LOOKED_AT);
        let (key, _) = before.into_iter().find(|(_, job)| job.plan.bytes() <= bytes)?;
        let key = key.clone();
        waiting.jobs.remove(&key).map(|job| (key.0, job))
    }

    /// Ends [`next`](Self::next) for everybody.
    pub(super) fn close(&self) {
        self.waiting().closed = true;
        self.ready.notify_all();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
