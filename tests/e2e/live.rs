//! What happens in the tree shows at every worker, without a reload.

use std::fs::{self, File};
use std::io::Write as _;

use simplestreams::Digest;

use crate::harness::{Answer, Ask, Dir, Nginx, metadata, squashfs, until};

/// Each worker has a socket of its own, so that the kernel spreads connections over all of them. The
/// time between two rescans is such that what shows, shows because of an event.
const CONF: &str = "
@GLOBALS@
worker_processes 4;
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
            simplestreams_rescan 1h;
        }
    }
}";

const PRODUCT: &str = "images/os/1/amd64/default";
const FIRST: &str = "os:1:amd64:default 20260101_0000";
const SECOND: &str = "os:1:amd64:default 20260202_0000";

/// A started nginx that lists one version, which was there before.
fn with_one_version(dir: &Dir) -> Nginx<'_> {
    let nginx = dir.start(CONF);
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "first");
    nginx.every_worker_lists(&[FIRST]);
    nginx
}

/// The hashes of the only squashfs that is listed for `version`.
fn hash_of_root(answer: &Answer, version: &str) -> Option<String> {
    let json = answer.json();
    let items = &json["products"]["os:1:amd64:default"]["versions"][version]["items"];
    let items = items.as_object()?;
    let mut roots = items.values().filter(|item| item["ftype"] == "squashfs");
    roots.next().and_then(|root| root["sha256"].as_str()).map(str::to_owned)
}

#[test]
fn what_is_copied_in_is_listed_and_can_be_fetched() {
    let dir = Dir::new();
    let nginx = with_one_version(&dir);
    dir.add_image(&format!("{PRODUCT}/20260202_0000"), "second");
    nginx.every_worker_lists(&[FIRST, SECOND]);
    let answer = Ask::get("/streams/v1/images.json").of(&nginx);
    assert_eq!(
        hash_of_root(&answer, "20260202_0000"),
        Some(Digest::of(&squashfs("second")).to_string())
    );
    let file = Ask::get(&format!("/{PRODUCT}/20260202_0000/rootfs.squashfs")).of(&nginx);
    assert_eq!(file.body, squashfs("second")[..]);
    nginx.finish();
}

#[test]
fn what_is_moved_in_is_listed() {
    let dir = Dir::new();
    let nginx = with_one_version(&dir);
    // A version beside the other, a whole product, and a whole operating system.
    for (from, to) in [
        ("20260202_0000", "images/os/1/amd64/default/20260202_0000"),
        ("arm64/default/20260202_0000", "images/os/1/arm64"),
        ("other/2/amd64/cloud/20260303_0000", "images/other"),
    ] {
        dir.add_image(&format!("../aside/{from}"), to);
        let from = from.split('/').next().expect("a name");
        fs::rename(dir.path().join("aside").join(from), dir.tree().join(to)).expect("mv");
    }
    nginx.every_worker_lists(&[
        FIRST,
        SECOND,
        "os:1:arm64:default 20260202_0000",
        "other:2:amd64:cloud 20260303_0000",
    ]);
    nginx.finish();
}

#[test]
fn what_is_moved_away_or_deleted_is_not_listed() {
    let dir = Dir::new();
    let nginx = with_one_version(&dir);
    dir.add_image(&format!("{PRODUCT}/20260202_0000"), "second");
    dir.add_image("images/other/2/amd64/default/20260303_0000", "other");
    nginx.every_worker_lists(&[FIRST, SECOND, "other:2:amd64:default 20260303_0000"]);

    fs::rename(dir.tree().join("images/other"), dir.path().join("other")).expect("mv");
    nginx.every_worker_lists(&[FIRST, SECOND]);

    fs::remove_dir_all(dir.tree().join(PRODUCT).join("20260101_0000")).expect("rm -r");
    nginx.every_worker_lists(&[SECOND]);

    fs::remove_file(dir.tree().join(PRODUCT).join("20260202_0000/lxd.tar.xz")).expect("rm");
    nginx.every_worker_lists(&[]);

    dir.add_file(&format!("{PRODUCT}/20260202_0000/incus.tar.xz"), metadata());
    nginx.every_worker_lists(&[SECOND]);

    fs::rename(dir.path().join("other"), dir.tree().join("images/other")).expect("mv back");
    nginx.every_worker_lists(&[SECOND, "other:2:amd64:default 20260303_0000"]);
    nginx.finish();
}

#[test]
fn a_replaced_file_gets_its_own_hash() {
    let dir = Dir::new();
    let nginx = with_one_version(&dir);
    let root = dir.tree().join(PRODUCT).join("20260101_0000/rootfs.squashfs");
    let shows = |serial: &str| {
        let hash = Digest::of(&squashfs(serial)).to_string();
        nginx.at_every_worker("/streams/v1/images.json", |answer| {
            hash_of_root(answer, "20260101_0000").as_ref() == Some(&hash)
        });
    };
    // By a rename, and in place.
    let beside = dir.path().join("beside");
    fs::write(&beside, squashfs("renamed")).expect("write");
    fs::rename(&beside, &root).expect("mv");
    shows("renamed");
    fs::write(&root, squashfs("rewritten")).expect("write");
    shows("rewritten");
    nginx.finish();
}

/// As long as a writer has the file open, whatever it has written so far is not an image, even if it
/// looks like one: here the last bytes that come are beyond the end that the superblock tells.
#[test]
fn what_is_being_written_is_never_listed() {
    let dir = Dir::new();
    let nginx = with_one_version(&dir);
    let version = dir.tree().join(PRODUCT).join("20260202_0000");
    let helper = nginx.helper();
    let watches = helper.watches();
    fs::create_dir(&version).expect("version");
    // A writer that nobody has seen begin is told by the settle time alone, which the pauses of this
    // one exceed by far.
    until("the directory is watched", || (helper.watches() == watches + 1).then_some(()));
    fs::write(version.join("lxd.tar.xz"), metadata()).expect("metadata");
    let mut file = File::create(version.join("rootfs.squashfs")).expect("root");
    let bytes = [&squashfs("slow")[..], &[0; 4096]].concat();
    for chunk in bytes.chunks(bytes.len() / 16 + 1) {
        file.write_all(chunk).expect("chunk");
        // Something else happens in the tree, so that generations are made meanwhile; the next look
        // at every worker is at one that was made after the chunk.
        let other = format!("os:1:amd64:default 20250101_{:04}", file_length(&file) % 9999);
        let path = format!("{PRODUCT}/{}", other.split(' ').nth(1).expect("a version"));
        dir.add_image(&path, &other);
        nginx.every_worker_lists(&[&other, FIRST]);
        fs::remove_dir_all(dir.tree().join(path)).expect("rm -r");
        nginx.every_worker_lists(&[FIRST]);
    }
    drop(file);
    nginx.every_worker_lists(&[FIRST, SECOND]);
    let answer = Ask::get("/streams/v1/images.json").of(&nginx);
    assert_eq!(hash_of_root(&answer, "20260202_0000"), Some(Digest::of(&bytes).to_string()));

    // A listed version that somebody begins to write to goes at once.
    let mut file =
        File::options().append(true).open(version.join("rootfs.squashfs")).expect("open");
    file.write_all(b"more").expect("append");
    nginx.every_worker_lists(&[FIRST]);
    drop(file);
    nginx.every_worker_lists(&[FIRST, SECOND]);
    nginx.finish();
}

fn file_length(file: &File) -> u64 {
    file.metadata().expect("metadata").len()
}

/// Uploads into directories that begin with a dot are invisible on every level until they are
/// renamed.
#[test]
fn what_begins_with_a_dot_is_never_listed() {
    let dir = Dir::new();
    let nginx = with_one_version(&dir);
    for hidden in [
        "images/.os/1/amd64/default/20260202_0000",
        "images/os/.1/amd64/default/20260202_0000",
        "images/os/1/amd64/default/.20260202_0000",
        ".images/os/1/amd64/default/20260202_0000",
    ] {
        dir.add_image(hidden, hidden);
    }
    dir.add_file(&format!("{PRODUCT}/20260202_0000/lxd.tar.xz"), metadata());
    dir.add_file(&format!("{PRODUCT}/20260202_0000/.rootfs.squashfs.x1Y2z3"), &squashfs("rsync"));
    // A generation that was made after all of that.
    dir.add_image(&format!("{PRODUCT}/20260303_0000"), "third");
    nginx.every_worker_lists(&[FIRST, "os:1:amd64:default 20260303_0000"]);

    let version = dir.tree().join(PRODUCT).join("20260202_0000");
    fs::rename(version.join(".rootfs.squashfs.x1Y2z3"), version.join("rootfs.squashfs"))
        .expect("what rsync does at the end");
    nginx.every_worker_lists(&[FIRST, SECOND, "os:1:amd64:default 20260303_0000"]);
    nginx.finish();
}
