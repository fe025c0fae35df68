//! What the processes hold: memory, descriptors, watches.

use std::fs;

use crate::Run;
use crate::harness::{Process, until};

/// What one kind of process may grow by between two moments with the same tree, in KiB: see
/// `docs/reliability.md` for what was seen.
const MASTER: u64 = 1024;
const WORKER: u64 = 1024;
const HELPER: u64 = 8192;

/// Of one process.
#[derive(Clone, Debug)]
struct Weight {
    /// Memory that is its own, and what it has mapped of what is shared (RSS), in KiB.
    memory: u64,
    descriptors: Vec<String>,
    watches: usize,
}

impl Weight {
    /// None if the process is going.
    fn of(process: Process) -> Option<Self> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.0)).ok()?;
        let kib = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok()
        };
        Some(Self {
            memory: kib("Rss:")?,
            descriptors: process.descriptors(),
            watches: process.watches(),
        })
    }
}

/// Of all processes of nginx; workers by the largest.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    master: Weight,
    worker: Weight,
    helper: Weight,
}

impl Weights {
    /// Weighs them while nothing happens.
    pub(crate) fn take(run: &Run<'_>) -> Self {
        until("all processes can be weighed", || {
            let workers: Vec<Weight> =
                run.nginx.workers().into_iter().map(Weight::of).collect::<Option<_>>()?;
            let worker = Weight {
                memory: workers.iter().map(|worker| worker.memory).max()?,
                descriptors: workers.iter().map(|w| w.descriptors.clone()).max_by_key(Vec::len)?,
                watches: workers.iter().map(|worker| worker.watches).max()?,
            };
            let master = Weight::of(run.nginx.master())?;
            Some(Self { master, worker, helper: Weight::of(run.nginx.helper())? })
        })
    }

    /// Notes what became more; more than there is room for is a failure.
    pub(crate) fn compare(self, phase: &str, before: &Self, run: &Run<'_>) {
        if run.tally.has_failed() {
            return;
        }
        // What closes in the background is given time.
        let mut last = self.clone();
        let flat = |now: &Weight, before: &Weight| {
            now.descriptors == before.descriptors && now.watches == before.watches
        };
        let settled = crate::harness::within(crate::harness::DEADLINE, || {
            last = Self::take(run);
            let all = flat(&last.master, &before.master)
                && flat(&last.worker, &before.worker)
                && flat(&last.helper, &before.helper);
            all.then_some(())
        });
        let rows = [
            ("master", &before.master, &last.master, MASTER),
            ("largest worker", &before.worker, &last.worker, WORKER),
            ("builder", &before.helper, &last.helper, HELPER),
        ];
        for (name, before, now, room) in rows {
            run.tally.note(format!(
                "{phase}: {name}: RSS {} -> {} KiB, descriptors {} -> {}, watches {} -> {}",
                before.memory,
                now.memory,
                before.descriptors.len(),
                now.descriptors.len(),
                before.watches,
                now.watches
            ));
            if now.memory > before.memory + room {
                run.tally.fail(format!("{phase}: {name} grew by more than {room} KiB"));
            }
            if settled.is_none() && !flat(now, before) {
                run.tally.fail(format!(
                    "{phase}: {name} holds other descriptors or watches than before: {before:?}, {now:?}"
                ));
            }
        }
    }
}
