//! What a mirror has got, as far as this host has seen to it, over restarts: which files, and which
//! index files.
//!
//! rsync tells files apart by size and time, so it would take a file that was replaced by another one
//! of the same size and time for the same; and it cannot know which of them the mirror lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use simplestreams::Snapshot;

use crate::listing::Listing;
use crate::replace;
use crate::streams::INDEX;

/// See the module.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Where it was pushed to; a mirror that has moved has got nothing.
    target: String,
    /// sha256 of each file that was pushed, by path below the root, whether it is listed or not.
    files: BTreeMap<String, String>,
    /// Files of which a push was begun: the mirror may have them, whatever became of it.
    begun: BTreeSet<String>,
    /// The index files that were pushed last, by name.
    documents: BTreeMap<String, String>,
    #[serde(skip)]
    path: PathBuf,
}

/// What a mirror has of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Has {
    /// Another file of this name.
    Other,
    /// Nobody knows.
    Unknown,
    /// This one.
    Same,
}

impl Memory {
    /// What is remembered of the mirror `name` at `target`; nothing if that cannot be read, which
    /// costs no more than the precautions that it allows.
    pub fn load(data_dir: &Path, name: &str, target: &str) -> Self {
        let path = path(data_dir, name);
        let memory = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok())
            .filter(|memory| memory.target == target);
        Self { target: target.to_owned(), path, ..memory.unwrap_or_default() }
    }

    /// What the mirror has of the file `path` with this hash.
    pub fn has(&self, path: &str, sha256: &str) -> Has {
        match self.files.get(path) {
            None => Has::Unknown,
            Some(known) if known == sha256 => Has::Same,
            Some(_) => Has::Other,
        }
    }

    /// The files that the mirror was given, or may have been, and that are not below `root` any more.
    pub fn gone(&self, root: &Path) -> BTreeSet<String> {
        let given = self.files.keys().chain(&self.begun);
        given.filter(|path| !root.join(path).exists()).cloned().collect()
    }

    /// The files of `listing` are about to be pushed.
    pub fn begins(&mut self, listing: &Listing) {
        let files = listing.files().into_keys();
        let new = files.filter(|path| !self.files.contains_key(*path)).map(str::to_owned);
        let before = self.begun.len();
        self.begun.extend(new.collect::<Vec<_>>());
        if self.begun.len() > before {
            self.save();
        }
    }

    /// What the index files that were pushed list.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::default();
        for (name, text) in self.documents.iter().filter(|(name, _)| *name != INDEX) {
            listing.add(name, text.as_bytes());
        }
        listing
    }

    /// The files of `listing` were pushed.
    pub fn pushed_files(&mut self, listing: &Listing) {
        let files = listing.files().into_iter();
        self.files.extend(files.map(|(path, (sha256, _))| (path.to_owned(), sha256.to_owned())));
        self.begun.retain(|path| !self.files.contains_key(path));
        self.save();
    }

    /// Index files were pushed.
    pub fn pushed_index(&mut self, snapshot: &Snapshot) {
        let document = |name: &str| {
            let bytes = snapshot.document(name)?.identity.bytes;
            Some((name.to_owned(), String::from_utf8_lossy(bytes).into_owned()))
        };
        self.documents = snapshot.names().filter_map(document).collect();
        self.save();
    }

    /// These files were deleted from the mirror.
    pub fn deleted(&mut self, gone: &BTreeSet<String>) {
        self.files.retain(|path, _| !gone.contains(path));
        self.begun.retain(|path| !gone.contains(path));
        self.save();
    }

    /// It holds for this process, whether it can be written or not.
    fn save(&self) {
        let save = || {
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            replace::replace(&self.path, &serde_json::to_vec(self).map_err(io::Error::other)?)
        };
        if let Err(err) = save() {
            log::warn!("cannot write \"{}\" ({err})", self.path.display());
        }
    }
}

/// Forgets the mirror `name`.
pub fn forget(data_dir: &Path, name: &str) {
    let path = path(data_dir, name);
    match fs::remove_file(&path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            log::warn!("cannot remove \"{}\" ({err})", path.display());
        }
        _ => {}
    }
}

fn path(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join("mirrors").join(format!("{name}.json"))
}
