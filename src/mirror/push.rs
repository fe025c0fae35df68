//! One push of one release to one mirror, in an order that never lets the mirror list what it has not
//! got:
//!
//! 1. Where index files are pushed, and a listed file is about to be replaced by another of the same
//!    name: an index without the versions that this is about.
//! 2. The files of all listed versions, put in place when the last one has arrived
//!    (`--delay-updates`). A version that is being uploaded here is not listed and not pushed.
//! 3. Where index files are pushed: the lists of products, then `index.json`.
//! 4. Deletions: what is in the tree there and not in the tree here.
//!
//! A step begins when the one before has succeeded. A mirror that makes its own index withholds by
//! itself what is being replaced.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::memory::Memory;
use super::rsync::{Fault, Rsync};
use super::{Release, ssh};
use crate::config::Mirror;
use crate::listing::Listing;
use crate::streams::{self, INDEX};

/// Files that change what an index says of a product, in its directories, from the root down.
const OVERRIDES: [&str; 4] = [".requirements", "image.yaml", "images.yaml", "metadata.json"];

/// And beside the files of a version.
const PROMISES: &str = "SHA256SUMS";

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
    pub latest: &'p dyn Fn() -> Option<Arc<Release>>,
    pub stopped: &'p dyn Fn() -> bool,
}

impl Push<'_> {
    /// Pushes. `memory` is what the mirror has got before, and after.
    ///
    /// # Errors
    ///
    /// [`Fault`]; what was done stays done, and a further push goes on from there.
    pub fn run(&self, memory: &mut Memory) -> Result<Outcome, Fault> {
        if !ssh::is_installed("ssh") {
            let what = "ssh is missing; install the package openssh-client";
            return Err(Fault::Failed(what.to_owned()));
        }
        ssh::check_key(&self.mirror.key_path).map_err(Fault::Failed)?;
        let settings = &self.release.tree.settings;
        let root = settings.root.to_string_lossy().trim_end_matches('/').to_owned();
        let path = self.mirror.path.clone().unwrap_or(root);
        let rsync = Rsync { mirror: self.mirror, path: &path, stopped: self.stopped };
        let replaced = self.replaced(&memory.listing());
        if self.mirror.push_streams && !replaced.is_empty() {
            self.push_streams(&rsync, &self.without_replaced(memory)?)?;
        }
        self.push_files(&rsync, &replaced)?;
        if self.is_superseded() {
            return Ok(Outcome::Superseded);
        }
        if self.mirror.push_streams {
            let files = streams::in_order(&self.release.snapshot)
                .map_err(|err| Fault::Failed(err.to_string()))?;
            let files: Vec<_> = files.into_iter().map(|(n, bytes)| (n, bytes.to_vec())).collect();
            self.push_streams(&rsync, &files)?;
        }
        if let Err(err) = memory.store(self.data_dir, self.name, &self.release.snapshot) {
            log::warn!("mirror {}: cannot remember what it has ({err})", self.name);
        }
        self.delete(&rsync)
    }

    /// Listed paths whose file was another one in the last push. rsync, which goes by size and time,
    /// might take them for the same.
    fn replaced(&self, before: &Listing) -> Vec<String> {
        let before = before.files();
        let differs = |path: &str, file| before.get(path).is_some_and(|before| *before != file);
        let now = self.release.listing.files();
        let replaced = now.into_iter().filter(|(path, file)| differs(path, *file));
        replaced.map(|(path, _)| path.to_owned()).collect()
    }

    fn push_files(&self, rsync: &Rsync<'_>, replaced: &[String]) -> Result<(), Fault> {
        let root = root_of(self.release);
        // Links below the root are listed as what they point to, and pushed as that.
        let options = [
            "--times",
            "--perms",
            "--copy-links",
            "--omit-dir-times",
            "--delay-updates",
            "--from0",
            "--files-from=-",
        ];
        let wanted: BTreeSet<String> =
            self.release.listing.files().into_keys().map(str::to_owned).collect();
        let extra = companions(&root, &wanted);
        let all: Vec<&str> = wanted.iter().chain(&extra).map(String::as_str).collect();
        if !replaced.is_empty() {
            let replaced: Vec<&str> = replaced.iter().map(String::as_str).collect();
            let options = [&options[..], &["--ignore-times"]].concat();
            rsync.run(&options, &root, "", &nul_separated(&replaced))?;
        }
        if all.is_empty() {
            return Ok(());
        }
        rsync.run(&options, &root, "", &nul_separated(&all))
    }

    /// Whether what was pushed may no longer be listed, for it is no longer what it was.
    fn is_superseded(&self) -> bool {
        (self.latest)().is_some_and(|latest| {
            !Arc::ptr_eq(&latest, self.release) && !latest.listing.holds(&self.release.listing)
        })
    }

    /// The documents of this release without the versions that the mirror has not got as they are.
    fn without_replaced(&self, memory: &Memory) -> Result<Vec<(String, Vec<u8>)>, Fault> {
        super::prune::documents(&self.release.snapshot, &memory.listing())
            .map_err(|err| Fault::Failed(format!("cannot prune the index ({err})")))
    }

    /// Pushes index files: the lists of products, then `index.json`.
    fn push_streams(&self, rsync: &Rsync<'_>, files: &[(String, Vec<u8>)]) -> Result<(), Fault> {
        let staging = Staging::new(self.data_dir, self.name, files)
            .map_err(|err| Fault::Failed(format!("cannot stage the index ({err})")))?;
        // By content: two generations may well have the same size and second.
        let options = [
            "--times",
            "--perms",
            "--checksum",
            "--omit-dir-times",
            "--delay-updates",
            "--from0",
            "--files-from=-",
        ];
        let is_index = |name: &str| name.strip_suffix(".gz").unwrap_or(name) == INDEX;
        for index in [false, true] {
            let names = files.iter().filter(|(name, _)| is_index(name) == index);
            let names: Vec<String> = names.map(|(name, _)| format!("streams/v1/{name}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            rsync.run(&options, &with_slash(&staging.0), "", &nul_separated(&names))?;
        }
        Ok(())
    }

    /// Deletes what is in the mirror's tree and not in this one. Nothing is transferred.
    ///
    /// What exists here and is not listed, a version whose file is being replaced for one, stays there
    /// too. A tree that lists nothing at all deletes nothing: its disk is probably not mounted.
    fn delete(&self, rsync: &Rsync<'_>) -> Result<Outcome, Fault> {
        let root = root_of(self.release);
        let listing = &self.release.listing;
        if listing.versions.is_empty() {
            log::warn!(
                "mirror {}: nothing is listed, so nothing is deleted there either",
                self.name
            );
            return Ok(Outcome::Complete);
        }
        let is_there = |path: &str| root.join(path).exists();
        if !listing.files().into_keys().all(is_there) {
            // Removed in this moment, or unmounted: the next release tells.
            let newer = (self.latest)().is_some_and(|l| !Arc::ptr_eq(&l, self.release));
            return match newer {
                true => Ok(Outcome::Superseded),
                false => Err(Fault::Failed("a listed file is missing".to_owned())),
            };
        }
        let stream = self.release.tree.stream();
        let options = [
            "--recursive",
            "--links",
            "--copy-dirlinks",
            "--existing",
            "--ignore-existing",
            "--delete-after",
            "--prune-empty-dirs",
            "--omit-dir-times",
            // What a file system or an administrator keeps at the top stays; temporary files of an
            // rsync that was killed do not.
            "--filter=risk /.requirements",
            "--filter=protect /.*",
            "--filter=protect /lost+found",
            "--filter=show .requirements",
            "--filter=hide .*",
        ];
        rsync.run(&options, &with_slash(&root.join(stream)), &format!("{stream}/"), b"")?;
        Ok(Outcome::Complete)
    }
}

fn root_of(release: &Release) -> PathBuf {
    with_slash(&release.tree.settings.root)
}

fn with_slash(path: &Path) -> PathBuf {
    path.join("")
}

fn nul_separated(names: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names {
        out.extend_from_slice(name.as_bytes());
        out.push(0);
    }
    out
}

/// What else belongs to the listed files: see [`OVERRIDES`] and [`PROMISES`].
fn companions(root: &Path, files: &BTreeSet<String>) -> BTreeSet<String> {
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

/// Index files in a directory of their own, laid out as below the mirror's root.
struct Staging(PathBuf);

impl Staging {
    fn new(data_dir: &Path, name: &str, files: &[(String, Vec<u8>)]) -> anyhow::Result<Self> {
        let staging = Self(data_dir.join("mirrors").join(format!("{name}.staging")));
        let dir = staging.0.join("streams/v1");
        fs::create_dir_all(&dir)?;
        let files: Vec<_> = files.iter().map(|(name, bytes)| (name.clone(), &bytes[..])).collect();
        streams::write_files(&dir, &files)?;
        Ok(staging)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.0) {
            log::warn!("cannot remove \"{}\" ({err})", self.0.display());
        }
    }
}
