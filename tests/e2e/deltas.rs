//! Deltas: a daemon that has a version gets the next one by the difference alone.

use std::fs;
use std::process::Command;

use simplestreams::Digest;

use crate::clients::client::{Kind, REMOTE, stdout_of};
use crate::clients::site::Site;
use crate::daemons::daemon::Daemon;
use crate::daemons::serial_inside;
use crate::harness::Dir;
use crate::kinds::cases::{until_listed, version};
use crate::kinds::image::Image;

const OS: &str = "deltas";
const OLD: &str = "20250301_12:00";
const NEW: &str = "20250401_12:00";

#[test]
fn lxd_refreshes_by_the_delta() {
    refresh(Kind::Lxd, &format!("delta-{OLD}.vcdiff"));
}

/// With the other form of the name, too.
#[test]
fn incus_refreshes_by_the_delta() {
    refresh(Kind::Incus, &format!("rootfs.{OLD}.vcdiff"));
}

fn refresh(kind: Kind, delta: &str) {
    let dir = Dir::new();
    let (old, new) = (Image::make(OLD), Image::make(NEW));
    let [old_version, new_version] = [OLD, NEW].map(|serial| version(OS, serial));
    dir.add_file(&format!("{old_version}/lxd.tar.xz"), &old.metadata());
    dir.add_file(&format!("{old_version}/rootfs.squashfs"), &old.squashfs());
    let site = Site::serve(&dir);
    until_listed(&site, [(OS, OLD)]);
    let daemon = Daemon::start(kind, site.client(kind));
    let from = format!("{REMOTE}:{OS}/1");
    daemon.ok(&["image", "copy", &from, "local:", "--alias=kept", "--auto-update"]);
    let kept = |image: &Image| {
        let info = daemon.ok(&["image", "info", "kept"]);
        let fingerprint = Digest::of(&[image.metadata(), image.squashfs()].concat());
        assert!(info.contains(&format!("Fingerprint: {fingerprint}\n")), "{kind:?}:\n{info}");
    };
    kept(&old);

    // The next version, made aside and moved in: the delta is there as soon as the rest.
    let aside = dir.path().join("aside");
    fs::create_dir(&aside).expect("aside");
    fs::write(aside.join("lxd.tar.xz"), new.metadata()).expect("metadata");
    fs::write(aside.join("rootfs.squashfs"), new.squashfs()).expect("root");
    stdout_of(
        Command::new("xdelta3")
            .args(["-e", "-s"])
            .arg(dir.tree().join(&old_version).join("rootfs.squashfs"))
            .arg(aside.join("rootfs.squashfs"))
            .arg(aside.join(delta)),
    );
    fs::rename(&aside, dir.tree().join(&new_version)).expect("move in");
    until_listed(&site, [(OS, OLD), (OS, NEW)]);

    site.forget_requests();
    daemon.an_hour_passes();
    daemon.ok(&["image", "refresh", "kept"]);
    kept(&new);
    let asked = site.requests_until(".vcdiff");
    let mut files: Vec<&str> = asked.iter().map(|asked| asked.uri.as_str()).collect();
    files.retain(|uri| uri.starts_with("/images/"));
    let of_new = |name: &str| format!("/{new_version}/{name}");
    assert_eq!(files, [of_new("lxd.tar.xz"), of_new(delta)], "{kind:?}: {asked:#?}");

    let inside = serial_inside(&daemon, "kept");
    assert!(inside.is_none_or(|serial| serial == NEW), "{kind:?}");
}
