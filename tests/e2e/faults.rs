//! What goes wrong outside of us: killed processes, a second nginx, broken trees, a slow disk.

mod cache;
mod killed;
pub(crate) mod machine;
mod observer;
mod roots;
mod state;
mod upgrade;
mod uploads;
mod watching;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::process::Signal;
use simplestreams::{Settings, Snapshot, snapshot};

use crate::harness::{Ask, Dir, metadata, signal, squashfs, until};

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
            simplestreams_rescan 100ms;
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

#[test]
fn a_killed_worker_is_replaced_by_one_that_knows_the_index() {
    let dir = with_one_version();
    let mut nginx = dir.start(CONF);
    nginx.allow("exited on signal 9");
    nginx.every_worker_lists(&[FIRST]);
    let old = nginx.workers();
    signal(old[0], Signal::KILL);
    until("a new worker", || (nginx.workers() != old).then_some(()));
    nginx.every_worker_lists(&[FIRST]);
    dir.add_image(&format!("{PRODUCT}/20260202_0000"), "second");
    nginx.every_worker_lists(&[FIRST, SECOND]);
    nginx.finish();
}

#[test]
fn a_killed_builder_is_replaced() {
    let dir = with_one_version();
    let mut nginx = dir.start(CONF);
    nginx.allow("exited on signal 9");
    nginx.every_worker_lists(&[FIRST]);
    for round in 0..3 {
        let old = nginx.helper();
        signal(old, Signal::KILL);
        // What changes while nobody looks is found by the next one.
        let version = format!("2026020{}_0000", round + 1);
        let name = format!("os:1:amd64:default {version}");
        dir.add_image(&format!("{PRODUCT}/{version}"), &version);
        nginx.every_worker_lists(&[FIRST, &name]);
        assert_ne!(nginx.helper(), old);
        fs::remove_dir_all(dir.tree().join(PRODUCT).join(&version)).expect("rm -r");
        nginx.every_worker_lists(&[FIRST]);
    }
    nginx.finish();
}

/// As during a binary upgrade: both serve, one builds, the other takes over.
#[test]
fn two_servers_share_a_state_directory() {
    let dir = with_one_version();
    let first = dir.start(CONF);
    first.every_worker_lists(&[FIRST]);

    let beside = Dir::new();
    let second = beside.start(
        &CONF
            .replace("@HTTP_GLOBALS@", &http_globals(&dir))
            .replace("@TREE@", &dir.tree().display().to_string()),
    );
    // At once: what was published is theirs as well.
    assert_eq!(Ask::get("/streams/v1/images.json").of(&second).versions(), [FIRST]);
    until("it waits for its turn", || {
        second.error_log().contains("another process builds the index").then_some(())
    });
    dir.add_image(&format!("{PRODUCT}/20260202_0000"), "second");
    for nginx in [&first, &second] {
        nginx.every_worker_lists(&[FIRST, SECOND]);
    }
    first.finish();
    fs::remove_dir_all(dir.tree().join(PRODUCT).join("20260101_0000")).expect("rm -r");
    second.every_worker_lists(&[SECOND]);
    second.finish();
}

/// Temporary directories of the server's own, and the state of `dir`.
pub(crate) fn http_globals(dir: &Dir) -> String {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|of| format!("{of}_temp_path @DIR@/temp-{of};\n    "))
        .concat();
    format!("{temporary}simplestreams_state_path {};", dir.state().display())
}

/// Each is reported with its path, once however often the tree is looked at, and hides nothing else.
#[test]
fn bad_images_are_reported_and_everything_else_is_served() {
    let dir = with_one_version();
    let version = |name: &str| format!("images/{name}/1/amd64/default/20260202_0000");
    dir.add_file(&format!("{}/lxd.tar.xz", version("noroot")), metadata());
    dir.add_file(&format!("{}/rootfs.squashfs", version("nometadata")), &squashfs("x"));
    dir.add_image("images/nodate/1/amd64/default/latest", "nodate");
    dir.add_image("images/noarch/1/z80/default/20260202_0000", "noarch");
    dir.add_image(&version("com,ma"), "comma");
    dir.add_image(&version("co:lon"), "colon");
    dir.add_image(&version("per%cent"), "percent");
    dir.add_image(&version("con\u{1b}[31mtrol\n"), "control");
    dir.add_image(&version("truncated"), "truncated");
    let root = dir.tree().join(version("truncated")).join("rootfs.squashfs");
    fs::write(&root, &squashfs("truncated")[..100]).expect("half a file");
    dir.add_image(&version("unreadable"), "unreadable");
    let root = dir.tree().join(version("unreadable")).join("rootfs.squashfs");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o000)).expect("chmod");
    dir.add_file(&format!("{}/lxd.tar.xz", version("outside")), metadata());
    let link = dir.tree().join(version("outside")).join("rootfs.squashfs");
    std::os::unix::fs::symlink("/etc/passwd", link).expect("symlink");
    let bytes = std::ffi::OsStr::from_bytes(b"invalid\xff");
    fs::create_dir(dir.tree().join("images").join(bytes)).expect("directory");

    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[FIRST]);
    let bad = [
        "noroot",
        "nometadata",
        "nodate",
        "noarch",
        "com,ma",
        "co:lon",
        "per%cent",
        "trol",
        "truncated",
        "unreadable",
        "outside",
        "invalid",
    ];
    let reports = |name: &str| {
        let log = nginx.error_log();
        let lines = log.lines().filter_map(|line| Some(line.split_once("simplestreams: in ")?.1));
        lines.filter(|line| line.contains(name)).map(str::to_owned).collect::<Vec<_>>()
    };
    for name in bad {
        until(name, || (!reports(name).is_empty()).then_some(()));
    }
    let log = nginx.error_log();
    let control = |c: char| c.is_control() && c != '\n';
    assert!(!log.contains(control), "{log:?}");
    assert!(log.lines().all(|line| line.starts_with("20")), "every line has a date: {log}");
    // Generations later it is still one line each.
    for round in 0..3 {
        let path = format!("{PRODUCT}/2026030{}_0000", round + 1);
        dir.add_image(&path, &path);
        nginx.at_every_worker("/streams/v1/images.json", |a| a.versions().len() == round + 2);
    }
    for name in bad {
        let reports = reports(name);
        let distinct: BTreeSet<&String> = reports.iter().collect();
        assert_eq!(reports.len(), distinct.len(), "{name}: {reports:#?}");
    }
    nginx.finish();
}

/// More than a disk gives in a moment: the builder is in the middle of it when it is told to go.
#[test]
fn a_server_stops_in_the_middle_of_hashing() {
    let dir = with_one_version();
    let version = dir.tree().join("images/large/1/amd64/default/20260202_0000");
    fs::create_dir_all(&version).expect("version");
    fs::write(version.join("lxd.tar.xz"), metadata()).expect("metadata");
    // Sparse: takes long to hash, but no room.
    let disk = fs::File::create(version.join("disk.qcow2")).expect("disk");
    disk.set_len(1 << 39).expect("sparse");
    drop(disk);
    // One thread is busy for hours; the other hashes the small image.
    let conf = CONF.replace("access_log off;", "access_log off;\n    simplestreams_threads 2;");
    for round in 0..3 {
        let nginx = dir.start(&conf);
        nginx.every_worker_lists(&[FIRST]);
        let helper = nginx.helper();
        until("it is hashing", || {
            helper.descriptors().iter().any(|file| file.contains("disk.qcow2")).then_some(())
        });
        if round == 0 {
            nginx.reload();
            until("the old helper is gone", || (nginx.helper() != helper).then_some(()));
        }
        if round == 1 {
            nginx.stop();
        } else {
            nginx.finish();
        }
    }
}

/// What cannot be kept on disk is served all the same, and kept as soon as there is room.
#[test]
fn a_full_disk_does_not_stop_the_index() {
    let dir = with_one_version();
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[FIRST]);
    let blocked = block(&dir);
    dir.add_image(&format!("{PRODUCT}/20260202_0000"), "second");
    nginx.every_worker_lists(&[FIRST, SECOND]);
    until("it is reported", || nginx.error_log().contains("cannot write snapshot").then_some(()));
    fs::remove_dir_all(blocked).expect("room");
    let settings = Settings { rescan: Duration::from_millis(100), ..Settings::new(dir.tree()) };
    let path = snapshot::path(&dir.state(), &settings.id());
    until("it is on disk", || (Snapshot::open(&path).ok()?.counts().versions == 2).then_some(()));
    nginx.finish();
}

/// Puts a directory where the builder writes the next generation.
fn block(dir: &Dir) -> std::path::PathBuf {
    let snapshot = until("a snapshot", || {
        let names = fs::read_dir(dir.state()).expect("state directory").flatten();
        let mut paths = names.map(|entry| entry.path());
        paths.find(|path| path.extension().is_some_and(|e| e == "snapshot"))
    });
    let mut beside = snapshot.into_os_string();
    beside.push(".new");
    let beside = std::path::PathBuf::from(beside);
    // Not while the builder is writing there.
    until("the way is free", || fs::create_dir_all(beside.join("in the way")).ok());
    beside
}
