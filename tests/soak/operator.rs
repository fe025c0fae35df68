//! Reloads upon reloads, and kills in between.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Run;
use crate::harness::{signal, until};
use crate::tally::Count;

/// When workers were killed; what they were about to answer is cut.
static KILLS: Mutex<Vec<Instant>> = Mutex::new(Vec::new());

/// Whether a worker was killed since then.
pub(crate) fn has_killed_since(when: Instant) -> bool {
    KILLS.lock().expect("no panic with the lock").iter().any(|kill| *kill >= when)
}

/// A reload after the other, as fast as nginx follows. Some are not waited for; after some, or in the
/// middle of some, a process is killed.
pub(crate) fn work(run: &Run<'_>) {
    while run.goes_on() {
        if fastrand::u8(..8) == 0 {
            // In the middle of it.
            signal(run.nginx.master(), Signal::HUP);
            run.tally.add(Count::Reloads, 1);
            thread::park_timeout(Duration::from_millis(fastrand::u64(..50)));
        } else {
            run.nginx.reload();
            run.tally.add(Count::Reloads, 1);
        }
        match fastrand::u8(..12) {
            0 => kill_worker(run),
            1 => kill_helper(run),
            _ => {}
        }
    }
    // For what comes next: all is as a reload leaves it.
    run.nginx.reload();
}

fn kill_worker(run: &Run<'_>) {
    let workers = run.nginx.workers();
    let victim = workers[fastrand::usize(..workers.len())];
    KILLS.lock().expect("no panic with the lock").push(Instant::now());
    signal(victim, Signal::KILL);
    run.tally.add(Count::KilledWorkers, 1);
    until("a new worker", || (!run.nginx.workers().contains(&victim)).then_some(()));
}

fn kill_helper(run: &Run<'_>) {
    let Some(&victim) = run.nginx.helpers().last() else {
        return;
    };
    signal(victim, Signal::KILL);
    run.tally.add(Count::KilledHelpers, 1);
    until("a new helper", || (run.nginx.helper() != victim).then_some(()));
}
