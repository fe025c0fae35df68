//! Hashing everything anew because somebody asked for it ([`crate::state::request_rehash`]).
//!
//! Nothing is unlisted for that: each version stays as it is listed until its new result is there.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Indexer;
use super::publish::StateFiles;
use crate::state::Request;
use crate::version::Version;

/// Whether it is asked for, and how far it is.
#[derive(Debug)]
pub(super) struct Rehash {
    /// None without a state directory: then nobody can ask.
    request: Option<Request>,
    /// What was asked for before this process, which did not live to see the end.
    left_over: bool,
    /// Versions whose new result is not there yet.
    pending: Option<BTreeSet<Arc<str>>>,
}

impl Rehash {
    pub(super) fn new(files: Option<&StateFiles>) -> Self {
        let request = files.map(|files| files.rehash.clone());
        let left_over = request.as_ref().is_some_and(Request::is_taken);
        Self { request, left_over, pending: None }
    }

    /// Whether to begin. A request that comes while one is carried out waits for its turn.
    pub(super) fn is_asked_for(&mut self) -> bool {
        let Some(request) = self.request.as_ref().filter(|_| self.pending.is_none()) else {
            return false;
        };
        match request.take() {
            Ok(taken) => std::mem::take(&mut self.left_over) || taken,
            Err(err) => {
                log::error!("cannot take a request to hash everything anew ({err})");
                self.request = None;
                false
            }
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.pending.is_some()
    }
}

impl Indexer {
    /// Forgets every hash, looks at everything, and has it hashed.
    pub(super) fn begin_rehash(&mut self) {
        log::info!("hashing all of \"{}\" anew, as asked for", self.settings.root.display());
        let cache = self.pool.cache();
        self.versions.values().flat_map(Version::stamps).for_each(|stamp| cache.forget(stamp));
        let hashing =
            |(path, version): (&Arc<str>, &Version)| version.is_hashing().then(|| path.clone());
        let before: BTreeSet<Arc<str>> = self.versions.iter().filter_map(hashing).collect();
        // Hashes what is wrong, too.
        self.look_at_everything(true);
        let plans: Vec<_> = self
            .versions
            .iter()
            .filter(|(path, version)| !version.is_hashing() || before.contains(*path))
            .filter_map(|(path, version)| Some((path.clone(), version.plan()?.clone())))
            .collect();
        for (path, plan) in plans {
            self.submit(&path, plan);
        }
        self.rehash.pending = Some(self.versions.iter().filter_map(hashing).collect());
        self.publisher.touch();
    }

    /// Tells whoever asked, once everything is hashed and published.
    pub(super) fn end_rehash(&mut self) {
        let Some(pending) = &mut self.rehash.pending else {
            return;
        };
        pending.retain(|path| self.versions.get(path).is_some_and(Version::is_hashing));
        if !pending.is_empty() || self.publisher.is_dirty() {
            return;
        }
        self.rehash.pending = None;
        log::info!("all of \"{}\" is hashed anew", self.settings.root.display());
        if let Some(Err(err)) = self.rehash.request.as_ref().map(Request::finish) {
            log::error!("cannot tell that everything is hashed anew ({err})");
        }
    }
}
