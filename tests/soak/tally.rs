//! What was done and seen.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many failures are shown: the first one ends the run, others are about to happen then.
const SHOWN: usize = 10;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Count {
    Uploads,
    Replacements,
    Deletions,
    Abandoned,
    Asked,
    Indexes,
    Statuses,
    Files,
    Bytes,
    Gone,
    Overtaken,
    Cut,
    Load,
    LoadErrors,
    Reloads,
    KilledWorkers,
    KilledHelpers,
}

impl Count {
    const ALL: [(Self, &'static str); 17] = [
        (Self::Uploads, "uploads"),
        (Self::Replacements, "replacements of listed files"),
        (Self::Deletions, "deletions"),
        (Self::Abandoned, "uploads abandoned half way"),
        (Self::Asked, "indexes asked for"),
        (Self::Indexes, "indexes verified"),
        (Self::Statuses, "statuses looked at"),
        (Self::Files, "files verified"),
        (Self::Bytes, "bytes verified"),
        (Self::Gone, "clean 404 after a deletion"),
        (Self::Overtaken, "files replaced between index and file"),
        (Self::Cut, "answers cut by a kill"),
        (Self::Load, "requests by wrk"),
        (Self::LoadErrors, "connections that wrk lost"),
        (Self::Reloads, "reloads"),
        (Self::KilledWorkers, "workers killed"),
        (Self::KilledHelpers, "builders killed"),
    ];
}

#[derive(Default)]
struct Inner {
    phases: Vec<(&'static str, BTreeMap<Count, u64>, Duration)>,
    notes: Vec<String>,
    failures: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Tally(Mutex<Inner>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A phase begins.
    pub(crate) fn begin(&self, phase: &'static str) {
        self.lock().phases.push((phase, BTreeMap::new(), Duration::ZERO));
    }

    pub(crate) fn add(&self, what: Count, number: u64) {
        if let Some((_, counts, _)) = self.lock().phases.last_mut() {
            *counts.entry(what).or_default() += number;
        }
    }

    /// How often it was counted, in all phases.
    pub(crate) fn sum(&self, what: Count) -> u64 {
        self.lock().phases.iter().filter_map(|(_, counts, _)| counts.get(&what)).sum()
    }

    pub(crate) fn phases(&self) -> u64 {
        self.lock().phases.len() as u64
    }

    /// An index listed what had ended this long before it was asked for.
    pub(crate) fn stale(&self, age: Duration) {
        if let Some((_, _, oldest)) = self.lock().phases.last_mut() {
            *oldest = age.max(*oldest);
        }
    }

    pub(crate) fn note(&self, what: String) {
        self.lock().notes.push(what);
    }

    pub(crate) fn fail(&self, what: String) {
        self.lock().failures.push(what);
    }

    pub(crate) fn has_failed(&self) -> bool {
        !self.lock().failures.is_empty()
    }

    pub(crate) fn print(&self) {
        let Inner { phases, notes, failures } = &*self.lock();
        println!("\n--- soak: summary");
        let line = |what: &str, values: Vec<String>| {
            print!("{what:<40}");
            values.iter().for_each(|value| print!("{value:>16}"));
            println!();
        };
        line("", phases.iter().map(|(name, ..)| (*name).to_owned()).collect());
        for (count, what) in Count::ALL {
            let of = |counts: &BTreeMap<Count, u64>| counts.get(&count).copied().unwrap_or(0);
            line(what, phases.iter().map(|(_, counts, _)| of(counts).to_string()).collect());
        }
        let stale = |oldest: &Duration| format!("{:.3} s", oldest.as_secs_f64());
        line("oldest wrong line of an index", phases.iter().map(|(.., age)| stale(age)).collect());
        notes.iter().for_each(|note| println!("{note}"));
        println!("mismatches and other failures: {}", failures.len());
        failures.iter().take(SHOWN).for_each(|failure| println!("  {failure}"));
        println!("---");
    }
}
