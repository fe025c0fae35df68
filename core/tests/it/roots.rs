//! Roots and directories above versions that are missing, go away, come back, or are replaced.

use std::fs;

use std::os::unix::fs::symlink;

use crate::common::{Live, Site, VERSION};
use simplestreams::Settings;

#[test]
fn a_missing_root_is_waited_for() {
    let site = Site::new();
    let root = site.path("later");
    let index = site.open_with(Settings { root: root.clone(), ..site.settings() });
    let images = index.wait("a generation without documents", |_| true);
    assert_eq!(images.names(), Vec::<String>::new());
    assert!(images.problems()[0].contains("root is missing"), "{:?}", images.problems());
    site.image(".upload/images/a/1/amd64/default/20240101", "x");
    fs::rename(site.path(".upload"), &root).unwrap();
    let images = index.wait("the image", |images| images.versions() == 1);
    assert_eq!(images.problems(), Vec::<String>::new());
}

/// A disk that goes away must not look like every image was withdrawn.
#[test]
fn a_root_that_vanishes_stays_listed_and_comes_back() {
    let site = Site::new();
    site.image("root/images/a/1/amd64/default/20240101", "x");
    let root = site.path("root");
    let index = site.open_with(Settings { root: root.clone(), ..site.settings() });
    index.wait("the image", |images| images.versions() == 1);
    let seen = index.record(|| {
        fs::rename(&root, site.path("elsewhere")).unwrap();
        index.wait("a problem", |images| !images.problems().is_empty());
        site.image("elsewhere/images/a/1/amd64/default/20240102", "y");
        fs::rename(site.path("elsewhere"), &root).unwrap();
        index.wait("both versions", |images| images.versions() == 2);
    });
    assert!(seen.iter().all(|images| images.versions() >= 1), "an empty index was published");
}

#[test]
fn a_root_replaced_by_another_directory() {
    let site = Site::new();
    site.image("root/images/a/1/amd64/default/20240101", "old");
    site.image("other/images/b/1/amd64/default/20240101", "new");
    let root = site.path("root");
    let index = site.open_with(Settings { root: root.clone(), ..site.settings() });
    index.wait("the old one", |images| images.versions() == 1);
    fs::rename(&root, site.path("aside")).unwrap();
    fs::rename(site.path("other"), &root).unwrap();
    index.wait("the new one alone", |images| {
        images.versions() == 1 && images.products().contains_key("b:1:amd64:default")
    });
    site.image("root/images/b/1/amd64/default/20240102", "and it is watched");
    index.wait("its second version", |images| images.versions() == 2);
}

#[test]
fn a_stream_that_is_deleted_is_unlisted_at_once() {
    let site = Site::new();
    site.image(VERSION, "x");
    let index = site.open();
    index.wait("the image", |images| images.versions() == 1);
    fs::remove_dir_all(site.path("images")).unwrap();
    index.wait("an empty list", |images| images.versions() == 0);
}

/// A link into itself in a directory that a link leads to is refused by a look at a part of the tree as by
/// one at all of it.
#[test]
fn a_loop_behind_a_link_changes_nothing() {
    let site = Site::new();
    site.image("store/1/amd64/default/20240101", "x");
    symlink("../store", site.path("images/linked")).unwrap();
    let index = site.open();
    let listed = |index: &Live| {
        let images = index.wait("a problem", |images| !images.problems().is_empty());
        (images.products().keys().cloned().collect::<Vec<_>>(), images.problems())
    };
    index.wait("the image", |images| images.versions() == 1);
    symlink(".", site.path("store/1/amd64/a")).unwrap();
    let live = listed(&index);
    drop(index);
    assert_eq!(live, listed(&site.open()));
    assert_eq!(live.0, ["linked:1:amd64:default"]);
}

/// Nobody watches what is above versions then; what was renamed away is found before it is published.
#[test]
fn an_index_that_is_opened_once_does_not_list_what_was_renamed() {
    let site = Site::new();
    site.image("images/a/1/amd64/default/20240101", "x");
    site.image("images/b/1/amd64/default/20240101", "y");
    let large = site.path("images/b/1/amd64/default/20240101/rootfs.squashfs");
    fs::File::options().write(true).open(large).unwrap().set_len(384 << 20).unwrap();
    let index = site.open_once();
    index.until("something was hashed", |index| index.progress().bytes_hashed > 1 << 20);
    fs::rename(site.path("images/a"), site.path("gone")).unwrap();
    let images = index.wait("the first generation", |_| true);
    assert_eq!(images.products().keys().collect::<Vec<_>>(), ["b:1:amd64:default"]);
}
