//! Gathers what a generation is made of, when one is due: what the catalog has to know of versions, and
//! what is wrong.

use std::time::Instant;

use super::{Indexer, SHARE, is_newest, paths_from};
use crate::name::ProductName;
use crate::tree::join;
use crate::version::Version;
use crate::{Problem, parallel};

impl Indexer {
    /// Publishes what there is, if it is time for that.
    pub(super) fn publish(&mut self, now: Instant) {
        let versions = &self.versions;
        self.publisher
            .settle_pending(now, |path| versions.get(path).is_some_and(Version::is_hashing));
        if self.is_settling() || !self.publisher.due(self.tally.hashing.versions, now) {
            return;
        }
        let versions = &self.versions;
        let newest_pending = || {
            let pending = |version: &Version| version.is_hashing() || version.is_waiting();
            versions.iter().any(|(path, version)| pending(version) && is_newest(versions, path))
        };
        let any_listed = self.tally.listed > 0;
        let on_their_way =
            self.tally.hashing.versions > 0 || !any_listed && self.tally.is_any_waiting();
        if self.publisher.holds(on_their_way, any_listed, newest_pending, now) {
            return;
        }
        if self.once {
            self.doubt_what_changed();
            if !self.dirty.is_empty() {
                return;
            }
        }
        self.tell_catalog();
        let mut problems: Vec<Problem> =
            self.problems.iter().map(|(_, problem)| problem.clone()).collect();
        problems.extend(self.wrong.values().flatten().cloned());
        problems.extend(self.overrides.problems().cloned());
        problems.extend(self.tally.stalled(now));
        problems.extend(self.anchors.problems(&self.tree, |stream| {
            let prefix = format!("{stream}/");
            let first = paths_from(&self.versions, &prefix).next();
            !first.is_some_and(|path| path.starts_with(&prefix))
        }));
        let root_missing = self.anchors.root_missing();
        self.publisher.publish(&self.overrides, problems, root_missing);
    }

    /// With `once`, directories above versions have no watch, nor have versions that stand: one whose files
    /// are not what and where they were any more is looked at again, what is listed as well as what is
    /// wrong.
    fn doubt_what_changed(&mut self) {
        // What is waited for has a watch.
        let judged =
            self.versions.iter().filter(|(_, of)| of.entry().is_some() || !of.is_waiting());
        let judged: Vec<_> = judged.collect();
        // Found anew: another directory may have the root's name by now.
        let anchor = self.tree.anchor().ok();
        let are_there = parallel::map(&judged, SHARE, |(path, version)| {
            let stamp = |name| anchor.as_ref()?.stamp(&join(path, name)).ok();
            version.files().all(|(name, known)| stamp(name).is_some_and(|found| found == *known))
        });
        let gone = judged.iter().zip(are_there).filter(|(_, is_there)| !is_there);
        let before = self.dirty.len();
        self.dirty.extend(gone.map(|((path, _), _)| path.to_string()));
        self.tally.hashed_in_vain += u64::from(self.dirty.len() > before);
    }

    /// Tells the catalog what changed since the last time.
    pub(super) fn tell_catalog(&mut self) {
        for path in std::mem::take(&mut self.changed) {
            if let Some(version) = self.versions.get_mut(&path) {
                version.is_news = false;
            }
            let Some((directory, name)) = path.rsplit_once('/') else {
                continue;
            };
            let version = self.versions.get(&path);
            let product = version
                .map_or_else(|| ProductName::of(directory), |of| Some(of.found.product.clone()));
            if let Some(product) = product {
                self.publisher.catalog.set(&product, name, version.and_then(Version::entry));
            }
            let wrong: Vec<Problem> =
                version.into_iter().flat_map(Version::problems).cloned().collect();
            if wrong.is_empty() {
                self.wrong.remove(&path);
            } else {
                self.wrong.insert(path, wrong);
            }
        }
        for directory in std::mem::take(&mut self.overridden) {
            self.publisher.catalog.reconsider(&directory);
        }
    }
}
