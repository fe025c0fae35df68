//! `lxd-image-server update` on a host whose nginx has the module.

use std::fs;

use simplestreams::Settings;

use super::program::{command, configure, run, stderr};
use crate::harness::{Ask, Dir, Process, signal, squashfs, until};

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
        location / {
            root @TREE@/;
            simplestreams on;
            simplestreams_settle 200ms;
            simplestreams_rescan 1h;
        }
    }
}";

const VERSION: &str = "images/os/1/amd64/default/20260101_0000";
const LISTED: &str = "os:1:amd64:default 20260101_0000";

fn update(dir: &Dir, more: &[&str]) -> String {
    let mut command = command(dir, &["--verbose", "update", "--state-dir"]);
    let output = run(command.arg(dir.state()).args(more));
    assert!(output.status.success(), "{output:?}");
    stderr(&output)
}

/// Workers have a generation before its file is on disk, by which `update` finds the index.
fn until_found(dir: &Dir) {
    until("the index is on disk", || {
        let found = simplestreams::state::find(&dir.state(), &dir.tree()).unwrap_or_default();
        (!found.is_empty()).then_some(())
    });
}

/// Bytes that the processes have read, from whatever.
fn read_by(processes: &[Process]) -> u64 {
    let of = |process: &Process| {
        let text = fs::read_to_string(format!("/proc/{}/io", process.0)).expect("own process");
        let read = text.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("rchar");
        read.parse::<u64>().expect("a number")
    };
    processes.iter().map(of).sum()
}

#[test]
fn update_has_the_module_read_everything_again() {
    let dir = Dir::new();
    configure(&dir, "");
    dir.add_image(VERSION, "one");
    let large = 8 << 20;
    dir.add_file("images/os/2/amd64/default/20260101_0000/lxd.tar.xz", crate::harness::metadata());
    let mut root = squashfs("two").to_vec();
    root.resize(root.len() + large, 0);
    dir.add_file("images/os/2/amd64/default/20260101_0000/rootfs.squashfs", &root);
    // A directory that was named must be there, and somebody who serves the tree.
    let output = run(command(&dir, &["update", "--state-dir"]).arg(dir.state()));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(stderr(&output).contains("it is what simplestreams_state_path says"), "{output:?}");
    let mut elsewhere = command(&dir, &["update", "--state-dir"]);
    let output = run(elsewhere.arg(dir.path()));
    assert!(output.status.success(), "{output:?}");
    assert!(stderr(&output).contains("WARN  no nginx module with its state in"), "{output:?}");

    let nginx = dir.start(CONF);
    let listed = [LISTED, "os:2:amd64:default 20260101_0000"];
    nginx.every_worker_lists(&listed);
    until_found(&dir);
    let tag = || Ask::get("/streams/v1/images.json").of(&nginx).header("etag").map(str::to_owned);
    let (before, read) = (tag(), read_by(&[nginx.helper()]));
    let said = update(&dir, &[]);
    assert!(said.contains("nginx's module serves what"), "{said}");
    assert!(read_by(&[nginx.helper()]) - read >= large as u64, "it did not read the files");
    nginx.every_worker_lists(&listed);
    assert_eq!(tag(), before, "nothing has changed");

    // Whoever does not wait leaves it to the module.
    let said = update(&dir, &["--no-wait"]);
    assert!(said.contains("hashes") && !said.contains("nginx's module serves"), "{said}");
    let id = Settings { root: dir.tree().join(""), ..Settings::new(dir.tree()) }.id();
    let left = || ["rehash", "rehashing"].map(|x| dir.state().join(format!("{id}.{x}")).exists());
    until("the module has taken it and done it", || (left() == [false; 2]).then_some(()));
    until("nginx's log says so", || {
        (nginx.error_log().matches("is hashed anew").count() == 2).then_some(())
    });
    nginx.finish();

    // What a stopped nginx leaves behind is asked nothing.
    let said = update(&dir, &[]);
    assert!(said.contains("no nginx module with its state in"), "{said}");
    let names = fs::read_dir(dir.state()).expect("state").flatten().map(|e| e.file_name());
    let names: Vec<_> = names.filter(|name| name.to_string_lossy().contains("rehash")).collect();
    assert!(names.is_empty(), "{names:?}");
}

/// A builder that dies in the middle is replaced, and its successor finishes what was asked for.
#[test]
fn a_killed_builder_does_not_leave_update_waiting() {
    let dir = Dir::new();
    configure(&dir, "");
    dir.add_image(VERSION, "one");
    let mut nginx = dir.start(CONF);
    nginx.allow("exited on signal 9");
    nginx.every_worker_lists(&[LISTED]);
    until_found(&dir);
    let mut update = command(&dir, &["update", "--state-dir"]);
    let said = dir.path().join("said");
    update.arg(dir.state()).stderr(fs::File::create(&said).expect("file"));
    let said = || fs::read_to_string(&said).unwrap_or_default();
    let mut child = update.spawn().expect("the command runs");
    until("it has asked", || said().contains("anew, too").then_some(()));
    signal(nginx.helper(), rustix::process::Signal::KILL);
    let status = until("update ends", || child.try_wait().expect("own child"));
    assert!(status.success() && said().contains("nginx's module serves what"), "{}", said());
    nginx.every_worker_lists(&[LISTED]);
    nginx.finish();
}
