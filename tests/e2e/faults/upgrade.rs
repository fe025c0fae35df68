//! Another binary and another module under a server that runs, and workers that may not linger.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::process::Signal;

use crate::harness::{Ask, DEADLINE, Dir, Process, metadata, module, signal, until};

const CONF: &str = "
@GLOBALS@
worker_processes 2;
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
            simplestreams_settle 100ms;
        }
    }
}";

const PRODUCT: &str = "images/os/1/amd64/default";
const FIRST: &str = "os:1:amd64:default 20260101_0000";
const SECOND: &str = "os:1:amd64:default 20260202_0000";
const THIRD: &str = "os:1:amd64:default 20260303_0000";

fn pid_in(path: &Path) -> Option<Process> {
    fs::read_to_string(path).ok()?.trim().parse().ok().map(Process)
}

/// Ends the whole server when the test fails: a master that is a daemon is nobody's child.
struct Daemons(Vec<PathBuf>);

impl Drop for Daemons {
    fn drop(&mut self) {
        for master in self.0.iter().filter_map(|path| pid_in(path)) {
            if master.title().is_some_and(|title| title.starts_with("nginx: master")) {
                let family = master.children();
                signal(master, Signal::KILL);
                family.into_iter().for_each(|process| signal(process, Signal::KILL));
            }
        }
    }
}

fn helper_of(master: Process) -> Option<Process> {
    let is_helper = |process: &Process| {
        process.title().is_some_and(|title| title.contains("cache manager process"))
    };
    master.children().into_iter().find(is_helper)
}

/// As a package does that brings a new version of both: the module is replaced by a rename, and the
/// master told to start the new binary beside the old one.
#[test]
fn a_binary_upgrade_serves_all_the_time() {
    let dir = Dir::new();
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "first");
    let own_module = dir.path().join("module.so");
    fs::copy(module(), &own_module).expect("module");
    let conf = CONF.replace("@GLOBALS@", &{
        let user = if rustix::process::geteuid().is_root() { "user www-data;" } else { "" };
        format!(
            "load_module {};\n{user}\npid @DIR@/nginx.pid;\nerror_log @DIR@/error.log info;",
            own_module.display()
        )
    });
    let (pid, old_pid) = (dir.path().join("nginx.pid"), dir.path().join("nginx.pid.oldbin"));
    let daemons = Daemons(vec![pid.clone(), old_pid.clone()]);
    let port = dir.start_daemon(&conf);
    let until_listed = |versions: &[&str]| {
        until("it is listed", || {
            let answer = Ask::get("/streams/v1/images.json").try_port(port).ok()?;
            (answer.status == 200 && answer.versions() == versions).then_some(())
        });
    };
    until_listed(&[FIRST]);
    let old = until("a pid file", || pid_in(&pid));

    // Module first, then the signal.
    let beside = dir.path().join("module.so.new");
    fs::copy(module(), &beside).expect("module");
    fs::rename(&beside, &own_module).expect("rename");
    signal(old, Signal::USR2);
    let new = until("another master", || pid_in(&pid).filter(|new| *new != old));
    until("its helper", || helper_of(new));
    let maps = |process: Process| {
        fs::read_to_string(format!("/proc/{}/maps", process.0)).unwrap_or_default()
    };
    let path = own_module.display().to_string();
    assert!(
        maps(old).contains(&format!("{path} (deleted)")),
        "the old module was changed in place"
    );
    until("the new master has the new module", || {
        let maps = maps(new);
        (maps.contains(&path) && !maps.contains("module.so (deleted)")).then_some(())
    });
    dir.add_image(&format!("{PRODUCT}/20260202_0000"), "second");
    // Whichever of the four workers answers.
    for _ in 0..20 {
        until_listed(&[FIRST, SECOND]);
    }
    signal(old, Signal::WINCH);
    until("the old workers are gone", || {
        let workers = |process: &Process| {
            process.title().is_some_and(|title| title.contains("worker process"))
        };
        (!old.children().iter().any(workers)).then_some(())
    });
    until_listed(&[FIRST, SECOND]);
    signal(old, Signal::QUIT);
    until("the old master is gone", || old.title().is_none().then_some(()));
    // The new one builds now.
    dir.add_image(&format!("{PRODUCT}/20260303_0000"), "third");
    until_listed(&[FIRST, SECOND, THIRD]);
    signal(new, Signal::QUIT);
    until("the new master is gone", || new.title().is_none().then_some(()));
    let log = fs::read_to_string(dir.path().join("error.log")).expect("log");
    for alarm in ["[alert]", "[emerg]", "exited on signal", "panicked"] {
        assert!(!log.contains(alarm), "{log}");
    }
    drop(daemons);
}

/// TERM and QUIT while a file is hashed that takes hours: answered before nginx would lose patience,
/// with a bound that only a wait for the file could reach.
#[test]
fn a_server_that_hashes_goes_when_told() {
    let dir = Dir::new();
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "first");
    dir.add_file(&format!("{PRODUCT}/20260202_0000/lxd.tar.xz"), metadata());
    let root = dir.tree().join(PRODUCT).join("20260202_0000/rootfs.squashfs");
    fs::File::create(&root).expect("root").set_len(1 << 39).expect("sparse");
    let conf = CONF.replace("access_log off;", "access_log off;\n    simplestreams_threads 2;");
    for how in [Signal::TERM, Signal::QUIT] {
        let nginx = dir.start(&conf);
        nginx.every_worker_lists(&[FIRST]);
        let helper = nginx.helper();
        until("it is hashing", || {
            let files = helper.descriptors();
            files.iter().any(|file| file.contains("20260202_0000")).then_some(())
        });
        let start = Instant::now();
        signal(helper, how);
        until("the helper is gone", || (!nginx.helpers().contains(&helper)).then_some(()));
        assert!(start.elapsed() < DEADLINE / 6, "{how:?} took {:?}", start.elapsed());
        nginx.stop();
    }
}

/// A download that would take for ever is cut off when the time is over, and nothing else happens.
#[test]
fn workers_leave_when_their_time_is_over() {
    let dir = Dir::new();
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "first");
    dir.add_file("images/large", &vec![b'x'; 64 << 20]);
    let conf = CONF.replace("events {}", "worker_shutdown_timeout 1s;\nevents {}");
    let nginx = dir.start(&conf);
    nginx.every_worker_lists(&[FIRST]);
    let mut stream = TcpStream::connect(("127.0.0.1", nginx.port())).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    stream.write_all(&Ask::get("/images/large").bytes()).expect("request");
    stream.read_exact(&mut [0; 512]).expect("begin");
    // Waits until all old workers are gone, though one of them has a client that does not read.
    nginx.reload();
    nginx.every_worker_lists(&[FIRST]);
    drop(stream);
    nginx.finish();
}
