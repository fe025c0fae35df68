//! The life of one version: waiting until it is quiet, being hashed, listed, or broken.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::Problem;
use crate::cache::Attempt;
use crate::entry::{self, Entry, Hashes, Incomplete, Plan};
use crate::quiet::{Quiet, Writers};
use crate::scan::{self, FoundFile, FoundVersion, unreadable};
use crate::tree::{Stamp, Tree, is_passing, join};

/// A version and how far it has come.
#[derive(Debug)]
pub struct Version {
    /// Where it is.
    pub found: FoundVersion,
    /// Its files, each with the time since which it has been as it is.
    files: Vec<(Arc<FoundFile>, Instant)>,
    /// Problems that do not keep it from being listed.
    notes: Vec<Problem>,
    state: State,
    listed: Option<Listed>,
    /// The catalog is yet to be told how it is now.
    pub is_news: bool,
}

#[derive(Debug)]
struct Listed {
    plan: Arc<Plan>,
    entry: Arc<Entry>,
}

#[derive(Debug)]
enum State {
    /// Nobody has looked at it yet, or only just.
    New,
    /// Nothing to do but wait: for writers, for quiet, or for a change.
    Resting,
    /// Being hashed, under this ticket; if that is another try, with what was wrong before.
    Hashing { ticket: u64, plan: Arc<Plan>, attempt: Arc<Attempt>, before: Option<Box<Problem>> },
    /// Not to be listed as it is.
    Broken { problem: Box<Problem>, plan: Option<Arc<Plan>> },
}

/// What a look at a version asks for.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Hash this, then come back with the result.
    pub hash: Option<Arc<Plan>>,
    /// Look again at this time.
    pub again: Option<Instant>,
    /// It is listed no more.
    pub unlisted: bool,
    /// The directory is gone.
    pub gone: bool,
    /// There was no way to look just now; nothing was decided.
    pub failed: Option<io::Error>,
    /// The files of overrides in it.
    pub overrides: Vec<FoundFile>,
}

/// The circumstances of a look.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// The tree.
    pub tree: &'a Tree,
    /// What was seen of writers.
    pub writers: &'a Writers,
    /// The time, by both clocks, before the directory was read.
    pub now: (Instant, SystemTime),
    /// The settle time.
    pub settle: Duration,
    /// Whether to try again what was broken and did not change: access to it may have.
    pub retry: bool,
    /// The version was listed by an earlier process, which then knew that files changed no later
    /// than this, in nanoseconds since the epoch, were complete.
    pub vouched: Option<i64>,
}

impl Version {
    /// A version nobody has looked at yet.
    pub fn new(found: FoundVersion) -> Self {
        Self {
            found,
            files: Vec::new(),
            notes: Vec::new(),
            state: State::New,
            listed: None,
            is_news: false,
        }
    }

    /// The entry, while it is listed.
    pub fn entry(&self) -> Option<&Arc<Entry>> {
        self.listed.as_ref().map(|listed| &listed.entry)
    }

    /// Whether it is being hashed.
    pub fn is_hashing(&self) -> bool {
        matches!(self.state, State::Hashing { .. })
    }

    /// What is being hashed, or else what is listed.
    pub fn plan(&self) -> Option<&Arc<Plan>> {
        match &self.state {
            State::Hashing { plan, .. } => Some(plan),
            _ => self.listed.as_ref().map(|listed| &listed.plan),
        }
    }

    /// Its files as they were seen last.
    pub fn stamps(&self) -> impl Iterator<Item = &Stamp> {
        self.files.iter().map(|(file, _)| &file.stamp)
    }

    /// The same, with their names.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Stamp)> {
        self.files.iter().map(|(file, _)| (file.name.as_str(), &file.stamp))
    }

    /// Whether it is not listed because it is not quiet.
    pub fn is_waiting(&self) -> bool {
        self.listed.is_none() && matches!(self.state, State::Resting)
    }

    /// Whether no file of it changed later than `time`, in nanoseconds since the epoch.
    pub fn is_unchanged_since(&self, time: i64) -> bool {
        self.files.iter().all(|(file, _)| file.stamp.changed <= time)
    }

    /// What is wrong with it.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let broken = match &self.state {
            State::Broken { problem, .. } => Some(&**problem),
            State::Hashing { before, .. } => before.as_deref(),
            State::New | State::Resting => None,
        };
        self.notes.iter().chain(broken)
    }

    /// Somebody wrote to the file called `name`: what was known of it is void. Gives its last
    /// stamp, for the cache to forget; the version is unlisted by the look that follows.
    pub fn written(&mut self, name: &str) -> Option<Stamp> {
        let at = self.files.iter().position(|(file, _)| file.name == name)?;
        let (file, _) = self.files.swap_remove(at);
        let is_of = |plan: &Plan| plan.all_files().any(|planned| planned.name == name);
        match &self.state {
            State::Hashing { plan, attempt, .. } if is_of(plan) => {
                attempt.make_void();
                self.state = State::Resting;
            }
            State::Broken { plan: Some(plan), .. } if is_of(plan) => self.state = State::Resting,
            _ => {}
        }
        Some(file.stamp)
    }

    /// Decides by what was `found` in the directory.
    pub fn look(&mut self, found: io::Result<scan::Files>, look: Look<'_>) -> Verdict {
        let path = &self.found.path;
        let scan::Files { images: files, overrides, problems: mut notes, mark: _ } = match found {
            Ok(found) => found,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Verdict {
                    gone: true,
                    unlisted: self.listed.is_some(),
                    ..Verdict::default()
                };
            }
            Err(err) if is_passing(&err) => {
                if matches!(self.state, State::New) {
                    self.state = State::Resting;
                }
                return Verdict { failed: Some(err), ..Verdict::default() };
            }
            Err(err) => {
                let problem = Box::new(unreadable(path, &err));
                self.state = State::Broken { problem, plan: None };
                let unlisted = self.listed.take().is_some();
                return Verdict { unlisted, ..Verdict::default() };
            }
        };
        // A file that was written to is not in `self.files` any more, so it counts as new here.
        let known = |file: &Arc<FoundFile>| self.files.iter().find(|(known, _)| known == file);
        let mut verdict = Verdict { overrides, ..Verdict::default() };
        let mut usable = Vec::new();
        let mut intact = 0;
        let mut next = Vec::with_capacity(files.len());
        for file in files {
            let (file, seen) = match known(&file) {
                // The one that plans have too.
                Some((known, seen)) => (Arc::clone(known), Some(*seen)),
                None => (file, None),
            };
            let listed = self.listed.as_ref().is_some_and(|listed| {
                seen.is_some() && listed.plan.all_files().any(|planned| *planned == *file)
            });
            let vouched = look.vouched.is_some_and(|until| file.stamp.changed <= until);
            let quiet = if listed {
                intact += 1;
                Quiet::Now
            } else if vouched && seen.is_none() && !look.writers.is_writing(&join(path, &file.name))
            {
                Quiet::Now
            } else {
                let path = join(path, &file.name);
                let since = seen.unwrap_or(look.now.0);
                look.writers.quiet(&path, &file, since, look.now, look.settle)
            };
            match quiet {
                Quiet::Now => usable.push(file.clone()),
                Quiet::At(when) => {
                    verdict.again = Some(verdict.again.map_or(when, |again| again.min(when)));
                }
            }
            next.push((file, seen.unwrap_or(look.now.0)));
        }
        let busy = usable.len() < next.len();
        self.files = next;
        if self.listed.as_ref().is_some_and(|listed| intact < listed.plan.all_files().count()) {
            // Before anything else: what changed is not listed until it has been hashed again.
            self.listed = None;
            verdict.unlisted = true;
        }
        if busy && self.listed.is_none() {
            self.state = State::Resting;
            self.notes = notes;
            return verdict;
        }
        // A listed version stays as it is while a file is added to it, a delta for instance.
        let (plan, more) = entry::plan(path, &usable);
        notes.extend(more);
        self.notes = notes;
        match plan {
            Ok(plan) => self.follow(Arc::new(plan), look.retry, &mut verdict),
            Err(incomplete) => self.incomplete(incomplete, look, &mut verdict),
        }
        verdict
    }

    fn follow(&mut self, plan: Arc<Plan>, retry: bool, verdict: &mut Verdict) {
        if self.listed.as_ref().is_some_and(|listed| listed.plan == plan) {
            self.rest_unless_hashing(&plan);
            return;
        }
        match &self.state {
            State::Hashing { plan: hashing, .. } if *hashing == plan => {}
            State::Broken { plan: Some(broken), .. } if *broken == plan && !retry => {}
            _ => verdict.hash = Some(plan),
        }
    }

    /// It is listed by `plan`; which may be hashed anew because somebody asked for that.
    fn rest_unless_hashing(&mut self, plan: &Plan) {
        if !matches!(&self.state, State::Hashing { plan: hashing, .. } if **hashing == *plan) {
            self.state = State::Resting;
        }
    }

    /// Files are missing; that is a problem only if none is on its way.
    fn incomplete(&mut self, incomplete: Incomplete, look: Look<'_>, verdict: &mut Verdict) {
        let Incomplete { problem, perhaps } = incomplete;
        if let (Some(listed), Some(plan)) = (&self.listed, &perhaps)
            && *listed.plan == *plan
        {
            self.rest_unless_hashing(plan);
            return;
        }
        if self.listed.take().is_some() {
            verdict.unlisted = true;
        }
        let directory = std::fs::metadata(look.tree.absolute(&self.found.path));
        let age = directory
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|modified| look.now.1.duration_since(modified).ok())
            .unwrap_or(look.settle);
        if age < look.settle {
            let when = look.now.0 + (look.settle - age);
            verdict.again = Some(verdict.again.map_or(when, |again| again.min(when)));
            self.state = State::Resting;
        } else if let Some(plan) = perhaps {
            self.follow(Arc::new(plan), look.retry, verdict);
        } else {
            self.state = State::Broken { problem: Box::new(problem), plan: None };
        }
    }

    /// Hashing of `plan` began under `ticket`.
    pub fn hashing(&mut self, ticket: u64, plan: Arc<Plan>, attempt: Arc<Attempt>) {
        let before = match &self.state {
            State::Broken { problem, plan: Some(broken) } if *broken == plan => {
                Some(problem.clone())
            }
            State::Hashing { plan: same, before, .. } if *same == plan => before.clone(),
            _ => None,
        };
        self.state = State::Hashing { ticket, plan, attempt, before };
    }

    /// Takes the plan back if `ticket` is the one that is being hashed: other results are of a
    /// state that the version has left.
    pub fn hashed(&mut self, ticket: u64) -> Option<Arc<Plan>> {
        match &self.state {
            State::Hashing { ticket: current, .. } if *current == ticket => {}
            _ => return None,
        }
        match std::mem::replace(&mut self.state, State::Resting) {
            State::Hashing { plan, .. } => Some(plan),
            _ => None,
        }
    }

    /// Lists the version as `entry`.
    pub fn list(&mut self, plan: Arc<Plan>, entry: Arc<Entry>) {
        self.listed = Some(Listed { plan, entry });
        self.state = State::Resting;
    }

    /// Lists what is being hashed by hashes that an earlier process found, until there are new ones;
    /// false if they are not all that it takes.
    pub fn list_meanwhile(&mut self, hashes: &Hashes) -> bool {
        let State::Hashing { plan, .. } = &self.state else {
            return false;
        };
        let Some(entry) = Entry::new(&self.found, plan, hashes) else {
            return false;
        };
        self.listed = Some(Listed { plan: Arc::clone(plan), entry: Arc::new(entry) });
        true
    }

    /// The files of `plan` cannot be listed; says whether the version was, and is no more.
    ///
    /// A version that is listed by other files, all of them as they were, stays: what was added to
    /// it is no good. Unless that is a promise, which the listed files may break.
    pub fn broken(&mut self, plan: Arc<Plan>, problem: Problem) -> bool {
        let stays = self
            .listed
            .as_ref()
            .is_some_and(|listed| listed.plan != plan && listed.plan.sums == plan.sums);
        self.state = State::Broken { problem: Box::new(problem), plan: Some(plan) };
        !stays && self.listed.take().is_some()
    }
}
