//! What the builder does beside building: it tells how far it is, and tidies up.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::faults::http_globals;
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

/// The files that an index has in the state directory, but for the hash cache, which is everyone's.
fn state_files(dir: &Dir) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.state()).expect("state directory").flatten();
    let mut files: Vec<PathBuf> = files.map(|entry| entry.path()).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name != "hashes.redb"));
    files.sort();
    files
}

fn set_age(file: &PathBuf, age: Duration) {
    // Root may write what was made read-only, and others may give their own files a time.
    let set = fs::File::open(file).and_then(|file| file.set_modified(SystemTime::now() - age));
    set.expect("another time");
}

#[test]
fn what_an_index_left_goes_a_day_after_its_last_use() {
    let dir = Dir::new();
    dir.add_image("images/os/1/amd64/default/20260101_0000", "one");
    dir.add_image("another/images/os/1/amd64/default/20260101_0000", "two");
    let [one, another] = ["@TREE@", "@TREE@/another"].map(|tree| CONF.replace("@TREE@", tree));
    let image = ["os:1:amd64:default 20260101_0000"];
    let nginx = dir.start(&one);
    nginx.every_worker_lists(&image);
    nginx.finish();
    let left = state_files(&dir);
    assert!(left.len() >= 3, "{left:?}");
    let note = dir.state().join("note");
    fs::write(&note, "of the administrator").expect("a note");
    let (old, young) = (Duration::from_secs(25 * 3600), Duration::from_secs(23 * 3600));
    left.iter().chain([&note]).for_each(|file| set_age(file, old));
    set_age(&left[0], young);

    // Used yesterday.
    let nginx = dir.start(&another);
    nginx.every_worker_lists(&image);
    nginx.finish();
    let now = state_files(&dir);
    assert!(left.iter().all(|file| now.contains(file)), "{now:?}");

    left.iter().for_each(|file| set_age(file, old));
    let nginx = dir.start(&another);
    until("it is gone", || {
        let now = state_files(&dir);
        left.iter().all(|file| !now.contains(file)).then_some(())
    });
    nginx.every_worker_lists(&image);
    assert!(note.exists());
    until("the log says so", || lines(&nginx, "no configuration has it any more").pop());

    // Whose builder runs, whatever the time on its files: another server with another index.
    let own: Vec<_> = state_files(&dir).into_iter().filter(|file| *file != note).collect();
    own.iter().for_each(|file| set_age(file, old));
    let beside = Dir::new();
    let server = beside.start(
        &one.replace("@HTTP_GLOBALS@", &http_globals(&dir))
            .replace("@TREE@", &dir.tree().display().to_string()),
    );
    server.every_worker_lists(&image);
    let now = state_files(&dir);
    assert!(own.iter().all(|file| now.contains(file)), "{now:?}");
    server.finish();
    nginx.finish();
}
