//! Hashes the files of a version: each file alone, and each root behind each metadata, all from one
//! read.
//!
//! sha256(metadata ‖ root) needs no second read of anything: the state after the metadata's last
//! byte is both what its own hash is made of and where the root continues.

mod buffer;
mod crew;
mod findings;
mod source;
mod together;

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::{Attempt, HashCache};
use crate::entry::{Hashes, Plan};
use crate::scan::{FoundFile, unreadable};
use crate::sha256::{self, Lane};
use crate::tree::{Anchor, Place, Stamp, Tree, is_passing, join};
use crate::unified::{self, Inside};
use crate::{Problem, sums, whole};

pub use self::buffer::Buffer;
pub(crate) use self::crew::Crew;
use self::findings::{Findings, ROUNDS};
use self::source::{CHUNK, Source};
pub use self::together::{LEAST, MOST_BYTES, hash_together, is_small, most};

/// Files from this size on are worth the help of another thread, in bytes.
pub(crate) const LARGE: u64 = 4 << 20;

/// How hashing a version ended.
#[derive(Debug)]
pub enum Outcome {
    /// Every hash is known, and the files are still those that were hashed.
    Hashed(Hashes),
    /// A file changed before or while it was read; the result was thrown away.
    Changed,
    /// A file is not whole, or cannot be read.
    Broken(Problem),
    /// Told to stop.
    Stopped,
}

/// Everything hashing needs besides the files.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Where hashes are looked up and remembered.
    pub cache: &'a HashCache,
    /// For the cache.
    pub attempt: &'a Attempt,
    /// Asked after each step; says no when hashing has to end.
    pub go_on: &'a dyn Fn() -> bool,
    /// Counts the bytes read.
    pub bytes: &'a AtomicU64,
    /// Whether whoever asks sees to it that the files are where they were when all is hashed.
    pub seen_to: bool,
    /// Told of each file of several chunks, which other threads may help with.
    pub begins: &'a dyn Fn(&Arc<Crew>),
    /// Called between two chunks of such a file.
    pub between: &'a dyn Fn(&Crew),
}

enum Failure {
    Changed,
    Broken(Problem),
    Stopped,
}

/// The hashes of the version at `path` if the cache knows them all, and nothing else has to be
/// looked into.
pub fn cached(path: &str, plan: &Plan, cache: &HashCache) -> Option<Hashes> {
    if plan.sums.is_some() || !plan.unified.is_empty() {
        return None;
    }
    known(path, plan, cache)
}

fn known(path: &str, plan: &Plan, cache: &HashCache) -> Option<Hashes> {
    if !plan.files().all(|file| cache.keeps(file)) {
        return None;
    }
    let mut hashes = Hashes::default();
    for file in plan.files() {
        let digest = cache.file(&join(path, &file.name), &file.stamp)?;
        hashes.files.insert(file.name.clone(), digest);
    }
    for (&client, metadata) in &plan.metadata {
        let digest = *hashes.files.get(&metadata.name)?;
        for (&root, file) in &plan.roots {
            let root_digest = *hashes.files.get(&file.name)?;
            hashes.pairs.insert((client, root), cache.pair(digest, root_digest)?);
        }
    }
    Some(hashes)
}

/// A version that is to be hashed.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// The tree, whose root may be open already.
    pub tree: &'a Place,
    /// The version's directory in it.
    pub path: &'a str,
    /// What to hash.
    pub plan: &'a Plan,
    /// With what.
    pub context: Context<'a>,
}

/// Hashes a version, reading only what the cache does not know, small files into `buffer`.
pub fn hash(order: Order<'_>, buffer: &mut Buffer) -> Outcome {
    let verified = guarded(order.path, || {
        let anchor = order.tree.anchor().map_err(|err| failure(order.path, &err))?;
        let version = Version::begin(order, anchor)?;
        let hashes = match version.known() {
            Some(hashes) => hashes,
            None => read_all(&version, buffer)?,
        };
        version.keep_promise(hashes)
    });
    verified.into()
}

/// What looks into uploads is other people's code in part, and a thread that is gone hashes nothing: that it
/// panics is a problem of the version at `path`.
fn guarded<T>(path: &str, look: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|_| {
        Err(Failure::Broken(Problem::new(
            Path::new(path),
            "looking into its files made this software fail",
            "report the message in the log, with the file",
        )))
    })
}

/// What hashing a version came to.
type Verified = Result<Hashes, Failure>;

impl From<Verified> for Outcome {
    fn from(verified: Verified) -> Self {
        match verified {
            Ok(hashes) => Self::Hashed(hashes),
            Err(Failure::Changed) => Self::Changed,
            Err(Failure::Broken(problem)) => Self::Broken(problem),
            Err(Failure::Stopped) => Self::Stopped,
        }
    }
}

/// A version that is being hashed.
struct Version<'a> {
    anchor: Anchor,
    path: &'a str,
    plan: &'a Plan,
    context: Context<'a>,
}

impl<'a> Version<'a> {
    /// Makes sure that its unified tarballs are what their names say.
    fn begin(
        Order { path, plan, context, .. }: Order<'a>,
        anchor: Anchor,
    ) -> Result<Self, Failure> {
        for file in plan.unified.values() {
            look_inside(&anchor, path, file, plan.doubtful, context.go_on)?;
        }
        // What does not keep a promise is not listed, and nobody would look at it again.
        let context = Context { seen_to: context.seen_to && plan.sums.is_none(), ..context };
        Ok(Self { anchor, path, plan, context })
    }

    fn known(&self) -> Option<Hashes> {
        known(self.path, self.plan, self.context.cache)
    }

    /// Checks the hashes against what `SHA256SUMS` says, where there is one.
    fn keep_promise(&self, hashes: Hashes) -> Verified {
        let Some(file) = &self.plan.sums else {
            return Ok(hashes);
        };
        let (tree, path) = (self.anchor.tree(), self.path);
        let content = small_file(tree, &join(path, &file.name), &file.stamp, sums::MAX_BYTES)
            .map_err(|_| Failure::Changed)?
            .ok_or(Failure::Changed)?
            .map_err(Failure::Broken)?;
        let is_there = |name: &str| tree.absolute(&join(path, name)).exists();
        sums::check(path, &file.name, &content, &hashes.files, is_there)
            .map_err(Failure::Broken)?;
        Ok(hashes)
    }

    /// Makes sure that the name still leads to the file that was opened, and that it still is what it was.
    /// The file that was opened had this stamp; whatever has it now is that file.
    fn stands(&self, path: &str, found: &FoundFile) -> Result<(), Failure> {
        let stands = || self.anchor.tree().stamp(path).is_ok_and(|stamp| stamp == found.stamp);
        if self.context.seen_to || stands() { Ok(()) } else { Err(Failure::Changed) }
    }
}

/// Makes sure that a unified tarball is one that clients can use; where its name leaves that open,
/// it must be seen to be one.
fn look_inside(
    anchor: &Anchor,
    directory: &str,
    found: &FoundFile,
    doubtful: bool,
    go_on: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let path = join(directory, &found.name);
    let file = open(anchor, &path, found)?;
    let inside = unified::look(&file, go_on).map_err(|err| failure(&path, &err))?;
    // Then it means nothing.
    if !go_on() {
        return Err(Failure::Stopped);
    }
    let problem = |path: &str, reason, remedy| {
        Err(Failure::Broken(Problem::new(Path::new(path), reason, remedy)))
    };
    match inside {
        Inside::Container => Ok(()),
        Inside::VirtualMachine => problem(
            &path,
            "it is a virtual machine in one tarball, which clients before Incus 7.1 take for a \
             container",
            "split it into metadata and disk.qcow2",
        ),
        Inside::Unknown if !doubtful => Ok(()),
        Inside::NoRoot if !doubtful => {
            problem(&path, "there is no root in it", "pack rootfs/ beside metadata.yaml")
        }
        Inside::NoRoot | Inside::Unknown => problem(
            directory,
            "the version holds no root",
            "add rootfs.squashfs, rootfs.tar.xz or disk.qcow2",
        ),
    }
}

/// The content of a file of at most `limit` bytes, or the problem that keeps it from being read.
///
/// # Errors
///
/// `Ok(None)` if it is not the file with `stamp` any more, or could not be read just now; an error if
/// it went away.
pub fn small_file(
    tree: &Tree,
    path: &str,
    stamp: &Stamp,
    limit: u64,
) -> io::Result<Option<Result<Vec<u8>, Problem>>> {
    if stamp.size > limit {
        return Ok(Some(Err(Problem::new(
            Path::new(path),
            format!("it has {} bytes, more than the {limit} that are read", stamp.size),
            "replace it by a smaller one",
        ))));
    }
    let read = || -> io::Result<Option<Vec<u8>>> {
        let Some(file) = tree.open(path, stamp)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        (&file).take(limit).read_to_end(&mut content)?;
        Ok((Stamp::of(&file.metadata()?) == *stamp).then_some(content))
    };
    match read() {
        Ok(content) => Ok(content.map(Ok)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Err(err),
        Err(err) if is_passing(&err) => Ok(None),
        Err(err) => Ok(Some(Err(unreadable(path, &err)))),
    }
}

fn open(anchor: &Anchor, path: &str, found: &FoundFile) -> Result<File, Failure> {
    let file = anchor.open(path, &found.stamp);
    file.map_err(|err| failure(path, &err))?.ok_or(Failure::Changed)
}

fn failure(path: &str, err: &io::Error) -> Failure {
    match err.kind() {
        io::ErrorKind::NotFound => Failure::Changed,
        // It says nothing about the file, and the next look tries again.
        _ if is_passing(err) => Failure::Changed,
        _ => Failure::Broken(unreadable(path, err)),
    }
}

fn read_all(version: &Version<'_>, buffer: &mut Buffer) -> Verified {
    let mut findings = Findings::default();
    for round in ROUNDS {
        for reading in round(&findings, version.plan) {
            let lanes = read(version, reading.file, reading.lanes.clone(), buffer)?;
            let digests = lanes.iter().cloned().map(Lane::finish).collect();
            findings.add(version, &reading, lanes, digests);
        }
    }
    Ok(findings.hashes)
}

/// Feeds the file to every lane, and makes sure that it is whole and was not touched meanwhile.
fn read(
    version: &Version<'_>,
    found: &FoundFile,
    mut lanes: Vec<Lane>,
    buffer: &mut Buffer,
) -> Result<Vec<Lane>, Failure> {
    let path = join(version.path, &found.name);
    let size = found.stamp.size;
    if size <= CHUNK as u64 {
        buffer.clear();
        let content = take_in(version, &path, found, buffer)?;
        sha256::update(&mut lanes, buffer.get(&content));
    } else {
        let file = Arc::new(open(&version.anchor, &path, found)?);
        // Before anything is read of it, for that would show.
        let source = Source::new(Arc::clone(&file), size);
        check(version, &path, &*file, size)?;
        let fed = feed(source, size, lanes, version.context);
        let (length, fed) = fed.map_err(|err| failure(&path, &err))?.ok_or(Failure::Stopped)?;
        if length != size {
            return Err(Failure::Changed);
        }
        lanes = fed;
    }
    version.stands(&path, found)?;
    Ok(lanes)
}

/// Reads a small file at once, behind what is in `buffer`, and makes sure that it is whole.
fn take_in(
    version: &Version<'_>,
    path: &str,
    found: &FoundFile,
    buffer: &mut Buffer,
) -> Result<Range<usize>, Failure> {
    let file = open(&version.anchor, path, found)?;
    let size = found.stamp.size;
    let read = buffer.read(&file, size as usize).map_err(|err| failure(path, &err))?;
    let content = read.ok_or(Failure::Changed)?;
    check(version, path, buffer.get(&content), size)?;
    version.context.bytes.fetch_add(size, Ordering::Relaxed);
    Ok(content)
}

/// Makes sure that a file is whole.
fn check<C: whole::Content + ?Sized>(
    version: &Version<'_>,
    path: &str,
    content: &C,
    size: u64,
) -> Result<(), Failure> {
    let go_on = version.context.go_on;
    let whole = whole::check(content, size, go_on).map_err(|err| failure(path, &err))?;
    if let Err(whole::CutShort(reason)) = whole {
        return Err(Failure::Broken(Problem::new(Path::new(path), reason, "upload it again")));
    }
    // What was not looked at to its end is not known to be whole.
    if go_on() { Ok(()) } else { Err(Failure::Stopped) }
}

/// Reads to the end, with whoever wants to help; `None` if told to stop.
fn feed(
    source: Source,
    size: u64,
    lanes: Vec<Lane>,
    context: Context<'_>,
) -> io::Result<Option<(u64, Vec<Lane>)>> {
    let crew = Arc::new(Crew::new(source, size, lanes));
    (context.begins)(&crew);
    let go_on = |crew: &Crew| {
        (context.between)(crew);
        (context.go_on)()
    };
    let count = |bytes| {
        context.bytes.fetch_add(bytes, Ordering::Relaxed);
    };
    crew.work(&go_on, &count)
}

#[cfg(test)]
mod tests;
