//! The files of one version.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::{FoundFile, irregular, outside, unreadable};
use crate::Problem;
use crate::kind::Kind;
use crate::name::{BadName, check_path_component};
use crate::recall::{Mark, Recall, Role};
use crate::tree::{Anchor, Entry, Plain, is_passing, join};

/// Most files of a known kind that one version may hold. Real ones have a dozen, deltas included;
/// the bound keeps a directory with a million of them from filling the memory.
const MAX_FILES: usize = 1000;

/// How long the files of a version may be together, in bytes: 1 TiB, more than clients have room for. A
/// sparse file can claim eight million times as much, and hashing it would keep others from their turn
/// for years.
const MAX_SIZE: u64 = 1 << 40;

/// What [`files`] found in the directory of a version.
#[derive(Debug, Default)]
pub struct Files {
    /// Files that are listed, or that a promise is about.
    pub images: Vec<Arc<FoundFile>>,
    /// Files of overrides.
    pub overrides: Vec<FoundFile>,
    /// What is wrong with others.
    pub problems: Vec<Problem>,
    /// By what the directory is to be remembered, if it may be.
    pub mark: Option<Mark>,
}

/// Lists the files of a version that have a known kind, sorted by name, and what is wrong with
/// others. A directory that is known by `recall` is not read.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn files(anchor: &Anchor, path: &str, recall: Option<&Recall>) -> io::Result<Files> {
    if let Some(files) = recall.and_then(|recall| recalled(anchor, path, recall)) {
        return Ok(files);
    }
    let mut files = Files::default();
    let now = SystemTime::now();
    let directory = anchor.directory(path)?;
    // Before the names: who adds one gives it another.
    let stamp = recall.map(|_| directory.stamp()).transpose()?;
    let mut names = directory.names()?;
    let mut size = 0;
    // Well-known names first, lest the bound leaves them out.
    names.sort_by_cached_key(|(name, _)| Kind::rank(&String::from_utf8_lossy(name)));
    for (name, _) in names {
        let lossy = String::from_utf8_lossy(&name);
        let kind = Kind::of(&lossy);
        if kind == Kind::Other {
            continue;
        }
        let below = join(path, &lossy);
        if files.images.len() + files.problems.len() == MAX_FILES {
            files.problems.push(Problem::new(
                Path::new(path),
                format!("the version holds more than {MAX_FILES} such files; the rest is ignored"),
                "give every image a version of its own",
            ));
            break;
        }
        if let Err(BadName { reason, remedy }) = check_path_component(&name) {
            files.problems.push(Problem::new(Path::new(&below), reason, remedy));
            continue;
        }
        match directory.entry(&lossy) {
            Ok(Entry::File { stamp, .. }) if stamp.size > MAX_SIZE - size => {
                files.problems.push(Problem::new(
                    Path::new(&below),
                    format!(
                        "it claims {} bytes, with which the version has more than 1 TiB",
                        stamp.size
                    ),
                    "replace it by an image of a sensible size",
                ));
            }
            Ok(Entry::File { stamp, links }) => {
                size += stamp.size;
                let file = FoundFile::new(lossy.into_owned(), stamp, links);
                match kind {
                    Kind::Overrides(_) => files.overrides.push(file),
                    _ => files.images.push(Arc::new(file)),
                }
            }
            Ok(Entry::Outside) => files.problems.push(outside(&below)),
            Ok(Entry::Dangling) => files.problems.push(Problem::new(
                Path::new(&below),
                "the symbolic link leads nowhere",
                "restore its target or remove it",
            )),
            Ok(Entry::Directory { .. } | Entry::Special) => files.problems.push(irregular(&below)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) if is_passing(&err) => return Err(err),
            Err(err) => files.problems.push(unreadable(&below, &err)),
        }
    }
    if let (Some(recall), Some(stamp)) = (recall, stamp)
        && files.problems.is_empty()
        && files.overrides.is_empty()
    {
        let mut names: Vec<&str> = files.images.iter().map(|file| file.name.as_str()).collect();
        names.sort_unstable();
        files.mark = recall.mark(&stamp, Role::Version, now, names.into_iter());
    }
    Ok(files)
}

/// The files of a version whose directory is as it was when an earlier process read it, and found nothing
/// but files that are listed.
fn recalled(anchor: &Anchor, path: &str, recall: &Recall) -> Option<Files> {
    let (mark, names) = recall.look(anchor, path, Role::Version)?;
    let mut files = Files { mark: Some(mark), ..Files::default() };
    let mut size: u64 = 0;
    for name in names {
        let matters = !matches!(Kind::of(name), Kind::Other | Kind::Overrides(_));
        let is_good = matters && check_path_component(name.as_bytes()).is_ok();
        // A link is looked at with more care.
        let Plain::File { stamp, links } = anchor.plain(&join(path, name)).filter(|_| is_good)?
        else {
            return None;
        };
        size = size.checked_add(stamp.size).filter(|size| *size <= MAX_SIZE)?;
        files.images.push(Arc::new(FoundFile::new(name.to_owned(), stamp, links)));
    }
    files.images.sort_by_cached_key(|file| Kind::rank(&file.name));
    (files.images.len() <= MAX_FILES).then_some(files)
}
