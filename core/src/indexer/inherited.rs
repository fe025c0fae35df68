//! What an earlier process listed, and what this one does not know by itself: its hashes were lost, or
//! had not been written yet.

use std::collections::BTreeSet;

use super::Indexer;
use crate::snapshot::ListedVersion;
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
            let is_unchanged = |time| version.is_unchanged_since(time);
            if version.is_hashing() && self.publisher.vouched(path).is_some_and(is_unchanged) {
                pending.insert(path.to_string());
            }
        }
        let earlier = if pending.is_empty() { None } else { self.publisher.earlier() };
        if let Some(snapshot) = earlier {
            snapshot.each_version(|path, listed: ListedVersion| {
                let hashes = |version: &Version| listed.hashes(version.plan()?);
                if pending.contains(&path)
                    && self.update(&path, |version| {
                        hashes(version).is_some_and(|hashes| version.list_meanwhile(&hashes))
                    }) == Some(true)
                {
                    pending.remove(&path);
                }
            });
        }
        let listed = self.versions.iter().filter(|(_, version)| version.entry().is_some());
        self.publisher.started(pending, listed.map(|(path, _)| &**path));
    }
}
