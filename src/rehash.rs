//! Has nginx's module hash a tree anew, where it serves the same one.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use log::Level;
use simplestreams::state;

use crate::exit::Stop;

/// How often it is looked whether it is done.
const TICK: Duration = Duration::from_millis(100);

/// How long nobody may build an index until it is given up: a reload of nginx, or a builder that was
/// killed, makes a pause of a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where Debian's nginx has the module's state.
const STATE_DIR: &str = "/var/lib/nginx/simplestreams";

/// Below nginx's directory: where Debian's nginx lists the module when it is installed and enabled.
pub const ENABLED_MODULE: &str = "modules-enabled/50-mod-http-simplestreams.conf";

/// What the module was asked for.
pub struct Asked<'a> {
    state_dir: &'a Path,
    ids: Vec<String>,
    root: PathBuf,
}

/// Asks for each index of `root` that is built in `state_dir`. Trouble is said, but it is no reason not to
/// make index files.
///
/// # Errors
///
/// [`Exit::Usage`](crate::exit::Exit::Usage) if a directory was named that does not exist.
pub fn ask<'a>(state_dir: Option<&'a Path>, root: &Path) -> Result<Asked<'a>> {
    let named = state_dir.is_some();
    let state_dir = state_dir.unwrap_or(Path::new(STATE_DIR));
    let shown = state_dir.display();
    if named && !state_dir.is_dir() {
        return Err(Stop::usage(format!(
            "--state-dir \"{shown}\" is no directory; it is what simplestreams_state_path says"
        )));
    }
    let mut ids = find(state_dir, root, named);
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
    Ok(Asked { state_dir, ids, root: root.to_owned() })
}

/// The indexes of `root` in `state_dir`. If there are none, that is said to those who expect some: who
/// `named` the directory, and whose nginx has the module. Other hosts have nothing to do with it.
fn find(state_dir: &Path, root: &Path, named: bool) -> Vec<String> {
    let shown = state_dir.display();
    let level = match named {
        true => Level::Warn,
        false if Path::new("/etc/nginx").join(ENABLED_MODULE).exists() => Level::Info,
        false => Level::Debug,
    };
    let nobody = |why: &str| {
        log::log!(
            level,
            "{why} serves \"{}\": the index files alone are made anew (--state-dir names the \
             module's simplestreams_state_path)",
            root.display()
        );
    };
    match state::find(state_dir, root) {
        Ok(ids) => {
            if ids.is_empty() {
                nobody(&format!("no nginx module with its state in \"{shown}\""));
            }
            return ids;
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            nobody(&format!("no nginx module has its state in \"{shown}\", so none"));
        }
        // Only the module makes this directory.
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => log::log!(
            level.min(Level::Info),
            "cannot look into \"{shown}\" ({err}): only root and nginx's user can have nginx's \
             module hash the tree anew"
        ),
        Err(err) => log::warn!("cannot look into \"{shown}\" ({err})"),
    }
    Vec::new()
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
