//! Roots that come, go and change without a word: mounted file systems, and ones without events.

use std::fs;
use std::path::Path;

use super::machine::{Mount, skip};
use crate::harness::{Ask, Dir, Nginx, metadata, squashfs, until};

/// Events alone, but for what the test changes.
const CONF: &str = "
@GLOBALS@
worker_processes 2;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    add_header X-Worker $pid always;
    server {
        listen 127.0.0.1:@PORT@ reuseport;
        root @TREE@;
        location / {
            simplestreams on;
            simplestreams_settle 200ms;
            simplestreams_rescan 0;
        }
    }
}";

const PRODUCT: &str = "images/os/1/amd64/default";
const FIRST: &str = "os:1:amd64:default 20260101_0000";
const SECOND: &str = "os:1:amd64:default 20260202_0000";

fn add(tree: &Path, version: &str) {
    let version = tree.join(PRODUCT).join(version);
    fs::create_dir_all(&version).expect("version");
    fs::write(version.join("lxd.tar.xz"), metadata()).expect("metadata");
    fs::write(version.join("rootfs.squashfs"), squashfs(&version.display().to_string()))
        .expect("root");
}

/// Waits for a line of the log, all the while asking for an index that lists `version`.
#[track_caller]
fn until_said(nginx: &Nginx<'_>, text: &str, version: &str) {
    until(text, || {
        assert_eq!(Ask::get("/streams/v1/images.json").of(nginx).versions(), [version]);
        nginx.error_log().contains(text).then_some(())
    });
}

/// The file system of the whole tree, or of its stream, goes away and comes back. `below` is where
/// in the tree it is mounted; a directory of the same file system is told by other signs than another
/// file system is.
#[test]
fn a_tree_that_is_unmounted_stays_listed() {
    for (below, rescan) in [("", "0"), ("images", "0"), ("", "20ms")] {
        let dir = Dir::new();
        let (at, store) = (dir.tree().join(below), dir.path().join("store"));
        fs::create_dir(&store).expect("store");
        // Files stay, so that what is mounted again is what was there.
        let disk = match Mount::tmpfs("mode=0755", &store) {
            Ok(disk) => disk,
            Err(reason) => return skip("a_tree_that_is_unmounted_stays_listed", &reason),
        };
        if below.is_empty() {
            fs::remove_dir(dir.tree().join("images")).expect("an empty mount point");
        }
        let tree = if below.is_empty() { store.clone() } else { dir.path().join("other") };
        if !below.is_empty() {
            fs::create_dir(&tree).expect("other");
            std::os::unix::fs::symlink(&store, tree.join("images")).expect("link");
        }
        add(&tree, "20260101_0000");
        let mount = Mount::bind(&store, &at).expect("a tmpfs was mounted, too");
        let nginx = dir.start(&CONF.replace("rescan 0", &format!("rescan {rescan}")));
        nginx.every_worker_lists(&[FIRST]);
        mount.end();
        until_said(&nginx, "vanished, it was probably unmounted", FIRST);
        // A restart finds the mount point empty, and what was published before.
        nginx.finish();
        let nginx = dir.start(&CONF.replace("rescan 0", &format!("rescan {rescan}")));
        until_said(&nginx, "keeping that index", FIRST);
        add(&tree, "20260202_0000");
        let mount = Mount::bind(&store, &at).expect("mounted again");
        nginx.every_worker_lists(&[FIRST, SECOND]);
        // Events are there again, too; and deleting is something else.
        fs::remove_dir_all(dir.tree().join(PRODUCT).join("20260101_0000")).expect("rm -r");
        nginx.every_worker_lists(&[SECOND]);
        fs::remove_dir_all(dir.tree().join(PRODUCT)).expect("rm -r");
        nginx.every_worker_lists(&[]);
        nginx.finish();
        mount.end();
        disk.end();
    }
}

/// The same without a restart: what comes back is looked at and watched again.
#[test]
fn a_tree_that_is_mounted_again_is_watched_again() {
    let dir = Dir::new();
    let store = dir.path().join("store");
    fs::remove_dir(dir.tree().join("images")).expect("an empty mount point");
    add(&store, "20260101_0000");
    // Of the same file system as the mount point.
    let mount = match Mount::bind(&store, &dir.tree()) {
        Ok(mount) => mount,
        Err(reason) => return skip("a_tree_that_is_mounted_again_is_watched_again", &reason),
    };
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[FIRST]);
    mount.end();
    until_said(&nginx, "vanished, it was probably unmounted", FIRST);
    let mount = Mount::bind(&store, &dir.tree()).expect("mounted again");
    until_said(&nginx, "is back", FIRST);
    add(&dir.tree(), "20260202_0000");
    nginx.every_worker_lists(&[FIRST, SECOND]);
    nginx.finish();
    mount.end();
}

/// Changed beneath a FUSE mount, of which the kernel tells nobody: rescans find it, and the settle
/// time guards it.
#[test]
fn without_events_rescans_find_everything() {
    let dir = Dir::new();
    let store = dir.path().join("store");
    add(&store, "20260101_0000");
    fs::remove_dir(dir.tree().join("images")).expect("an empty mount point");
    let mount = match Mount::without_events(&store, &dir.tree()) {
        Ok(mount) => mount,
        Err(reason) => return skip("without_events_rescans_find_everything", &reason),
    };
    let nginx = dir.start(&CONF.replace("rescan 0", "rescan 100ms"));
    nginx.every_worker_lists(&[FIRST]);
    add(&store, "20260202_0000");
    nginx.every_worker_lists(&[FIRST, SECOND]);
    let root = store.join(PRODUCT).join("20260202_0000/rootfs.squashfs");
    let hash = |answer: &crate::harness::Answer| {
        let json = answer.json();
        let items = &json["products"]["os:1:amd64:default"]["versions"]["20260202_0000"]["items"];
        items["rootfs.squashfs"]["sha256"].as_str().map(str::to_owned)
    };
    let rewritten = squashfs("rewritten");
    fs::write(&root, &rewritten).expect("in place");
    let wanted = simplestreams::Digest::of(&rewritten).to_string();
    nginx.at_every_worker("/streams/v1/images.json", |answer| {
        hash(answer).as_ref() == Some(&wanted)
    });
    fs::rename(store.join(PRODUCT).join("20260101_0000"), store.join("aside")).expect("mv");
    nginx.every_worker_lists(&[SECOND]);
    nginx.finish();
    mount.end();
}
