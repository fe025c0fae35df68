//! The state directory: full, closed, damaged, of another version.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use simplestreams::{Settings, Snapshot, snapshot};

use super::machine::{Mount, skip};
use crate::harness::{Ask, Dir, Nginx, until};

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
        }
    }
}";

const PRODUCT: &str = "images/os/1/amd64/default";
const FIRST: &str = "os:1:amd64:default 20260101_0000";
const SECOND: &str = "os:1:amd64:default 20260202_0000";

fn with_one_version() -> Dir {
    let dir = Dir::new();
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "first");
    dir
}

fn snapshot_file(dir: &Dir) -> PathBuf {
    snapshot::path(&dir.state(), &Settings::new(dir.tree()).id())
}

/// Versions in the snapshot file.
fn saved(dir: &Dir) -> u64 {
    Snapshot::open(&snapshot_file(dir)).map_or(0, |snapshot| snapshot.counts().versions)
}

fn until_saved(dir: &Dir, versions: u64) {
    until("it is on disk", || (saved(dir) == versions).then_some(()));
}

fn listed(nginx: &Nginx<'_>) -> Vec<String> {
    Ask::get("/streams/v1/images.json").of(nginx).versions()
}

/// Without room for a byte, everything that happens is served all the same; with room again, it is
/// kept.
#[test]
fn a_full_disk_delays_nothing() {
    let dir = with_one_version();
    fs::create_dir(dir.state()).expect("state directory");
    let disk = match Mount::tmpfs("size=1m,mode=0777", &dir.state()) {
        Ok(disk) => disk,
        Err(reason) => return skip("a_full_disk_delays_nothing", &reason),
    };
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[FIRST]);
    until_saved(&dir, 1);
    let filler = dir.state().join("filler");
    let full = fs::write(&filler, vec![b'x'; 4 << 20]).expect_err("the disk is small");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    dir.add_image(&format!("{PRODUCT}/20260202_0000"), "second");
    nginx.every_worker_lists(&[FIRST, SECOND]);
    until("it is reported", || nginx.error_log().contains("No space left").then_some(()));
    // Above all, what is withdrawn goes.
    fs::remove_dir_all(dir.tree().join(PRODUCT).join("20260101_0000")).expect("rm -r");
    nginx.every_worker_lists(&[SECOND]);
    nginx.reload();
    nginx.every_worker_lists(&[SECOND]);
    fs::remove_file(filler).expect("room");
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "first");
    until_saved(&dir, 2);
    nginx.every_worker_lists(&[FIRST, SECOND]);
    nginx.finish();
    disk.end();
}

/// Nothing can be written: not by a start, which serves what was published last, and not while it
/// runs. When it can, the next generation appears.
#[test]
fn a_state_directory_that_is_read_only() {
    let dir = with_one_version();
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[FIRST]);
    until_saved(&dir, 1);
    nginx.finish();
    let disk = match Mount::bind(&dir.state(), &dir.state()) {
        Ok(disk) => disk,
        Err(reason) => return skip("a_state_directory_that_is_read_only", &reason),
    };
    disk.change("remount,bind,ro");
    dir.add_image(&format!("{PRODUCT}/20260202_0000"), "second");
    let nginx = dir.start(CONF);
    assert_eq!(listed(&nginx), [FIRST]);
    until("it is reported", || {
        assert_eq!(listed(&nginx), [FIRST]);
        nginx.error_log().contains("Read-only file system").then_some(())
    });
    disk.change("remount,bind,rw");
    nginx.every_worker_lists(&[FIRST, SECOND]);
    until_saved(&dir, 2);

    // Closed by its mode, under those who have it open.
    fs::set_permissions(dir.state(), Permissions::from_mode(0o500)).expect("chmod");
    fs::remove_dir_all(dir.tree().join(PRODUCT).join("20260101_0000")).expect("rm -r");
    until("it is reported", || {
        let answer = Ask::get("/streams/v1/images.json").of(&nginx);
        assert_eq!(answer.status, 200);
        nginx.error_log().contains("Permission denied").then_some(())
    });
    fs::set_permissions(dir.state(), Permissions::from_mode(0o700)).expect("chmod");
    nginx.every_worker_lists(&[SECOND]);
    until_saved(&dir, 1);
    nginx.finish();
    disk.end();
}

/// Of a snapshot that is not as it was written, or that another version wrote, nothing is served;
/// the next one is there as soon as the tree has been looked at.
#[test]
fn a_snapshot_that_is_damaged_is_not_served() {
    let dir = with_one_version();
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[FIRST]);
    until_saved(&dir, 1);
    nginx.finish();
    let path = snapshot_file(&dir);
    let good = fs::read(&path).expect("snapshot");
    let flipped = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bad
    };
    let mut newer = good.clone();
    newer[8] = 200;
    let cases = [
        ("empty", Vec::new(), true),
        ("cut", good[..good.len() / 2].to_vec(), true),
        ("newer", newer, true),
        ("first byte", flipped(0), true),
        ("in the middle", flipped(good.len() / 2), true),
        ("last byte", flipped(good.len() - 1), true),
        ("as it was", good.clone(), false),
    ];
    for (case, bytes, is_bad) in cases {
        let beside = dir.path().join("beside");
        fs::write(&beside, bytes).expect("write");
        fs::set_permissions(&beside, Permissions::from_mode(0o444)).expect("chmod");
        // It is made at once and not by anybody's builder; the announcement is of one that is gone.
        fs::rename(&beside, &path).expect("rename");
        let nginx = dir.start(CONF);
        let answer = Ask::get("/streams/v1/images.json").of(&nginx);
        if answer.status == 200 {
            assert_eq!(answer.versions(), [FIRST], "{case}");
        } else {
            assert!(is_bad && answer.status == 503, "{case}: {answer:?}");
        }
        nginx.every_worker_lists(&[FIRST]);
        until_saved(&dir, 1);
        if is_bad {
            until("the log says so", || {
                nginx.error_log().contains("making a new one").then_some(())
            });
        }
        nginx.finish();
        let log = fs::read_to_string(dir.path().join("error.log")).expect("log");
        assert_eq!(log.contains("making a new one"), is_bad, "{case}: {log}");
        fs::remove_file(dir.path().join("error.log")).expect("rm");
    }
}
