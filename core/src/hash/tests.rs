use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use super::together::MOST;
use super::*;
use crate::{Digest, entry, scan};

const VERSION: &str = "images/a/1/amd64/default/20240101";

struct Site {
    dir: tempfile::TempDir,
    tree: Tree,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(dir.path());
        Self { dir, tree }
    }

    /// Makes a version at `path`, with this root.
    fn version(&self, path: &str, name: &str, root: &[u8]) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("lxd.tar.xz"), "metadata").unwrap();
        fs::write(path.join(name), root).unwrap();
        path
    }

    fn plan(&self, path: &str) -> Plan {
        let files = scan::files(&self.tree.anchor().unwrap(), path, None).unwrap();
        let (plan, _) = entry::plan(path, &files.images);
        plan.unwrap()
    }

    /// Has `hash` do its work on these versions, with `between` between two chunks.
    fn order<T>(
        &self,
        of: &[(&str, Plan)],
        cache: &HashCache,
        go_on: &dyn Fn() -> bool,
        between: &dyn Fn(&Crew),
        hash: impl FnOnce(&[Order<'_>]) -> T,
    ) -> T {
        let (attempt, bytes) = (Attempt::begin(), AtomicU64::new(0));
        let tree = Place::Tree(self.tree.clone());
        let context = Context {
            cache,
            attempt: &attempt,
            go_on,
            bytes: &bytes,
            seen_to: false,
            begins: &|_| {},
            between,
        };
        let order = |(path, plan)| Order { tree: &tree, path, plan, context };
        hash(&of.iter().map(|(path, plan)| order((*path, plan))).collect::<Vec<_>>())
    }

    /// Hashes the version at [`VERSION`] as it is now, with `between` between two chunks.
    fn hash(&self, stop: bool, between: &dyn Fn(&Crew)) -> Outcome {
        let of = [(VERSION, self.plan(VERSION))];
        let (cache, go_on) = (HashCache::default(), || !stop);
        self.order(&of, &cache, &go_on, between, |orders| hash(orders[0], &mut Buffer::default()))
    }
}

/// A watch tells of that too, where there are watches.
#[test]
fn a_directory_that_is_replaced_meanwhile_is_noticed() {
    let site = Site::new();
    let version = site.version(VERSION, "disk.qcow2", &vec![1; 6 << 20]);
    let other = site.version(".other", "disk.qcow2", &vec![2; 6 << 20]);
    let replaced = Cell::new(false);
    let outcome = site.hash(false, &|_| {
        if !replaced.replace(true) {
            fs::rename(&version, site.dir.path().join(".before")).unwrap();
            fs::rename(&other, &version).unwrap();
        }
    });
    assert!(replaced.get() && matches!(outcome, Outcome::Changed), "{outcome:?}");
}

/// Told to stop, it has not been looked at whether a file is whole.
#[test]
fn a_small_file_is_not_taken_for_whole_when_told_to_stop() {
    let site = Site::new();
    // A gzip that ends within its stream.
    site.version(VERSION, "rootfs.squashfs", b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc");
    let outcome = site.hash(false, &|_| {});
    assert!(matches!(outcome, Outcome::Broken(_)), "{outcome:?}");
    let outcome = site.hash(true, &|_| {});
    assert!(matches!(outcome, Outcome::Stopped), "{outcome:?}");
}

/// Versions of every size, of which some cannot be listed, and their plans.
fn small_versions(site: &Site) -> Vec<(String, Plan)> {
    let path = |n: usize| format!("images/a/{n}/amd64/default/20240101");
    for n in 0..MOST {
        // The first is empty.
        site.version(&path(n), "disk.qcow2", &vec![n as u8; n * n * 501]);
    }
    let write = |n, name: &str, content: &[u8]| {
        fs::write(site.dir.path().join(path(n)).join(name), content).unwrap();
    };
    // Two metadata make three lanes, and equal ones two.
    write(3, "incus.tar.xz", b"another metadata");
    write(4, "incus.tar.xz", b"metadata");
    // More than one root.
    write(5, "rootfs.squashfs", b"a root");
    // One that is cut short: a gzip that ends within its stream.
    write(6, "rootfs.squashfs", b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc");
    let versions: Vec<_> = (0..MOST).map(|n| (path(n), site.plan(&path(n)))).collect();
    assert!(versions.iter().all(|(_, plan)| is_small(plan)));
    // Changed after it was looked at, and gone.
    write(9, "disk.qcow2", b"another root");
    fs::remove_file(site.dir.path().join(path(10)).join("disk.qcow2")).unwrap();
    versions
}

#[test]
fn small_versions_together_are_what_each_is_alone() {
    let site = Site::new();
    let versions = small_versions(&site);
    let of: Vec<_> = versions.iter().map(|(path, plan)| (&**path, plan.clone())).collect();
    // Each with a cache of its own.
    let mut buffer = Buffer::default();
    let mut one = |orders: &[Order<'_>]| hash(orders[0], &mut buffer);
    let mut alone = |of| site.order(of, &HashCache::default(), &|| true, &|_| {}, &mut one);
    let alone: Vec<_> = of.chunks(1).map(&mut alone).collect();
    let cache = HashCache::default();
    let together = |orders: &[Order<'_>]| hash_together(orders, &mut Buffer::default());
    let outcomes = site.order(&of, &cache, &|| true, &|_| {}, together);
    assert_eq!(format!("{alone:?}"), format!("{outcomes:?}"));
    for (n, outcome) in outcomes.iter().enumerate() {
        let (path, plan) = &of[n];
        let is_expected = match n {
            0 | 6 => matches!(outcome, Outcome::Broken(_)),
            9 | 10 => matches!(outcome, Outcome::Changed),
            _ => matches!(outcome, Outcome::Hashed(_)),
        };
        assert!(is_expected, "{n}: {outcome:?}");
        match outcome {
            Outcome::Hashed(hashes) => {
                assert_eq!(cached(path, plan, &cache).as_ref(), Some(hashes))
            }
            _ => assert_eq!(cached(path, plan, &cache), None),
        }
    }
    let Outcome::Hashed(hashes) = &outcomes[15] else { unreachable!() };
    let root = vec![15; 15 * 15 * 501];
    let combined = Digest::of(&[b"metadata", &root[..]].concat());
    assert_eq!(hashes.files.get("disk.qcow2"), Some(&Digest::of(&root)));
    assert!(hashes.pairs.values().eq([&combined]), "{hashes:?}");
}

/// What takes longer than some bytes to read and hash is not among them.
#[test]
fn what_others_would_wait_for_is_not_small() {
    let site = Site::new();
    let version = site.version(VERSION, "disk.qcow2", b"a root");
    assert!(is_small(&site.plan(VERSION)));
    let not_small = |name: &str, content: &[u8]| {
        fs::write(version.join(name), content).unwrap();
        assert!(!is_small(&site.plan(VERSION)), "{name}");
        fs::remove_file(version.join(name)).unwrap();
    };
    not_small("SHA256SUMS", b"");
    not_small("incus_combined.tar.gz", b"");
    not_small("rootfs.squashfs", &vec![0; CHUNK + 1]);
    fs::hard_link(version.join("disk.qcow2"), site.dir.path().join("another name")).unwrap();
    assert!(!is_small(&site.plan(VERSION)));
}

/// Told to stop, or one that panics, in the middle: every version has one outcome.
#[test]
fn what_ends_small_versions_early_is_told_of_each() {
    let site = Site::new();
    let versions = small_versions(&site);
    let of: Vec<_> = versions.iter().map(|(path, plan)| (&**path, plan.clone())).collect();
    let count =
        |outcomes: &[Outcome], is: fn(&Outcome) -> bool| outcomes.iter().filter(|o| is(o)).count();
    let after = |calls: usize, then: &dyn Fn() -> bool| {
        let left = Cell::new(calls);
        let go_on = || left.get() == 0 && then() || left.replace(left.get().saturating_sub(1)) > 0;
        let together = |orders: &[Order<'_>]| hash_together(orders, &mut Buffer::default());
        site.order(&of, &HashCache::default(), &go_on, &|_| {}, together)
    };
    let is_stopped: fn(&Outcome) -> bool = |outcome| matches!(outcome, Outcome::Stopped);
    for calls in [0, 5, 20, 40] {
        let outcomes = after(calls, &|| false);
        assert_eq!(outcomes.len(), MOST);
        let stopped = count(&outcomes, is_stopped);
        assert!(stopped > 0 && (calls > 0 || stopped == MOST), "{calls}: {outcomes:?}");
    }
    // Each is hashed by itself then.
    let panics = Cell::new(true);
    let once = || if panics.replace(false) { panic!("on purpose") } else { true };
    let is_hashed: fn(&Outcome) -> bool = |outcome| matches!(outcome, Outcome::Hashed(_));
    let outcomes = after(20, &once);
    assert_eq!((outcomes.len(), panics.get()), (MOST, false));
    assert_eq!(count(&outcomes, is_hashed), MOST - 4, "{outcomes:?}");
    // Whichever panics again fails alone: here the first, which is broken in any case.
    let panics = Cell::new(2);
    let twice = || panics.replace(panics.get() - 1) <= 0 || panic!("on purpose");
    let outcomes = after(20, &twice);
    let is_software: fn(&Outcome) -> bool =
        |o| matches!(o, Outcome::Broken(problem) if problem.reason.contains("this software"));
    assert_eq!(count(&outcomes, is_software), 1, "{outcomes:?}");
    assert_eq!((outcomes.len(), count(&outcomes, is_hashed)), (MOST, MOST - 4), "{outcomes:?}");
}
