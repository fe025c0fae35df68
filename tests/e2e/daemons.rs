//! Both daemons, started by hand with directories of their own: they copy the image from the
//! server, start a container of it, and the container is the newest version.

pub(crate) mod daemon;

use std::io::Write as _;
use std::process::Command;

use crate::clients::client::{Kind, REMOTE};
use crate::clients::site::{NEWEST, Site};
use crate::harness::Dir;
use daemon::Daemon;

#[test]
fn lxd_starts_a_container_of_the_newest_version() {
    container(Kind::Lxd);
}

#[test]
fn incus_starts_a_container_of_the_newest_version() {
    container(Kind::Incus);
}

fn container(kind: Kind) {
    let dir = Dir::new();
    let site = Site::start(&dir, "lxd.tar.xz");
    let daemon = Daemon::start(kind, site.client(kind));
    let image = format!("{REMOTE}:busybox/{}", site.release());

    site.forget_requests();
    daemon.ok(&["image", "copy", &image, "local:", "--alias=copied"]);
    let fingerprint = site.fingerprint(NEWEST).to_string();
    let info = daemon.ok(&["image", "info", "copied"]);
    assert!(info.contains(&format!("Fingerprint: {fingerprint}\n")), "{kind:?}:\n{info}");
    // The daemon too is content with the answer that its plain request gets.
    let mut files = site.requests_until("/rootfs.squashfs");
    files.retain(|asked| asked.uri.starts_with("/images/"));
    assert_eq!(files.len(), 2, "{kind:?}: {files:#?}");
    assert!(files.iter().all(|asked| asked.scheme == "http" && asked.status == 200), "{files:#?}");

    daemon.ok(&["init", "copied", "demo"]);
    if !start(&daemon, "demo") {
        return;
    }
    assert_eq!(daemon.ok(&["exec", "demo", "--", "cat", "/etc/image-serial"]).trim(), NEWEST);
    assert_eq!(daemon.ok(&["exec", "demo", "--", "hostname"]).trim(), "demo");
    // The image's init understands how it is asked to stop; no force is needed.
    daemon.ok(&["stop", "demo", "--timeout=30"]);
    daemon.ok(&["delete", "demo"]);
}

/// Starts a container. Where no container can start it says SKIP and why, and gives false.
#[track_caller]
pub(crate) fn start(daemon: &Daemon, name: &str) -> bool {
    let started = daemon.run(&["start", name]);
    if started.status.success() {
        return true;
    }
    let kind = daemon.kind();
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    let Some(reason) = mounts_forbidden() else {
        let log = daemon.run(&["info", name, "--show-log"]);
        panic!("{kind:?}: {said}\n{}", String::from_utf8_lossy(&log.stdout));
    };
    // Past the test runner, which shows what a test prints only if the test fails.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIP start of a container by {kind:?}: {reason}").expect("stderr");
    false
}

/// Makes a container of a local image, reads `/etc/image-serial` in it, and takes it away. None
/// where no container can start.
#[track_caller]
pub(crate) fn serial_inside(daemon: &Daemon, image: &str) -> Option<String> {
    daemon.ok(&["init", image, "inside"]);
    let serial = start(daemon, "inside").then(|| {
        daemon.ok(&["exec", "inside", "--", "cat", "/etc/image-serial"]).trim().to_owned()
    });
    daemon.ok(&["delete", "--force", "inside"]);
    serial
}

/// Why no container can start here: this process may not mount anything, even in namespaces of
/// its own. None if it may.
fn mounts_forbidden() -> Option<String> {
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "mount", "-t", "proc", "proc", "/proc"])
        .output()
        .expect("unshare");
    (!output.status.success()).then(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("mounting is forbidden ({})", said.trim())
    })
}
