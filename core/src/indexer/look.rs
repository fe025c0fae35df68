//! Looks at the tree: at all of it, at a part, at single versions; and what comes of it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use foldhash::{HashSet, HashSetExt as _};

use super::{Indexer, REQUIREMENTS, RETRY, SHARE, paths_from};
use crate::cache::STAND;
use crate::kind::Kind;
use crate::scan::{self, FoundVersion};
use crate::tree::{self, Tree, is_below, join};
use crate::version::{Look, Verdict};
use crate::watch::{Added, Watcher};
use crate::{fields, parallel};

/// How often the log says that this process is short of something, while it is.
const COMPLAIN: Duration = Duration::from_secs(60);

/// How often the tree is looked at while there are no events.
const UNWATCHED: Duration = Duration::from_secs(5);

/// Versions that are looked at before the first of them is judged, at most: what was seen of them must
/// not fill the memory.
const AHEAD: usize = 2048;

/// What was seen of a version.
struct Seen {
    found: FoundVersion,
    watch: Option<Added>,
    /// Before the look.
    now: (Instant, SystemTime),
    files: io::Result<scan::Files>,
}

impl Seen {
    /// Whether it is an image of files none of which changed for the time given. Who writes to one from now
    /// on gives it another stamp, however coarse the file system's clock is.
    fn stands(&self, for_at_least: Duration) -> bool {
        let until = self.now.1.checked_sub(for_at_least).map_or(i64::MIN, tree::since_epoch);
        self.files.as_ref().is_ok_and(|files| {
            files.overrides.is_empty()
                && files.images.iter().all(|file| file.stamp.changed < until)
                && files.images.iter().any(|file| {
                    matches!(file.kind, Kind::Root(_) | Kind::Unified(_) | Kind::Tarball)
                })
        })
    }
}

impl Indexer {
    /// Looks at one path, whatever it is by now.
    pub(super) fn look_at(&mut self, path: &str) {
        if let Some(version) = self.versions.get(path) {
            let found = version.found.clone();
            // A symbolic link may have taken its place, or that of a directory above it.
            if self.tree.contains(path) {
                return self.look_at_versions(&[found], false);
            }
            let above = path.split('/').scan(String::new(), |at, component| {
                *at = join(at, component);
                Some(at.clone())
            });
            let outside = above.skip(1).find(|at| !self.tree.contains(at));
            return self.walk(outside.as_deref().unwrap_or(path), false);
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if fields::format(name).is_some() {
            return self.look_at_override(path);
        }
        match self.tree.entry(path) {
            Ok(tree::Entry::Directory { link: None }) => self.walk(path, false),
            Ok(tree::Entry::File { .. }) if !Kind::of(name).is_image() => {}
            Err(_) if parent.is_empty() => self.walk(path, false),
            Err(_) => {
                // Gone; and the directory may be without the file that was wrong in it.
                self.walk(path, false);
                if Kind::of(name).is_image() {
                    self.walk(parent, false);
                }
            }
            Ok(_) => self.walk(if parent.is_empty() { path } else { parent }, false),
        }
    }

    /// Walks the whole tree; with `retry`, what was broken is tried again.
    pub(super) fn look_at_everything(&mut self, retry: bool) {
        if self.watcher.as_ref().is_none_or(Watcher::has_ended) {
            self.start_watcher();
        }
        if let Some(watcher) = self.watcher.as_mut().filter(|_| !self.once) {
            watcher.add(&self.tree, "");
        }
        self.next_rescan = None;
        self.recall = self.directories.begin_look(&self.tree, self.recall.take());
        self.are_requirements_due = true;
        for stream in self.settings.streams.clone() {
            self.walk(&stream, retry);
        }
        self.get_ready_to_judge();
        // Without events the tree is looked at often, and events are tried for again.
        let rescan = match self.settings.rescan {
            Duration::ZERO if self.unwatched => UNWATCHED,
            rescan if self.unwatched => rescan.min(UNWATCHED),
            rescan => rescan,
        };
        let regular = (!rescan.is_zero()).then(|| Instant::now() + rescan);
        // In the middle of the look it may have turned out that all is elsewhere now.
        self.next_rescan = self.next_rescan.into_iter().chain(regular).min();
        let refusal = self.watcher.as_mut().and_then(Watcher::take_refusal);
        self.tally.looked(refusal.as_ref().map_or(0, |(_, directories)| *directories));
        if let Some((err, directories)) = refusal {
            log::error!(
                "cannot watch {directories} directories of \"{}\" ({err}), they are seen by rescans \
                 alone; raise fs.inotify.max_user_watches",
                self.settings.root.display()
            );
        }
    }

    /// Has what is needed to judge what was found, versions as well as files of overrides.
    fn get_ready_to_judge(&mut self) {
        if let Some(begun) = &self.read_ahead {
            begun.get();
        }
        if std::mem::take(&mut self.are_requirements_due) {
            self.look_at_override(REQUIREMENTS);
        }
    }

    /// Walks the tree from `path` and settles what is there and what is gone.
    pub(super) fn walk(&mut self, path: &str, retry: bool) {
        if path.is_empty() {
            return;
        }
        // Three of four directories are above versions.
        let adder = self.watcher.as_ref().filter(|_| !self.once).map(Watcher::adder);
        let watch = |directory: &str| adder.as_ref().map(|adder| adder.add(&self.tree, directory));
        let mut watcher = self.watcher.as_mut();
        let recall = self.recall.as_ref();
        let walk =
            scan::walk(&self.tree, path, recall, &watch, &mut |added: Option<Added>, mark| {
                if let (Some(watcher), Some(added)) = (&mut watcher, added) {
                    watcher.note(added.with(mark));
                }
            });
        if let Some(watcher) = &mut self.watcher {
            watcher.all_noted();
        }
        self.get_ready_to_judge();
        if let Some(err) = walk.cut_short {
            return self.failed(path, &err);
        }
        self.problems.retain(|(directory, problem)| {
            !is_below(directory, path)
                && !problem.path.to_str().is_some_and(|about| is_below(about, path))
        });
        self.problems.extend(walk.problems);
        let found: HashSet<&str> = match self.versions.is_empty() {
            true => HashSet::new(),
            false => walk.versions.iter().map(|version| &*version.path).collect(),
        };
        let gone: Vec<Arc<str>> = paths_from(&self.versions, path)
            .take_while(|known| known.starts_with(path))
            .filter(|known| is_below(known, path) && !found.contains(&***known))
            .cloned()
            .collect();
        for version in &gone {
            self.remove(version);
        }
        if !self.tree.absolute(path).is_dir() {
            if let Some(watcher) = &mut self.watcher {
                watcher.remove_below(path);
            }
            self.writers.forget_below(path);
        }
        for override_file in self.overrides.below(path) {
            if !self.tree.absolute(&override_file).exists() {
                self.forget_override(&override_file);
            }
        }
        for (path, file) in walk.overrides {
            self.take_override(&path, &file);
        }
        self.look_at_versions(&newest_first(walk.versions), retry);
        self.publisher.touch();
    }

    /// Several threads look, and this one judges.
    fn look_at_versions(&mut self, versions: &[FoundVersion], retry: bool) {
        let (tree, adder) = (self.tree.clone(), self.watcher.as_ref().map(Watcher::adder));
        let anchor = tree.anchor();
        // While others look, this thread needs all of itself.
        let recall = self.recall.take();
        let recall_of = recall.as_ref();
        self.anchor = anchor.as_ref().ok().filter(|_| self.once).cloned();
        let look_at = |found: &FoundVersion, watched: bool| {
            let now = (Instant::now(), SystemTime::now());
            // Before the look, also when it was found before: it may have been closed to us then.
            let adder = adder.as_ref().filter(|_| watched);
            let watch = adder.map(|adder| adder.add(&tree, Arc::clone(&found.path)));
            let files = match &anchor {
                Ok(anchor) => scan::files(anchor, &found.path, recall_of),
                Err(err) => Err((*err).into()),
            };
            Seen { found: found.clone(), watch, now, files }
        };
        // Who looks once only looks again in the end, see `doubt_what_changed`.
        let stands = self.once.then(|| STAND.max(self.settings.settle));
        let look = |found: &FoundVersion| {
            let seen = stands.map(|time| (look_at(found, false), time));
            let standing = seen.filter(|(seen, time)| seen.stands(*time));
            standing.map_or_else(|| look_at(found, true), |(seen, _)| seen)
        };
        parallel::each(versions, SHARE, AHEAD, look, |some| {
            some.into_iter().for_each(|seen| self.judge(&tree, seen, retry));
            // Or there would be tens of thousands at the end.
            self.take_results();
            if self.changed.len() >= AHEAD {
                self.tell_catalog();
                self.publisher.settle_what_is_alone(&self.overrides);
            }
        });
        self.anchor = None;
        self.recall = recall;
        if let Some(watcher) = &mut self.watcher {
            watcher.all_noted();
        }
    }

    fn judge(&mut self, tree: &Tree, seen: Seen, retry: bool) {
        let Seen { found, watch, now, files } = seen;
        if let (Some(watcher), Some(watch)) = (&mut self.watcher, watch) {
            let mark = files.as_ref().ok().and_then(|files| files.mark);
            watcher.note(watch.with(mark));
        }
        let path = Arc::clone(&found.path);
        self.add(found);
        let writers = std::mem::take(&mut self.writers);
        let look = Look {
            tree,
            writers: &writers,
            now,
            settle: self.settings.settle,
            retry,
            vouched: self.publisher.vouched(&path),
        };
        let verdict = self.update(&path, |version| version.look(files, look)).unwrap_or_default();
        self.writers = writers;
        self.carry_out(&path, verdict);
    }

    fn carry_out(&mut self, path: &str, verdict: Verdict) {
        self.publisher.touch();
        if verdict.gone {
            return self.remove(path);
        }
        if let Some(err) = &verdict.failed {
            return self.failed(path, err);
        }
        if verdict.unlisted {
            self.publisher.hurry();
        }
        for known in self.overrides.below(path) {
            let name = known.rsplit('/').next().unwrap_or(&known);
            if !verdict.overrides.iter().any(|file| file.name == name) {
                self.forget_override(&known);
            }
        }
        for file in &verdict.overrides {
            self.take_override(&join(path, &file.name), file);
        }
        if let Some(when) = verdict.again {
            self.deadlines.add(when, path);
        }
        if let Some(plan) = verdict.hash {
            self.hash(path, plan);
        }
    }

    /// This process could not look at `path` just now, which says nothing about what is there: all of
    /// it stays as it is until the next look.
    pub(super) fn failed(&mut self, path: &str, err: &io::Error) {
        let now = Instant::now();
        self.is_blind = true;
        if self.complained.is_none_or(|last| now.saturating_duration_since(last) >= COMPLAIN) {
            log::error!(
                "cannot look at \"{}\" ({err}), trying again; what is listed stays",
                self.tree.absolute(path).display()
            );
            self.complained = Some(now);
        }
        self.deadlines.add(now + RETRY, path);
    }

    fn remove(&mut self, path: &str) {
        // It was not found; perhaps because the disk that it is on was unmounted a moment ago, of
        // which no event may have told yet.
        self.check_anchors();
        let stream = path.split('/').next().unwrap_or(path);
        if self.anchors.is_frozen(stream) {
            return;
        }
        if let Some(version) = self.take(path) {
            if version.entry().is_some() {
                self.publisher.hurry();
            }
            self.publisher.touch();
        }
        self.writers.forget_below(path);
        if let Some(watcher) = &mut self.watcher {
            watcher.remove_below(path);
        }
    }
}

/// The newest version of every product before any older one: whether a version is the newest is judged
/// by those that were looked at before, and hashing begins with the first.
fn newest_first(mut versions: Vec<FoundVersion>) -> Vec<FoundVersion> {
    versions.sort_by(|a, b| b.name().cmp(a.name()));
    let mut products = HashSet::new();
    let (mut newest, older): (Vec<_>, Vec<_>) =
        versions.into_iter().partition(|version| products.insert(version.product.clone()));
    newest.extend(older);
    newest
}
