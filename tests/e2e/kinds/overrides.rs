//! What is said beside the images, and images that are there twice: as both clients see it.

use std::collections::BTreeMap;

use super::cases::{Type, aliases, until_listed, version};
use super::{aliases_of, export};
use crate::clients::client::{Kind, REMOTE};
use crate::clients::site::{Site, arch};
use crate::harness::{Dir, metadata, squashfs};

const SERIAL: &str = "20250301_0100";

#[test]
fn both_clients_see_what_metadata_json_says() {
    let dir = Dir::new();
    dir.add_image(&version("plain", SERIAL), "plain");
    dir.add_image(&version("told", SERIAL), "told");
    dir.add_file(
        &format!("{}/metadata.json", version("told", SERIAL)),
        br#"{
            "os": "An OS",
            "release_title": "1.0 LTS",
            "aliases": "told-lts, told/one ",
            "requirements": {"secureboot": false, "nesting": "true"},
            "support_eol": "2035-12-31"
        }"#,
    );
    let site = Site::serve(&dir);
    until_listed(&site, [("plain", SERIAL), ("told", SERIAL)]);
    for kind in Kind::BOTH {
        let client = site.client(kind);
        let images = client.images();
        let find = |os: &str| {
            let of = |image: &&serde_json::Value| image["properties"]["os"] == os;
            images.iter().find(of).unwrap_or_else(|| panic!("{kind:?}: no {os} in {images:#?}"))
        };
        let (told, plain) = (find("An OS"), find("plain"));
        let properties = &told["properties"];
        // The title of the release is in the description, and the release itself in its property.
        assert_eq!(properties["release"], "1", "{kind:?}");
        let description = |os| format!("{os} {} ({SERIAL})", arch());
        assert_eq!(properties["description"], description("An OS 1.0 LTS"), "{kind:?}");
        assert_eq!(plain["properties"]["description"], description("plain 1"), "{kind:?}");
        assert_eq!(properties["requirements.secureboot"], "false", "{kind:?}: {properties:#}");
        assert_eq!(properties["requirements.nesting"], "true", "{kind:?}: {properties:#}");
        assert!(plain["properties"]["requirements.nesting"].is_null(), "{kind:?}");
        assert_eq!(told["expires_at"], "2035-12-31T00:00:00Z", "{kind:?}");

        // The default aliases, which go by the path, stay beside those that are given.
        let fingerprint = told["fingerprint"].as_str().expect("a fingerprint");
        for alias in aliases("told").into_iter().chain(["told-lts".into(), "told/one".into()]) {
            assert!(aliases_of(told).contains(&alias), "{kind:?}: no {alias} at {told:#}");
            let info = client.ok(["image", "info", &format!("{REMOTE}:{alias}")]);
            assert!(info.contains(&format!("Fingerprint: {fingerprint}\n")), "{kind:?}:\n{info}");
            assert!(info.contains("os: An OS\n"), "{kind:?} {alias}:\n{info}");
        }
    }
}

/// Clients refuse a fingerprint that is there twice, even when they are asked by alias.
#[test]
fn an_image_in_two_products_is_reached_by_either_name() {
    let dir = Dir::new();
    let oses = ["first", "second"];
    oses.iter().for_each(|os| dir.add_image(&version(os, SERIAL), "the same"));
    let site = Site::serve(&dir);
    until_listed(&site, [("first", SERIAL)]);
    let files: BTreeMap<String, Vec<u8>> = [
        ("lxd.tar.xz".to_owned(), metadata().to_vec()),
        ("rootfs.squashfs".to_owned(), squashfs("the same").to_vec()),
    ]
    .into();
    for kind in Kind::BOTH {
        let client = site.client(kind);
        assert_eq!(client.images().len(), 1, "{kind:?}");
        for alias in oses.iter().flat_map(|os| aliases(os)) {
            let exported = export(&client, &alias, Type::Container);
            assert!(exported == files, "{kind:?} {alias}: {:?}", exported.keys());
        }
    }
}
