//! What waits for the threads of the pool: versions to hash, and large files that another thread
//! may help with.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::{Job, Priority};
use crate::hash::{self, Crew, LARGE};

/// Waiting jobs that are looked at to find one that is small enough: the first of them should.
const LOOKED_AT: usize = 64;

/// How long nothing may come forward before the relief is sent for: a step takes a few milliseconds, or
/// some tens with a slow disk.
const STANDSTILL: Duration = Duration::from_millis(250);

/// See the module.
pub(super) struct Desk {
    waiting: Mutex<Waiting>,
    ready: Condvar,
    /// For the relief: there is something to do.
    busy: Condvar,
    /// Threads that come here for [`next`](Self::next).
    threads: usize,
    /// Steps that they have taken.
    steps: AtomicU64,
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
    /// The relief waits for somebody to have something to do.
    relief_dozes: bool,
    /// The relief's last task was a job.
    had_job: bool,
    closed: bool,
}

/// What a thread is to do.
pub(super) enum Task {
    Hash(Priority, Box<Job>),
    /// All of them are small.
    HashTogether(Vec<(Priority, Job)>),
    /// The thread has joined it, or taken it over.
    Help(Arc<Crew>),
}

impl Desk {
    /// For so many threads, and the relief.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            ready: Condvar::new(),
            busy: Condvar::new(),
            threads,
            steps: AtomicU64::new(0),
        }
    }

    pub(super) fn submit(&self, priority: Priority, job: Job) {
        let mut waiting = self.waiting();
        waiting.sequence += 1;
        let sequence = waiting.sequence;
        waiting.jobs.insert((priority, sequence), job);
        // To wake nobody is a system call all the same.
        let (idle, dozes) = (waiting.idle > 0, std::mem::take(&mut waiting.relief_dozes));
        drop(waiting);
        if idle {
            self.ready.notify_one();
        }
        if dozes {
            self.busy.notify_one();
        }
    }

    /// Threads that have no job help with the file, as long as it is being hashed, if it is large.
    pub(super) fn ask_for_help(&self, crew: &Arc<Crew>) {
        let mut waiting = self.waiting();
        waiting.crews.retain(|crew| crew.strong_count() > 0);
        waiting.crews.push(Arc::downgrade(crew));
        drop(waiting);
        if crew.size() >= LARGE {
            self.ready.notify_all();
        }
    }

    /// A job for the relief, which is at a file.
    pub(super) fn small_job(&self) -> Option<(Priority, Job)> {
        self.waiting().small_job()
    }

    /// Whether another file of several chunks is being hashed.
    pub(super) fn has_another_file(&self, crew: &Arc<Crew>) -> bool {
        let waiting = self.waiting();
        waiting
            .crews
            .iter()
            .any(|of| of.strong_count() > 0 && !std::ptr::eq(of.as_ptr(), &raw const **crew))
    }

    /// The relief is done with a file: others may help with it again.
    pub(super) fn is_relieved_no_more(&self) {
        // Whoever found that it was being relieved waits by now.
        drop(self.waiting());
        self.ready.notify_all();
    }

    /// A thread has come a step forward.
    pub(super) fn has_stepped(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
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
            if let Some(task) = waiting.first(self.threads) {
                return Some(task);
            }
            let joins = |crew: &Arc<Crew>| crew.size() >= LARGE && crew.join();
            if let Some(crew) = waiting.crews.iter().filter_map(Weak::upgrade).find(joins) {
                return Some(Task::Help(crew));
            }
            waiting.idle += 1;
            waiting = self.ready.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }

    /// The relief's next task: waits until the threads have something to do and do not come forward with
    /// it; `None` when it is time to stop.
    pub(super) fn relief(&self) -> Option<Task> {
        let mut waiting = self.waiting();
        loop {
            if waiting.closed {
                return None;
            }
            if waiting.jobs.is_empty() && waiting.idle == self.threads {
                waiting.relief_dozes = true;
                waiting = self.busy.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let before = self.steps.load(Ordering::Relaxed);
            let goes_on = |waiting: &mut Waiting| !waiting.closed;
            let (after, _) = self
                .busy
                .wait_timeout_while(waiting, STANDSTILL, goes_on)
                .unwrap_or_else(PoisonError::into_inner);
            waiting = after;
            if self.steps.load(Ordering::Relaxed) == before
                && let Some(task) = waiting.for_relief()
            {
                return Some(task);
            }
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
        self.busy.notify_all();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// The first job, and those behind it that can be hashed together with it, as many as are this
    /// thread's share of what waits.
    fn first(&mut self, threads: usize) -> Option<Task> {
        let share = self.jobs.len().div_ceil(threads).min(hash::MOST);
        let mut room = hash::MOST_BYTES;
        let mut together = Vec::new();
        while together.len() < share
            && let Some(first) = self.jobs.first_entry()
            && let Some(left) = room.checked_sub(first.get().plan.bytes())
            && hash::is_small(&first.get().plan)
        {
            let ((priority, _), job) = first.remove_entry();
            together.push((priority, job));
            room = left;
        }
        if together.len() > 1 {
            return Some(Task::HashTogether(together));
        }
        let alone = together.pop();
        let first = || self.jobs.pop_first().map(|((priority, _), job)| (priority, job));
        alone.or_else(first).map(|(priority, job)| Task::Hash(priority, Box::new(job)))
    }

    /// What nobody comes forward with: in turn a file that is being hashed, and a small version.
    fn for_relief(&mut self) -> Option<Task> {
        if self.had_job
            && let Some(at) =
                self.crews.iter().position(|of| of.upgrade().is_some_and(|crew| crew.take_over()))
        {
            self.had_job = false;
            // The others first, the next time.
            let crew = self.crews.remove(at);
            self.crews.push(Weak::clone(&crew));
            return crew.upgrade().map(Task::Help);
        }
        self.had_job = true;
        self.small_job().map(|(priority, job)| Task::Hash(priority, Box::new(job)))
    }

    /// A large one is begun by those who go on with it.
    fn small_job(&mut self) -> Option<(Priority, Job)> {
        let small = |(_, job): &(_, &Job)| job.plan.bytes() < LARGE;
        let (key, _) = self.jobs.iter().take(LOOKED_AT).find(small)?;
        let key = key.clone();
        self.jobs.remove(&key).map(|job| (key.0, job))
    }
}
