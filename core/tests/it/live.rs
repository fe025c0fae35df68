//! Whole stories on a live index: what lands in the tree shows, what is not whole does not.
//!
//! Every wait polls with a deadline; a test that says "never" watches every generation until
//! something that came later has shown.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::thread;
use std::time::Duration;

use crate::common::{Live, Site, VERSION, sha256};
use serde_json::Value;
use simplestreams::{Aliases, Settings};

#[test]
fn a_split_image_is_listed_for_both_clients() {
    let site = Site::new();
    let version = site.version("images/iats/xenial/amd64/default/20180716_12:00");
    version.write("lxd.tar.xz", b"metadata");
    version.write("rootfs.squashfs", b"root");
    let index = site.open();
    let images = index.wait("both items", |images| images.versions() == 1);

    let product = &images.products()["iats:xenial:amd64:default"];
    assert_eq!(
        product["aliases"],
        "iats/xenial/default,iats/xenial,iats/xenial/amd64/default,iats:xenial:amd64:default"
    );
    for (key, value) in [
        ("os", "iats"),
        ("release", "xenial"),
        ("release_title", "xenial"),
        ("arch", "amd64"),
        ("variant", "default"),
    ] {
        assert_eq!(product[key], value, "{key}");
    }
    let path = "images/iats/xenial/amd64/default/20180716_12:00";
    let items = &product["versions"]["20180716_12:00"]["items"];
    assert_eq!(items.as_object().map(|items| items.len()), Some(3));
    for client in ["lxd.tar.xz", "incus.tar.xz"] {
        let item = &items[client];
        assert_eq!(item["ftype"], client);
        assert_eq!(item["path"], format!("{path}/lxd.tar.xz"));
        assert_eq!(item["sha256"], sha256(b"metadata"));
        assert_eq!(item["size"], 8);
        assert_eq!(item["combined_squashfs_sha256"], sha256(b"metadataroot"));
    }
    let root = &items["rootfs.squashfs"];
    assert_eq!((&root["ftype"], &root["size"]), (&"squashfs".into(), &4.into()));
    assert_eq!(root["path"], format!("{path}/rootfs.squashfs"));
    assert_eq!(root["sha256"], sha256(b"root"));

    let entry = &images.index()["index"]["images"];
    assert_eq!(entry["datatype"], "image-downloads");
    assert_eq!(entry["path"], "streams/v1/images.json");
    assert_eq!(entry["products"], serde_json::json!(["iats:xenial:amd64:default"]));
    assert_eq!(images.problems(), Vec::<String>::new());
}

#[test]
fn several_roots_and_both_metadata_files() {
    let site = Site::new();
    let version = site.version(VERSION);
    version.write("lxd.tar.xz", b"one");
    version.write("incus.tar.xz", b"two");
    version.write("rootfs.squashfs", b"squash");
    version.write("rootfs.tar.xz", b"tar");
    version.write("disk.qcow2", b"disk");
    let images = site.open().wait("all items", |images| images.versions() == 1);
    let items = images.items(VERSION);
    for (client, metadata) in [("lxd.tar.xz", "one"), ("incus.tar.xz", "two")] {
        for (key, root) in [
            ("combined_squashfs_sha256", "squash"),
            ("combined_rootxz_sha256", "tar"),
            ("combined_disk-kvm-img_sha256", "disk"),
        ] {
            let fingerprint = sha256(format!("{metadata}{root}").as_bytes());
            assert_eq!(items[client][key], fingerprint, "{client} {key}");
        }
    }
    assert_eq!(items["disk.qcow2"]["ftype"], "disk-kvm.img");
    assert_eq!(items["rootfs.tar.xz"]["ftype"], "root.tar.xz");
    let [problem] = &images.problems()[..] else {
        panic!("one problem: {:?}", images.problems());
    };
    assert!(problem.contains("differ"), "{problem}");
}

#[test]
fn what_lands_moves_or_leaves_shows() {
    let site = Site::new();
    site.image("images/a/1/amd64/default/20240101", "one");
    let index = site.open();
    index.wait("the first version", |images| images.versions() == 1);

    site.image("images/a/1/amd64/default/20240102", "copied in");
    index.wait("a version copied in", |images| images.versions() == 2);

    let upload = site.path(".upload");
    site.image(".upload/20240103", "moved in");
    fs::rename(upload.join("20240103"), site.path("images/a/1/amd64/default/20240103")).unwrap();
    index.wait("a version moved in", |images| images.versions() == 3);

    site.image(".upload/b/1/arm64/cloud/20240101", "a whole product");
    fs::rename(upload.join("b"), site.path("images/b")).unwrap();
    index.wait("a product moved in", |images| images.products().contains_key("b:1:arm64:cloud"));

    fs::rename(site.path("images/b"), site.path(".gone")).unwrap();
    index.wait("a product moved away", |images| images.versions() == 3);

    fs::remove_dir_all(site.path("images/a/1/amd64/default/20240103")).unwrap();
    let images = index.wait("a version deleted", |images| images.versions() == 2);
    assert_eq!(images.problems(), Vec::<String>::new());

    // The moved directory is watched no more: what happens in it now is nobody's business.
    let before = index.generation();
    fs::write(site.path(".gone/1/arm64/cloud/20240101/disk.qcow2"), "x").unwrap();
    site.image("images/a/1/amd64/default/20240104", "after");
    index.wait("the next version", |images| images.versions() == 3);
    assert_eq!(index.generation(), before + 1);
}

#[test]
fn a_file_replaced_by_rename_or_in_place_gets_its_new_hash() {
    let site = Site::new();
    site.image(VERSION, "old");
    let index = site.open();
    index.wait("the image", |images| images.versions() == 1);
    let root = site.path(VERSION).join("rootfs.squashfs");

    fs::write(site.path(".new"), "renamed over").unwrap();
    fs::rename(site.path(".new"), &root).unwrap();
    index.wait("the renamed root", |images| {
        images.versions() == 1 && images.root_hash(VERSION) == sha256(b"renamed over")
    });

    let mut file = OpenOptions::new().write(true).open(&root).unwrap();
    file.write_all(b"in").unwrap();
    index.wait("withheld at the first write", |images| images.versions() == 0);
    file.write_all(b" place ...").unwrap();
    drop(file);
    index.wait("the rewritten root", |images| {
        images.versions() == 1 && images.root_hash(VERSION) == sha256(b"in place ...")
    });
}

/// The writer stalls for longer than the settle time, more than once.
#[test]
fn a_version_that_is_being_written_is_never_listed() {
    let site = Site::new();
    fs::create_dir_all(site.path("images/a/1/amd64/default")).unwrap();
    let index = site.open();
    index.wait("an empty index", |_| true);
    let version = site.version(VERSION);
    // The directory is watched before the files are made; a file made earlier is trusted after
    // the settle time, as documented.
    index.until_watched(VERSION);
    version.write("lxd.tar.xz", b"metadata");
    let mut file = File::create(site.path(VERSION).join("rootfs.squashfs")).unwrap();
    let seen = index.record(|| {
        for part in ["a ", "slow ", "writer"] {
            file.write_all(part.as_bytes()).unwrap();
            // Something else is published meanwhile, later than the settle time each time.
            site.image(&format!("images/b/1/amd64/default/2024010{}", part.len()), part);
            index.wait("another version", |images| {
                images.text().contains(&format!("2024010{}", part.len()))
            });
            index.pass(Site::SETTLE * 2);
            assert_eq!(index.waiting(), [VERSION]);
        }
        drop(file);
        index.wait("the slow one", |images| images.text().contains(VERSION));
    });
    let listed: Vec<_> = seen.iter().filter(|images| images.text().contains(VERSION)).collect();
    assert!(!listed.is_empty());
    for images in listed {
        assert_eq!(images.root_hash(VERSION), sha256(b"a slow writer"), "a part was listed");
    }
}

#[test]
fn a_listed_version_stays_while_a_file_is_added_to_it() {
    let site = Site::new();
    site.image(VERSION, "root");
    let index = site.open();
    index.wait("the image", |images| images.versions() == 1);
    let seen = index.record(|| {
        let mut disk = File::create(site.path(VERSION).join("disk.qcow2")).unwrap();
        disk.write_all(b"half").unwrap();
        index.pass(Site::SETTLE * 2);
        disk.write_all(b" and half").unwrap();
        drop(disk);
        index.wait("the disk", |images| images.text().contains("disk.qcow2"));
    });
    assert!(seen.iter().all(|images| images.versions() == 1), "it was unlisted meanwhile");
    let disk = &seen.last().unwrap().items(VERSION)["disk.qcow2"];
    assert_eq!(disk["sha256"], sha256(b"half and half"));
}

#[test]
fn names_with_a_dot_are_invisible() {
    let site = Site::new();
    site.image("images/a/1/amd64/default/.20240101", "hidden version");
    site.image("images/.a/1/amd64/default/20240101", "hidden product");
    site.image(VERSION, "visible");
    site.version(VERSION).write(".rootfs.squashfs.Xy12", b"rsync's temporary");
    let images = site.open().wait("the visible one", |images| images.versions() == 1);
    assert!(!images.text().contains("/."), "{}", images.text());
    assert_eq!(images.problems(), Vec::<String>::new());
}

/// One bad thing of each kind beside a good image: a problem each, with path and remedy, and the
/// good one is listed.
#[test]
fn bad_input_is_a_problem_and_the_rest_is_served() {
    let site = Site::new();
    let product = "images/good/1/amd64/default";
    site.image(&format!("{product}/20240101"), "good");
    let cases: Vec<(&str, String, &str)> = vec![
        ("no root", format!("{product}/20240102"), "holds no root"),
        ("no metadata", format!("{product}/20240103"), "holds no metadata"),
        ("nothing", format!("{product}/20240104"), "holds no image"),
        ("no date", format!("{product}/latest"), "does not begin with a date"),
        ("no date", "images/good/1/amd64/cloud/2024-01-01".into(), "does not begin with a date"),
        ("too short", "images/good/20240101".into(), "too short"),
        ("architecture", "images/good/1/sparc".into(), "unknown to the clients"),
        ("comma", "images/a,b".into(), "comma"),
        ("colon", "images/a:b".into(), "colon"),
        ("percent", "images/a%b".into(), "\"%\""),
        ("control", "images/a\\nb".into(), "control character"),
        ("utf-8", "images/a\u{fffd}b".into(), "UTF-8"),
        ("cut short", format!("{product}/20240105/rootfs.squashfs"), "superblock"),
        ("cut short", format!("{product}/20240106/lxd.tar.xz"), "xz file ends"),
        ("empty", format!("{product}/20240107/rootfs.squashfs"), "is empty"),
        ("link out", format!("{product}/20240108/rootfs.squashfs"), "out of the root"),
        ("link nowhere", format!("{product}/20240109/rootfs.squashfs"), "leads nowhere"),
        ("fifo", format!("{product}/20240110/rootfs.squashfs"), "no regular file"),
        ("two roots", format!("{product}/20240111/root.squashfs"), "already has a root"),
        ("link out", "images/out".into(), "out of the root"),
    ];
    let version = |n: &str| site.version(&format!("{product}/{n}"));
    version("20240102").write("lxd.tar.xz", b"m");
    version("20240103").write("rootfs.squashfs", b"r");
    version("20240104");
    site.image(&format!("{product}/latest"), "no date");
    site.image("images/good/1/amd64/cloud/2024-01-01", "no date either");
    site.image("images/good/20240101", "short");
    site.image("images/good/1/sparc/default/20240101", "sparc");
    for name in [&b"a,b"[..], b"a:b", b"a%b", b"a\nb", b"a\xffb"] {
        use std::os::unix::ffi::OsStrExt as _;
        let name = std::ffi::OsStr::from_bytes(name);
        fs::create_dir_all(site.path("images").join(name).join("1/amd64/20240101")).unwrap();
    }
    let with_root = |n: &str, root: &[u8]| {
        version(n).write("lxd.tar.xz", n.as_bytes());
        version(n).write("rootfs.squashfs", root);
    };
    let mut squashfs = [0_u8; 96];
    squashfs[..4].copy_from_slice(b"hsqs");
    squashfs[40] = 97;
    with_root("20240105", &squashfs);
    with_root("20240106", b"root");
    version("20240106").write("lxd.tar.xz", b"\xfd7zXZ\0 and then the line dropped");
    with_root("20240107", b"");
    for (n, target) in [("20240108", "/etc/hostname"), ("20240109", "/nonexistent")] {
        version(n).write("lxd.tar.xz", n.as_bytes());
        symlink(target, site.path(&format!("{product}/{n}/rootfs.squashfs"))).unwrap();
    }
    version("20240110").write("lxd.tar.xz", b"m10");
    let fifo = site.path(&format!("{product}/20240110/rootfs.squashfs"));
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    site.image(&format!("{product}/20240111"), "two");
    version("20240111").write("root.squashfs", b"second");
    symlink("/etc", site.path("images/out")).unwrap();

    let index = site.open();
    let images = index.wait("two versions and all problems", |images| {
        images.versions() == 2 && images.problems().len() >= cases.len()
    });
    let problems = images.problems();
    for (case, path, reason) in &cases {
        let path = format!("\"{path}\": ");
        let found = problems.iter().find(|problem| problem.starts_with(&path));
        let found = found.unwrap_or_else(|| panic!("{case}: nothing at {path} in {problems:#?}"));
        assert!(found.contains(reason), "{case}: {found}");
        assert!(found.split("; ").count() > 1, "{case}: no remedy in {found}");
    }
    // Those without metadata or root are two problems fewer than versions; nothing is double.
    let unexpected: Vec<_> = problems
        .iter()
        .filter(|problem| {
            !cases.iter().any(|(_, path, _)| problem.starts_with(&format!("\"{path}\"")))
        })
        // A version whose root is a bad link is, besides, one without a root.
        .filter(|problem| !problem.contains("holds no root"))
        .collect();
    assert_eq!(unexpected, Vec::<&String>::new());

    // Mended, each of them is listed without anybody asking.
    version("20240102").write("rootfs.squashfs", b"root 2");
    version("20240103").write("lxd.tar.xz", b"metadata 3");
    version("20240107").write("rootfs.squashfs", b"root 7");
    index.wait("three more", |images| images.versions() == 5);
}

#[test]
fn a_problem_goes_with_its_directory() {
    let site = Site::new();
    site.image(VERSION, "good");
    site.image("images/b/1/z80/default/20240101", "unknown architecture");
    let index = site.open();
    index.wait("the problem", |images| images.versions() == 1 && images.problems().len() == 1);
    fs::rename(site.path("images/b/1/z80"), site.path("images/b/1/arm64")).unwrap();
    index.wait("the image", |images| images.versions() == 2 && images.problems().is_empty());
}

/// Clients believe an empty list for an hour.
#[test]
fn nothing_is_published_before_something_is_listed() {
    let site = Site::new();
    site.version("images/a/1/amd64/default/20240102").write("lxd.tar.xz", b"incomplete");
    site.version(VERSION).write("lxd.tar.xz", b"metadata");
    let root = File::create(site.path(VERSION).join("rootfs.squashfs")).unwrap();
    root.set_len(512 << 20).unwrap();
    drop(root);
    let index = site.open();
    let first = index.wait("a generation", |_| true);
    assert_eq!(first.versions(), 1);
}

/// One large newest version must not keep the older ones from being served.
#[test]
fn older_versions_are_published_while_the_newest_is_hashed() {
    let site = Site::new();
    site.image(VERSION, "older");
    site.version("images/a/1/amd64/default/20240102").write("lxd.tar.xz", b"metadata");
    let root = site.path("images/a/1/amd64/default/20240102/rootfs.squashfs");
    File::create(&root).unwrap().set_len(64 << 30).unwrap();
    let threads = std::num::NonZeroUsize::new(2).unwrap();
    let index = site.open_with_threads(site.settings(), threads);
    let first = index.wait("a generation", |_| true);
    assert_eq!(first.versions(), 1);
    let deadline = std::time::Instant::now() + Site::DEADLINE;
    while index.progress().hashing == 0 {
        assert!(std::time::Instant::now() < deadline, "it is hashed already?");
        std::thread::yield_now();
    }
}

/// A rescan tries again what was broken, which must not look like it was mended.
#[test]
fn a_problem_stays_while_it_is_tried_again() {
    let site = Site::new();
    site.image(VERSION, "good");
    site.version("images/b/1/amd64/default/20240101").write("lxd.tar.xz", b"alone");
    let rescan = Duration::from_millis(50);
    let index = site.open_with(Settings { rescan, ..site.settings() });
    index.wait("the problem", |images| images.versions() == 1 && images.problems().len() == 1);
    let seen = index.record(|| {
        let looks = index.progress().looks;
        let deadline = std::time::Instant::now() + Site::DEADLINE;
        while index.progress().looks < looks + 10 {
            assert!(std::time::Instant::now() < deadline, "no rescan");
            std::thread::yield_now();
        }
    });
    assert_eq!(seen.len(), 1, "generations without a change");
    assert_eq!(seen[0].problems().len(), 1);
}

#[test]
fn a_file_that_may_not_be_read_is_a_problem_until_it_may() {
    if rustix::process::geteuid().is_root() {
        eprintln!("SKIP: root reads everything; the server's tests do this as its worker user");
        return;
    }
    let site = Site::new();
    site.image(VERSION, "root");
    let root = site.path(VERSION).join("rootfs.squashfs");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o000)).unwrap();
    let index = site.open();
    let images = index.wait("a problem", |images| !images.problems().is_empty());
    assert!(images.problems()[0].contains("cannot be read"), "{:?}", images.problems());
    fs::set_permissions(&root, fs::Permissions::from_mode(0o644)).unwrap();
    index.wait("the image", |images| images.versions() == 1);
}

#[test]
fn links_inside_of_the_root_are_followed_once() {
    let site = Site::new();
    site.image("store/20240101", "kept in a store");
    fs::create_dir_all(site.path("images/a/1/amd64/default")).unwrap();
    symlink(site.path("store/20240101"), site.path(VERSION)).unwrap();
    symlink("20240101", site.path("images/a/1/amd64/default/latest")).unwrap();
    symlink("a", site.path("images/alias-of-a")).unwrap();
    symlink(".", site.path("images/a/loop")).unwrap();
    let images = site.open().wait("one version", |images| images.versions() == 1);
    assert_eq!(images.problems(), Vec::<String>::new());
    assert_eq!(images.root_hash(VERSION), sha256(b"kept in a store"));
}

#[test]
fn equal_fingerprints_are_listed_once() {
    let site = Site::new();
    site.image("images/a/1/amd64/default/20240101", "same");
    site.image("images/a/1/amd64/default/20240102", "same");
    site.image("images/b/1/amd64/default/20240101", "same");
    let images = site.open().wait("one version and two problems", |images| {
        images.versions() == 1 && images.problems().len() == 2
    });
    let product = &images.products()["a:1:amd64:default"];
    assert!(product["versions"].get("20240102").is_some(), "the newest stays");
    let aliases = product["aliases"].as_str().unwrap().split(',').collect::<Vec<_>>();
    assert!(aliases.contains(&"b/1") && aliases.contains(&"a/1"), "{aliases:?}");
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let (first, second) = (Site::new(), Site::new());
    let names = ["images/a/1/amd64/x/20240101", "images/b/2/arm64/y/20240101", VERSION];
    names.iter().for_each(|name| first.image(name, name));
    names.iter().rev().for_each(|name| second.image(name, name));
    let of = |site: &Site| site.open().wait("three versions", |images| images.versions() == 3);
    let (first, second) = (of(&first), of(&second));
    assert_eq!(first.text(), second.text());
    assert_eq!(first.etags(), second.etags());
}

#[test]
fn streams_and_alias_forms_are_settings() {
    let site = Site::new();
    site.image("images/a/1/amd64/default/20240101", "x");
    site.image("images-daily/a/1/amd64/20240102", "y");
    let index = site.open_with(Settings {
        streams: vec!["images".into(), "images-daily".into()],
        aliases: Aliases { path: true, ..Aliases::OFF },
        ..site.settings()
    });
    let images = index.wait("both images", |images| images.counts().versions == 2);
    assert_eq!(images.names(), ["images-daily.json", "images.json", "index.json"]);
    assert_eq!(images.products()["a:1:amd64:default"]["aliases"], "a/1/amd64/default");
    let daily: Value = images.document("images-daily.json");
    assert_eq!(daily["content_id"], "images-daily");
    assert_eq!(daily["products"]["a:1:amd64"]["aliases"], "a/1/amd64");
    assert_eq!(daily["products"]["a:1:amd64"].get("variant"), None);
}

#[test]
fn a_hard_link_is_listed_and_not_waited_for() {
    let site = Site::new();
    site.image("store/1", "linked");
    fs::create_dir_all(site.path("images/a/1/amd64/default")).unwrap();
    let index = site.open();
    index.wait("an empty index", |_| true);
    site.version(VERSION);
    index.until_watched(VERSION);
    for name in ["lxd.tar.xz", "rootfs.squashfs"] {
        fs::hard_link(site.path("store/1").join(name), site.path(VERSION).join(name)).unwrap();
    }
    index.wait("the linked image", |images| images.versions() == 1);
}

#[test]
fn an_attribute_change_does_no_harm() {
    let site = Site::new();
    site.image(VERSION, "root");
    let index = site.open();
    index.wait("the image", |images| images.versions() == 1);
    let root = site.path(VERSION).join("rootfs.squashfs");
    let changed = |path| fs::metadata(path).map(|meta| meta.ctime_nsec()).unwrap();
    let before = changed(&root);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o600)).unwrap();
    assert_ne!(changed(&root), before);
    site.image("images/b/1/amd64/default/20240101", "later");
    index.wait("both", |images| images.versions() == 2);
}

/// One thread, and a file that keeps it busy for longer than this test would wait: what is small and
/// newer is listed meanwhile.
#[test]
fn a_small_newer_version_does_not_wait_for_a_large_file() {
    let site = Site::new();
    let version = site.version(VERSION);
    version.write("lxd.tar.xz", b"m");
    let big = File::create(site.path(VERSION).join("rootfs.squashfs")).unwrap();
    big.set_len(1 << 39).unwrap();
    let index = site.open_with_threads(site.settings(), NonZeroUsize::MIN);
    index.until("hashing began", |index| index.progress().bytes_hashed > 0);
    site.image("images/b/1/amd64/default/20240102", "small");
    index.wait("the small one", |images| images.versions() == 1);
    site.image("images/b/1/amd64/default/20240103", "another");
    index.wait("another one", |images| images.versions() == 2);
    assert_eq!(index.progress().hashing, 1, "the large one is not done");
}

/// Dropping an index ends all of its threads, also in the middle of hashing.
#[test]
fn stopping_is_prompt_and_leaves_no_thread() {
    let site = Site::new();
    let version = site.version(VERSION);
    version.write("lxd.tar.xz", b"m");
    let big = File::create(site.path(VERSION).join("rootfs.squashfs")).unwrap();
    big.set_len(8 << 30).unwrap();
    let index = site.open();
    let deadline = std::time::Instant::now() + Site::DEADLINE;
    while index.progress().bytes_hashed == 0 {
        assert!(std::time::Instant::now() < deadline, "hashing did not begin");
        std::thread::yield_now();
    }
    let start = std::time::Instant::now();
    drop(index);
    assert!(start.elapsed() < Duration::from_secs(20), "it waited for the file to end");
    drop(big);
}

/// With a file of hashes, a restart reads nothing again, but for what changed meanwhile.
#[test]
fn a_file_of_hashes_outlives_the_index() {
    use simplestreams::{Index, IndexOptions};
    let (site, data) = (Site::new(), tempfile::tempdir().unwrap());
    let path = data.path().join("hashes");
    site.image(VERSION, "first");
    let open = || {
        let options = IndexOptions { hash_cache: Some(path.clone()), ..IndexOptions::default() };
        Live::from(Index::open_with(site.settings(), options).unwrap())
    };
    let index = open();
    index.wait("the version", |images| images.versions() == 1);
    let hashed = index.progress().bytes_hashed;
    assert_eq!(hashed, "metadatafirst".len() as u64);
    let written = || std::fs::metadata(&path).unwrap().modified().unwrap();
    // Hashes go to disk when they have stood for three seconds; what an override says, within one.
    let stood = std::time::SystemTime::now() + Duration::from_secs(3);
    index.until("they have stood", |_| std::time::SystemTime::now() > stood);
    std::fs::write(site.path("images/a/metadata.json"), "{}").unwrap();
    index.until("they are written", |_| written() > stood);
    drop(index);

    site.image("images/a/1/amd64/default/20240102", "second");
    let index = open();
    index.wait("both versions", |images| images.versions() == 2);
    // The same bytes in another file are another file.
    assert_eq!(index.progress().bytes_hashed, "metadatasecond".len() as u64);
}

/// What an index that is opened once published before is not taken for what is known now.
#[test]
fn what_is_published_by_request_lists_nothing_that_changed() {
    let site = Site::new();
    let (kept, replaced) =
        ("images/a/1/amd64/default/20240101", "images/b/1/amd64/default/20240101");
    site.image(kept, "x");
    site.image(replaced, "y");
    let index = site.open_once();
    index.wait("both", |images| images.versions() == 2);
    index.wait_idle();
    // Without optimization, as tests are built, that takes a while to be hashed.
    let new = site.path("images/.new");
    File::create(&new).unwrap().set_len(384 << 20).unwrap();
    fs::rename(&new, site.path(replaced).join("rootfs.squashfs")).unwrap();
    index.until("it is hashed", |index| index.progress().hashing > 0);
    let images = index.published_now();
    assert_eq!(images.products().keys().collect::<Vec<_>>(), ["a:1:amd64:default"]);
}

/// With `once` the first generation is the whole, and what is listed is kept an eye on all the same.
#[test]
fn an_index_that_is_opened_once_publishes_when_all_is_hashed() {
    const VERSIONS: usize = 4;
    let site = Site::new();
    for number in 0..VERSIONS {
        site.image(&format!("images/a/{number}/amd64/default/20240101"), &number.to_string());
        // Each is quiet long before the next one is.
        thread::sleep(Site::SETTLE / 2);
    }
    // Without optimization, as tests are built, that takes longer than a first generation waits.
    let large = site.path("images/a/2/amd64/default/20240101/rootfs.squashfs");
    File::options().write(true).open(large).unwrap().set_len(384 << 20).unwrap();
    let index = site.open_once();
    let first = index.wait("the first generation", |_| true);
    assert_eq!((first.versions(), index.generation()), (VERSIONS, 1));
    index.wait_idle();
    fs::remove_dir_all(site.path("images/a/0/amd64/default/20240101")).unwrap();
    let rewritten = "images/a/1/amd64/default/20240101";
    fs::write(site.path(rewritten).join("rootfs.squashfs"), "another").unwrap();
    index.wait("what became of two versions", |images| {
        images.versions() == VERSIONS - 1 && images.root_hash(rewritten) == sha256(b"another")
    });
}
