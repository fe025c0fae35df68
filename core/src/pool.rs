//! The threads that hash, and the order in which versions wait for them.

mod desk;

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cache::{Attempt, HashCache};
use crate::entry::Plan;
use crate::hash::{self, Buffer, Context, Crew, Order, Outcome};
use crate::progress::Gauges;
use crate::tree::Place;
use desk::{Desk, Task};

/// A job goes before the rest of a large file if it is this many times smaller. Hence jobs that
/// interrupt each other are few: each is at most a quarter of the one below.
const SMALLER: u64 = 4;

/// How long the relief goes on with a file before it is seen whether it is needed still, and elsewhere.
const SHIFT: Duration = Duration::from_secs(1);

/// Nice values: of the threads, and of the relief.
const IDLE: i32 = 19;
const RELIEF: i32 = 10;

/// The order of jobs, the least first: the newest version of every product before any older one,
/// so that a cold tree becomes useful early; among equals the newest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority {
    /// Whether the product has a newer version.
    pub older: bool,
    /// The version's name.
    pub version: std::cmp::Reverse<String>,
}

/// What threads call when they start, after they have got their nice values; for what safe Rust cannot do
/// to them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prepare {
    /// Each of those that hash, of nice value 19.
    pub threads: Option<fn()>,
    /// The one that relieves them when they do not come forward, of nice value 10.
    pub relief: Option<fn()>,
}

/// A version to hash.
pub struct Job {
    /// Where it lies.
    pub tree: Place,
    /// The version's directory in the tree.
    pub path: Arc<str>,
    /// What to hash.
    pub plan: Arc<Plan>,
    /// This hashing, for the cache.
    pub attempt: Arc<Attempt>,
    /// Where the bytes read are counted.
    pub gauges: Arc<Gauges>,
    /// See [`Context::seen_to`].
    pub seen_to: bool,
    /// Called once, on a thread of the pool.
    pub done: Box<dyn FnOnce(Outcome) + Send>,
}

/// A fixed number of threads at idle priority, and one that relieves them. Dropping the pool stops and
/// joins them.
///
/// Where other programs want every processor all the time, a thread at idle priority gets a thousandth
/// of one, and an image that was uploaded there would take minutes to be listed. So one more thread, at
/// a low but not at idle priority, works whenever the others have not come forward for a moment: on small
/// versions that wait, and on the larger files that are being hashed.
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
    desk: Desk,
    stop: AtomicBool,
    cache: HashCache,
}

impl Pool {
    /// Starts `threads` threads and the relief, each of which calls its `prepare` first. They inherit the
    /// caller's signal mask.
    ///
    /// # Errors
    ///
    /// When a thread cannot be had.
    pub fn spawn(threads: NonZeroUsize, prepare: Prepare) -> io::Result<Self> {
        Self::start(threads, prepare, hash::most())
    }

    /// As [`spawn`](Self::spawn); `most` is how many small jobs a thread takes at once.
    fn start(threads: NonZeroUsize, prepare: Prepare, most: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            desk: Desk::new(threads.get(), most),
            stop: AtomicBool::new(false),
            cache: HashCache::default(),
        });
        let mut pool = Self { shared, threads: Vec::new() };
        for number in 0..threads.get() {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new().name(format!("ss-hash{number}"));
            pool.threads.push(thread.spawn(move || work(&shared, prepare.threads))?);
        }
        let shared = Arc::clone(&pool.shared);
        let relief = thread::Builder::new().name("ss-relief".into());
        pool.threads.push(relief.spawn(move || relieve(&shared, prepare.relief))?);
        Ok(pool)
    }

    /// Hands in a job.
    pub fn submit(&self, priority: Priority, job: Job) {
        self.shared.desk.submit(priority, job);
    }

    /// The hashes known so far.
    pub fn cache(&self) -> &HashCache {
        &self.shared.cache
    }

    /// Makes all jobs end early; those that wait are told so.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.desk.close();
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

fn work(shared: &Shared, prepare: Option<fn()>) {
    become_polite(IDLE, prepare);
    let mut buffer = Buffer::default();
    while let Some(task) = shared.desk.next() {
        match task {
            Task::Hash(jobs) => {
                carry_out_all(shared, jobs, &mut buffer, &|| shared.desk.has_stepped())
            }
            Task::Help(crew) => {
                let go_on = || {
                    shared.desk.has_stepped();
                    !shared.desk.has_jobs()
                };
                // A panic here is the owner's failure too, who reports it.
                drop(catch_unwind(AssertUnwindSafe(|| crew.help(go_on))));
            }
        }
    }
}

fn relieve(shared: &Shared, prepare: Option<fn()>) {
    become_polite(RELIEF, prepare);
    let mut buffer = Buffer::default();
    while let Some(task) = shared.desk.relief() {
        match task {
            Task::Hash(jobs) => carry_out_all(shared, jobs, &mut buffer, &|| {}),
            Task::Help(crew) => {
                let mut shift = Shift::begin();
                let go_on = || {
                    if shift.is_over() {
                        if shift.was_easy() || shared.desk.has_another_file(&crew) {
                            return false;
                        }
                        if let Some((priority, job)) = shared.desk.small_job() {
                            carry_out(shared, &priority, job, &mut buffer, &|| {});
                        }
                        shift = Shift::begin();
                    }
                    !shared.stop.load(Ordering::Relaxed)
                };
                // As above.
                drop(catch_unwind(AssertUnwindSafe(|| crew.relieve(go_on))));
                shared.desk.is_relieved_no_more();
            }
        }
    }
}

/// A while at one file.
struct Shift {
    begun: Instant,
    cpu: Duration,
}

impl Shift {
    fn begin() -> Self {
        Self { begun: Instant::now(), cpu: cpu_time() }
    }

    fn is_over(&self) -> bool {
        self.begun.elapsed() >= SHIFT
    }

    /// Whether there was time: then there is for the others too. To change with them costs as long as
    /// they take for the step that they are at.
    fn was_easy(&self) -> bool {
        (cpu_time() - self.cpu) * 2 >= self.begun.elapsed()
    }
}

/// What the calling thread has had of processors.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}

fn carry_out(
    shared: &Shared,
    priority: &Priority,
    job: Job,
    buffer: &mut Buffer,
    stepped: &dyn Fn(),
) {
    let go_on = || shared.goes_on(stepped);
    let between = |crew: &Crew| {
        // What is small and should have come first does not wait for the rest of a large file,
        // unless it is about to be taken by another thread.
        while crew.is_alone()
            && let Some((priority, job)) = shared.desk.next_before(priority, crew.left() / SMALLER)
        {
            carry_out(shared, &priority, job, &mut Buffer::default(), stepped);
        }
    };
    let begins = |crew: &Arc<Crew>| shared.desk.ask_for_help(crew);
    let order = shared.order(&job, &go_on, &begins, &between);
    let outcome = hash::hash(order, buffer);
    (job.done)(outcome);
    stepped();
}

/// Carries out one job, or several of one tree that are small.
fn carry_out_all(
    shared: &Shared,
    jobs: Vec<(Priority, Job)>,
    buffer: &mut Buffer,
    stepped: &dyn Fn(),
) {
    let jobs = match <[_; 1]>::try_from(jobs) {
        Ok([(priority, job)]) => return carry_out(shared, &priority, job, buffer, stepped),
        Err(several) => several,
    };
    let go_on = || shared.goes_on(stepped);
    let orders: Vec<_> =
        jobs.iter().map(|(_, job)| shared.order(job, &go_on, &|_| {}, &|_| {})).collect();
    let outcomes = hash::hash_together(&orders, buffer);
    for ((_, job), outcome) in jobs.into_iter().zip(outcomes) {
        (job.done)(outcome);
    }
    stepped();
}

impl Shared {
    fn goes_on(&self, stepped: &dyn Fn()) -> bool {
        stepped();
        !self.stop.load(Ordering::Relaxed)
    }

    fn order<'a>(
        &'a self,
        job: &'a Job,
        go_on: &'a dyn Fn() -> bool,
        begins: &'a dyn Fn(&Arc<Crew>),
        between: &'a dyn Fn(&Crew),
    ) -> Order<'a> {
        let context = Context {
            cache: &self.cache,
            attempt: &job.attempt,
            go_on,
            bytes: &job.gauges.bytes_hashed,
            seen_to: job.seen_to,
            begins,
            between,
        };
        Order { tree: &job.tree, path: &job.path, plan: &job.plan, context }
    }
}

/// Lets others on the machine go first: gives the calling thread this nice value, or leaves it a higher
/// one that somebody chose, and has it call `prepare`.
fn become_polite(nice: i32, prepare: Option<fn()>) {
    // Of the thread, on Linux. Where a sandbox forbids it, hashing at normal priority is still correct.
    let chosen = rustix::process::getpriority_process(None).unwrap_or(0);
    if let Err(err) = rustix::process::setpriority_process(None, nice.max(chosen)) {
        log::debug!("cannot lower the priority of a hashing thread ({err})");
    }
    if let Some(prepare) = prepare {
        prepare();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;
    use crate::{Digest, entry, scan};
    use std::fs;
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    /// Each job is told of its own version.
    #[test]
    fn small_jobs_taken_at_once_have_their_own_outcomes() {
        static HELD_UP: Mutex<()> = Mutex::new(());
        let held_up = HELD_UP.lock().unwrap();
        let prepare = Prepare { threads: Some(|| drop(HELD_UP.lock())), relief: None };
        let pool = Pool::start(NonZeroUsize::MIN, prepare, 16).unwrap();
        let site = tempfile::tempdir().unwrap();
        let tree = Tree::new(site.path());
        let (sender, outcomes) = channel();
        for number in 0..20 {
            let path = format!("images/a/1/amd64/default/202401{number:02}");
            let version = site.path().join(&path);
            fs::create_dir_all(&version).unwrap();
            fs::write(version.join("lxd.tar.xz"), "metadata").unwrap();
            // One is empty.
            fs::write(version.join("disk.qcow2"), "x".repeat(number)).unwrap();
            let files = scan::files(&tree.anchor().unwrap(), &path, None).unwrap();
            let (plan, _) = entry::plan(&path, &files.images);
            let sender = sender.clone();
            let job = Job {
                tree: Place::Tree(tree.clone()),
                path: path.into(),
                plan: Arc::new(plan.unwrap()),
                attempt: Arc::new(Attempt::begin()),
                gauges: Arc::default(),
                seen_to: false,
                done: Box::new(move |outcome| sender.send((number, outcome)).unwrap()),
            };
            let version = std::cmp::Reverse("1".to_owned());
            pool.submit(Priority { older: false, version }, job);
        }
        drop((held_up, sender));
        let outcomes: Vec<_> = outcomes.iter().collect();
        assert_eq!(outcomes.len(), 20);
        for (number, outcome) in outcomes {
            match outcome {
                Outcome::Broken(problem) if number == 0 => {
                    assert!(problem.path.ends_with("20240100/disk.qcow2"), "{problem:?}");
                }
                Outcome::Hashed(hashes) => {
                    let expected = Digest::of("x".repeat(number).as_bytes());
                    assert_eq!(hashes.files.get("disk.qcow2"), Some(&expected), "{number}");
                }
                other => panic!("{number}: {other:?}"),
            }
        }
    }
}
