//! Removes what indexes that nobody configures any more left in the state directory.
//!
//! An index is in use while a process holds its lock, and while a builder has it among its own: that
//! builder gives the lock file a new time every hour, so that a server which is down for a while
//! finds what it left. What is not in use goes [`UNUSED`] after its last sign of life. Only files
//! named as this library names them are touched.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{lock_path, try_lock};

/// How long the files of an index that nobody uses are kept.
const UNUSED: Duration = Duration::from_secs(24 * 3600);

/// How often a running builder should call [`sweep`].
pub(crate) const EVERY: Duration = Duration::from_secs(3600);

/// The last name that goes is the lock's: until then nobody else begins to build.
const LOCK: &str = "lock";

/// What follows the id in the names of an index's files.
const EXTENSIONS: [&str; 9] = [
    "snapshot",
    "snapshot.new",
    "live",
    "live.new",
    "directories",
    "directories.new",
    "rehash",
    "rehashing",
    LOCK,
];

/// Length of an id ([`Settings::id`](crate::Settings::id)).
const ID: usize = 32;

/// Marks the indexes `own` as used, and removes what was left by others long ago. What is in the way
/// is logged, and tried again the next time.
pub(crate) fn sweep(state_dir: &Path, own: &BTreeSet<String>) {
    let now = SystemTime::now();
    for id in own {
        mark(&lock_path(state_dir, id), now);
    }
    let found = match find(state_dir) {
        Ok(found) => found,
        Err(err) => return log::warn!("cannot read \"{}\" ({err})", state_dir.display()),
    };
    for (id, files) in found.into_iter().filter(|(id, _)| !own.contains(id)) {
        match remove(state_dir, &id, &files, now) {
            Ok(true) => log::info!(
                "removed what is left of index {id} in \"{}\": no configuration has it any more",
                state_dir.display()
            ),
            Ok(false) => {}
            Err(err) => log::warn!(
                "cannot remove what is left of index {id} in \"{}\" ({err})",
                state_dir.display()
            ),
        }
    }
}

/// Removes what a builder of the index `id` that was killed had not finished writing. Only for who
/// holds the lock.
pub(crate) fn remove_unfinished(state_dir: &Path, id: &str) {
    for extension in EXTENSIONS.iter().filter(|extension| extension.ends_with(".new")) {
        let path = state_dir.join(format!("{id}.{extension}"));
        match fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove \"{}\" ({err})", path.display());
            }
            _ => {}
        }
    }
}

/// Gives the file a new time. One that is not there yet, or of another user, has no need of it, or
/// gets it from its builder.
fn mark(path: &Path, now: SystemTime) {
    let marked = File::options().write(true).open(path).and_then(|file| file.set_modified(now));
    if let Err(err) = marked {
        log::debug!("cannot mark \"{}\" as used ({err})", path.display());
    }
}

/// The files of every index that has some, by its id.
fn find(state_dir: &Path) -> io::Result<BTreeMap<String, Vec<OsString>>> {
    let mut found = BTreeMap::<String, Vec<OsString>>::new();
    for entry in fs::read_dir(state_dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some((id, extension)) = name.to_str().and_then(|name| name.split_once('.')) else {
            continue;
        };
        let is_id = id.len() == ID && id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        if is_id && EXTENSIONS.contains(&extension) && entry.file_type()?.is_file() {
            found.entry(id.to_owned()).or_default().push(name);
        }
    }
    Ok(found)
}

/// Removes the files of the index `id` if it is not in use; says whether it did.
fn remove(state_dir: &Path, id: &str, files: &[OsString], now: SystemTime) -> io::Result<bool> {
    let is_old = |name: &OsString| -> io::Result<bool> {
        let modified = fs::symlink_metadata(state_dir.join(name))?.modified()?;
        // A time to come is no sign of age.
        Ok(now.duration_since(modified).is_ok_and(|age| age >= UNUSED))
    };
    for name in files {
        match is_old(name) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            // Somebody is at it.
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(err) => return Err(err),
        }
    }
    let lock = lock_path(state_dir, id);
    let Some(_lock) = try_lock(&lock)? else {
        return Ok(false);
    };
    for name in files.iter().map(|name| state_dir.join(name)).filter(|path| *path != lock) {
        fs::remove_file(name)?;
    }
    fs::remove_file(lock)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn make(dir: &Path, name: &str, age: Duration) {
        let file = File::create(dir.join(name)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_what_nobody_uses_goes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let id = |digit: &str| digit.repeat(ID);
        let old = UNUSED + Duration::from_secs(60);
        // Left long ago, with and without a lock.
        for extension in EXTENSIONS {
            make(dir, &format!("{}.{extension}", id("a")), old);
        }
        make(dir, &format!("{}.snapshot", id("b")), old);
        let gone = names(dir);
        // A builder of somebody else's, this one's own, and one that ended yesterday.
        make(dir, &format!("{}.lock", id("c")), old);
        make(dir, &format!("{}.snapshot", id("c")), old);
        let other = try_lock(&dir.join(format!("{}.lock", id("c")))).unwrap().unwrap();
        other.set_modified(SystemTime::now() - old).unwrap();
        make(dir, &format!("{}.lock", id("d")), old);
        make(dir, &format!("{}.snapshot", id("d")), old);
        make(dir, &format!("{}.snapshot", id("0")), old);
        make(dir, &format!("{}.lock", id("e")), UNUSED - Duration::from_secs(60));
        make(dir, &format!("{}.snapshot", id("e")), old);
        // Not of an index.
        for name in ["hashes.redb", "README", "a.snapshot", &format!("{}.txt", id("a"))] {
            make(dir, name, old);
        }
        make(dir, &format!("{}.snapshot", id("A")), old);
        fs::create_dir(dir.join(format!("{}.live", id("f")))).unwrap();
        let all = names(dir);

        sweep(dir, &BTreeSet::from([id("d"), id("0")]));
        let stays: Vec<_> = all.into_iter().filter(|name| !gone.contains(name)).collect();
        assert_eq!(names(dir), stays);

        // One of its own was used until now, and that of somebody else until it ends.
        drop(other);
        sweep(dir, &BTreeSet::new());
        let stays: Vec<_> = stays.into_iter().filter(|n| !n.starts_with(['0', 'c'])).collect();
        assert_eq!(names(dir), stays);
    }

    /// Who opened the lock file before it was removed must not take it for the lock.
    #[test]
    fn a_lock_that_is_removed_is_still_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = AtomicBool::new(false);
        let contend = || {
            for _ in 0..3000 {
                if let Some(lock) = try_lock(&path).unwrap() {
                    assert!(!held.swap(true, Ordering::SeqCst), "two hold it");
                    std::thread::yield_now();
                    // In this order: from the removal on, others may make the next.
                    held.store(false, Ordering::SeqCst);
                    fs::remove_file(&path).unwrap();
                    drop(lock);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(contend);
            }
        });
    }

    #[test]
    fn what_was_not_finished_goes_with_the_next_builder() {
        let dir = tempfile::tempdir().unwrap();
        let id = "0".repeat(ID);
        for extension in EXTENSIONS {
            make(dir.path(), &format!("{id}.{extension}"), Duration::ZERO);
        }
        remove_unfinished(dir.path(), &id);
        let extensions = ["directories", "live", "lock", "rehash", "rehashing", "snapshot"];
        assert_eq!(names(dir.path()), extensions.map(|extension| format!("{id}.{extension}")));
    }
}
