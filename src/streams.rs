//! Writes an index into a directory, for web servers without the module.
//!
//! Everything new is written beside its place and synced first; only then come the renames, all in
//! a row: of each document first `NAME.gz`, which nginx's `gzip_static` sends to nearly every client,
//! then `NAME`; the products before `index.json`. So
//!
//! - a full disk, or any error while writing, leaves the old index in place, whole;
//! - `index.json` never names a list of products that is not there yet;
//! - the two variants of a document are of different generations for no longer than one rename
//!   takes, and after a crash between the two until the next start, which replaces what differs.
//!
//! What has the right bytes already is not touched.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use simplestreams::Snapshot;

use crate::replace;

/// The document that names the others.
pub const INDEX: &str = "index.json";

/// Writes every document of `snapshot`; says whether anything was to be written.
///
/// # Errors
///
/// The first error, with the file's name. Until the first rename nothing has changed.
pub fn write(dir: &Path, snapshot: &Snapshot) -> Result<bool> {
    write_files(dir, &in_order(snapshot)?)
}

/// The files of `snapshot`, in the order in which they are to appear.
///
/// # Errors
///
/// When it has no index: then there is no tree.
pub fn in_order(snapshot: &Snapshot) -> Result<Vec<(String, &[u8])>> {
    let products = snapshot.names().filter(|name| *name != INDEX);
    let mut files = Vec::new();
    for name in products.chain([INDEX]) {
        let document = snapshot.document(name).context("the directory of images is missing")?;
        files.push((format!("{name}.gz"), document.gzip.bytes));
        files.push((name.to_owned(), document.identity.bytes));
    }
    Ok(files)
}

/// Puts `files` in place, in their order; says whether any was to be written.
///
/// # Errors
///
/// As for [`write`].
pub fn write_files(dir: &Path, files: &[(String, &[u8])]) -> Result<bool> {
    let mut staged = Staged(Vec::new());
    for (name, bytes) in files {
        let path = dir.join(name);
        if is(&path, bytes) {
            continue;
        }
        let beside = replace::beside(&path);
        staged.0.push((beside.clone(), path.clone()));
        replace::stage(&beside, bytes, 0o644).with_context(|| {
            let (path, dir) = (path.display(), dir.display());
            format!("cannot write \"{path}\"; see that this user may write into \"{dir}\"")
        })?;
    }
    let any = !staged.0.is_empty();
    for (beside, path) in std::mem::take(&mut staged.0) {
        fs::rename(&beside, &path)
            .with_context(|| format!("cannot replace \"{}\"", path.display()))?;
    }
    if any {
        replace::sync_directory(dir)
            .with_context(|| format!("cannot sync \"{}\"", dir.display()))?;
    }
    Ok(any)
}

/// Files that are not in place yet; what is left of them is removed.
struct Staged(Vec<(PathBuf, PathBuf)>);

impl Drop for Staged {
    fn drop(&mut self) {
        for (beside, _) in &self.0 {
            // The error that led here is the one to report.
            drop(fs::remove_file(beside));
        }
    }
}

fn is(path: &Path, bytes: &[u8]) -> bool {
    let same_length = fs::metadata(path).is_ok_and(|meta| meta.len() == bytes.len() as u64);
    same_length && fs::read(path).is_ok_and(|there| there == bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn files_appear_whole_and_only_when_they_differ() {
        let dir = tempfile::tempdir().unwrap();
        let files = |text: &'static [u8]| [("a.json".to_owned(), text)];
        assert!(write_files(dir.path(), &files(b"one")).unwrap());
        let inode = || fs::metadata(dir.path().join("a.json")).unwrap();
        let first = inode();
        assert_eq!(first.mode() & 0o777, 0o644);
        assert!(!write_files(dir.path(), &files(b"one")).unwrap());
        assert_eq!(inode().ino(), first.ino());
        assert!(write_files(dir.path(), &files(b"two")).unwrap());
        assert_eq!(fs::read(dir.path().join("a.json")).unwrap(), b"two");
    }

    #[test]
    fn an_error_before_the_last_file_is_staged_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.json"), "old").unwrap();
        let files = [("a.json".to_owned(), &b"new"[..]), ("no/such/b.json".to_owned(), b"new")];
        assert!(write_files(dir.path(), &files).is_err());
        assert_eq!(fs::read(dir.path().join("a.json")).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside");
    }
}
