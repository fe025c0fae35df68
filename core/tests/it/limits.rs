//! What one uploader can make clients and the index bear.

use serde_json::{Value, json};

use crate::common::Site;

/// Products that share an image get each other's aliases, and clients take quadratic time over them.
#[test]
fn merged_aliases_have_an_end() {
    let site = Site::new();
    for product in 0..5 {
        let directory = format!("images/a/{product}/amd64/default");
        site.image(&format!("{directory}/20240101"), "the same");
        let aliases: Vec<String> = (0..100).map(|alias| format!("{product}-{alias}")).collect();
        let said = json!({ "aliases": aliases }).to_string();
        site.version(&directory).write("metadata.json", said.as_bytes());
    }
    let live = site.open();
    let images = live.wait("one product with all it can take", |images| {
        let problems = images.problems();
        problems.iter().filter(|problem| problem.contains("too many aliases")).count() == 3
    });
    let products = images.products();
    let aliases = |product: &Value| product["aliases"].as_str().unwrap().split(',').count();
    assert_eq!(products.values().map(aliases).collect::<Vec<_>>(), [256]);
}

/// Sparse files cost an uploader nothing, and would be hashed for days.
#[test]
fn a_version_that_claims_too_much_is_not_hashed() {
    const TIB: u64 = 1 << 40;
    let site = Site::new();
    let sparse = |version: &str, name: &str, length: u64| {
        let path = site.path(&format!("images/a/1/amd64/{version}/20240101/{name}"));
        std::fs::File::create(path).unwrap().set_len(length).unwrap();
    };
    for version in ["whole", "alone", "together"] {
        site.image(&format!("images/a/1/amd64/{version}/20240101"), version);
    }
    sparse("alone", "rootfs.squashfs", TIB + 1);
    sparse("together", "rootfs.squashfs", TIB - 1);
    let live = site.open();
    let images = live.wait("one version, two problems", |images| {
        images.versions() == 1 && images.problems().len() >= 2
    });
    let metadata = "metadata".len() as u64;
    for (version, name, claims) in
        [("alone", "rootfs.squashfs", TIB + 1), ("together", "lxd.tar.xz", metadata)]
    {
        let path = format!("{version}/20240101/{name}");
        let claims =
            format!("it claims {claims} bytes, with which the version has more than 1 TiB");
        let told = |problem: &String| problem.contains(&path) && problem.contains(&claims);
        assert!(images.problems().iter().any(told), "{:?}", images.problems());
    }
}
