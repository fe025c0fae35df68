//! The helper is killed at each step of its work, or the system refuses it one: what was published
//! last goes on being served, and the next generation appears without help.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use simplestreams::{Settings, snapshot};

use super::machine::{Strace, skip};
use super::observer::{Finished, blob, observed};
use crate::harness::{Ask, Dir, Nginx, Process, metadata, signal, until};

const CONF: &str = "
@GLOBALS@
worker_processes 2;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    add_header X-Worker $pid always;
    simplestreams_threads 1;
    server {
        listen 127.0.0.1:@PORT@ reuseport;
        root @TREE@;
        location / {
            simplestreams on;
            simplestreams_settle 100ms;
        }
    }
}";

const PRODUCT: &str = "images/os/1/amd64/default";
const FIRST: &str = "os:1:amd64:default 20260101_0000";

/// Read in several pieces.
const ROOT: usize = 3 << 20;

fn first() -> (Dir, Finished) {
    let (dir, mut may) = (Dir::new(), Finished::default());
    let root = blob(1, ROOT);
    may.add(&format!("{PRODUCT}/20260101_0000/rootfs.squashfs"), &root);
    add(&dir, "20260101_0000", 1);
    (dir, may)
}

fn add(dir: &Dir, version: &str, serial: u64) {
    dir.add_file(&format!("{PRODUCT}/{version}/lxd.tar.xz"), metadata());
    dir.add_file(&format!("{PRODUCT}/{version}/rootfs.squashfs"), &blob(serial, ROOT));
}

/// A file of the index in the state directory.
fn state_file(dir: &Dir, extension: &str) -> PathBuf {
    let settings =
        Settings { settle: std::time::Duration::from_millis(100), ..Settings::new(dir.tree()) };
    let snapshot = snapshot::path(&dir.state(), &settings.id());
    snapshot.with_extension(extension)
}

/// Nothing that was not finished is left behind.
#[track_caller]
fn assert_tidy(dir: &Dir) {
    until("nothing unfinished is in the state directory", || {
        let names = fs::read_dir(dir.state()).expect("state directory").flatten();
        let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.all(|name| !name.ends_with(".new")).then_some(())
    });
}

fn until_saved(dir: &Dir) {
    until("it is on disk", || state_file(dir, "snapshot").exists().then_some(()));
    assert_tidy(dir);
}

#[test]
fn a_helper_that_is_killed_at_any_step_is_replaced() {
    if let Err(reason) = Strace::is_possible() {
        return skip("a_helper_that_is_killed_at_any_step_is_replaced", &reason);
    }
    let (dir, mut may) = first();
    let root = |version: &str| format!("{PRODUCT}/{version}/rootfs.squashfs");
    // What it is about to do when it is killed, the file if it is about one, and the system call.
    let steps: [(&str, Option<PathBuf>, &str); 14] = [
        ("scan", None, "getdents64:signal=KILL:when=1"),
        ("scan, further on", None, "getdents64:signal=KILL:when=3"),
        ("watch", None, "inotify_add_watch:signal=KILL:when=1"),
        ("begin to hash", Some(PathBuf::new()), "statx:signal=KILL:when=1"),
        ("hash on", Some(PathBuf::new()), "pread64:signal=KILL:when=2"),
        ("take memory", None, "memfd_create:signal=KILL:when=1"),
        ("seal it", None, "fcntl:signal=KILL:when=1"),
        ("write where it is", Some(state_file(&dir, "live.new")), "write:signal=KILL:when=1"),
        ("announce it", Some(state_file(&dir, "live.new")), "rename:signal=KILL:when=1"),
        ("make a file", Some(state_file(&dir, "snapshot.new")), "openat:signal=KILL:when=1"),
        ("write it", Some(state_file(&dir, "snapshot.new")), "write:signal=KILL:when=1"),
        ("sync it", Some(state_file(&dir, "snapshot.new")), "fdatasync:signal=KILL:when=1"),
        ("rename it", Some(state_file(&dir, "snapshot.new")), "rename:signal=KILL:when=1"),
        ("write hashes", Some(dir.state().join("hashes.redb")), "pwrite64:signal=KILL:when=1"),
    ];
    let versions: Vec<String> =
        (0..steps.len()).map(|step| format!("202602{:02}_0000", step + 1)).collect();
    for (serial, version) in (2..).zip(&versions) {
        may.add(&root(version), &blob(serial, ROOT));
    }
    let mut nginx = dir.start(CONF);
    nginx.allow("exited on signal 9");
    nginx.every_worker_lists(&[FIRST]);
    until_saved(&dir);
    observed(&nginx, &dir, &may, || {
        for (serial, ((step, file, inject), version)) in (2..).zip(steps.iter().zip(&versions)) {
            let helper = nginx.helper();
            let call = inject.split(':').next().expect("a system call");
            let (trace, inject) = (format!("trace={call}"), format!("inject={inject}"));
            let mut args = vec!["-e", &trace, "-e", &inject];
            let file = file.as_ref().map(|file| match file.as_os_str().is_empty() {
                true => dir.tree().join(root(version)).display().to_string(),
                false => file.display().to_string(),
            });
            if let Some(file) = &file {
                args.extend(["-P", file]);
            }
            let strace = Strace::attach(helper, &args, &dir.path().join("strace.log"));
            add(&dir, version, serial);
            until(&format!("it is killed when about to {step}"), || {
                (!nginx.helpers().contains(&helper)).then_some(())
            });
            let log = strace.wait();
            assert!(log.contains(call), "{step}: {log}");
            let listed = format!("os:1:amd64:default {version}");
            nginx.every_worker_lists(&[FIRST, &listed]);
            fs::remove_dir_all(dir.tree().join(PRODUCT).join(version)).expect("rm -r");
            nginx.every_worker_lists(&[FIRST]);
            assert_tidy(&dir);
        }
    });
    assert_eq!(nginx.error_log().matches("exited on signal 9").count(), steps.len());
    nginx.finish();
}

/// Out of descriptors or memory, or a broken disk under the state: nothing is unlisted for it.
#[test]
fn what_the_system_refuses_unlists_nothing() {
    if let Err(reason) = Strace::is_possible() {
        return skip("what_the_system_refuses_unlists_nothing", &reason);
    }
    let (dir, mut may) = first();
    let refusals = [
        ("getdents64", "ENOMEM"),
        ("openat", "EMFILE"),
        ("openat", "ENFILE"),
        ("statx", "ENOMEM"),
        ("memfd_create", "ENOMEM"),
        ("inotify_add_watch", "ENOSPC"),
        ("rename", "EIO"),
        ("fdatasync", "EIO"),
        ("pwrite64", "ENOSPC"),
        ("mmap", "ENOMEM"),
    ];
    let version = |number: usize| format!("202602{:02}_0000", number + 1);
    for number in 0..refusals.len() {
        let root = format!("{PRODUCT}/{}/rootfs.squashfs", version(number));
        may.add(&root, &blob(number as u64 + 2, ROOT));
    }
    // Everything is looked at all the time, so that what cannot be seen would be unlisted.
    let conf =
        CONF.replace("settle 100ms;", "settle 100ms;\n            simplestreams_rescan 100ms;");
    let mut nginx = dir.start(&conf);
    // Without memory Rust ends the process.
    nginx.allow("exited on signal 6");
    nginx.every_worker_lists(&[FIRST]);
    observed(&nginx, &dir, &may, || {
        for (number, (call, error)) in refusals.into_iter().enumerate() {
            let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={error}"));
            let args = ["-e", &trace, "-e", &inject];
            let strace = Strace::attach(nginx.helper(), &args, &dir.path().join("strace.log"));
            add(&dir, &version(number), number as u64 + 2);
            // As long as it takes to be refused several times, or to be listed all the same.
            let refused = format!("{call}(");
            let listed = format!("os:1:amd64:default {}", version(number));
            until(&format!("{call} fails with {error}"), || {
                let versions = Ask::get("/streams/v1/images.json").of(&nginx).versions();
                assert!(versions.contains(&FIRST.to_owned()), "{call} {error}: {versions:?}");
                let count = strace.log().matches(&refused).count();
                (count >= 5 || versions.contains(&listed)).then_some(())
            });
            drop(strace);
            nginx.every_worker_lists(&[FIRST, &listed]);
            fs::remove_dir_all(dir.tree().join(PRODUCT).join(version(number))).expect("rm -r");
            nginx.every_worker_lists(&[FIRST]);
        }
    });
    nginx.finish();
}

/// A limit lowered under a running helper, as an administrator does.
#[test]
fn a_helper_without_descriptors_keeps_what_is_listed() {
    let (dir, mut may) = first();
    may.add(&format!("{PRODUCT}/20260202_0000/rootfs.squashfs"), &blob(2, ROOT));
    let conf =
        CONF.replace("settle 100ms;", "settle 100ms;\n            simplestreams_rescan 50ms;");
    let nginx = dir.start(&conf);
    nginx.every_worker_lists(&[FIRST]);
    observed(&nginx, &dir, &may, || {
        let limit = |files: &str| {
            // As the helper's user: not every root may set limits of others.
            let user: &[&str] = match rustix::process::geteuid().is_root() {
                true => &["setpriv", "--reuid=www-data", "--regid=www-data", "--clear-groups"],
                false => &["env"],
            };
            let mut prlimit = std::process::Command::new(user[0]);
            prlimit.args(&user[1..]).arg("prlimit");
            prlimit.arg(format!("--pid={}", nginx.helper().0)).arg(format!("--nofile={files}:"));
            assert!(prlimit.status().expect("prlimit runs").success());
        };
        limit("3");
        add(&dir, "20260202_0000", 2);
        until("the log says so", || {
            nginx.error_log().contains("Too many open files").then_some(())
        });
        nginx.every_worker_lists(&[FIRST]);
        limit("1024");
        nginx.every_worker_lists(&[FIRST, "os:1:amd64:default 20260202_0000"]);
    });
    nginx.finish();
}

/// Everything at once, as a machine that loses power; and again while there is much to hash.
#[test]
fn a_server_that_is_killed_starts_with_what_it_had() {
    let (dir, mut may) = first();
    let large = dir.tree().join(PRODUCT).join("20250101_0000");
    let kill = |mut nginx: Nginx<'_>| {
        let family = nginx.master().children();
        let all: Vec<Process> = [nginx.master()].into_iter().chain(family).collect();
        // The master first, or it would start the others again.
        all.iter().for_each(|process| signal(*process, Signal::KILL));
        nginx.was_killed();
        all.iter().for_each(|process| {
            until("it is gone", || process.title().is_none().then_some(()));
        });
    };
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[FIRST]);
    until_saved(&dir);
    kill(nginx);
    for round in 0..2 {
        let nginx = dir.start(CONF);
        // The first answer.
        assert_eq!(Ask::get("/streams/v1/images.json").of(&nginx).versions(), [FIRST]);
        if round == 0 {
            dir.add_file(&format!("{PRODUCT}/20250101_0000/lxd.tar.xz"), metadata());
            let root = fs::File::create(large.join("rootfs.squashfs")).expect("root");
            root.set_len(1 << 39).expect("sparse");
        }
        let helper = nginx.helper();
        until("it is hashing", || {
            let files = helper.descriptors();
            files.iter().any(|file| file.contains("20250101_0000")).then_some(())
        });
        kill(nginx);
    }
    fs::remove_dir_all(large).expect("rm -r");
    may.add(&format!("{PRODUCT}/20260202_0000/rootfs.squashfs"), &blob(2, ROOT));
    let nginx = dir.start(CONF);
    observed(&nginx, &dir, &may, || {
        add(&dir, "20260202_0000", 2);
        nginx.every_worker_lists(&[FIRST, "os:1:amd64:default 20260202_0000"]);
    });
    nginx.finish();
}
