//! What was pushed to a mirror last, over restarts: for files that were replaced by others of the same
//! size and time, and for index files that must not list what is about to be replaced.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use simplestreams::Snapshot;

use crate::listing::Listing;
use crate::streams::INDEX;

/// See the module.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Where it was pushed to; a mirror that has moved has got nothing.
    target: String,
    /// Documents by name.
    documents: BTreeMap<String, String>,
}

impl Memory {
    /// What is remembered of the mirror `name` at `target`; nothing if that cannot be read, which
    /// costs no more than the precautions that it allows.
    pub fn load(data_dir: &Path, name: &str, target: &str) -> Self {
        let memory = fs::read(path(data_dir, name))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok())
            .filter(|memory| memory.target == target);
        memory.unwrap_or_else(|| Self { target: target.to_owned(), documents: BTreeMap::new() })
    }

    /// What the mirror lists.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::default();
        for (name, text) in self.documents.iter().filter(|(name, _)| *name != INDEX) {
            listing.add(name, text.as_bytes());
        }
        listing
    }

    /// Remembers `snapshot`.
    ///
    /// # Errors
    ///
    /// When it cannot be written; it holds for this process all the same.
    pub fn store(&mut self, data_dir: &Path, name: &str, snapshot: &Snapshot) -> io::Result<()> {
        let document = |name: &str| {
            let bytes = snapshot.document(name)?.identity.bytes;
            Some((name.to_owned(), String::from_utf8_lossy(bytes).into_owned()))
        };
        self.documents = snapshot.names().filter_map(document).collect();
        let path = path(data_dir, name);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let beside = path.with_extension("json.new");
        fs::write(&beside, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        fs::rename(&beside, &path)
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
