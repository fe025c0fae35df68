//! Reloads upon reloads, and kills in between.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Run;
use crate::harness::{signal, until};
use crate::status;
use crate::tally::Count;

/// After so many reloads the builder may catch up. It works at the lowest priority, and on a machine
/// that is loaded to the brim one that is replaced twice a second comes to nothing; what is served
/// then is good, and grows old.
const BREATHER: usize = 10;

/// When workers were killed; what they were about to answer is cut.
static KILLS: Mutex<Vec<Instant>> = Mutex::new(Vec::new());

/// Whether a worker was killed since then.
pub(crate) fn has_killed_since(when: Instant) -> bool {
    KILLS.lock().expect("no panic with the lock").iter().any(|kill| *kill >= when)
}

/// A reload after the other, as fast as nginx follows. Some are not waited for; after some, or in the
/// middle of some, a process is killed.
pub(crate) fn work(run: &Run<'_>) {
    for round in 1.. {
        if !run.goes_on() {
            break;
        }
        if round % BREATHER == 0 {
            catch_up(run);
        }
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

/// Waits for two generations: the second one was begun after the last reload.
fn catch_up(run: &Run<'_>) {
    let generation = || status::look(run)?["indexes"][0]["generation"]["number"].as_u64();
    let before = until("a generation", || generation().or_else(|| (!run.goes_on()).then_some(0)));
    until("the builder catches up", || {
        (!run.goes_on() || generation()? >= before + 2).then_some(())
    });
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
