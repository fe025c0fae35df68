//! What is known of each mirror, in a small file that `lxd-image-server mirrors` reads.
//!
//! One process writes it, the watch. It also carries the number of the last generation over a
//! restart, so that a mirror's lag can be told in generations.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use simplestreams::Snapshot;

use super::ssh;
use crate::config::Mirror;
use crate::replace;

const FILE: &str = "mirrors.json";

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Process id of the watch that wrote this; 0 after it has ended.
    pub pid: u32,
    /// Number of the newest generation.
    pub generation: u64,
    /// What that generation consists of: entity tags of its documents.
    pub documents: Vec<String>,
    pub mirrors: BTreeMap<String, Entry>,
}

/// What is known of one mirror. Times are milliseconds since the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Where it is, as `user@host:path`.
    pub target: String,
    /// The generation that it has got, completely; 0 for none.
    pub generation: u64,
    pub last_success: Option<u64>,
    /// Since the last success.
    pub last_error: Option<String>,
    pub last_failure: Option<u64>,
    /// Tries that failed since the last success.
    pub failures: u32,
    /// Whether a push is under way.
    pub pushing: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Board {
    path: PathBuf,
    state: Mutex<State>,
}

impl Board {
    /// Goes on with what the last watch left in `data_dir`.
    pub fn open(data_dir: &Path) -> Self {
        let mut state = match read(data_dir) {
            Ok(state) => state.unwrap_or_default(),
            Err(err) => {
                log::warn!("{err}; beginning anew");
                State::default()
            }
        };
        state.pid = std::process::id();
        state.mirrors.values_mut().for_each(|entry| entry.pushing = false);
        Self { path: data_dir.join(FILE), state: Mutex::new(state) }
    }

    /// The number of a generation: one more than that of the last, unless it is the same.
    pub fn number(&self, snapshot: &Snapshot) -> u64 {
        let document = |name| Some(format!("{name} {}", snapshot.document(name)?.identity.etag));
        let documents: Vec<String> = snapshot.names().filter_map(document).collect();
        self.change(|state| {
            if state.documents != documents {
                state.documents = documents;
                state.generation += 1;
            }
            state.generation
        })
    }

    /// Forgets mirrors that are configured no more, and makes an entry for each that is. One that
    /// has moved starts anew.
    pub fn keep_only(&self, mirrors: &BTreeMap<String, Mirror>) {
        self.change(|state| {
            state.mirrors.retain(|name, _| mirrors.contains_key(name));
            for (name, mirror) in mirrors {
                let entry = state.mirrors.entry(name.clone()).or_default();
                let target = ssh::target(mirror);
                if entry.target != target {
                    *entry = Entry { target, ..Entry::default() };
                }
            }
        });
    }

    /// Changes what is known of one mirror.
    pub fn update(&self, name: &str, change: impl FnOnce(&mut Entry)) {
        self.change(|state| state.mirrors.get_mut(name).map(change));
    }

    /// The watch ends.
    pub fn close(&self) {
        self.change(|state| {
            state.pid = 0;
            state.mirrors.values_mut().for_each(|entry| entry.pushing = false);
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.clone();
        let value = change(&mut state);
        // A host without mirrors needs no such file, and may have no directory for it.
        let wanted = !state.mirrors.is_empty() || !before.mirrors.is_empty() || self.path.exists();
        if wanted && *state != before {
            // It is for people and for the next start; pushing goes on without it.
            if let Err(err) = self.save(&state) {
                log::warn!("cannot write \"{}\" ({err})", self.path.display());
            }
        }
        value
    }

    fn save(&self, state: &State) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(state).map_err(io::Error::other)?;
        replace::replace(&self.path, &text)
    }
}

/// What the watch left in `data_dir`; none if there has been none.
///
/// # Errors
///
/// When it cannot be read or understood.
pub fn read(data_dir: &Path) -> anyhow::Result<Option<State>> {
    use anyhow::Context as _;
    let path = data_dir.join(FILE);
    let what = || format!("cannot read \"{}\"", path.display());
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(what),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err).with_context(what),
    }
}

/// Milliseconds since the epoch.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
