//! Events that come too early, too many, too few, or with a clock that jumps.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;

use super::machine::skip;
use super::observer::{Finished, blob, observed};
use crate::harness::{Dir, Nginx, Process, metadata, signal, until};

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

fn add(dir: &Dir, path: &str, serial: u64) {
    dir.add_file(&format!("{path}/lxd.tar.xz"), metadata());
    dir.add_file(&format!("{path}/rootfs.squashfs"), &blob(serial, 1 << 12));
}

fn lists_all(nginx: &Nginx<'_>, versions: &[String]) {
    let mut versions: Vec<&str> = versions.iter().map(String::as_str).collect();
    versions.sort_unstable();
    nginx.every_worker_lists(&versions);
}

/// Whole trees are made faster than anybody can watch: most files are there before the watch of their
/// directory. No rescan helps.
#[test]
fn directories_that_are_made_in_a_storm_are_all_seen() {
    const THREADS: u64 = 4;
    const EACH: u64 = 40;
    let (dir, mut may) = (Dir::new(), Finished::default());
    let path = |thread: u64, number: u64| {
        format!("images/os{thread}/{number}/amd64/default/20260101_0000")
    };
    let mut listed = vec![FIRST.to_owned()];
    may.add(&format!("{PRODUCT}/20260101_0000/rootfs.squashfs"), &blob(0, 1 << 12));
    for thread in 0..THREADS {
        for number in 0..EACH {
            let root = format!("{}/rootfs.squashfs", path(thread, number));
            may.add(&root, &blob(1 + thread * EACH + number, 1 << 12));
            listed.push(format!("os{thread}:{number}:amd64:default 20260101_0000"));
        }
    }
    add(&dir, &format!("{PRODUCT}/20260101_0000"), 0);
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[FIRST]);
    observed(&nginx, &dir, &may, || {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let dir = &dir;
                scope.spawn(move || {
                    for number in 0..EACH {
                        add(dir, &path(thread, number), 1 + thread * EACH + number);
                    }
                });
            }
        });
        lists_all(&nginx, &listed);
    });
    nginx.finish();
}

/// A product and a whole operating system move inside of the tree, out of it and back, and what
/// happens in them is seen under their new names.
#[test]
fn directories_that_move_are_seen_where_they_are() {
    let dir = Dir::new();
    add(&dir, "images/a/1/amd64/default/20260101_0000", 1);
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&["a:1:amd64:default 20260101_0000"]);
    let mv = |from: &str, to: &str| {
        let to = dir.tree().join(to);
        fs::create_dir_all(to.parent().expect("in the tree")).expect("directories");
        fs::rename(dir.tree().join(from), to).expect("mv");
    };
    // Up to three names in one breath.
    mv("images/a", "images/b");
    mv("images/b/1/amd64/default", "images/b/1/amd64/cloud");
    add(&dir, "images/b/1/amd64/cloud/20260202_0000", 2);
    nginx.every_worker_lists(&["b:1:amd64:cloud 20260101_0000", "b:1:amd64:cloud 20260202_0000"]);
    mv("images/b/1/amd64/cloud/20260101_0000", "images/c/2/arm64/20260101_0000");
    nginx.every_worker_lists(&["b:1:amd64:cloud 20260202_0000", "c:2:arm64 20260101_0000"]);
    mv("images/b", "../aside");
    nginx.every_worker_lists(&["c:2:arm64 20260101_0000"]);
    // While nobody watches it.
    mv("../aside/1/amd64/cloud/20260202_0000", "../aside/1/amd64/cloud/20260303_0000");
    mv("../aside", "images/d");
    nginx.every_worker_lists(&["c:2:arm64 20260101_0000", "d:1:amd64:cloud 20260303_0000"]);
    fs::remove_dir_all(dir.tree().join("images/d/1")).expect("rm -r");
    nginx.every_worker_lists(&["c:2:arm64 20260101_0000"]);
    nginx.finish();
}

/// The reader of events is held while more of them come than the kernel keeps.
#[test]
fn events_that_were_lost_are_made_up_for() {
    let dir = Dir::new();
    add(&dir, &format!("{PRODUCT}/20260101_0000"), 1);
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[FIRST]);
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("a limit");
    let limit: usize = limit.trim().parse().expect("a number");
    let helper = nginx.helper();
    signal(helper, Signal::STOP);
    let version = dir.tree().join(PRODUCT).join("20260101_0000");
    // Two in turn: the kernel keeps equal neighbours as one. Twice as many as it keeps, for the helper
    // may take some before it stops.
    let files = ["lxd.tar.xz", "rootfs.squashfs"].map(|name| version.join(name));
    for number in 0..2 * limit {
        let mode = Permissions::from_mode(if number % 4 < 2 { 0o644 } else { 0o664 });
        fs::set_permissions(&files[number % 2], mode).expect("chmod");
    }
    // Of these nobody will tell.
    add(&dir, &format!("{PRODUCT}/20260202_0000"), 2);
    fs::remove_dir_all(&version).expect("rm -r");
    signal(helper, Signal::CONT);
    nginx.every_worker_lists(&[SECOND]);
    until("the log says so", || nginx.error_log().contains("were lost").then_some(()));
    // New directories are watched.
    add(&dir, "images/new/1/amd64/default/20260303_0000", 3);
    nginx.every_worker_lists(&["new:1:amd64:default 20260303_0000", SECOND]);
    nginx.finish();
}

/// nginx in a user namespace of its own, with limits of its own.
#[test]
fn limits_of_inotify_leave_the_rescan() {
    for (limit, number, says) in [
        ("max_inotify_watches", 12, "raise fs.inotify.max_user_watches"),
        ("max_inotify_instances", 0, "raise fs.inotify.max_user_instances"),
    ] {
        let dir = Dir::new();
        add(&dir, &format!("{PRODUCT}/20260101_0000"), 1);
        let go = dir.path().join("go");
        let made = std::process::Command::new("mkfifo").arg(&go).status().expect("mkfifo runs");
        assert!(made.success());
        // For both, so that nobody is blocked, should the other side be gone.
        let gate = fs::File::options().read(true).write(true).open(&go).expect("a FIFO");
        // The maps can only be written from outside.
        let script = format!(
            "timeout 30 head -n 1 {} > /dev/null && echo {number} > /proc/sys/user/{limit} && exec \"$@\"",
            go.display()
        );
        let unshare = ["unshare", "--user", "--keep-caps", "sh", "-c", &script, "sh"];
        let test = std::process::Command::new("unshare").args(["--user", "true"]).status();
        if !test.is_ok_and(|status| status.success()) || !rustix::process::geteuid().is_root() {
            return skip("limits_of_inotify_leave_the_rescan", "no user namespace can be made");
        }
        let own = fs::read_link("/proc/self/ns/user").expect("a namespace");
        let map = |process: Process| {
            let file = |name: &str| format!("/proc/{}/{name}", process.0);
            until("it has a namespace", || {
                (fs::read_link(file("ns/user")).ok()? != own).then_some(())
            });
            for name in ["uid_map", "gid_map"] {
                fs::write(file(name), "0 0 65536\n").expect("a map");
            }
            (&gate).write_all(b"go\n").expect("go");
        };
        let conf = CONF.replace("rescan 0", "rescan 100ms");
        let nginx = dir.start_by(&unshare, &conf, map);
        nginx.every_worker_lists(&[FIRST]);
        for number in 0..9 {
            add(&dir, &format!("images/more/{number}/amd64/default/20260101_0000"), 10 + number);
        }
        nginx.at_every_worker("/streams/v1/images.json", |answer| answer.versions().len() == 10);
        until("the log says so", || nginx.error_log().contains(says).then_some(()));
        fs::remove_dir_all(dir.tree().join("images/more")).expect("rm -r");
        nginx.every_worker_lists(&[FIRST]);
        nginx.finish();
    }
}
