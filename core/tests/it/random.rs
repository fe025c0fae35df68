//! Random trees, in random order of arrival: whatever is listed can be fetched and verified, every
//! fingerprint is there once, and the same tree gives the same bytes.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;
use simplestreams::Settings;

use crate::common::{Images, Site, sha256};

/// What happens to the tree, one step at a time.
#[derive(Clone, Debug)]
enum Step {
    /// A file appears in a version, or is replaced.
    Write { version: usize, file: usize, content: u8 },
    /// A file goes.
    Remove { version: usize, file: usize },
    /// A version moves to another name.
    Move { from: usize, to: usize },
    /// A version goes.
    RemoveVersion(usize),
}

const VERSIONS: &[&str] = &[
    "images/a/1/amd64/default/20240101",
    "images/a/1/amd64/default/20240102_12:00",
    "images/a/1/amd64/default/notadate",
    "images/a/1/arm64/20240101",
    "images/a/1/amd64/a%b/20240101",
    "images/b/current/amd64/cloud/20240101",
    "images/b/current/sparc/cloud/20240101",
    "images/.b/current/amd64/cloud/20240101",
    "daily/a/1/amd64/default/20240101",
    "images/ü #+/1/riscv64/x y/20240101",
];

const FILES: &[&str] = &[
    "lxd.tar.xz",
    "incus.tar.xz",
    "rootfs.squashfs",
    "root.squashfs",
    "rootfs.tar.xz",
    "disk.qcow2",
    "lxd_combined.tar.gz",
    "delta-20240101.vcdiff",
    "disk.20240101.qcow2.vcdiff",
    "metadata.json",
    "SHA256SUMS",
    ".hidden",
    "notes.txt",
];

/// Few contents, so that fingerprints collide.
fn content(file: &str, seed: u8) -> Vec<u8> {
    match file {
        "metadata.json" => {
            format!("{{\"os\": \"os {seed}\", \"aliases\": \"x{seed}\"}}").into_bytes()
        }
        "SHA256SUMS" => format!("{}  rootfs.squashfs\n", sha256(&[seed])).into_bytes(),
        _ => vec![seed; 1 + usize::from(seed)],
    }
}

fn step() -> impl Strategy<Value = Step> {
    let (version, file) = (0..VERSIONS.len(), 0..FILES.len());
    prop_oneof![
        12 => (version.clone(), file.clone(), 0..3_u8)
            .prop_map(|(version, file, content)| Step::Write { version, file, content }),
        2 => (version.clone(), file).prop_map(|(version, file)| Step::Remove { version, file }),
        1 => (version.clone(), version.clone()).prop_map(|(from, to)| Step::Move { from, to }),
        1 => version.prop_map(Step::RemoveVersion),
    ]
}

fn take(site: &Site, step: &Step) {
    // Steps that make no sense (a file that is not there) change nothing.
    match step {
        Step::Write { version, file, content: seed } => {
            let directory = site.path(VERSIONS[*version]);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(FILES[*file]), content(FILES[*file], *seed)).unwrap();
        }
        Step::Remove { version, file } => {
            drop(fs::remove_file(site.path(VERSIONS[*version]).join(FILES[*file])));
        }
        Step::Move { from, to } => {
            let to = site.path(VERSIONS[*to]);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            drop(fs::rename(site.path(VERSIONS[*from]), to));
        }
        Step::RemoveVersion(version) => {
            drop(fs::remove_dir_all(site.path(VERSIONS[*version])));
        }
    }
}

fn settings(site: &Site) -> Settings {
    Settings {
        streams: vec!["images".into(), "daily".into()],
        settle: Duration::from_millis(20),
        ..site.settings()
    }
}

/// What every generation must hold to, and what is on disk at rest besides.
fn check(site: &Site, images: &Images, at_rest: bool) {
    let mut fingerprints = BTreeSet::new();
    for stream in ["images", "daily"] {
        let document: Value = images.document(&format!("{stream}.json"));
        for (name, product) in document["products"].as_object().unwrap() {
            assert!(!product["aliases"].as_str().unwrap().is_empty(), "{name} cannot be resolved");
            for version in product["versions"].as_object().unwrap().values() {
                check_version(site, &version["items"], &mut fingerprints, at_rest);
            }
        }
    }
}

fn check_version(site: &Site, items: &Value, fingerprints: &mut BTreeSet<String>, at_rest: bool) {
    let items = items.as_object().unwrap();
    let read = |item: &Value| fs::read(site.path(item["path"].as_str().unwrap())).unwrap();
    let mut mine = BTreeSet::new();
    for item in items.values() {
        let path = item["path"].as_str().unwrap();
        assert!(!path.contains('%') && !path.contains("/."), "{path}");
        if at_rest {
            let content = read(item);
            assert_eq!(item["size"], content.len(), "{path}");
            assert_eq!(item["sha256"], sha256(&content), "{path}");
        }
        match item["ftype"].as_str().unwrap() {
            "lxd_combined.tar.gz" | "incus_combined.tar.gz" => {
                mine.insert(item["sha256"].as_str().unwrap().to_owned());
            }
            "lxd.tar.xz" | "incus.tar.xz" => {
                for (ftype, key) in [
                    ("squashfs", "combined_squashfs_sha256"),
                    ("root.tar.xz", "combined_rootxz_sha256"),
                    ("disk-kvm.img", "combined_disk-kvm-img_sha256"),
                ] {
                    let root = items.values().find(|item| item["ftype"] == ftype);
                    assert_eq!(root.is_some(), item.get(key).is_some(), "{path} {key}");
                    let Some(root) = root else {
                        continue;
                    };
                    if at_rest {
                        let both = [read(item), read(root)].concat();
                        assert_eq!(item[key], sha256(&both), "{path} {key}");
                    }
                    mine.insert(item[key].as_str().unwrap().to_owned());
                }
            }
            _ => {}
        }
    }
    assert!(!mine.is_empty(), "a version without an image is listed");
    for fingerprint in mine {
        assert!(fingerprints.insert(fingerprint.clone()), "{fingerprint} is listed twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_is_listed_is_true(steps in prop::collection::vec(step(), 1..60)) {
        let site = Site::new();
        fs::create_dir(site.path("daily")).unwrap();
        let index = site.open_with(settings(&site));
        let seen = index.record(|| {
            for step in &steps {
                take(&site, step);
            }
            index.until_idle();
        });
        seen.iter().for_each(|images| check(&site, images, false));

        // Another look at the same tree, by somebody who saw nothing of how it came to be.
        let fresh = site.open_with(settings(&site));
        fresh.until_idle();
        let fresh = fresh.current();
        // On a loaded machine the kernel's events may come late.
        let live = index.wait("what a fresh look finds", |images| images.text() == fresh.text());
        check(&site, &live, true);
        prop_assert_eq!(live.etags(), fresh.etags());
        prop_assert_eq!(live.problems(), fresh.problems());
    }
}
