//! Hashes the files of a version: each file alone, and each root behind each metadata, all from one
//! read.
//!
//! sha256(metadata ‖ root) needs no second read of anything: the state after the metadata's last
//! byte is both what its own hash is made of and where the root continues.

mod crew;
mod source;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::{Attempt, HashCache};
use crate::entry::{Hashes, Plan};
use crate::scan::{FoundFile, unreadable};
use crate::sha256::{self, Lane};
use crate::tree::{Anchor, Place, Stamp, Tree, is_passing, join};
use crate::unified::{self, Inside};
use crate::{Digest, Problem, sums, whole};

pub(crate) use self::crew::Crew;
use self::source::{CHUNK, Source};

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

/// Hashes the version at `path` of the tree, whose root may be open already, reading only what the cache
/// does not know, small files into `buffer`.
pub fn hash(
    tree: &Place,
    path: &str,
    plan: &Plan,
    context: Context<'_>,
    buffer: &mut Vec<u8>,
) -> Outcome {
    let anchor = match tree {
        Place::Anchor(anchor) => Ok(anchor.clone()),
        Place::Tree(tree) => tree.anchor(),
    };
    let verified = anchor
        .map_err(|err| failure(path, &err.into()))
        .and_then(|anchor| verified(&anchor, path, plan, context, buffer));
    match verified {
        Ok(hashes) => Outcome::Hashed(hashes),
        Err(Failure::Changed) => Outcome::Changed,
        Err(Failure::Broken(problem)) => Outcome::Broken(problem),
        Err(Failure::Stopped) => Outcome::Stopped,
    }
}

fn verified(
    anchor: &Anchor,
    path: &str,
    plan: &Plan,
    context: Context<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Hashes, Failure> {
    for file in plan.unified.values() {
        look_inside(anchor, path, file, plan.doubtful)?;
        if !(context.go_on)() {
            return Err(Failure::Stopped);
        }
    }
    // What does not keep a promise is not listed, and nobody would look at it again.
    let context = Context { seen_to: context.seen_to && plan.sums.is_none(), ..context };
    let hashes = match known(path, plan, context.cache) {
        Some(hashes) => hashes,
        None => read_all(anchor, path, plan, context, buffer)?,
    };
    if let Some(file) = &plan.sums {
        let tree = anchor.tree();
        let content = small_file(tree, &join(path, &file.name), &file.stamp, sums::MAX_BYTES)
            .map_err(|_| Failure::Changed)?
            .ok_or(Failure::Changed)?
            .map_err(Failure::Broken)?;
        let is_there = |name: &str| tree.absolute(&join(path, name)).exists();
        sums::check(path, &file.name, &content, &hashes.files, is_there)
            .map_err(Failure::Broken)?;
    }
    Ok(hashes)
}

/// Makes sure that a unified tarball is one that clients can use; where its name leaves that open,
/// it must be seen to be one.
fn look_inside(
    anchor: &Anchor,
    directory: &str,
    found: &FoundFile,
    doubtful: bool,
) -> Result<(), Failure> {
    let path = join(directory, &found.name);
    let file = open(anchor, &path, found)?;
    let inside = unified::look(&file).map_err(|err| failure(&path, &err))?;
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

fn read_all(
    anchor: &Anchor,
    path: &str,
    plan: &Plan,
    context: Context<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Hashes, Failure> {
    let mut hashes = Hashes::default();
    let mut states = BTreeMap::new();
    let mut alone = |file: &FoundFile| {
        let lanes = read(anchor, path, file, vec![Lane::default()], context, buffer)?;
        let lane = lanes.into_iter().next().unwrap_or_default();
        let digest = lane.clone().finish();
        context.cache.put_file(&join(path, &file.name), file, digest, context.attempt);
        hashes.files.insert(file.name.clone(), digest);
        Ok((digest, lane))
    };
    for (&client, file) in &plan.metadata {
        states.insert(client, alone(file)?);
    }
    for file in plan.unified.values().chain(plan.deltas.values()) {
        alone(file)?;
    }
    for (&root, file) in &plan.roots {
        // Equal metadata, the usual case where both files are there, needs one lane.
        let mut lanes = vec![Lane::default()];
        let mut lane_of = BTreeMap::new();
        for (metadata, state) in states.values() {
            lane_of.entry(*metadata).or_insert_with(|| {
                lanes.push(state.clone());
                lanes.len() - 1
            });
        }
        let lanes = read(anchor, path, file, lanes, context, buffer)?;
        let digests: Vec<Digest> = lanes.into_iter().map(Lane::finish).collect();
        context.cache.put_file(&join(path, &file.name), file, digests[0], context.attempt);
        hashes.files.insert(file.name.clone(), digests[0]);
        for (&client, (metadata, _)) in &states {
            let combined = digests[lane_of[metadata]];
            context.cache.put_pair(*metadata, (digests[0], file), combined, context.attempt);
            hashes.pairs.insert((client, root), combined);
        }
    }
    Ok(hashes)
}

/// What of a file is to be hashed: its bytes, or where they come from.
enum Content<'a> {
    /// One that fits is read once.
    Whole(&'a [u8]),
    Chunks(Source),
}

/// Feeds the file to every lane, and makes sure that it is whole and was not touched meanwhile.
fn read(
    anchor: &Anchor,
    directory: &str,
    found: &FoundFile,
    mut lanes: Vec<Lane>,
    context: Context<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Vec<Lane>, Failure> {
    let path = join(directory, &found.name);
    let failed = |err: io::Error| failure(&path, &err);
    let size = found.stamp.size;
    let file = Arc::new(open(anchor, &path, found)?);
    let content = if size <= CHUNK as u64 {
        Content::Whole(read_small(&file, size, buffer).map_err(failed)?.ok_or(Failure::Changed)?)
    } else {
        // Before anything is read of it, for that would show.
        Content::Chunks(Source::new(Arc::clone(&file), size))
    };
    let whole = match content {
        Content::Whole(bytes) => whole::check(bytes, size, context.go_on),
        Content::Chunks(_) => whole::check(&*file, size, context.go_on),
    };
    if let Err(whole::CutShort(reason)) = whole.map_err(failed)? {
        return Err(Failure::Broken(Problem::new(Path::new(&path), reason, "upload it again")));
    }
    // What was not looked at to its end is not known to be whole.
    if !(context.go_on)() {
        return Err(Failure::Stopped);
    }
    let fed = match content {
        Content::Whole(bytes) => {
            sha256::update(&mut lanes, bytes);
            context.bytes.fetch_add(size, Ordering::Relaxed);
            Ok(Some((size, lanes)))
        }
        Content::Chunks(source) => feed(source, size, lanes, context),
    };
    let (length, lanes) = fed.map_err(failed)?.ok_or(Failure::Stopped)?;
    // The name must still lead to this file, and the file must still be what it was. The file that was
    // opened had this stamp; whatever has it now is that file.
    let is_unchanged = || anchor.tree().stamp(&path).is_ok_and(|stamp| stamp == found.stamp);
    if length == size && (context.seen_to || is_unchanged()) {
        Ok(lanes)
    } else {
        Err(Failure::Changed)
    }
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

/// Reads the `size` bytes that a file should have into `buffer`; `None` if it has less.
fn read_small<'a>(file: &File, size: u64, buffer: &'a mut Vec<u8>) -> io::Result<Option<&'a [u8]>> {
    let size = size as usize;
    if buffer.len() < size {
        buffer.resize(size, 0);
    }
    let content = &mut buffer[..size];
    let read = whole::read_at(file, content, 0)?;
    Ok((read.len() == size).then_some(read))
}

#[cfg(test)]
mod tests;
