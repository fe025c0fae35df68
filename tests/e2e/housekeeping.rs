//! What the builder does beside building: it tells how far it is.

use std::fs;

use crate::harness::{Ask, Dir, Nginx, until};

const CONF: &str = "
@GLOBALS@
worker_processes 1;
events {}
http {
    @HTTP_GLOBALS@
    simplestreams_threads 1;
    server {
        listen 127.0.0.1:@PORT@;
        add_header X-Worker $pid always;
        location / {
            simplestreams @TREE@;
            simplestreams_settle 50ms;
        }
    }
}";

/// Bytes of each root of a cold tree, nearly all of them a hole.
const ROOT: u64 = 256 << 20;

fn lines(nginx: &Nginx<'_>, text: &str) -> Vec<String> {
    let log = nginx.error_log();
    log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

/// Such a tree takes longer to hash than the log is patient; its oldest versions come last.
#[test]
fn a_cold_tree_is_listed_from_its_newest_on_and_the_log_says_how_far_it_is() {
    let dir = Dir::new();
    let version = |product: u32, day: u32| {
        let month = if day > 30 { "03" } else { "01" };
        format!("images/os{product}/1/amd64/default/2026{month}{:02}_0000", 1 + (day - 1) % 30)
    };
    for (product, day) in (1..=3).flat_map(|product| (1..=60).map(move |day| (product, day))) {
        let path = version(product, day);
        dir.add_image(&path, &path);
        let root = dir.tree().join(&path).join("rootfs.squashfs");
        let root = fs::File::options().write(true).open(root).expect("the root");
        root.set_len(ROOT).expect("a hole");
    }
    let nginx = dir.start(CONF);
    let listed = || {
        let answer = Ask::get("/streams/v1/images.json").of(&nginx);
        if answer.status == 503 { Vec::new() } else { answer.versions() }
    };
    let newest: Vec<String> =
        (1..=3).map(|product| format!("os{product}:1:amd64:default 20260330_0000")).collect();
    until("the newest of each product is listed", || {
        let listed = listed();
        assert!(listed.len() < 180, "there was no time to look");
        newest.iter().all(|newest| listed.contains(newest)).then_some(())
    });
    let going =
        until("the log says how far it is", || lines(&nginx, " versions are hashed, ").pop());
    assert!(going.contains(" of 180 versions are hashed, "), "{going}");
    assert!(going.contains(" of 360 files, ") && going.contains(" of 46080 MiB ("), "{going}");
    assert!(going.contains(" s left"), "{going}");
    let on_the_way = listed();
    assert!(on_the_way.len() < 180 && on_the_way.len() > 3, "{on_the_way:?}");

    // The rest need not be waited for.
    for product in 1..=3 {
        for day in 1..=59 {
            fs::remove_dir_all(dir.tree().join(version(product, day))).expect("rm -r");
        }
    }
    nginx.every_worker_lists(&newest.iter().map(String::as_str).collect::<Vec<_>>());
    let over = until("the log says that it is over", || {
        lines(&nginx, " versions are hashed, ").into_iter().find(|line| line.contains(" MiB in "))
    });
    assert!(!over.contains(" of 180"), "{over}");

    // A small change is not worth a line.
    let said = lines(&nginx, " versions are hashed, ").len();
    dir.add_image(&version(4, 1), "small");
    until("it is listed", || (listed().len() == 4).then_some(()));
    assert_eq!(lines(&nginx, " versions are hashed, ").len(), said);
    nginx.finish();
}
