//! What runs in one process of nginx beside its event loop, and when it starts and stops.
//!
//! | process | follower | builder | driven by |
//! |---|---|---|---|
//! | worker | yes | no | a timer of its own |
//! | cache manager helper | no | yes | nginx, through the state path's `manager` |
//! | the only one (`master_process off`) | yes | yes | a timer of its own |
//! | master, cache loader | no | no | |
//!
//! Driving means: start what is to run and does not, and write the queued log records.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use simplestreams::{
    Builder, BuilderOptions, Followed, Follower, Prepare, SnapshotCell, default_threads,
};

use crate::conf::{Index, MainConf};
use crate::ffi::{self, Role, Timer};
use crate::{error_log, stats, threads};

/// How long log records wait, and a worker that is leaving keeps following, at most.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// A thread that cannot be started is tried again after this time, which then doubles.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

thread_local! {
    /// The state of this process, touched by nginx's main thread only. Leaked, so that `exit` in
    /// the helper, which has no `exit_process`, does not wait for threads: what they leave behind
    /// when they are cut off is what a power cut leaves, and made for that.
    static STATE: &'static RefCell<State> = Box::leak(Box::default());
}

#[derive(Default)]
struct State {
    /// `init_process` was called here.
    started: bool,
    /// None where nothing is configured, in the master, and after the stop.
    running: Option<Running>,
    timer: Option<Timer>,
}

struct Running {
    follower: Option<Service<Follower>>,
    builder: Option<Service<Builder>>,
    told: Vec<Told>,
}

/// An index as its state is told to `simplestreams_status`.
struct Told {
    cell: Arc<SnapshotCell>,
    stats: Arc<OnceLock<stats::IndexStats>>,
}

impl Running {
    fn drive(&mut self) {
        if let Some(follower) = &mut self.follower {
            follower.drive();
        }
        if let Some(builder) = &mut self.builder {
            builder.drive();
        }
        self.tell();
    }

    /// Tells the status how this process is.
    fn tell(&self) {
        let Some(server) = stats::server() else {
            return;
        };
        let worker = self.follower.as_ref().map(|_| ffi::worker_number());
        if let Some(number) = worker {
            server.tell_worker(number);
        }
        if let Some((at, text)) = error_log::take_failure() {
            server.tell_failure(worker, at, &text);
        }
        let builder = self.builder.as_ref().and_then(|builder| builder.running.as_ref());
        let progress = builder.map(Builder::progress).unwrap_or_default();
        for (at, told) in self.told.iter().enumerate() {
            let Some(stats) = told.stats.get() else {
                continue;
            };
            if let Some(number) = worker {
                let generation = told.cell.load().as_ref().map_or(0, |of| of.generation());
                stats.tell_served(number, generation);
            }
            if let Some(progress) = progress.get(at) {
                stats.tell_progress(progress);
            }
        }
    }
}

fn told(conf: &MainConf) -> Vec<Told> {
    let told = |index: &Index| Told { cell: index.cell.clone(), stats: index.stats.clone() };
    conf.indexes().iter().map(told).collect()
}

/// Something with threads that is to run; dropping it stops and joins them.
struct Service<T> {
    name: &'static str,
    start: Box<dyn Fn() -> io::Result<T>>,
    is_alive: fn(&T) -> bool,
    running: Option<T>,
    retry_at: Option<Instant>,
    delay: Duration,
}

impl<T> Service<T> {
    fn new(
        name: &'static str,
        is_alive: fn(&T) -> bool,
        start: impl Fn() -> io::Result<T> + 'static,
    ) -> Self {
        let start = Box::new(start);
        Self { name, start, is_alive, running: None, retry_at: None, delay: FIRST_RETRY }
    }

    fn drive(&mut self) {
        if self.running.as_ref().is_some_and(|running| !(self.is_alive)(running)) {
            log::error!("the {} has failed, starting it again", self.name);
            self.running = None;
            self.retry_at = Some(Instant::now() + self.delay);
            self.delay = (self.delay * 2).min(LAST_RETRY);
        }
        if self.running.is_some() || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        match threads::undisturbed(&self.start) {
            Ok(running) => {
                self.running = Some(running);
            }
            Err(err) => {
                log::error!(
                    "cannot start the {} ({err}), trying again in {} s",
                    self.name,
                    self.delay.as_secs()
                );
                self.retry_at = Some(Instant::now() + self.delay);
                self.delay = (self.delay * 2).min(LAST_RETRY);
            }
        }
    }
}

fn follower(conf: &MainConf, state_dir: PathBuf) -> Service<Follower> {
    let followed: Vec<_> = conf
        .indexes()
        .iter()
        .map(|index| Followed { id: index.settings.id(), cell: index.cell.clone() })
        .collect();
    Service::new("follower", Follower::is_alive, move || {
        Follower::spawn(&state_dir, followed.clone())
    })
}

fn builder(conf: &MainConf, state_dir: PathBuf) -> Service<Builder> {
    let options = BuilderOptions {
        state_dir,
        indexes: conf.indexes().iter().map(|index| index.settings.clone()).collect(),
        threads: conf.threads.unwrap_or_else(default_threads),
        prepare: Prepare { threads: Some(threads::idle), relief: Some(threads::idle_disk) },
    };
    Service::new("builder", Builder::is_alive, move || Builder::spawn(options.clone()))
}

fn with_state<T>(f: impl FnOnce(&mut State) -> T) -> T {
    STATE.with(|state| f(&mut state.borrow_mut()))
}

/// `init_module`: the configuration `conf` is in force from now on, for processes yet to be made
/// and, where there is only one process, for this one, if it is running already.
pub(crate) fn configured(conf: Option<&MainConf>) {
    threads::remember_affinity();
    if let Some(conf) = conf {
        stats::configure(conf);
    }
    with_state(|state| {
        if ffi::role() == Role::Single && state.started {
            // The old threads first: two builders in one process would share a lock.
            state.running = None;
            start(state, conf);
        }
    });
    // Else every process that is made from now on would write it too.
    error_log::drain();
}

/// `init_process`: starts what belongs into this process.
pub(crate) fn process_started(conf: Option<&MainConf>) {
    with_state(|state| {
        state.started = true;
        start(state, conf);
    });
}

fn start(state: &mut State, conf: Option<&MainConf>) {
    let (follow, build) = match ffi::role() {
        Role::Worker => (true, false),
        Role::Single => (true, true),
        Role::Other => return,
    };
    let Some((conf, state_dir)) = conf.and_then(|conf| Some((conf, conf.state_dir()?))) else {
        return;
    };
    let mut running = Running {
        follower: follow.then(|| follower(conf, state_dir.clone())),
        builder: build.then(|| builder(conf, state_dir)),
        told: told(conf),
    };
    running.drive();
    state.running = Some(running);
    state
        .timer
        .get_or_insert_with(|| Timer::new(crate::module::ngx_http_simplestreams_timer))
        .set(TICK);
    error_log::drain();
}

/// The timer of workers and of the only process.
pub(crate) fn timer_fired() {
    with_state(|state| {
        if ffi::exiting() {
            // Connections may keep this worker for hours; they need what they send, nothing newer.
            state.running = None;
            leave();
        }
        if let Some(running) = &mut state.running {
            running.drive();
            if let Some(timer) = &mut state.timer {
                timer.set(TICK);
            }
        }
        error_log::drain();
    });
}

/// The helper's turn: nginx calls this in the cache manager process, and nowhere else.
pub(crate) fn helper_called(conf: &MainConf) {
    with_state(|state| {
        if state.running.is_none()
            && let Some(state_dir) = conf.state_dir()
        {
            let builder = Some(builder(conf, state_dir));
            state.running = Some(Running { follower: None, builder, told: told(conf) });
        }
        if let Some(running) = &mut state.running {
            running.drive();
        }
        error_log::drain();
    });
}

/// This process answers nothing new.
fn leave() {
    if matches!(ffi::role(), Role::Worker | Role::Single)
        && let Some(server) = stats::server()
    {
        server.worker_leaves(ffi::worker_number());
    }
}

/// `exit_process`: stops and joins every thread, for nginx unmaps this code next.
pub(crate) fn process_exits() {
    with_state(|state| {
        state.running = None;
        state.timer = None;
        leave();
        error_log::drain();
    });
}
