//! One push of one release to one mirror, in an order that never lets the mirror list what it has not
//! got:
//!
//! 1. Where index files are pushed, and they list a file that is about to be replaced by another of
//!    the same name: an index without the versions that this is about.
//! 2. The files of all listed versions, put in place when the last one has arrived
//!    (`--delay-updates`). A version that is being uploaded here is not listed and not pushed; a file
//!    that the mirror has as it is listed is not pushed again, whatever has become of it here. What
//!    rsync reads is not the tree but what was opened in it: see [`Staging`].
//! 3. Where index files are pushed: the lists of products, then `index.json`.
//! 4. Deletions: what is in the tree there and not in the tree here.
//!
//! A step begins when the one before has succeeded. A mirror that makes its own index withholds by
//! itself what is being replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::memory::{Has, Memory};
use super::rsync::{Fault, Rsync};
use super::staging::Staging;
use super::{Release, prune, ssh};
use crate::config::Mirror;
use crate::streams::{self, INDEX};

/// Files that change what an index says of a product, in its directories, from the root down.
const OVERRIDES: [&str; 4] = [".requirements", "image.yaml", "images.yaml", "metadata.json"];

/// And beside the files of a version.
const PROMISES: &str = "SHA256SUMS";

/// For what is put in place at the end, all at once, from a list of names on standard input.
const LISTED: [&str; 6] =
    ["--times", "--perms", "--omit-dir-times", "--delay-updates", "--from0", "--files-from=-"];

/// Deletes and does nothing else. What a file system or an administrator keeps at the top stays;
/// temporary files of an rsync that was killed do not.
///
/// Links to directories are not followed, or one to `/` would have rsync read this whole machine, and
/// one into itself for ever: see [`Push::linked_directories`].
const DELETE: [&str; 12] = [
    "--recursive",
    "--links",
    "--existing",
    "--ignore-existing",
    "--delete-after",
    "--prune-empty-dirs",
    "--omit-dir-times",
    "--filter=risk /.requirements",
    "--filter=protect /.*",
    "--filter=protect /lost+found",
    "--filter=show .requirements",
    "--filter=hide .*",
];

/// How a push ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The mirror has this release.
    Complete,
    /// A newer one has taken away or replaced something that this one lists.
    Superseded,
}

/// See the module.
pub struct Push<'p> {
    pub name: &'p str,
    pub mirror: &'p Mirror,
    pub data_dir: &'p Path,
    pub release: &'p Arc<Release>,
    /// How many files may be held open.
    pub batch: usize,
    pub latest: &'p dyn Fn() -> Option<Arc<Release>>,
    pub stopped: &'p dyn Fn() -> bool,
}

impl Push<'_> {
    /// Pushes. `memory` is what the mirror has got, before and after.
    ///
    /// # Errors
    ///
    /// [`Fault`]; what was done stays done, and a further push goes on from there.
    pub fn run(&self, memory: &mut Memory) -> Result<Outcome, Fault> {
        match self.steps(memory) {
            // It failed because a file went away, most likely, which is nothing to report.
            Err(Fault::Failed(reason)) if self.is_superseded() => {
                log::debug!("mirror {}: superseded while {reason}", self.name);
                Ok(Outcome::Superseded)
            }
            result => result,
        }
    }

    fn steps(&self, memory: &mut Memory) -> Result<Outcome, Fault> {
        if !ssh::is_installed("ssh") {
            let what = "ssh is missing; install the package openssh-client";
            return Err(Fault::Failed(what.to_owned()));
        }
        ssh::check_key(&self.mirror.key_path).map_err(Fault::Failed)?;
        let root = &self.release.tree.settings.root;
        let same = root.to_string_lossy().trim_end_matches('/').to_owned();
        let path = self.mirror.path.as_deref().unwrap_or(&same);
        let rsync = Rsync { mirror: self.mirror, path, stopped: self.stopped };
        if self.mirror.push_streams {
            self.withdraw(&rsync, memory)?;
        }
        memory.begins(&self.release.listing);
        if !self.push_files(&rsync, memory)? || self.is_superseded() {
            return self.superseded();
        }
        memory.pushed_files(&self.release.listing);
        if self.mirror.push_streams {
            let files = streams::in_order(&self.release.snapshot)
                .map_err(|err| Fault::Failed(err.to_string()))?;
            let files: Vec<_> = files.into_iter().map(|(n, bytes)| (n, bytes.to_vec())).collect();
            self.push_index(&rsync, &files)?;
        }
        memory.pushed_index(&self.release.snapshot);
        self.delete(&rsync, memory)
    }

    /// Pushes an index without the versions that the mirror lists and is about to get anew.
    fn withdraw(&self, rsync: &Rsync<'_>, memory: &Memory) -> Result<(), Fault> {
        let there = memory.listing();
        let listed = there.files();
        let replaced = |(path, (sha256, _)): (&str, (&str, u64))| {
            listed.contains_key(path) && memory.has(path, sha256) == Has::Other
        };
        if !self.release.listing.files().into_iter().any(replaced) {
            return Ok(());
        }
        let files = prune::documents(&self.release.snapshot, &there)
            .map_err(|err| Fault::Failed(format!("cannot prune the index ({err})")))?;
        self.push_index(rsync, &files)
    }

    /// Pushes what is listed; false if a file changed meanwhile, so that nobody knows what arrived.
    fn push_files(&self, rsync: &Rsync<'_>, memory: &Memory) -> Result<bool, Fault> {
        let root = &self.release.tree.settings.root;
        let listed = self.release.listing.files();
        let mut groups: BTreeMap<Has, BTreeSet<&str>> = BTreeMap::new();
        for (path, (sha256, _)) in &listed {
            groups.entry(memory.has(path, sha256)).or_default().insert(path);
        }
        let companions = companions(root, listed.keys().copied());
        if !companions.is_empty() {
            let unknown = groups.entry(Has::Unknown).or_default();
            unknown.extend(companions.iter().map(String::as_str));
        }
        for (has, paths) in groups {
            // Links below the root are listed as what they point to, and pushed as that.
            let mut options = [&LISTED[..], &["--copy-links"]].concat();
            match has {
                // They may have the same size and time.
                Has::Other => options.push("--ignore-times"),
                Has::Unknown => {}
                // Unless somebody removed it there, which is asked before anything is staged.
                Has::Same if !self.is_any_missing(rsync, &paths)? => continue,
                Has::Same => options.push("--ignore-existing"),
            }
            for batch in batches(&paths, self.batch) {
                let names = batch.iter().copied();
                let staging = Staging::of_files(self.data_dir, self.name, root, names)
                    .map_err(|err| Fault::Failed(format!("{err:#}")))?;
                rsync.run(&options, &with_slash(staging.path()), "", &nul_separated(&batch))?;
                if !staging.is_unchanged() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether the mirror lacks any of these files, by a run that sends nothing.
    fn is_any_missing(&self, rsync: &Rsync<'_>, paths: &BTreeSet<&str>) -> Result<bool, Fault> {
        let paths: Vec<&str> = paths.iter().copied().collect();
        let more = ["--copy-links", "--ignore-existing", "--dry-run", "--out-format=%n"];
        let root = with_slash(&self.release.tree.settings.root);
        rsync.run(&[&LISTED[..], &more].concat(), &root, "", &nul_separated(&paths))
    }

    /// Whether what was pushed may no longer be listed, for it is no longer what it was.
    fn is_superseded(&self) -> bool {
        (self.latest)().is_some_and(|latest| !latest.listing.holds(&self.release.listing))
    }

    /// At once if there is a newer release, after a pause if that is still being made.
    fn superseded(&self) -> Result<Outcome, Fault> {
        match (self.latest)() {
            Some(latest) if !Arc::ptr_eq(&latest, self.release) => Ok(Outcome::Superseded),
            _ => Err(Fault::Failed("a file changed while it was pushed".to_owned())),
        }
    }

    /// Pushes index files: the lists of products, then `index.json`.
    fn push_index(&self, rsync: &Rsync<'_>, files: &[(String, Vec<u8>)]) -> Result<(), Fault> {
        let staging = Staging::of_index(self.data_dir, self.name, files)
            .map_err(|err| Fault::Failed(format!("cannot stage the index ({err:#})")))?;
        let is_index = |name: &str| name.strip_suffix(".gz").unwrap_or(name) == INDEX;
        // By content: two generations may well have the same size and second.
        let options = [&LISTED[..], &["--checksum"]].concat();
        for index in [false, true] {
            let names = files.iter().filter(|(name, _)| is_index(name) == index);
            let names: Vec<String> = names.map(|(name, _)| format!("streams/v1/{name}")).collect();
            rsync.run(&options, &with_slash(staging.path()), "", &nul_separated(&names))?;
        }
        Ok(())
    }

    /// Deletes what is in the mirror's tree and not in this one.
    ///
    /// What exists here and is not listed, a version whose file is being replaced for one, stays there
    /// too. A tree that lists nothing at all deletes nothing: its disk is probably not mounted.
    fn delete(&self, rsync: &Rsync<'_>, memory: &mut Memory) -> Result<Outcome, Fault> {
        let (root, listing) = (&self.release.tree.settings.root, &self.release.listing);
        if listing.versions.is_empty() {
            log::warn!(
                "mirror {}: nothing is listed, so nothing is deleted there either",
                self.name
            );
            return Ok(Outcome::Complete);
        }
        if !listing.files().into_keys().all(|path| root.join(path).exists()) {
            // Removed in this moment, or unmounted: the next release tells.
            return self.superseded();
        }
        // Before rsync looks: what goes after that stays there until the next push.
        let gone = memory.gone(root);
        let linked = self.linked_directories(&gone);
        let streams = self.release.tree.streams().map(str::to_owned);
        for directory in streams.chain(linked) {
            let source = with_slash(&root.join(&directory));
            if !is_inside(&source, root) {
                // As for a tree that lists nothing.
                log::debug!("mirror {}: no \"{}\", nothing deleted", self.name, source.display());
                continue;
            }
            rsync.run(&DELETE, &source, &format!("{directory}/"), b"")?;
        }
        memory.deleted(&gone);
        Ok(Outcome::Complete)
    }

    /// Symbolic links to directories on the way to what is `gone`. The mirror has directories in their
    /// place.
    fn linked_directories(&self, gone: &BTreeSet<String>) -> BTreeSet<String> {
        let root = &self.release.tree.settings.root;
        let mut directories = BTreeSet::new();
        for path in gone {
            let mut above = path.as_str();
            // As far up as this did not come before.
            while let Some((directory, _)) = above.rsplit_once('/')
                && directories.insert(directory)
            {
                above = directory;
            }
        }
        let is_link = |path: &&str| {
            path.contains('/')
                && fs::symlink_metadata(root.join(path)).is_ok_and(|meta| meta.is_symlink())
        };
        directories.into_iter().filter(is_link).map(str::to_owned).collect()
    }
}

/// Whether `path` is a directory below `root`, with every symbolic link on the way followed.
fn is_inside(path: &Path, root: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    path.is_dir() && real(path).zip(real(root)).is_some_and(|(path, root)| path.starts_with(root))
}

fn with_slash(path: &Path) -> PathBuf {
    path.join("")
}

/// `paths` in batches of `most`, or some more: the files of one directory stay together.
fn batches<'p>(paths: &BTreeSet<&'p str>, most: usize) -> Vec<Vec<&'p str>> {
    let directory = |path: &'p str| path.rsplit_once('/').map(|(directory, _)| directory);
    let mut batches: Vec<Vec<&str>> = Vec::new();
    for &path in paths {
        match batches.last_mut() {
            Some(batch)
                if batch.len() < most
                    || batch.last().is_some_and(|last| directory(last) == directory(path)) =>
            {
                batch.push(path);
            }
            _ => batches.push(vec![path]),
        }
    }
    batches
}

fn nul_separated(names: &[impl AsRef<str>]) -> Vec<u8> {
    names.iter().flat_map(|name| name.as_ref().bytes().chain([0])).collect()
}

/// What else belongs to the listed files: see [`OVERRIDES`] and [`PROMISES`].
fn companions<'f>(root: &Path, files: impl Iterator<Item = &'f str>) -> BTreeSet<String> {
    let mut dirs = BTreeSet::new();
    let mut found = BTreeSet::new();
    let mut add = |dir: &str, name: &str| {
        let path = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        if fs::symlink_metadata(root.join(&path)).is_ok_and(|meta| meta.is_file()) {
            found.insert(path);
        }
    };
    for file in files {
        let mut dir = file.rsplit_once('/').map_or("", |(dir, _)| dir);
        add(dir, PROMISES);
        while dirs.insert(dir.to_owned()) {
            OVERRIDES.iter().for_each(|name| add(dir, name));
            dir = dir.rsplit_once('/').map_or("", |(dir, _)| dir);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_directories_together() {
        let paths = BTreeSet::from(["a/1", "a/2", "a/3", "b/1", "b/2", "c/1"]);
        let split = |most| batches(&paths, most);
        assert_eq!(split(1), [vec!["a/1", "a/2", "a/3"], vec!["b/1", "b/2"], vec!["c/1"]]);
        assert_eq!(split(4), [vec!["a/1", "a/2", "a/3", "b/1", "b/2"], vec!["c/1"]]);
        assert_eq!(split(9).len(), 1);
    }
}
