//! What the writers did and when: what clients see is judged by it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::harness::DEADLINE;

/// After this long every worker must know what another one has answered. They follow within
/// milliseconds; five seconds are what a lost event costs.
const LAG: Duration = Duration::from_secs(10);

/// Hash, in hexadecimal, and length in bytes.
pub(crate) type Content = (String, u64);

/// What an index lists: versions by their directories; of each the files by name, and the hashes of
/// pairs.
pub(crate) type Listed = BTreeMap<String, Files>;

/// The files of a version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) files: BTreeMap<String, Content>,
    pub(crate) combined: BTreeSet<String>,
}

#[derive(Default)]
pub(crate) struct Ledger {
    versions: Mutex<HashMap<String, Version>>,
    /// Of each worker the generations that it has answered from, and when the first such answer was
    /// there.
    generations: Mutex<HashMap<i32, BTreeMap<u64, Instant>>>,
}

/// The life of a version. Its name is never used again.
#[derive(Default)]
struct Version {
    /// Every whole content that it has had.
    known: Vec<Files>,
    /// What it has or is about to have.
    now: Files,
    /// It is whole, and nobody is writing to it.
    whole: bool,
    deleted: bool,
    /// Begin of the last change.
    changed: Option<Instant>,
    /// When a client first saw it as it is.
    seen: Option<Instant>,
}

/// Why a client did not get what the index promised.
pub(crate) enum Excuse {
    /// It has been deleted.
    Gone,
    /// Other content is there by now, or being written.
    Overtaken,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Version>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes from which generation a worker answered; says which later one it had answered from before
    /// it was asked.
    pub(crate) fn answered(&self, worker: i32, generation: u64, asked: Instant) -> Option<u64> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let of = generations.entry(worker).or_default();
        let later = of.range(generation + 1..).find(|(_, when)| **when < asked);
        let later = later.map(|(generation, _)| *generation);
        of.entry(generation).or_insert_with(Instant::now);
        later
    }

    /// How many versions there are.
    pub(crate) fn len(&self) -> u64 {
        self.lock().values().filter(|version| version.whole).count() as u64
    }

    /// A writer is about to give a version, new or not, this content.
    pub(crate) fn begin(&self, version: &str, files: Files) {
        let mut versions = self.lock();
        let version = versions.entry(version.to_owned()).or_default();
        version.known.push(files.clone());
        version.now = files;
        version.whole = false;
        version.changed = Some(Instant::now());
        version.seen = None;
    }

    /// It is done.
    pub(crate) fn end(&self, version: &str) {
        self.lock().get_mut(version).expect("begun").whole = true;
    }

    /// A writer is about to delete a version.
    pub(crate) fn delete(&self, version: &str) {
        let mut versions = self.lock();
        let version = versions.get_mut(version).expect("begun");
        version.whole = false;
        version.deleted = true;
        version.changed = Some(Instant::now());
        version.seen = None;
    }

    /// Whether the index lists what there is, all of it and nothing else.
    pub(crate) fn is_all_of_it(&self, listed: &Listed) -> bool {
        let versions = self.lock();
        let there = versions.iter().filter(|(_, version)| version.whole);
        let there: BTreeMap<_, _> = there.map(|(path, version)| (path, &version.now)).collect();
        there == listed.iter().collect()
    }

    /// Whether a version has been seen as it is.
    pub(crate) fn is_seen(&self, version: &str) -> bool {
        self.lock().get(version).is_some_and(|version| version.seen.is_some())
    }

    /// Judges an index that was asked for at the time `asked`; gives the age of the oldest thing in it
    /// that was not true any more even then.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn judge(&self, listed: &Listed, asked: Instant) -> Result<Duration, String> {
        let mut versions = self.lock();
        let mut oldest = Duration::ZERO;
        for (path, files) in listed {
            let version = versions
                .get_mut(path)
                .ok_or_else(|| format!("{path} is listed, and was never written"))?;
            if !version.known.contains(files) {
                return Err(format!(
                    "{path} is listed as {files:?}, which it has never been: {:?}",
                    version.known
                ));
            }
            if version.whole && version.now == *files {
                version.seen.get_or_insert_with(Instant::now);
            } else if version.deleted || version.now != *files {
                let changed = version.changed.expect("changed");
                let age = asked.saturating_duration_since(changed);
                if age > DEADLINE {
                    return Err(format!("{path} is still listed {age:?} after its end"));
                }
                oldest = oldest.max(age);
            }
        }
        for (path, version) in versions.iter() {
            let Some(seen) = version.seen else {
                continue;
            };
            if asked.saturating_duration_since(seen) > LAG && !listed.contains_key(path) {
                return Err(format!(
                    "{path} was listed {:?} ago, nobody has touched it, and now it is not",
                    seen.elapsed()
                ));
            }
        }
        Ok(oldest)
    }

    /// Why the file `name` of a version may not be the listed one.
    pub(crate) fn excuse(&self, version: &str, name: &str, listed: &Content) -> Option<Excuse> {
        let versions = self.lock();
        let version = versions.get(version)?;
        if version.deleted {
            Some(Excuse::Gone)
        } else if !version.whole || version.now.files.get(name) != Some(listed) {
            Some(Excuse::Overtaken)
        } else {
            None
        }
    }
}
