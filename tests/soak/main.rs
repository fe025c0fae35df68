//! Hours of a site's life in minutes: uploads, replacements and deletions by several writers, clients
//! that verify every byte, load, reloads upon reloads, and processes killed without warning.
//!
//! `make soak` runs it; `cargo test` does not. After a warm-up there are two phases:
//!
//! 1. *churn*: nothing is reloaded or killed, so every process lives through it, and what it holds is
//!    compared between start and end;
//! 2. *storm*: the same, while nginx is reloaded again and again, and builder and workers are killed
//!    in between.
//!
//! The summary at the end says what was done and seen. The first wrong answer ends the run, with
//! configuration, error log and tree.
//!
//! Environment: `SOAK_SECONDS`, the length of both phases together; `SOAK_SEED`, of what is random.

mod clients;
#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the end-to-end tests need more of it")]
mod harness;
mod ledger;
mod load;
mod operator;
mod status;
mod tally;
mod weight;
mod writers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Ask, Dir, Nginx, until};
use ledger::Ledger;
use tally::Tally;
use weight::Weights;

/// Length of both phases together, unless the environment says otherwise.
const SECONDS: u64 = 240;

/// How many clients verify.
const CLIENTS: usize = 3;

/// Fewer than four workers would not show what they do to each other. Files are sent by `sendfile`,
/// as on a real site; all settings of the module are the default ones.
const CONF: &str = "
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    sendfile on;
    add_header X-Worker $pid always;
    add_header X-Generation $simplestreams_generation always;
    server {
        listen 127.0.0.1:@PORT@;
        root @TREE@;
        location / {
            simplestreams on;
        }
        location = /status {
            simplestreams_status json;
        }
    }
}";

/// What all threads of a run share.
struct Run<'a> {
    dir: &'a Dir,
    nginx: &'a Nginx<'a>,
    ledger: Ledger,
    tally: Tally,
    /// The phase is over.
    over: AtomicBool,
}

impl Run<'_> {
    /// Whether to go on: neither is the phase over, nor has anything failed.
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed) && !self.tally.has_failed()
    }
}

/// Ends the phase for all threads when one of them ends by a panic.
struct Together<'a>(&'a AtomicBool);

impl Drop for Together<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn main() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let total = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(SECONDS));
    let seed = number("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("soak: {total:?}, SOAK_SEED={seed}");
    fastrand::seed(seed);

    let dir = Dir::new();
    let ledger = Ledger::default();
    writers::lay_foundation(&dir, &ledger);
    let mut nginx = dir.start(CONF);
    // Those that the operator kills.
    nginx.allow("exited on signal 9");
    let run = Run { dir: &dir, nginx: &nginx, ledger, tally: Tally::default(), over: false.into() };
    let lived = catch_unwind(AssertUnwindSafe(|| live(&run, total)));
    run.tally.print();
    if let Err(panic) = lived {
        // nginx's end prints configuration, error log and tree.
        std::panic::resume_unwind(panic);
    }
    assert!(!run.tally.has_failed(), "the soak failed, see above");
    // What is not allowed in the error log fails here.
    nginx.finish();
    println!("soak: passed");
}

fn live(run: &Run<'_>, total: Duration) {
    run.tally.begin("start");
    until("the first generation", || {
        let answer = Ask::get("/streams/v1/images.json").of(run.nginx);
        (answer.status == 200).then_some(())
    });
    settle(run);
    // What processes need once shall not count as growth.
    phase(run, "warm-up", total / 8, false);
    let before = Weights::take(run);
    phase(run, "churn", total / 2, false);
    Weights::take(run).compare("churn", &before, run);
    phase(run, "storm", total / 2, true);
    Weights::take(run).compare("storm", &before, run);
}

/// Everything at once for this long, then peace: the tree is what it was before.
fn phase(run: &Run<'_>, name: &'static str, length: Duration, storm: bool) {
    if run.tally.has_failed() {
        return;
    }
    println!("soak: {name}, {} s", length.as_secs());
    run.over.store(false, Ordering::Relaxed);
    run.tally.begin(name);
    let end = Instant::now() + length;
    let mut all: Vec<Box<dyn FnOnce() + Send + '_>> = Vec::new();
    for writer in 0..writers::WRITERS {
        all.push(Box::new(move || writers::work(run, writer)));
    }
    for _ in 0..CLIENTS {
        all.push(Box::new(|| clients::work(run)));
    }
    all.push(Box::new(|| load::work(run, length)));
    all.push(Box::new(|| status::work(run)));
    if storm {
        all.push(Box::new(|| operator::work(run)));
    }
    thread::scope(|scope| {
        for work in all {
            let seed = fastrand::u64(..);
            scope.spawn(move || {
                let _together = Together(&run.over);
                fastrand::seed(seed);
                work();
            });
        }
        while run.goes_on() && Instant::now() < end {
            thread::park_timeout(Duration::from_millis(20));
        }
        run.over.store(true, Ordering::Relaxed);
    });
    settle(run);
}

/// Waits until the index lists what is in the tree, all of it and nothing else.
fn settle(run: &Run<'_>) {
    if run.tally.has_failed() {
        return;
    }
    let mut in_a_row = 0;
    until("the index lists the tree as it is", || {
        if run.tally.has_failed() {
            return Some(());
        }
        let seen = clients::look(run)?;
        in_a_row = if run.ledger.is_all_of_it(&seen.listed) { in_a_row + 1 } else { 0 };
        // Answers of several workers.
        (in_a_row == 20).then_some(())
    });
    status::settled(run);
}
