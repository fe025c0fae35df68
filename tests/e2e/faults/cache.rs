//! The hash cache: what is known is not read again, and what it cannot be trusted with is.

use std::fs;

use super::observer::blob;
use crate::harness::{Ask, Dir, Nginx, Process, metadata, until};

const CONF: &str = "
@GLOBALS@
worker_processes 1;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    add_header X-Worker $pid always;
    server {
        listen 127.0.0.1:@PORT@;
        root @TREE@;
        location / {
            simplestreams on;
            simplestreams_settle 100ms;
        }
    }
}";

const PRODUCT: &str = "images/os/1/amd64/default";

/// Bytes of a root: far more than anything but hashing reads.
const ROOT: usize = 8 << 20;

/// The helper, once it has made sure of the tree: it has been asked for something that comes after.
fn at_rest(dir: &Dir, nginx: &Nginx<'_>, name: &str) -> Process {
    let path = format!("images/{name}/1/amd64/default/20260101_0000");
    dir.add_file(&format!("{path}/lxd.tar.xz"), metadata());
    dir.add_file(&format!("{path}/rootfs.tar.xz"), name.as_bytes());
    nginx.at_every_worker("/streams/v1/images.json", |answer| {
        answer.status == 200
            && answer.versions().contains(&format!("{name}:1:amd64:default 20260101_0000"))
    });
    nginx.helper()
}

#[test]
fn nothing_that_is_known_is_read_again() {
    let dir = Dir::new();
    for number in 1..=3 {
        let version = format!("{PRODUCT}/2026010{number}_0000");
        dir.add_file(&format!("{version}/lxd.tar.xz"), metadata());
        dir.add_file(&format!("{version}/rootfs.squashfs"), &blob(number, ROOT));
    }
    let nginx = dir.start(CONF);
    let helper = at_rest(&dir, &nginx, "a");
    until("all of it is hashed", || (helper.bytes_read() > 3 * ROOT as u64).then_some(()));
    nginx.at_every_worker("/streams/v1/images.json", |answer| answer.versions().len() == 4);
    let cache = dir.state().join("hashes.redb");
    let is_known = |bytes: &[u8]| {
        let hash = simplestreams::Digest::of(bytes);
        let cache = fs::read(&cache).unwrap_or_default();
        cache.windows(32).any(|window| window == hash.as_bytes())
    };
    // Hashes stand in memory for a moment; only what is on disk outlives the process.
    until("hashes are on disk", || {
        (1..=3).all(|number| is_known(&blob(number, ROOT))).then_some(())
    });
    // Pairs go first, and whole files when they have stood for three seconds; while there is
    // something to write, the file is written to every second.
    let committed = || {
        until("nothing is being written", || {
            let modified = fs::metadata(&cache).and_then(|meta| meta.modified()).expect("a time");
            let age = modified.elapsed().unwrap_or_default();
            (age > std::time::Duration::from_secs(5)).then_some(())
        });
    };
    committed();

    // A reload, with names changed meanwhile, and another name for the same file.
    let product = dir.tree().join(PRODUCT);
    nginx.reload();
    fs::rename(product.join("20260103_0000"), product.join("20260104_0000")).expect("mv");
    fs::create_dir(product.join("../cloud")).expect("variant");
    fs::create_dir(product.join("../cloud/20260105_0000")).expect("version");
    let link = |name: &str| {
        let to = product.join("../cloud/20260105_0000").join(name);
        fs::hard_link(product.join("20260102_0000").join(name), to).expect("ln");
    };
    ["lxd.tar.xz", "rootfs.squashfs"].iter().for_each(|name| link(name));
    fs::remove_dir_all(product.join("20260102_0000")).expect("rm -r");
    let listed = [
        "os:1:amd64:cloud 20260105_0000",
        "os:1:amd64:default 20260101_0000",
        "os:1:amd64:default 20260104_0000",
    ];
    let lists = |nginx: &Nginx<'_>| {
        nginx.at_every_worker("/streams/v1/images.json", |answer| {
            answer.status == 200
                && listed.iter().all(|name| answer.versions().contains(&(*name).to_owned()))
        });
    };
    lists(&nginx);
    let read = at_rest(&dir, &nginx, "b").bytes_read();
    assert!(read < ROOT as u64, "a reload read {read} bytes");
    until("what was learnt is on disk", || is_known(b"b").then_some(()));
    committed();
    nginx.finish();

    // A restart, whose first answer is what was published last.
    let nginx = dir.start(CONF);
    let first = Ask::get("/streams/v1/images.json").of(&nginx);
    assert!(first.status == 200 && first.versions().len() == 5, "{}", first.text());
    lists(&nginx);
    let read = at_rest(&dir, &nginx, "c").bytes_read();
    assert!(read < ROOT as u64, "a restart read {read} bytes");
    committed();
    nginx.finish();

    // What is no cache of ours is made again, with one warning, while everything stays listed.
    let good = fs::read(&cache).expect("the cache");
    let mut newer = good.clone();
    // The version of redb's file format begins each of its two commit slots.
    [64, 192].iter().for_each(|slot| newer[*slot] = 0xee);
    let cases = [
        ("foreign", b"something else altogether".repeat(1000)),
        // Of a longer rest what is still there may be whole, and is then good.
        ("cut", good[..1000].to_vec()),
        ("newer", newer),
        ("empty pages", vec![0; good.len()]),
    ];
    for (case, bytes) in cases {
        fs::write(&cache, bytes).expect("write");
        fs::write(dir.path().join("error.log"), "").expect("a new log");
        let nginx = dir.start(CONF);
        lists(&nginx);
        let helper = at_rest(&dir, &nginx, "c");
        eprintln!("{case}");
        until("it is hashed again", || (helper.bytes_read() > 3 * ROOT as u64).then_some(()));
        lists(&nginx);
        // Written twice a second, and not when the helper exits.
        until("it is in the log", || nginx.error_log().contains("hash cache").then_some(()));
        nginx.finish();
        let log = fs::read_to_string(dir.path().join("error.log")).expect("log");
        let warnings = log.lines().filter(|line| line.contains("hash cache")).count();
        assert_eq!(warnings, 1, "{case}: {log}");
    }
}
