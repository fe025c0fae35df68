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

/// Products of a cold tree, versions of each, and bytes of each root, nearly all of them a hole. All
/// of it takes longer to hash than the log is patient, one of them not long on a busy machine.
const PRODUCTS: u64 = 3;
const VERSIONS: u64 = 300;
const ROOT: u64 = 32 << 20;

fn lines(nginx: &Nginx<'_>, text: &str) -> Vec<String> {
    let log = nginx.error_log();
    log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

#[test]
fn a_cold_tree_is_listed_from_its_newest_on_and_the_log_says_how_far_it_is() {
    let dir = Dir::new();
    // The newest of one product is older than all versions of another.
    let version = |product: u64, day: &str| {
        format!("images/os{product}/1/amd64/default/{}{day}", 2026 - product)
    };
    let cold = |product: u64, number: u64| {
        version(product, &format!("01{:02}_{:02}00", number / 24 + 1, number % 24))
    };
    for of in 0..PRODUCTS {
        for number in 1..VERSIONS {
            let path = cold(of, number);
            dir.add_image(&path, "cold");
            let root = dir.tree().join(&path).join("rootfs.squashfs");
            let root = fs::File::options().write(true).open(root).expect("the root");
            // No two are equal.
            root.set_len(ROOT + of * VERSIONS + number).expect("a hole");
        }
        dir.add_image(&version(of, "0201_0000"), &format!("newest {of}"));
    }
    let nginx = dir.start(CONF);
    let listed = || {
        let answer = Ask::get("/streams/v1/images.json").of(&nginx);
        if answer.status == 503 { Vec::new() } else { answer.versions() }
    };
    let newest: Vec<String> =
        (0..PRODUCTS).map(|of| format!("os{of}:1:amd64:default {}0201_0000", 2026 - of)).collect();
    until("the newest of each product is listed", || {
        let listed = listed();
        newest.iter().all(|newest| listed.contains(newest)).then_some(())
    });
    let all = PRODUCTS * VERSIONS;
    assert!((listed().len() as u64) < all, "nothing was left to hash");
    let said = || lines(&nginx, " versions are hashed, ");
    let going = until("the log says how far it is", || said().pop());
    for part in [
        format!(" of {all} versions are hashed, "),
        format!(" of {} files, ", 2 * all),
        format!(" of {} MiB (", ((all - PRODUCTS) * ROOT) >> 20),
        " s left".to_owned(),
    ] {
        assert!(going.contains(&part), "no {part:?} in: {going}");
    }
    assert!((listed().len() as u64) < all, "it was not on its way");

    // The rest need not be waited for.
    for of in 0..PRODUCTS {
        for number in 1..VERSIONS {
            fs::remove_dir_all(dir.tree().join(cold(of, number))).expect("rm -r");
        }
    }
    nginx.every_worker_lists(&newest.iter().map(String::as_str).collect::<Vec<_>>());
    let over = until("the log says that it is over", || {
        said().into_iter().find(|line| line.contains(" MiB in "))
    });
    assert!(!over.contains(&format!("{all} versions")), "{over}");
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

/// Waits until the last generation of each of so many indexes is on disk, where the next start finds
/// it: workers have it earlier.
fn until_saved(dir: &Dir, indexes: usize) {
    until("every index is on disk", || {
        let files = state_files(dir);
        let count = |extension: &str| {
            files.iter().filter(|file| file.extension().is_some_and(|e| e == extension)).count()
        };
        (count("snapshot") == indexes && count("new") == 0).then_some(())
    });
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
    until_saved(&dir, 1);
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
    until_saved(&dir, 2);
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
