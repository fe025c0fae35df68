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
    most: usize,
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
    /// How many steps there had been when the relief found that nobody came forward.
    stood_still: Option<u64>,
    /// The relief's last task was a job.
    had_job: bool,
    closed: bool,
}

/// What a thread is to do.
pub(super) enum Task {
    /// One version, or several of one tree that are small.
    Hash(Vec<(Priority, Job)>),
    /// The thread has joined it, or taken it over.
    Help(Arc<Crew>),
}

impl Desk {
    /// For so many threads, and the relief; `most` is how many small jobs a thread should take at once.
    pub(super) fn new(threads: usize, most: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            ready: Condvar::new(),
            busy: Condvar::new(),
            threads,
            most,
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
            // While nobody comes forward, each job is left to whoever does.
            let stands_still = waiting.stood_still == Some(self.steps.load(Ordering::Relaxed));
            let most = if stands_still { 1 } else { self.most };
            if let Some(jobs) = waiting.first(self.threads, most) {
                return Some(Task::Hash(jobs));
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
            if self.steps.load(Ordering::Relaxed) != before {
                continue;
            }
            waiting.stood_still = Some(before);
            if let Some(task) = waiting.for_relief() {
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
    /// The first job, and those behind it that can be hashed together with it: at most `most`, no more than
    /// one thread's share of what waits, and none if they are too few for that to be worth it.
    fn first(&mut self, threads: usize, most: usize) -> Option<Vec<(Priority, Job)>> {
        let share = self.jobs.len().div_ceil(threads).min(most);
        let first = self.jobs.first_key_value()?.1;
        let mut room = hash::MOST_BYTES;
        let fits = |job: &&Job| {
            let left = room.checked_sub(job.plan.bytes());
            room = left.unwrap_or(0);
            left.is_some() && hash::is_small(&job.plan) && job.tree.is_of(&first.tree)
        };
        let together = self.jobs.values().take(share).take_while(fits).count();
        let number = if together < hash::LEAST { 1 } else { together };
        let jobs = (0..number).map_while(|_| self.jobs.pop_first());
        Some(jobs.map(|((priority, _), job)| (priority, job)).collect())
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
        self.small_job().map(|job| Task::Hash(vec![job]))
    }

    /// A large one is begun by those who go on with it.
    fn small_job(&mut self) -> Option<(Priority, Job)> {
        let small = |(_, job): &(_, &Job)| job.plan.bytes() < LARGE;
        let (key, _) = self.jobs.iter().take(LOOKED_AT).find(small)?;
        let key = key.clone();
        self.jobs.remove(&key).map(|job| (key.0, job))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Attempt;
    use crate::entry::Plan;
    use crate::kind::Root;
    use crate::scan::FoundFile;
    use crate::tree::{Place, Stamp, Tree};

    const SMALL: u64 = 100_000;

    /// Those of the root `tree` with roots of so many bytes, in this order.
    fn waiting(jobs: &[(&str, u64)]) -> Waiting {
        let mut waiting = Waiting::default();
        for (number, (tree, size)) in jobs.iter().enumerate() {
            let file = tempfile::tempfile().unwrap();
            let stamp = Stamp { size: *size, ..Stamp::of(&file.metadata().unwrap()) };
            let mut plan = Plan::default();
            let file = FoundFile::new("rootfs.squashfs".to_owned(), stamp, 1);
            plan.roots.insert(Root::Squashfs, Arc::new(file));
            let job = Job {
                tree: Place::Tree(Tree::new(std::path::Path::new(tree))),
                path: number.to_string().into(),
                plan: Arc::new(plan),
                attempt: Arc::new(Attempt::begin()),
                gauges: Arc::default(),
                seen_to: false,
                done: Box::new(|_| {}),
            };
            let priority = Priority { older: false, version: std::cmp::Reverse("1".to_owned()) };
            waiting.jobs.insert((priority, number as u64), job);
        }
        waiting
    }

    /// The paths of the jobs that one of so many threads is given, again and again.
    fn given(mut waiting: Waiting, threads: usize, most: usize) -> Vec<String> {
        let path = |(_, job): &(_, Job)| job.path.to_string();
        std::iter::from_fn(|| waiting.first(threads, most))
            .map(|jobs| jobs.iter().map(path).collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn small_ones_of_one_tree_go_together_in_their_order() {
        let of_a = |number| vec![("/a", SMALL); number];
        assert_eq!(given(waiting(&of_a(9)), 1, 8), ["0 1 2 3 4 5 6 7", "8"]);
        assert_eq!(given(waiting(&of_a(15)), 2, 16)[0], "0 1 2 3 4 5 6 7", "a share of what waits");
        assert_eq!(given(waiting(&of_a(8)), 1, 1)[0], "0", "where it does not pay");
        assert_eq!(given(waiting(&of_a(6)), 1, 16)[0], "0", "too few to be worth it");
        let all = given(waiting(&of_a(25)), 1, 16);
        assert_eq!(all[0], "0 1 2 3 4 5 6 7 8 9", "a mebibyte");
        assert_eq!(all.join(" ").split(' ').count(), 25);
        let mut mixed = vec![("/a", 1), ("/a", 1 << 30)];
        mixed.extend([("/a", 1); 8]);
        mixed.extend([("/b", 1); 7]);
        let expected = ["0", "1", "2 3 4 5 6 7 8 9", "10 11 12 13 14 15 16"];
        assert_eq!(given(waiting(&mixed), 1, 16), expected);
    }

    /// Whoever stands still may do so for long, and with several would hold up all of them.
    #[test]
    fn while_nobody_comes_forward_each_is_left_to_whoever_does() {
        let desk = Desk::new(1, 16);
        *desk.waiting() = waiting(&[("/a", 1); 20]);
        let number = |task| match task {
            Some(Task::Hash(jobs)) => jobs.len(),
            _ => panic!("there are jobs"),
        };
        assert_eq!(number(desk.relief()), 1, "nobody had come forward");
        assert_eq!(number(desk.next()), 1, "nor has now");
        desk.has_stepped();
        assert_eq!(number(desk.next()), 16);
    }
}
