//! What an earlier process listed, and what this one does not know by itself: its hashes were lost, or
//! had not been written yet.

use std::collections::BTreeSet;

use super::Indexer;
use crate::version::Version;

impl Indexer {
    /// After the first look: what was listed, is as it was, and has to be hashed, stays listed by the
    /// hashes that it had until there are new ones. What is gone or changed is not waited for.
    pub(super) fn list_what_was_listed(&mut self) {
        for (path, plan) in std::mem::take(&mut self.interrupted) {
            if self.versions.get(&path).is_some_and(Version::is_waiting) {
                self.submit(&path, plan);
            }
        }
        let mut pending = BTreeSet::new();
        for (path, version) in &self.versions {
            let vouched = self.publisher.vouched(path);
            if version.is_hashing() && vouched.is_some_and(|time| version.is_unchanged_since(time))
            {
                pending.insert(path.to_string());
            }
        }
        let listed = self.publisher.inherited_versions(&pending);
        pending.retain(|path| {
            let hashes = |version: &Version| listed.get(path)?.hashes(version.plan()?);
            let again = self.update(path, |version| {
                hashes(version).is_some_and(|hashes| version.list_meanwhile(&hashes))
            });
            again != Some(true)
        });
        let versions = &self.versions;
        self.publisher.started(pending, |path| {
            versions.get(path).is_some_and(|version| version.entry().is_some())
        });
    }
}
