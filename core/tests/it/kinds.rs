//! Every kind of image, delta, promise and override, from files on disk to what is listed.

use std::fs;

use serde_json::json;

use crate::common::{Images, Site, VERSION, sha256};

const PRODUCT: &str = "images/a/1/amd64/default";

/// A tarball of entries with short contents.
fn tarball(names: &[&str], seed: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for name in names {
        let mut header = tar::Header::new_gnu();
        header.set_size(seed.len() as u64);
        tar.append_data(&mut header, name, seed.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let level = flate2::Compression::fast();
    let mut packed = flate2::GzBuilder::new().write(Vec::new(), level);
    packed.write_all(content).unwrap();
    packed.finish().unwrap()
}

fn unified(seed: &str) -> Vec<u8> {
    gzip(&tarball(&["metadata.yaml", "rootfs/etc/hostname"], seed))
}

fn wait(site: &Site, what: &str, wanted: impl Fn(&Images) -> bool) -> Images {
    site.open().wait(what, wanted)
}

#[test]
fn unified_tarballs_under_all_their_names() {
    let site = Site::new();
    let hash = "0123456789abcdef".repeat(4);
    let names = [
        "lxd_combined.tar.gz".to_owned(),
        "incus_combined.tar.gz".to_owned(),
        format!("{hash}.tar.gz"),
        "ubuntu-noble-x86_64.tar.xz".to_owned(),
        "lxd.tar.xz".to_owned(),
    ];
    for (number, name) in names.iter().enumerate() {
        let version = site.version(&format!("{PRODUCT}/2024020{}", number + 1));
        // What is packed counts, not what the name says of it.
        version.write(name, &unified(name));
    }
    let images = wait(&site, "all of them", |images| images.versions() == names.len());
    for (number, name) in names.iter().enumerate() {
        let path = format!("{PRODUCT}/2024020{}", number + 1);
        let items = images.items(&path);
        for ftype in ["lxd_combined.tar.gz", "incus_combined.tar.gz"] {
            let item = &items[ftype];
            assert_eq!(item["ftype"], ftype, "{name}");
            assert_eq!(item["path"], format!("{path}/{name}"));
            assert_eq!(item["sha256"], sha256(&unified(name)));
        }
        assert_eq!(items.as_object().unwrap().len(), 2, "{name}");
    }
    assert_eq!(images.problems(), Vec::<String>::new());
}

#[test]
fn tarballs_that_are_no_container() {
    let site = Site::new();
    let put = |number: u8, name: &str, content: &[u8]| {
        site.version(&format!("{PRODUCT}/2024010{number}")).write(name, content);
    };
    put(1, "lxd_combined.tar.gz", &gzip(&tarball(&["metadata.yaml", "rootfs.img"], "vm")));
    put(2, "lxd.tar.xz", &gzip(&tarball(&["metadata.yaml", "templates/x"], "split")));
    put(3, "source.tar.gz", &gzip(&tarball(&["src/main.c"], "code")));
    let packed = unified("cut");
    put(4, "lxd_combined.tar.gz", &packed[..packed.len() - 9]);
    site.image(&format!("{PRODUCT}/20240105"), "good");
    // Beside a split image, a tarball is nobody's business.
    site.version(&format!("{PRODUCT}/20240105")).write("build-log.tar.gz", &gzip(b"log"));
    let images = wait(&site, "the good one and four problems", |images| {
        images.versions() == 1 && images.problems().len() == 4
    });
    for (problem, reason) in images.problems().iter().zip([
        "virtual machine in one tarball",
        "holds no root",
        "holds no root",
        "cannot be unpacked",
    ]) {
        assert!(problem.contains(reason), "{problem}");
    }
}

#[test]
fn virtual_machine_disks() {
    let site = Site::new();
    let version = site.version(VERSION);
    version.write("lxd.tar.xz", b"m");
    for name in ["disk-kvm.img", "uefi1.img", "disk1.img"] {
        version.write(name, name.as_bytes());
    }
    let images = wait(&site, "all disks", |images| images.versions() == 1);
    let items = images.items(VERSION);
    for (name, key) in [
        ("disk-kvm.img", "combined_disk-kvm-img_sha256"),
        ("uefi1.img", "combined_uefi1-img_sha256"),
        ("disk1.img", "combined_disk1-img_sha256"),
    ] {
        assert_eq!(items["incus.tar.xz"][key], sha256(format!("m{name}").as_bytes()));
        assert_eq!(items[name]["ftype"], name);
    }
}

/// What `image export` writes of an image in two files.
#[test]
fn exported_pairs() {
    let site = Site::new();
    let roots = [
        ("squashfs", "combined_squashfs_sha256"),
        ("tar.xz", "combined_rootxz_sha256"),
        ("qcow2", "combined_disk-kvm-img_sha256"),
    ];
    for (number, (ending, _)) in roots.iter().enumerate() {
        let version = site.version(&format!("{PRODUCT}/2024010{}", number + 1));
        version.write("meta-0123abcd.tar.xz", b"m");
        version.write(&format!("0123abcd.{ending}"), ending.as_bytes());
        // Another tarball in the same place is not the root.
        version.write("4567.tar.xz", b"other");
    }
    let images = wait(&site, "all pairs", |images| images.versions() == roots.len());
    for (number, (ending, key)) in roots.iter().enumerate() {
        let items = images.items(&format!("{PRODUCT}/2024010{}", number + 1));
        for metadata in ["lxd.tar.xz", "incus.tar.xz"] {
            assert_eq!(items[metadata][key], sha256(format!("m{ending}").as_bytes()), "{ending}");
        }
        assert_eq!(items.as_object().unwrap().len(), 3, "{ending}");
    }
    assert_eq!(images.problems(), Vec::<String>::new());
}

#[test]
fn deltas_of_every_name_and_of_none() {
    let site = Site::new();
    for number in 1..=3 {
        site.image(&format!("{PRODUCT}/2024010{number}"), &format!("root {number}"));
    }
    let newest = site.version(&format!("{PRODUCT}/20240103"));
    newest.write("delta-20240101.vcdiff", b"\xd6\xc3\xc4 one");
    newest.write("rootfs.20240102.vcdiff", b"\xd6\xc3\xc4 two");
    newest.write("delta-20240102.vcdiff", b"\xd6\xc3\xc4 two again");
    newest.write("delta-20230101.vcdiff", b"\xd6\xc3\xc4 gone");
    newest.write("rootfs.squashfs.vcdiff", b"\xd6\xc3\xc4 which");
    newest.write("disk.20240102.qcow2.vcdiff", b"\xd6\xc3\xc4 disk");
    newest.write("delta-20240102.qcow2.vcdiff", b"\xd6\xc3\xc4 disk");
    let index = site.open();
    let images = index.wait("three versions and three problems", |images| {
        images.versions() == 3 && images.problems().len() == 3
    });
    let items = images.items(&format!("{PRODUCT}/20240103"));
    let deltas: Vec<_> = items
        .as_object()
        .unwrap()
        .values()
        .filter(|item| item["ftype"].as_str().unwrap().contains("vcdiff"))
        .map(|item| (item["ftype"].clone(), item["delta_base"].clone(), item["sha256"].clone()))
        .collect();
    assert_eq!(
        deltas,
        [
            (json!("squashfs.vcdiff"), json!("20240101"), json!(sha256(b"\xd6\xc3\xc4 one"))),
            (json!("squashfs.vcdiff"), json!("20240102"), json!(sha256(b"\xd6\xc3\xc4 two again"))),
        ],
        "no delta of a disk, one for each base"
    );
    let all = images.problems().join("\n");
    for reason in ["not listed with a squashfs", "does not tell the version", "already has a delta"]
    {
        assert!(all.contains(reason), "{all}");
    }
    // A base that goes takes its delta with it.
    fs::remove_dir_all(site.path(&format!("{PRODUCT}/20240101"))).unwrap();
    let images = index.wait("two versions", |images| images.versions() == 2);
    assert!(!images.text().contains("\"delta_base\":\"20240101\""));
}

#[test]
fn a_promise_must_hold() {
    let site = Site::new();
    let sums = |files: &[(&str, &str)]| {
        files.iter().fold(String::new(), |text, (name, content)| {
            text + &format!("{}  {name}\n", sha256(content.as_bytes()))
        })
    };
    let put = |number: u8, text: &str| {
        let path = format!("{PRODUCT}/2024010{number}");
        site.image(&path, &format!("root {number}"));
        site.version(&path).write("SHA256SUMS", text.as_bytes());
    };
    put(1, &sums(&[("lxd.tar.xz", "metadata"), ("rootfs.squashfs", "root 1")]));
    put(2, &sums(&[("lxd.tar.xz", "metadata"), ("rootfs.squashfs", "another root")]));
    put(3, &sums(&[("lxd.tar.xz", "metadata")]));
    put(4, "garbled");
    let index = site.open();
    let images = index.wait("one version and three problems", |images| {
        images.versions() == 1 && images.problems().len() == 3
    });
    let both = &images.problems()[0];
    assert!(both.contains(&sha256(b"another root")) && both.contains(&sha256(b"root 2")), "{both}");
    assert!(!images.text().contains("SHA256SUMS"));

    // Mended, or withdrawn, the version is listed.
    put(2, &sums(&[("lxd.tar.xz", "metadata"), ("rootfs.squashfs", "root 2")]));
    fs::remove_file(site.path(&format!("{PRODUCT}/20240103/SHA256SUMS"))).unwrap();
    index.wait("three versions", |images| images.versions() == 3 && images.problems().len() == 1);
    // A promise that is broken later unlists.
    put(1, &sums(&[("lxd.tar.xz", "metadata"), ("rootfs.squashfs", "nothing like it")]));
    index.wait("two versions", |images| images.versions() == 2 && images.problems().len() == 2);
}

#[test]
fn overrides_come_and_go() {
    let site = Site::new();
    fs::create_dir_all(site.path(PRODUCT)).unwrap();
    let index = site.open();
    index.wait("an empty index", |_| true);
    // Before the image.
    fs::write(site.path(PRODUCT).join("metadata.json"), r#"{"os": "Product", "version": "1"}"#)
        .unwrap();
    site.image(VERSION, "root");
    let product = |images: &Images| images.products()["a:1:amd64:default"].clone();
    let has = |images: &Images, key: &str, value: &str| {
        images.versions() == 1 && product(images)[key] == value
    };
    let images = index.wait("the product's file", |images| has(images, "os", "Product"));
    assert_eq!(product(&images)["version"], "1");

    // After the image, in the version.
    let own = site.version(VERSION);
    own.write(
        "metadata.json",
        br#"{"os": "Version", "aliases": ["x", "y"], "label": "rc", "supported": true,
             "requirements": {"secureboot": false}, "support_eol": "2030-01-01",
             "release_title": "First", "release_codename": "uno", "variant": "std"}"#,
    );
    let images = index.wait("the version's file", |images| has(images, "os", "Version"));
    let of = product(&images);
    assert!(of["aliases"].as_str().unwrap().ends_with(",x,y"), "{}", of["aliases"]);
    assert!(of["aliases"].as_str().unwrap().starts_with("a/1/default,a/1,"), "defaults stay");
    for key in ["requirements", "lxd_requirements"] {
        assert_eq!(of[key], json!({"secureboot": "false"}), "{key}");
    }
    assert_eq!(of["supported"], true);
    assert_eq!(of["support_eol"], "2030-01-01");
    assert_eq!(of["release_title"], "First");
    assert_eq!(of["release_codename"], "uno");
    assert_eq!((&of["release"], &of["variant"]), (&json!("1"), &json!("std")));
    assert_eq!(of["versions"]["20240101"]["label"], "rc");
    assert!(!images.text().contains("metadata.json"));

    // Malformed, what it said stays; mended, it counts again.
    own.write("metadata.json", b"{\"os\": [");
    let images = index.wait("a problem", |images| images.problems().len() == 1);
    assert!(images.problems()[0].contains("line 1 column"), "{:?}", images.problems());
    assert!(has(&images, "os", "Version"));
    own.write("metadata.json", br#"{"os": "Mended"}"#);
    index.wait("the mended file", |images| {
        has(images, "os", "Mended") && images.problems().is_empty()
    });
    fs::remove_file(site.path(VERSION).join("metadata.json")).unwrap();
    index.wait("the product's file again", |images| has(images, "os", "Product"));
    fs::remove_file(site.path(PRODUCT).join("metadata.json")).unwrap();
    index.wait("the path", |images| has(images, "os", "a"));

    // Files of other tools.
    fs::write(site.path("images/a/.requirements"), r#"{"nesting": "true"}"#).unwrap();
    own.write("image.yaml", b"simplestream: {distro_name: Yaml, release_aliases: {1: one}}");
    let images = index.wait("both", |images| {
        has(images, "os", "Yaml") && product(images)["requirements"] == json!({"nesting": "true"})
    });
    assert!(product(&images)["aliases"].as_str().unwrap().ends_with(",a/one/default,a/one"));
    fs::remove_file(site.path("images/a/.requirements")).unwrap();
    index.wait("no requirement", |images| product(images).get("requirements").is_none());
}

#[test]
fn hostile_overrides_are_a_problem_each() {
    let site = Site::new();
    let at = |number: u8| {
        let path = format!("{PRODUCT}/202401{number:02}");
        site.image(&path, &format!("root {number}"));
        site.path(&path).join("metadata.json")
    };
    fs::write(at(1), vec![b' '; 100 << 20]).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", at(2)).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, at(3), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    fs::create_dir(at(4)).unwrap();
    fs::write(at(5), "{\"os\": \"a\", \"os\": \"b\"}").unwrap();
    let images = wait(&site, "five versions and five problems", |images| {
        images.versions() == 5 && images.problems().len() == 5
    });
    for (problem, reason) in images.problems().iter().zip([
        "more than the 1048576",
        "out of the root",
        "no regular file",
        "no regular file",
        "duplicate field",
    ]) {
        assert!(problem.contains(reason), "{problem}");
    }
}

#[test]
fn a_directory_with_too_many_files() {
    let site = Site::new();
    site.image(VERSION, "root");
    for number in 0..2000 {
        site.version(VERSION).write(&format!("{number}.squashfs"), b"x");
    }
    let long = "n".repeat(255 - ".squashfs".len());
    site.image(&format!("images/{}/1/amd64/default/20240101", "o".repeat(255)), "long");
    site.version("images/b/1/amd64/default/20240101").write(&format!("{long}.squashfs"), b"r");
    site.version("images/b/1/amd64/default/20240101").write("lxd.tar.xz", b"m");
    let images = wait(&site, "three versions", |images| images.versions() == 3);
    let bound = images.problems().iter().filter(|p| p.contains("more than 1000")).count();
    assert_eq!(bound, 1);
}

#[test]
fn the_alias_of_two_products_is_reported() {
    let site = Site::new();
    site.image("images/a/1/amd64/20240101", "no variant");
    site.image("images/a/1/amd64/default/20240101", "variant default");
    let images =
        wait(&site, "a problem", |images| images.versions() == 2 && images.problems().len() == 1);
    let problem = &images.problems()[0];
    assert!(
        problem.contains("\"a:1:amd64\"") && problem.contains("a/1/amd64/default"),
        "{problem}"
    );
}

#[test]
fn the_release_current_has_shorter_aliases() {
    let site = Site::new();
    site.image("images/arch/current/amd64/default/20240101", "x");
    let images = wait(&site, "the image", |images| images.versions() == 1);
    let aliases = images.products()["arch:current:amd64:default"]["aliases"].clone();
    assert_eq!(
        aliases,
        "arch/current/default,arch/current,arch/default,arch,arch/current/amd64/default,\
         arch:current:amd64:default"
    );
}
