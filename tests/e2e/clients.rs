//! The command lines of LXD and Incus against the complete site of `nginx-conf/`.

pub(crate) mod client;
pub(crate) mod site;

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;
use simplestreams::Digest;

use crate::harness::Dir;
use client::{Client, Kind, REMOTE, stdout_of};
use site::{Asked, NEWEST, OLDER, Site};

/// The ways to name the demonstration image: both short ones, the path and the product's name.
fn aliases(site: &Site<'_>) -> [String; 4] {
    let (release, arch) = (site.release(), site.arch());
    [
        format!("busybox/{release}"),
        format!("busybox/{release}/default"),
        format!("busybox/{release}/{arch}/default"),
        format!("busybox:{release}:{arch}:default"),
    ]
}

fn fingerprint(image: &Value) -> &str {
    image["fingerprint"].as_str().expect("a fingerprint")
}

fn serial(image: &Value) -> &str {
    image["properties"]["serial"].as_str().expect("a serial")
}

#[test]
fn both_clients_list_each_version_once() {
    let dir = Dir::new();
    let site = Site::start(&dir, "lxd.tar.xz");
    for kind in Kind::BOTH {
        let client = site.client(kind);
        let listed: BTreeMap<String, String> = client
            .images()
            .iter()
            .map(|image| (serial(image).to_owned(), fingerprint(image).to_owned()))
            .collect();
        let expected: BTreeMap<String, String> = [OLDER, NEWEST]
            .map(|version| (version.to_owned(), site.fingerprint(version).to_string()))
            .into();
        assert_eq!(listed, expected, "{kind:?}");
        assert_eq!(client.images().len(), 2, "{kind:?}");
    }
}

#[test]
fn every_alias_names_the_newest_version() {
    let dir = Dir::new();
    let site = Site::start(&dir, "lxd.tar.xz");
    let newest = site.fingerprint(NEWEST).to_string();
    for kind in Kind::BOTH {
        let client = site.client(kind);
        for alias in aliases(&site) {
            let info = client.ok(["image", "info", &format!("{REMOTE}:{alias}")]);
            assert!(
                info.contains(&format!("Fingerprint: {newest}\n")),
                "{kind:?} {alias}:\n{info}"
            );
            assert!(info.contains(&format!("serial: {NEWEST}\n")), "{kind:?} {alias}:\n{info}");
        }
        let images = client.images();
        let image = images.iter().find(|image| fingerprint(image) == newest).expect("the newest");
        let named: Vec<&str> = image["aliases"]
            .as_array()
            .expect("aliases")
            .iter()
            .filter_map(|alias| alias["name"].as_str())
            .collect();
        for alias in aliases(&site) {
            assert!(named.contains(&alias.as_str()), "{kind:?}: {alias} is not in {named:?}");
        }
        let other = images.iter().find(|image| fingerprint(image) != newest).expect("the older");
        assert_eq!(other["aliases"].as_array().map_or(0, Vec::len), 0, "{kind:?}: {other}");
    }
}

#[test]
fn what_is_exported_has_the_fingerprint_that_was_listed() {
    // One metadata file serves both clients, whichever of the two names it has.
    for metadata in ["lxd.tar.xz", "incus.tar.xz"] {
        let dir = Dir::new();
        let site = Site::start(&dir, metadata);
        for kind in Kind::BOTH {
            let client = site.client(kind);
            let alias = aliases(&site)[0].clone();
            let out = tempfile::tempdir().expect("temporary directory");
            client.ok([
                "image",
                "export",
                &format!("{REMOTE}:{alias}"),
                &format!("{}/", out.path().display()),
            ]);
            let mut bytes = fs::read(out.path().join(metadata)).expect("exported metadata");
            bytes.extend(fs::read(out.path().join("rootfs.squashfs")).expect("exported root"));
            let exported = Digest::of(&bytes).to_string();
            let listed = client.images();
            let image = listed.iter().find(|image| serial(image) == NEWEST).expect("the newest");
            assert_eq!(exported, fingerprint(image), "{kind:?}, {metadata}");

            // An older version is reached by its fingerprint, or the beginning of it.
            let older = site.fingerprint(OLDER).to_string();
            let info = client.ok(["image", "info", &format!("{REMOTE}:{}", &older[..12])]);
            assert!(info.contains(&format!("serial: {OLDER}\n")), "{kind:?}, {metadata}:\n{info}");
        }
    }
}

/// What README.md says was seen: with `error_page 497` each file is asked for once, over plain
/// HTTP on the port of TLS, and the index never is.
#[test]
fn files_are_asked_for_once_and_the_index_never_in_clear() {
    for kind in Kind::BOTH {
        let dir = Dir::new();
        let site = Site::start(&dir, "lxd.tar.xz");
        let client = site.client(kind);
        site.forget_requests();
        let out = tempfile::tempdir().expect("temporary directory");
        let alias = format!("{REMOTE}:{}", aliases(&site)[0]);
        client.ok(["image", "export", &alias, &format!("{}/", out.path().display())]);
        let (index, files): (Vec<Asked>, Vec<Asked>) = site
            .requests_until("/rootfs.squashfs")
            .into_iter()
            .partition(|asked| asked.uri.starts_with("/streams/"));
        assert!(index.iter().all(|asked| asked.scheme == "https"), "{kind:?}: {index:#?}");
        let version = format!("/{}/{NEWEST}", site.product());
        let expected = ["lxd.tar.xz", "rootfs.squashfs"].map(|name| Asked {
            scheme: "http".into(),
            status: 200,
            uri: format!("{version}/{name}"),
        });
        assert_eq!(files, expected, "{kind:?}");
    }
}

#[test]
fn the_site_sends_in_clear_only_what_it_lists() {
    let dir = Dir::new();
    let site = Site::start(&dir, "lxd.tar.xz");
    fs::create_dir(site.root().join("images/.upload")).expect(".upload");
    fs::write(site.root().join("images/.upload/rootfs.squashfs"), "half").expect("upload");
    fs::write(site.root().join("secret"), "not an image").expect("secret");
    let file = format!("/{}/{NEWEST}/rootfs.squashfs", site.product());
    let rows = [
        // scheme, path, status
        ("https", "/streams/v1/index.json", 200),
        ("https", "/streams/v1/images.json", 200),
        ("https", file.as_str(), 200),
        ("http", file.as_str(), 200),
        ("http", "/streams/v1/index.json", 400),
        ("http", "/streams/v1/", 400),
        ("http", "/images/../streams/v1/images.json", 400),
        ("http", "/images/%2e%2e/streams/v1/images.json", 400),
        ("http", "/secret", 400),
        ("http", "/images/.upload/rootfs.squashfs", 404),
        ("http", "/images/%2eupload/rootfs.squashfs", 404),
        ("http", "/images/", 403),
        ("http", "/images/nothing", 404),
        ("https", "/images/.upload/rootfs.squashfs", 404),
        ("https", "/images/%2eupload/rootfs.squashfs", 404),
        ("https", "/images/", 403),
        ("https", "/secret", 404),
        ("https", "/", 404),
    ];
    for (scheme, path, expected) in rows {
        assert_eq!(site.curl(scheme, path, &[]).status, expected, "{scheme} {path}");
    }
    // The server for port 80 has the files, and shows the way to everything else.
    assert_eq!(site.curl("port 80", &file, &[]).status, 200);
    assert_eq!(site.curl("port 80", "/images/.upload/rootfs.squashfs", &[]).status, 404);
    assert_eq!(site.curl("port 80", "/streams/v1/index.json", &[]).status, 301);
    // The clients undo a Content-Encoding, and would then hash other bytes.
    let answer = site.curl("http", &file, &["-H", "Accept-Encoding: gzip"]);
    assert!(!answer.head.to_lowercase().contains("content-encoding"), "{}", answer.head);
    assert!(answer.head.contains("application/octet-stream"), "{}", answer.head);
    assert_eq!(site.curl("http", &file, &["-r", "4-7"]).status, 206);
}

#[test]
fn a_client_without_the_certificate_is_refused() {
    let dir = Dir::new();
    let site = Site::start(&dir, "lxd.tar.xz");
    for kind in Kind::BOTH {
        let client = Client::new(kind, &site.url(), &site.certificate());
        client.ok(["remote", "add", "other", &site.url(), "--protocol=simplestreams"]);
        let output = client.run(["image", "list", "other:"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("x509"), "{kind:?}: {said}");
    }
}

#[test]
fn the_demonstration_image_is_the_same_every_time() {
    let made = [(); 2].map(|()| {
        let dir = tempfile::tempdir().expect("temporary directory");
        stdout_of(&mut site::demo_image(dir.path(), NEWEST));
        ["lxd.tar.xz", "rootfs.squashfs"]
            .map(|name| Digest::of(&fs::read(dir.path().join(NEWEST).join(name)).expect(name)))
    });
    assert_eq!(made[0], made[1]);
}
