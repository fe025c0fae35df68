//! Has nginx's module hash a tree anew, where it serves the same one.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use simplestreams::state;

/// How often it is looked whether it is done.
const TICK: Duration = Duration::from_millis(100);

/// How long nobody may build an index until it is given up: a reload of nginx, or a builder that was
/// killed, makes a pause of a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the module was asked for.
pub struct Asked<'a> {
    state_dir: &'a Path,
    ids: Vec<String>,
    root: PathBuf,
}

/// Asks for each index of `root` that is built in `state_dir`. A host without the module has nothing
/// there, and nothing is said of it; trouble is, but it is no reason not to make index files.
pub fn ask<'a>(state_dir: &'a Path, root: &Path) -> Asked<'a> {
    let shown = state_dir.display();
    let mut ids = state::find(state_dir, root).unwrap_or_else(|err| {
        match err.kind() {
            io::ErrorKind::NotFound => log::debug!("no state of an nginx module in \"{shown}\""),
            // Only the module makes this directory.
            io::ErrorKind::PermissionDenied => log::info!(
                "cannot look into \"{shown}\" ({err}): only root and nginx's user can have nginx's \
                 module hash the tree anew"
            ),
            _ => log::warn!("cannot look into \"{shown}\" ({err})"),
        }
        Vec::new()
    });
    if ids.is_empty() {
        log::debug!("no nginx module with its state in \"{shown}\" serves this tree");
    }
    ids.retain(|id| match state::request_rehash(state_dir, id) {
        Ok(()) => true,
        Err(err) => {
            log::warn!("cannot ask nginx's module to hash the tree anew in \"{shown}\" ({err})");
            false
        }
    });
    if !ids.is_empty() {
        log::info!("nginx's module hashes \"{}\" anew, too", root.display());
    }
    Asked { state_dir, ids, root: root.to_owned() }
}

impl Asked<'_> {
    /// Waits until the generations that follow are served.
    pub fn wait(self) {
        for id in &self.ids {
            if self.wait_for(id) {
                log::info!("nginx's module serves what \"{}\" has now", self.root.display());
            } else {
                log::warn!(
                    "nginx's module has stopped; it hashes \"{}\" anew when it is started again",
                    self.root.display()
                );
            }
        }
    }

    fn wait_for(&self, id: &str) -> bool {
        let mut gone: Option<Instant> = None;
        while state::is_rehashing(self.state_dir, id) {
            if state::is_built(self.state_dir, id).unwrap_or(false) {
                gone = None;
            } else if gone.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                return false;
            }
            thread::sleep(TICK);
        }
        true
    }
}
