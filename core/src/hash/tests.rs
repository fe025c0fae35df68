use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

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
        stop: bool,
        between: &dyn Fn(&Crew),
        hash: impl FnOnce(&[Order<'_>]) -> T,
    ) -> T {
        let (cache, bytes) = (HashCache::default(), AtomicU64::new(0));
        let tree = Place::Tree(self.tree.clone());
        let (attempt, go_on) = (Attempt::begin(), || !stop);
        let context = Context {
            cache: &cache,
            attempt: &attempt,
            go_on: &go_on,
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
        self.order(&of, stop, between, |orders| hash(orders[0], &mut Buffer::default()))
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

/// Versions of every size, some of which cannot be listed, come to what each of them comes to by itself.
#[test]
fn small_versions_together_are_what_each_is_alone() {
    let site = Site::new();
    let mut paths: Vec<String> =
        (0..MOST).map(|n| format!("images/a/{n}/amd64/default/20240101")).collect();
    for (n, path) in paths.iter().enumerate() {
        site.version(path, "disk.qcow2", &vec![n as u8; n * n * 501]);
    }
    let at = |n: usize, name: &str| site.dir.path().join(&paths[n]).join(name);
    // Two metadata make three lanes, and equal ones two.
    fs::write(at(3, "incus.tar.xz"), "another metadata").unwrap();
    fs::write(at(4, "incus.tar.xz"), "metadata").unwrap();
    // More than one root.
    fs::write(at(5, "rootfs.squashfs"), "a root").unwrap();
    // One that is cut short: a gzip that ends within its stream.
    fs::write(at(6, "rootfs.squashfs"), b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc").unwrap();
    // A promise that is broken, and one that is kept.
    for (n, root) in [(7, vec![0; 7 * 7 * 501]), (8, vec![8; 8 * 8 * 501])] {
        let (metadata, root) = (Digest::of(b"metadata"), Digest::of(&root));
        let promise = format!("{metadata}  lxd.tar.xz\n{root}  disk.qcow2\n");
        fs::write(at(n, "SHA256SUMS"), promise).unwrap();
    }
    let plans: Vec<_> = paths.drain(..).map(|path| (site.plan(&path), path)).collect();
    let of: Vec<_> = plans.iter().map(|(plan, path)| (&**path, plan.clone())).collect();
    assert!(of.iter().all(|(_, plan)| is_small(plan)));
    // Changed after it was looked at, and gone.
    for (n, change) in [(9, Some("another root")), (10, None)] {
        let disk = site.dir.path().join(of[n].0).join("disk.qcow2");
        match change {
            Some(content) => fs::write(disk, content).unwrap(),
            None => fs::remove_file(disk).unwrap(),
        }
    }
    // Each with a cache of its own.
    let mut buffer = Buffer::default();
    let mut one = |orders: &[Order<'_>]| hash(orders[0], &mut buffer);
    let alone: Vec<_> = of.chunks(1).map(|of| site.order(of, false, &|_| {}, &mut one)).collect();
    let together = site.order(&of, false, &|_| {}, |orders| hash_together(orders, &mut buffer));
    assert_eq!(format!("{alone:?}"), format!("{together:?}"));
    for (n, outcome) in together.iter().enumerate() {
        let is_expected = match n {
            // The first is empty.
            0 | 6 | 7 => matches!(outcome, Outcome::Broken(_)),
            9 | 10 => matches!(outcome, Outcome::Changed),
            _ => matches!(outcome, Outcome::Hashed(_)),
        };
        assert!(is_expected, "{n}: {outcome:?}");
    }
    let Outcome::Hashed(hashes) = &together[15] else { unreachable!() };
    let root = vec![15; 15 * 15 * 501];
    let combined = Digest::of(&[b"metadata", &root[..]].concat());
    assert_eq!(hashes.files.get("disk.qcow2"), Some(&Digest::of(&root)));
    assert!(hashes.pairs.values().eq([&combined]), "{hashes:?}");
    let stopped = site.order(&of, true, &|_| {}, |orders| hash_together(orders, &mut buffer));
    assert!(stopped.iter().all(|outcome| !matches!(outcome, Outcome::Hashed(_))), "{stopped:?}");
}
