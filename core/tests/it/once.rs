//! Indexes that are opened for one generation, as `update` does.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use crate::common::Site;

/// Longer than a version must have stood to be left without a watch.
const STANDS: Duration = Duration::from_millis(3200);

/// What stands has no watch; that it changes while the rest is hashed is noticed all the same, be it what is
/// listed or what was found wrong.
#[test]
fn what_stood_and_is_replaced_meanwhile_is_looked_at_again() {
    let site = Site::new();
    let [broken, listed, gone] =
        ["a/3", "a/2", "a/1"].map(|product| format!("images/{product}/amd64/default/20240102"));
    // A gzip that ends within its stream.
    site.version(&broken).write("lxd.tar.xz", b"metadata");
    site.version(&broken).write("rootfs.squashfs", b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc");
    site.image(&listed, "listed");
    site.image(&gone, "gone");
    // Without optimization, as tests are built, that takes a while to be hashed. Its turn is the last.
    let large = "images/a/4/amd64/default/20240101";
    site.image(large, "");
    let root = site.path(large).join("rootfs.squashfs");
    File::options().write(true).open(root).unwrap().set_len(384 << 20).unwrap();
    thread::sleep(STANDS);

    let index = site.open_once();
    index.until("the large one is left", |index| {
        let progress = index.progress();
        progress.looks > 0 && progress.hashing == 1
    });
    // No event tells of it: each takes the place of the other by a rename.
    let replace = |version: &str, content: &str| {
        let new = site.path("images/.new");
        fs::write(&new, content).unwrap();
        fs::rename(&new, site.path(version).join("rootfs.squashfs")).unwrap();
    };
    replace(&broken, "whole");
    replace(&listed, "another");
    fs::remove_dir_all(site.path(&gone)).unwrap();
    let first = index.wait("the first generation", |_| true);
    assert_eq!(index.generation(), 1);
    let products = first.products();
    let products: Vec<_> = products.keys().map(String::as_str).collect();
    let expected = ["a:2:amd64:default", "a:3:amd64:default", "a:4:amd64:default"];
    assert_eq!(products, expected);
    for (version, content) in [(&broken, "whole"), (&listed, "another")] {
        assert_eq!(
            first.root_hash(version),
            simplestreams::Digest::of(content.as_bytes()).to_string()
        );
    }
}
