//! Whether a file is still being written.
//!
//! Where its writer was seen, the writer's close decides. Where nothing was seen (at start, after
//! lost events, on network file systems), the file must have been unchanged for the settle time.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use crate::scan::FoundFile;
use crate::tree::{is_below, since_epoch};
use crate::watch::What;

/// How long a writer that was seen to open a file, but not to close it, is waited for after its
/// last sign of life. Not for ever, because a few ways to make a file show no close: `link(2)` of
/// an unnamed file, `truncate(2)` by name. Far longer than any upload stalls and goes on.
pub const WRITER_PATIENCE: Duration = Duration::from_secs(600);

/// When a file can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// It can.
    Now,
    /// Not before this time, and only if nothing happens until then.
    At(Instant),
}

/// What the watcher saw of writers, by path.
#[derive(Debug, Default)]
pub struct Writers {
    /// Open for writing, with the last sign of life.
    writing: HashMap<String, Instant>,
    /// Closed, or moved into place.
    complete: HashMap<String, Instant>,
    /// Directories that were moved into place, with everything in them.
    arrived: HashMap<String, (Instant, SystemTime)>,
}

impl Writers {
    /// Takes note of what happened to `path`.
    pub fn saw(&mut self, path: &str, what: What, now: Instant, clock: SystemTime) {
        match what {
            What::Written => {
                self.complete.remove(path);
                self.writing.insert(path.to_owned(), now);
            }
            What::Closed => {
                self.writing.remove(path);
                self.complete.insert(path.to_owned(), now);
            }
            What::MovedIn => {
                self.writing.remove(path);
                self.complete.insert(path.to_owned(), now);
                self.arrived.insert(path.to_owned(), (now, clock));
            }
            What::Left => {
                self.writing.remove(path);
                self.complete.remove(path);
                self.arrived.remove(path);
            }
            What::Changed => {}
        }
    }

    /// Forgets `path` and everything below it: it went away.
    pub fn forget_below(&mut self, path: &str) {
        self.writing.retain(|known, _| !is_below(known, path));
        self.complete.retain(|known, _| !is_below(known, path));
        self.arrived.retain(|known, _| !is_below(known, path));
    }

    /// Forgets what is older than `settle`: from then on the files' own times tell as much.
    pub fn expire(&mut self, now: Instant, settle: Duration) {
        let fresh = |at: Instant| now.saturating_duration_since(at) <= settle;
        self.complete.retain(|_, at| fresh(*at));
        self.arrived.retain(|_, (at, _)| fresh(*at));
        self.writing.retain(|_, at| now.saturating_duration_since(*at) <= WRITER_PATIENCE);
    }

    /// Whether a writer was seen to open the file, and not to close it.
    pub fn is_writing(&self, path: &str) -> bool {
        self.writing.contains_key(path)
    }

    /// When the file at `path`, unchanged since `seen`, can be trusted.
    pub fn quiet(
        &self,
        path: &str,
        file: &FoundFile,
        seen: Instant,
        (now, clock): (Instant, SystemTime),
        settle: Duration,
    ) -> Quiet {
        if let Some(&sign) = self.writing.get(path)
            && file.links == 1
        {
            // A second hard link, made where we watch, looks like a creation without a close.
            let patience = sign + WRITER_PATIENCE;
            return if now >= patience { Quiet::Now } else { Quiet::At(patience) };
        }
        if self.complete.contains_key(path) {
            return Quiet::Now;
        }
        let arrived = |(directory, (_, at)): (&String, &(Instant, SystemTime))| {
            is_below(path, directory) && file.stamp.changed <= since_epoch(*at)
        };
        if self.arrived.iter().any(arrived) {
            return Quiet::Now;
        }
        // Whichever is longer ago: its last change by the clock, which a clock that jumped can put
        // into the future, or our first sight of it as it is.
        let age = u64::try_from(since_epoch(clock).saturating_sub(file.stamp.changed)).unwrap_or(0);
        let age = Duration::from_nanos(age).max(now.saturating_duration_since(seen));
        if age >= settle { Quiet::Now } else { Quiet::At(now + (settle - age)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{Kind, Root};
    use crate::tree::Stamp;

    const SETTLE: Duration = Duration::from_secs(2);
    const FILE: &str = "images/a/b/amd64/20240101/rootfs.squashfs";

    struct Scene {
        writers: Writers,
        now: Instant,
        clock: SystemTime,
    }

    impl Scene {
        fn new() -> Self {
            Self { writers: Writers::default(), now: Instant::now(), clock: SystemTime::now() }
        }

        fn saw(&mut self, path: &str, what: What) {
            self.writers.saw(path, what, self.now, self.clock);
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.clock += time;
        }

        /// Asks about a file that changed `age` ago by the clock and was first seen just now.
        fn quiet(&self, age: i64, links: u64) -> Quiet {
            let changed = since_epoch(self.clock) - age * 1_000_000_000;
            let stamp =
                Stamp { device: 1, inode: 1, size: 1, modified: changed, changed, born: None };
            let kind = Kind::Root(Root::Squashfs);
            let file = FoundFile { name: String::new(), kind, stamp, links };
            self.writers.quiet(FILE, &file, self.now, (self.now, self.clock), SETTLE)
        }
    }

    #[test]
    fn unseen_files_settle() {
        let scene = Scene::new();
        assert_eq!(scene.quiet(2, 1), Quiet::Now);
        assert_eq!(scene.quiet(1, 1), Quiet::At(scene.now + SETTLE / 2));
        assert_eq!(scene.quiet(-3600, 1), Quiet::At(scene.now + SETTLE), "a clock that jumped");
    }

    #[test]
    fn a_writer_that_stalls_is_waited_for() {
        let mut scene = Scene::new();
        scene.saw(FILE, What::Written);
        let patience = scene.now + WRITER_PATIENCE;
        scene.pass(SETTLE * 10);
        scene.writers.expire(scene.now, SETTLE);
        assert_eq!(scene.quiet(20, 1), Quiet::At(patience));
        assert_eq!(scene.quiet(20, 2), Quiet::Now, "a hard link has no writer to wait for");
        scene.saw(FILE, What::Closed);
        assert_eq!(scene.quiet(0, 1), Quiet::Now);
        scene.saw(FILE, What::Written);
        assert_ne!(scene.quiet(0, 1), Quiet::Now, "opened again");
    }

    #[test]
    fn what_is_moved_in_is_complete_with_all_below_it() {
        let mut scene = Scene::new();
        scene.saw("images/a", What::MovedIn);
        assert_eq!(scene.quiet(0, 1), Quiet::Now);
        scene.pass(SETTLE / 4);
        assert_ne!(scene.quiet(0, 1), Quiet::Now, "changed after it arrived");
        scene.writers.forget_below("images");
        assert!(scene.writers.arrived.is_empty());
    }
}
