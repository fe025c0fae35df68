//! Reloads, shutdown, one process instead of many: nothing dies, nothing is left behind.

use std::fs::{Permissions, TryLockError};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;
use simplestreams::{Settings, Snapshot, snapshot};

use crate::harness::{Ask, DEADLINE, Dir, Nginx, Process, module, signal, squashfs, until};

const CONF: &str = "
@GLOBALS@
worker_processes 4;
worker_cpu_affinity auto;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    add_header X-Worker $pid always;
    server {
        listen 127.0.0.1:@PORT@;
        root @TREE@;
        location / {
            simplestreams on;
        }
    }
}";

const VERSION: &str = "images/os/1/amd64/default/20260101_0000";
const LISTED: &str = "os:1:amd64:default 20260101_0000";

fn with_one_version() -> Dir {
    let dir = Dir::new();
    dir.add_image(VERSION, "first");
    dir
}

/// inotify instances that a process holds.
fn inotify(process: Process) -> usize {
    process.descriptors().iter().filter(|target| target.contains("inotify")).count()
}

#[track_caller]
fn until_listed(nginx: &Nginx<'_>, version: &str) {
    until(version, || {
        let answer = Ask::get("/streams/v1/images.json").of(nginx);
        (answer.status == 200 && answer.versions() == [version]).then_some(())
    });
}

/// What there is of a healthy nginx in the end: this and no more.
fn assert_tidy(nginx: &Nginx<'_>) {
    for worker in nginx.workers() {
        until("a worker has one thread of ours and one inotify instance", || {
            (worker.threads() == ["nginx", "ss-follow"] && inotify(worker) == 1).then_some(())
        });
    }
    let helper = nginx.helper();
    until("the helper's builder has one watcher", || (inotify(helper) == 1).then_some(()));
    assert_eq!(nginx.master().threads(), ["nginx"]);
    assert_eq!(inotify(nginx.master()), 0);
}

/// Fifty reloads while clients fetch index and file, and while followers are never at rest: every
/// answer is whole and right, and no thread runs on in code that is unmapped.
#[test]
fn fifty_reloads_under_load() {
    const RELOADS: usize = 50;
    let dir = with_one_version();
    let nginx = dir.start(CONF);
    until_listed(&nginx, LISTED);
    nginx.reload(); // What only the first one does shall not count.
    assert_tidy(&nginx);
    let before = nginx.master().descriptors();
    let index = Ask::get("/streams/v1/images.json").of(&nginx).body;
    let file = squashfs("first");

    let (done, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let port = nginx.port();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let file_path = format!("/{VERSION}/rootfs.squashfs");
                while !done.load(Ordering::Relaxed) {
                    for (path, body) in
                        [("/streams/v1/images.json", &index[..]), (&file_path, &file[..])]
                    {
                        let answer = Ask::get(path).try_port(port).expect("an answer");
                        assert_eq!(answer.status, 200, "{path}");
                        assert!(answer.body == body, "{path}");
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        // The same generation again and again, as a builder would announce it.
        scope.spawn(|| {
            let live = dir.state().join(format!("{}.live", Settings::new(dir.tree()).id()));
            let beside = dir.state().join("again");
            while !done.load(Ordering::Relaxed) {
                std::fs::copy(&live, &beside).expect("copy");
                std::fs::set_permissions(&beside, Permissions::from_mode(0o444)).expect("chmod");
                std::fs::rename(&beside, &live).expect("rename");
            }
        });
        // The others stop even if a reload fails.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _done = Done(&done);
        for _ in 0..RELOADS {
            nginx.reload();
        }
    });
    assert!(asked.into_inner() > RELOADS as u64, "there was load");
    assert_tidy(&nginx);
    until("the master has the descriptors that it had", || {
        (nginx.master().descriptors() == before).then_some(())
    });
    assert_eq!(nginx.error_log().matches("exited with code 0").count(), 51 * 5);
    nginx.finish();
}

/// nginx unmaps modules when it leaves. What is left of a thread's end, after it has been joined,
/// must not run into nothing.
#[test]
fn the_module_stays_mapped() {
    let output = Command::new("readelf").arg("-d").arg(module()).output().expect("readelf");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("NODELETE"), "{text}");
}

/// Signals that come faster than nginx follows.
#[test]
fn reloads_upon_reloads() {
    let dir = with_one_version();
    let nginx = dir.start(CONF);
    until_listed(&nginx, LISTED);
    for _ in 0..20 {
        let old = nginx.workers();
        signal(nginx.master(), Signal::HUP);
        // Not until the old ones are gone: only until there are new ones.
        until("new workers", || {
            nginx.workers().iter().all(|worker| !old.contains(worker)).then_some(())
        });
    }
    assert_tidy(&nginx);
    until_listed(&nginx, LISTED);
    nginx.finish();
}

#[test]
fn a_module_that_is_away_for_a_while_gives_up_its_places() {
    // Any other dynamic module of HTTP, loaded first when both are there, with a directive that keeps
    // something in its configuration.
    const OTHER: &str = "load_module /usr/lib/nginx/modules/ngx_http_geoip_module.so;\n";
    let dir = with_one_version();
    let nginx = dir.start(CONF);
    until_listed(&nginx, LISTED);
    let proxy = "http {\n    geoip_proxy 127.0.0.1;\n    geoip_proxy_recursive on;";
    let without: String = CONF
        .replace("@GLOBALS@", "daemon off;\npid @DIR@/nginx.pid;\nerror_log @DIR@/error.log info;")
        .replace("    @HTTP_GLOBALS@\n", "")
        .replace("simplestreams on;", "");
    nginx.reload_with(&without);
    nginx.reload_with(&format!("{OTHER}{}", without.replace("http {", proxy)));
    nginx.reload_with(&format!("{OTHER}{}", CONF.replace("http {", proxy)));
    until_listed(&nginx, LISTED);
    nginx.reload_with(&CONF.replace("http {", "http {\n    simplestreams_threads 1;"));
    until_listed(&nginx, LISTED);
    nginx.finish();
}

#[test]
fn a_reload_changes_what_is_served() {
    let dir = with_one_version();
    dir.add_image("../other/images/os/2/amd64/default/20260202_0000", "other");
    let nginx = dir.start(CONF);
    until_listed(&nginx, LISTED);
    nginx.reload_with(&CONF.replace("root @TREE@", "root @DIR@/other"));
    until_listed(&nginx, "os:2:amd64:default 20260202_0000");
    nginx.reload_with(&CONF.replace("simplestreams on", "simplestreams off"));
    assert_eq!(Ask::get("/streams/v1/images.json").of(&nginx).status, 404);
    until("no helper", || nginx.helpers().is_empty().then_some(()));
    // What was published last is there at once.
    nginx.reload_with(CONF);
    let answer = Ask::get("/streams/v1/images.json").of(&nginx);
    assert_eq!((answer.status, answer.versions()), (200, vec![LISTED.to_owned()]));
    nginx.finish();
}

/// A download keeps a worker for hours. It gives up what it does not need: thread and inotify.
#[test]
fn a_worker_that_leaves_follows_no_longer() {
    let dir = with_one_version();
    dir.add_file("images/large", &vec![b'x'; 64 * 1024 * 1024]);
    let nginx = dir.start(CONF);
    until_listed(&nginx, LISTED);
    let mut stream = TcpStream::connect(("127.0.0.1", nginx.port())).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    stream.write_all(&Ask::get("/images/large").bytes()).expect("request");
    let mut begun = [0; 512];
    stream.read_exact(&mut begun).expect("begin");
    let head = String::from_utf8_lossy(&begun);
    let worker = head.lines().find_map(|line| line.strip_prefix("X-Worker: ")).expect("X-Worker");
    let worker = Process(worker.parse().expect("a process id"));
    assert_eq!(worker.threads(), ["nginx", "ss-follow"]);

    signal(nginx.master(), Signal::HUP);
    until("it has no thread and no inotify instance of ours", || {
        (worker.threads() == ["nginx"] && inotify(worker) == 0).then_some(())
    });
    assert!(worker.title().is_some_and(|title| title.contains("shutting down")));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the rest of the download");
    assert!(rest.len() > 63 * 1024 * 1024, "{}", rest.len());
    nginx.finish();
}

/// Threads of ours take no signals and are bound to no CPU that only their worker is bound to.
#[test]
fn threads_are_undisturbed() {
    let dir = with_one_version();
    let nginx = dir.start(CONF);
    until_listed(&nginx, LISTED);
    let bit = |signal: Signal| 1 << (signal.as_raw() - 1);
    for process in nginx.workers().into_iter().chain([nginx.helper()]) {
        let threads = process.other_threads();
        assert!(!threads.is_empty(), "{process:?}");
        for thread in threads {
            for blocked in [Signal::HUP, Signal::QUIT, Signal::CHILD, Signal::ALARM, Signal::IO] {
                assert_ne!(thread.blocked & bit(blocked), 0, "{blocked:?} {thread:?}");
            }
            for fault in [Signal::ILL, Signal::FPE, Signal::SEGV, Signal::BUS] {
                assert_eq!(thread.blocked & bit(fault), 0, "{fault:?} {thread:?}");
            }
            assert_eq!(thread.cpus, nginx.master().cpus(), "{thread:?}");
        }
    }
    nginx.finish();
}

const SINGLE: &str = "
@GLOBALS@
master_process off;
error_log @DIR@/debug.log debug;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    server {
        listen 127.0.0.1:@PORT@;
        root @TREE@;
        location / {
            simplestreams on;
        }
    }
}";

#[test]
fn one_process_does_it_all() {
    let dir = with_one_version();
    let nginx = dir.start(SINGLE);
    until_listed(&nginx, LISTED);
    assert!(nginx.master().children().is_empty());
    std::fs::remove_dir_all(dir.tree().join("images/os")).expect("rm -r");
    until("it is not listed", || {
        Ask::get("/streams/v1/images.json").of(&nginx).versions().is_empty().then_some(())
    });
    nginx.stop();
    // And the other way to leave; what was published is there at once.
    let nginx = dir.start(SINGLE);
    assert_eq!(Ask::get("/streams/v1/images.json").of(&nginx).status, 200);
    nginx.finish();
}

/// Whether some process builds the index of these settings.
fn is_being_built(dir: &Dir, settings: &Settings) -> bool {
    let lock = dir.state().join(format!("{}.lock", settings.id()));
    match std::fs::File::open(lock).map(|lock| lock.try_lock()) {
        Ok(Err(TryLockError::WouldBlock)) => true,
        Ok(Ok(())) => false,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => false,
        other => panic!("{other:?}"),
    }
}

/// nginx's own part of such a reload leaves it without connections ("worker_connections are not
/// enough", in 1.22.1 without any module), so this looks at what the process does, and asks nothing.
#[test]
fn one_process_takes_another_configuration() {
    let dir = with_one_version();
    dir.add_image("../other/images/os/2/amd64/default/20260202_0000", "other");
    let nginx = dir.start(SINGLE);
    until_listed(&nginx, LISTED);
    let only = nginx.master();
    let (tree, other) = (Settings::new(dir.tree()), Settings::new(dir.path().join("other")));
    let reload = |conf: &str, built: Option<&Settings>| {
        nginx.write_conf(conf);
        signal(only, Signal::HUP);
        until("the index in force is built, no other is", || {
            let right = |settings| is_being_built(&dir, settings) == (built == Some(settings));
            (right(&tree) && right(&other)).then_some(())
        });
    };
    let settled = || {
        // One follower, one watcher; what is hashed once leaves nothing behind.
        let inotify = until("two inotify instances", || (inotify(only) == 2).then_some(2));
        (only.threads(), inotify)
    };
    let (to_tree, to_other) = (SINGLE, SINGLE.replace("root @TREE@", "root @DIR@/other"));
    let before = settled();
    for _ in 0..10 {
        reload(&to_other, Some(&other));
        until("as many threads as before", || (settled() == before).then_some(()));
        reload(to_tree, Some(&tree));
        until("as many threads as before", || (settled() == before).then_some(()));
    }
    let generation = |settings: &Settings| {
        let path = snapshot::path(&dir.state(), &settings.id());
        Snapshot::open(&path).expect("a snapshot").counts().versions
    };
    assert_eq!((generation(&tree), generation(&other)), (1, 1));
    // To no index at all, and back.
    reload(&SINGLE.replace("simplestreams on", "simplestreams off"), None);
    until("no thread and no watch of ours", || {
        (only.threads() == ["nginx"] && inotify(only) == 0).then_some(())
    });
    reload(to_tree, Some(&tree));
    until("as many threads as before", || (settled() == before).then_some(()));
    nginx.finish();
}
