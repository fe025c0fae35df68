//! Every kind of image, as the real clients and daemons see it.

pub(crate) mod cases;
pub(crate) mod image;
mod overrides;
mod sstream;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::clients::client::{Client, Kind, REMOTE};
use crate::daemons::daemon::Daemon;
use crate::daemons::serial_inside;
use crate::harness::Dir;
use cases::{CASES, Expected, Type, expected, serve, until_listed, version};

#[test]
fn both_clients_list_and_export_every_kind() {
    let dir = Dir::new();
    let site = serve(&dir);
    for kind in Kind::BOTH {
        let client = site.client(kind);
        let mut listed: BTreeMap<String, Value> = client
            .images()
            .into_iter()
            .map(|image| (image["fingerprint"].as_str().expect("a fingerprint").to_owned(), image))
            .collect();
        for image in expected(kind) {
            let (os, name) = (image.os, image.name());
            let Some(found) = listed.remove(&image.fingerprint()) else {
                panic!("{kind:?} does not list {os} as {}: {listed:#?}", image.fingerprint());
            };
            assert_eq!(found["type"], image.of_type.name(), "{kind:?} {os}");
            assert_eq!(found["properties"]["serial"], image.serial, "{kind:?} {os}");
            let wanted: BTreeSet<String> = image.aliases().into_iter().collect();
            assert!(aliases_of(&found).is_superset(&wanted), "{kind:?} {os}: {found:#}");
            assert_eq!(
                aliases_of(&found).is_empty(),
                wanted.is_empty(),
                "{kind:?} {os}: {found:#}"
            );
            let exported = export(&client, &name, image.of_type);
            let names: Vec<&String> = exported.keys().collect();
            let right = image.files.iter().cloned().collect();
            assert!(exported == right, "{kind:?} {name}: {names:?} differ from the tree's");
        }
        assert!(listed.is_empty(), "{kind:?} lists {listed:#?} too");
    }
}

/// Aliases of an image in a list.
fn aliases_of(image: &Value) -> BTreeSet<String> {
    let aliases = image["aliases"].as_array().into_iter().flatten();
    aliases.filter_map(|alias| alias["name"].as_str().map(str::to_owned)).collect()
}

/// What `image export` writes, by name.
#[track_caller]
fn export(client: &Client, name: &str, of_type: Type) -> BTreeMap<String, Vec<u8>> {
    let out = tempfile::tempdir().expect("temporary directory");
    let (from, to) = (format!("{REMOTE}:{name}"), format!("{}/", out.path().display()));
    client.ok(["image", "export", &from, &to].iter().chain(of_type.options()));
    files_in(out.path())
}

fn files_in(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("directory").map(|entry| entry.expect("entry"));
    let file = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("UTF-8");
        (name, fs::read(entry.path()).expect("file"))
    };
    entries.map(file).collect()
}

#[test]
fn lxd_runs_every_kind_and_what_it_publishes() {
    daemon_runs_every_kind(Kind::Lxd);
}

#[test]
fn incus_runs_every_kind_and_what_it_publishes() {
    daemon_runs_every_kind(Kind::Incus);
}

/// Virtual machines are copied and not started: that takes more than tests may ask of a machine.
fn daemon_runs_every_kind(kind: Kind) {
    let dir = Dir::new();
    let site = serve(&dir);
    let daemon = Daemon::start(kind, site.client(kind));
    for image in expected(kind) {
        let (os, fingerprint) = (image.os, image.fingerprint());
        copy(&daemon, &image);
        let info = daemon.ok(&["image", "info", &fingerprint]);
        assert!(info.contains(&format!("Fingerprint: {fingerprint}\n")), "{kind:?} {os}:\n{info}");
        assert!(info.contains(&format!("Type: {}\n", image.of_type.name())), "{kind:?}:\n{info}");
        if image.of_type == Type::Container {
            let serial = serial_inside(&daemon, &fingerprint);
            assert!(serial.is_none_or(|serial| serial == image.serial), "{kind:?} {os}");
        }
    }

    // What the daemon makes of a container, exported under the name that the client gives it, and
    // put into the tree just so.
    let first = &expected(kind)[0];
    daemon.ok(&["init", &first.fingerprint(), "origin"]);
    daemon.ok(&["publish", "origin", "--alias=published"]);
    let out = tempfile::tempdir().expect("temporary directory");
    daemon.ok(&["image", "export", "published", &format!("{}/", out.path().display())]);
    daemon.ok(&["image", "delete", "published"]);
    let files: Vec<(String, Vec<u8>)> = files_in(out.path()).into_iter().collect();
    let [(name, bytes)] = &files[..] else {
        panic!("{kind:?} exports {:?}", files.iter().map(|(name, _)| name).collect::<Vec<_>>());
    };
    let (os, serial) = ("published", "20250302_0000");
    let fingerprint = simplestreams::Digest::of(bytes).to_string();
    assert_eq!(*name, format!("{fingerprint}.tar.gz"), "{kind:?}");
    dir.add_file(&format!("{}/{name}", version(os, serial)), bytes);
    until_listed(&site, CASES.iter().map(|case| (case.os, case.serial)).chain([(os, serial)]));
    daemon.an_hour_passes();
    daemon.ok(&["image", "copy", &format!("{REMOTE}:{os}/1"), "local:", "--alias=again"]);
    let info = daemon.ok(&["image", "info", "again"]);
    assert!(info.contains(&format!("Fingerprint: {fingerprint}\n")), "{kind:?}:\n{info}");
    let inside = serial_inside(&daemon, "again");
    assert!(inside.is_none_or(|serial| serial == first.serial), "{kind:?}");
}

#[track_caller]
fn copy(daemon: &Daemon, image: &Expected) {
    let from = format!("{REMOTE}:{}", image.name());
    let mut args = vec!["image", "copy", &from, "local:"];
    args.extend(image.of_type.options());
    daemon.ok(&args);
}
