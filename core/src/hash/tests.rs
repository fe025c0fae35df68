use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use super::*;
use crate::{entry, scan};

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

    /// Hashes the version at [`VERSION`] as it is now, with `between` between two chunks.
    fn hash(&self, stop: bool, between: &dyn Fn(&Crew)) -> Outcome {
        let files = scan::files(&self.tree.anchor().unwrap(), VERSION, None).unwrap();
        let (plan, _) = entry::plan(VERSION, &files.images);
        let (cache, bytes) = (HashCache::default(), AtomicU64::new(0));
        let context = Context {
            cache: &cache,
            attempt: &Attempt::begin(),
            go_on: &|| !stop,
            bytes: &bytes,
            seen_to: false,
            begins: &|_| {},
            between,
        };
        let (tree, plan) = (Place::Tree(self.tree.clone()), plan.unwrap());
        hash(Order { tree: &tree, path: VERSION, plan: &plan, context }, &mut Buffer::default())
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
