//! The threads that hash, and the order in which versions wait for them.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::Problem;
use crate::cache::HashCache;
use crate::entry::Plan;
use crate::hash::{self, Context, Outcome};
use crate::progress::Gauges;
use crate::tree::Tree;

/// The order of jobs, the least first: the newest version of every product before any older one,
/// so that a cold tree becomes useful early; among equals the newest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority {
    /// Whether the product has a newer version.
    pub older: bool,
    /// The version's name.
    pub version: std::cmp::Reverse<String>,
}

/// A version to hash.
pub struct Job {
    /// Where it lies.
    pub tree: Tree,
    /// The version's directory in the tree.
    pub path: String,
    /// What to hash.
    pub plan: Plan,
    /// Where the bytes read are counted.
    pub gauges: Arc<Gauges>,
    /// Called once, on a thread of the pool.
    pub done: Box<dyn FnOnce(Outcome) + Send>,
}

/// A fixed number of threads at idle priority. Dropping the pool stops and joins them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

struct Shared {
    queue: Mutex<BTreeMap<(Priority, u64), Job>>,
    ready: Condvar,
    stop: AtomicBool,
    sequence: AtomicU64,
    cache: HashCache,
}

impl Pool {
    /// Starts `threads` threads, each of which calls `prepare` first. They inherit the caller's
    /// signal mask.
    ///
    /// # Errors
    ///
    /// When a thread cannot be had.
    pub fn spawn(threads: NonZeroUsize, prepare: Option<fn()>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            ready: Condvar::new(),
            stop: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            cache: HashCache::default(),
        });
        let mut pool = Self { shared, threads: Vec::new() };
        for number in 0..threads.get() {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new().name(format!("ss-hash{number}"));
            pool.threads.push(thread.spawn(move || work(&shared, prepare))?);
        }
        Ok(pool)
    }

    /// Hands in a job.
    pub fn submit(&self, priority: Priority, job: Job) {
        let sequence = self.shared.sequence.fetch_add(1, Ordering::Relaxed);
        self.shared.queue().insert((priority, sequence), job);
        self.shared.ready.notify_one();
    }

    /// The hashes known so far.
    pub fn cache(&self) -> &HashCache {
        &self.shared.cache
    }

    /// Makes all jobs end early; those that wait are told so.
    pub fn stop(&self) {
        // Under the queue's lock, or a thread between its look at the flag and its wait would
        // sleep through this.
        let queue = self.shared.queue();
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(queue);
        self.shared.ready.notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, BTreeMap<(Priority, u64), Job>> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, waiting for one; `None` when it is time to stop.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some((_, job)) = queue.pop_first() {
                return Some(job);
            }
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn work(shared: &Shared, prepare: Option<fn()>) {
    yield_to_others();
    if let Some(prepare) = prepare {
        prepare();
    }
    while let Some(job) = shared.next() {
        let bytes = &job.gauges.bytes_hashed;
        let context = Context { cache: &shared.cache, stop: &shared.stop, bytes };
        // What unpacks uploads is other people's code, and a thread that is gone hashes nothing.
        let hashing = || hash::hash(&job.tree, &job.path, &job.plan, context);
        let outcome = catch_unwind(AssertUnwindSafe(hashing)).unwrap_or_else(|_| {
            Outcome::Broken(Problem::new(
                Path::new(&job.path),
                "looking into its files made this software fail",
                "report the message in the log, with the file",
            ))
        });
        (job.done)(outcome);
    }
}

/// Lets everything else on the machine go first.
fn yield_to_others() {
    // On Linux both are properties of the calling thread. Neither can fail for lack of rights;
    // where a sandbox forbids them, hashing at normal priority is still correct.
    if let Err(err) = rustix::process::setpriority_process(None, 19) {
        log::debug!("cannot lower the priority of a hashing thread ({err})");
    }
}
