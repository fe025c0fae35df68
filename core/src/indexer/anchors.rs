//! The root and the streams' directories: whether they are there, and still the same ones.
//!
//! A disk that is unmounted leaves an empty directory behind, and no event for most of what was on
//! it. An empty index would make clients believe that every image was withdrawn, so a tree that
//! vanished in this way stays listed for [`GRACE`], and the log says so. Deleting images, a whole
//! stream even, is something else, and takes effect at once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Problem;
use crate::tree::Tree;

/// How long a tree that vanished stays listed: as long as the clients' daemons believe an index
/// they have fetched (`CLIENTS.md`, "HTTP as sent").
pub(crate) const GRACE: Duration = Duration::from_secs(3600);

/// How often the anchors are looked at. No event tells that something was mounted over the root,
/// or that a missing root appeared.
const INTERVAL: Duration = Duration::from_secs(1);

/// Device and inode.
type Identity = (u64, u64);

#[derive(Debug)]
pub(super) struct Anchors {
    root: Option<Identity>,
    streams: BTreeMap<String, Option<Identity>>,
    /// Streams that stay listed although they vanished, until when.
    frozen: BTreeMap<String, Instant>,
    next: Instant,
}

impl Anchors {
    pub(super) fn new(streams: &[String]) -> Self {
        let streams = streams.iter().map(|stream| (stream.clone(), None)).collect();
        Self { root: None, streams, frozen: BTreeMap::new(), next: Instant::now() }
    }

    /// When to look again.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    pub(super) fn due(&self, now: Instant) -> bool {
        self.next <= now
    }

    /// Something happened that makes a look worth while at once.
    pub(super) fn doubt(&mut self) {
        self.next = Instant::now();
    }

    /// Whether nothing of the stream may be unlisted because it was not found.
    pub(super) fn is_frozen(&self, stream: &str) -> bool {
        self.frozen.contains_key(stream)
    }

    pub(super) fn root_missing(&self) -> bool {
        self.root.is_none()
    }

    /// Looks at root and streams; says whether everything has to be looked at again.
    pub(super) fn check(&mut self, tree: &Tree) -> bool {
        let now = Instant::now();
        self.next = now + INTERVAL;
        let root = identity(tree.root());
        let mut changed = root != self.root;
        // What is unmounted from the root leaves the directory that it was mounted on.
        let replaced = changed && self.root.is_some();
        for (stream, before) in &mut self.streams {
            let path = tree.absolute(stream);
            let after = identity(&path);
            if after != *before {
                changed = true;
                // Where the root is still the same and a stream is not there, somebody removed it.
                let vanished = match (before.as_ref(), after.as_ref()) {
                    (Some(_), None) => replaced,
                    (Some(before), Some(after)) => {
                        (replaced || before.0 != after.0) && is_empty(&path)
                    }
                    (None, _) => false,
                };
                if vanished {
                    log::error!(
                        "\"{}\" vanished, it was probably unmounted; what was listed stays listed \
                         for {} minutes unless it comes back",
                        path.display(),
                        GRACE.as_secs() / 60
                    );
                    self.frozen.insert(stream.clone(), now + GRACE);
                } else if after.is_some() && self.frozen.remove(stream).is_some() {
                    log::warn!("\"{}\" is back", path.display());
                }
                *before = after;
            }
        }
        self.root = root;
        let frozen = self.frozen.len();
        self.frozen.retain(|stream, until| {
            if *until <= now {
                log::error!(
                    "\"{}\" did not come back, unlisting it",
                    tree.absolute(stream).display()
                );
            }
            *until > now
        });
        changed || self.frozen.len() < frozen
    }

    /// What is wrong with root and streams; `is_empty` tells whether a stream has no version.
    pub(super) fn problems(&self, tree: &Tree, is_empty: impl Fn(&str) -> bool) -> Vec<Problem> {
        if self.root.is_none() {
            return vec![Problem::new(
                tree.root(),
                "the root is missing, or no directory that can be entered",
                "create or mount it, and let the user of the server's worker processes read it",
            )];
        }
        let problem = |stream: &str, reason, remedy: &str| {
            Some(Problem::new(Path::new(stream), reason, remedy))
        };
        let of_stream = |(stream, identity): (&String, &Option<Identity>)| {
            if self.is_frozen(stream) {
                let reason = "the stream vanished; it stays listed for an hour";
                problem(stream, reason, "mount it again")
            } else if identity.is_none() {
                let reason = "the stream's directory is missing; its list is empty";
                problem(stream, reason, "create it")
            } else if is_empty(stream) {
                let reason = "the stream holds no version; its list is empty";
                problem(
                    stream,
                    reason,
                    "add os/release/architecture/variant/YYYYMMDD with an image",
                )
            } else {
                None
            }
        };
        self.streams.iter().filter_map(of_stream).collect()
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let meta = fs::metadata(path).ok().filter(fs::Metadata::is_dir)?;
    Some((meta.dev(), meta.ino()))
}

fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
