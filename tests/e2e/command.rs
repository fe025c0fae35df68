//! The command `lxd-image-server`, run as administrators and service managers run it.

mod init;
mod module;
pub(crate) mod program;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use crate::faults::machine::{Mount, skip};
use crate::harness::{Dir, signal, until};
use program::{Watch, command, configure, run, stderr, stdout, streams, succeed};

const PRODUCT: &str = "images/busybox/1.36/amd64/default";

/// Names of the listed versions, of `busybox:1.36:amd64:default`.
fn listed(dir: &Dir) -> Vec<String> {
    let bytes = fs::read(streams(dir).join("images.json")).unwrap_or_default();
    let json: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let versions = json["products"]["busybox:1.36:amd64:default"]["versions"].as_object().cloned();
    versions.into_iter().flatten().map(|(name, _)| name).collect()
}

#[track_caller]
fn until_listed(dir: &Dir, versions: &[&str]) {
    until(&format!("{versions:?} are listed"), || (listed(dir) == versions).then_some(()));
}

#[test]
fn update_writes_reports_and_leaves_alone() {
    let dir = Dir::new();
    configure(&dir, "");
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "one");
    dir.add_image(&format!("{PRODUCT}/20260102_0000"), "two");
    let said = succeed(&mut command(&dir, &["update"]));
    assert!(said.contains("added busybox:1.36:amd64:default 20260101_0000\n"), "{said}");
    assert!(said.ends_with("1 products, 2 versions, 0 problems\n"), "{said}");
    assert_eq!(listed(&dir), ["20260101_0000", "20260102_0000"]);

    // The bytes are the core's, in both variants, readable by a web server.
    let index =
        simplestreams::Index::open(simplestreams::Settings::new(dir.tree())).expect("index");
    let snapshot = until("all is listed", || {
        let snapshot = index.snapshot().filter(|s| s.counts().versions == 2)?;
        index.progress().is_idle().then_some(snapshot)
    });
    let inode = |name: &str| fs::metadata(streams(&dir).join(name)).expect("index file").ino();
    let mut inodes = Vec::new();
    for name in ["index.json", "images.json"] {
        let plain = fs::read(streams(&dir).join(name)).expect("index file");
        assert!(plain == snapshot.document(name).expect("document").identity.bytes);
        let gzip = fs::File::open(streams(&dir).join(format!("{name}.gz"))).expect("variant");
        assert_eq!(gzip.metadata().expect("variant").mode() & 0o777, 0o644);
        let mut decoded = Vec::new();
        flate2::read::GzDecoder::new(gzip).read_to_end(&mut decoded).expect("gzip");
        assert!(decoded == plain, "{name} and its variant differ");
        inodes.push(inode(name));
    }

    // A second time nothing changes, and nothing is written.
    let said = succeed(&mut command(&dir, &["update", "--strict"]));
    assert_eq!(said, "1 products, 2 versions, 0 problems\n");
    assert_eq!(inodes, ["index.json", "images.json"].map(inode));

    // Then a version goes, one comes, one is broken.
    fs::remove_dir_all(dir.tree().join(PRODUCT).join("20260101_0000")).expect("removed");
    dir.add_image(&format!("{PRODUCT}/20260103_0000"), "three");
    dir.add_file(&format!("{PRODUCT}/20260104_0000/lxd.tar.xz"), crate::harness::metadata());
    let output = run(&mut command(&dir, &["update", "--strict"]));
    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(said.contains("removed busybox:1.36:amd64:default 20260101_0000\n"), "{said}");
    assert!(said.contains("added busybox:1.36:amd64:default 20260103_0000\n"), "{said}");
    assert!(said.contains("problem \"images/busybox/1.36/amd64/default/20260104_0000\""), "{said}");
    assert_eq!(listed(&dir), ["20260102_0000", "20260103_0000"]);
    // Without --strict problems are reported, and no failure.
    succeed(&mut command(&dir, &["update"]));
}

#[test]
fn update_waits_for_writers_and_says_for_whom() {
    let dir = Dir::new();
    configure(&dir, "");
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "one");
    let version = format!("{PRODUCT}/20260102_0000");
    dir.add_image(&version, "two");
    let root = dir.tree().join(&version).join("rootfs.squashfs");
    let mut file = fs::OpenOptions::new().append(true).open(root).expect("root");
    let mut child = command(&dir, &["update", "--patience", "3s"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("runs");
    // Written to all the time.
    let status = until("update ends", || {
        file.write_all(b"more").expect("written");
        child.try_wait().expect("own child")
    });
    let mut said = String::new();
    child.stderr.take().expect("stderr").read_to_string(&mut said).expect("text");
    assert!(status.success(), "{said}");
    assert!(
        said.contains(&format!("waiting for files that are being written: {version}")),
        "{said}"
    );
    assert!(said.contains("leaving out what is still being written"), "{said}");
    assert_eq!(listed(&dir), ["20260101_0000"]);
}

/// Nor for files that have stood for less than the settle time, nor for one that is replaced again and
/// again while it is hashed.
#[test]
fn update_waits_no_longer_than_it_is_told_to() {
    let dir = Dir::new();
    configure(&dir, "");
    let config = dir.path().join("config.toml");
    let text = fs::read_to_string(&config).expect("config").replace("300ms", "2s");
    fs::write(&config, text).expect("config");
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "one");
    let finished = Instant::now();
    until("it has stood", || (finished.elapsed() > Duration::from_secs(3)).then_some(()));
    let version = format!("{PRODUCT}/20260102_0000");
    dir.add_image(&version, "two");
    let said = succeed(&mut command(&dir, &["update", "--patience", "0s"]));
    assert!(said.contains("1 products, 1 versions"), "{said}");
    assert_eq!(listed(&dir), ["20260101_0000"]);
    let output = run(&mut command(&dir, &["update", "--patience", "soon"]));
    assert!(stderr(&output).contains("such as 90s or 5m"), "{output:?}");

    let root = dir.tree().join(&version).join("rootfs.squashfs");
    let mut child = command(&dir, &["update", "--strict", "--patience", "1s"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("runs");
    let status = until("update ends", || {
        let new = root.with_file_name(".new");
        let file = fs::File::create(&new).expect("created");
        file.set_len(256 << 20).expect("a large one");
        fs::rename(&new, &root).expect("replaced");
        child.try_wait().expect("own child")
    });
    let mut said = String::new();
    child.stderr.take().expect("stderr").read_to_string(&mut said).expect("text");
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains("leaving out"), "{said}");
    assert_eq!(listed(&dir), ["20260101_0000"]);
}

#[test]
fn watch_is_fresh_and_stops_cleanly() {
    let dir = Dir::new();
    configure(&dir, "");
    let socket = UnixDatagram::bind(dir.path().join("notify")).expect("socket");
    socket.set_read_timeout(Some(crate::harness::DEADLINE)).expect("timeout");
    let mut start = command(&dir, &["watch"]);
    let watch = Watch::start_as(&dir, start.env("NOTIFY_SOCKET", dir.path().join("notify")));
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).expect("a notification");
    assert_eq!(&buffer[..length], b"READY=1");

    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "one");
    until_listed(&dir, &["20260101_0000"]);
    dir.add_image(&format!("{PRODUCT}/20260102_0000"), "two");
    until_listed(&dir, &["20260101_0000", "20260102_0000"]);
    fs::remove_dir_all(dir.tree().join(PRODUCT).join("20260101_0000")).expect("removed");
    until_listed(&dir, &["20260102_0000"]);

    // The second one on the same index learns who has it; so does update.
    for verb in ["watch", "update"] {
        let output = run(&mut command(&dir, &[verb]));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains(&format!("pid {}, ", watch.process().0)), "{said}");
        assert!(said.contains("watch\"; it keeps the index up to date by itself"), "{said}");
    }
    drop(watch);
    assert_eq!(listed(&dir), ["20260102_0000"], "the index stays");
    let output = run(&mut command(&dir, &["reload"]));
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}

/// After a start nothing may be missing that was listed before and is still there, while everything
/// is hashed again; and a tree that is not mounted is not an empty one.
#[test]
fn watch_keeps_the_last_index_until_it_knows_better() {
    let dir = Dir::new();
    configure(&dir, "");
    // Large enough for hashing to take a while; the newest, which the first generation waits for, is small.
    // (A root file system may be padded.)
    for day in 1..=2 {
        let version = format!("{PRODUCT}/2026010{day}_0000");
        dir.add_image(&version, &day.to_string());
        let root = dir.tree().join(version).join("rootfs.squashfs");
        let root = fs::OpenOptions::new().write(true).open(root).expect("root");
        root.set_len(256 << 20).expect("length");
    }
    dir.add_image(&format!("{PRODUCT}/20260103_0000"), "3");
    let all = ["20260101_0000", "20260102_0000", "20260103_0000"];
    succeed(&mut command(&dir, &["update"]));
    assert_eq!(listed(&dir), all);
    {
        let watch = Watch::start(&dir);
        until("all is hashed again", || {
            assert_eq!(listed(&dir), all, "something is missing meanwhile");
            watch.log().contains("1 products, 3 versions").then_some(())
        });
        let part = |n: &u32| watch.log().contains(&format!(" 1 products, {n} versions"));
        assert!([1, 2].iter().any(part), "there was nothing to hold back");
    }
    let images = dir.tree().join("images");
    let away = dir.tree().join("away");
    fs::rename(&images, &away).expect("unmounted");
    fs::create_dir(&images).expect("mount point");
    {
        let watch = Watch::start(&dir);
        watch.says("keeping that index for up to 60 minutes");
        assert_eq!(listed(&dir), all);
        fs::remove_dir(&images).expect("mount point");
        fs::rename(&away, &images).expect("mounted");
        fs::remove_dir_all(dir.tree().join(PRODUCT).join("20260102_0000")).expect("removed");
        until_listed(&dir, &["20260101_0000", "20260103_0000"]);
    }
}

/// Hashes outlive the watch, in its directory of data; and a change of settings, which begins anew.
#[test]
fn a_watch_that_starts_again_reads_only_what_changed() {
    let dir = Dir::new();
    configure(&dir, "");
    let large = 64 << 20;
    let version = |day: u32| format!("{PRODUCT}/2026010{day}_0000");
    dir.add_image(&version(1), "one");
    let root = dir.tree().join(version(1)).join("rootfs.squashfs");
    fs::OpenOptions::new().write(true).open(root).expect("root").set_len(large).expect("length");
    let read = |watch: &Watch<'_>| {
        let text = fs::read_to_string(format!("/proc/{}/io", watch.process().0)).expect("io");
        let read = text.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("rchar");
        read.parse::<u64>().expect("a number")
    };
    let hashes = dir.path().join("data/hashes.redb");
    let written = || fs::metadata(&hashes).and_then(|meta| meta.modified()).ok();
    {
        let watch = Watch::start(&dir);
        until_listed(&dir, &["20260101_0000"]);
        assert!(read(&watch) > large);
        // Hashes go to disk when they have stood for three seconds; what an override says, within one.
        let stood = SystemTime::now() + Duration::from_secs(3);
        until("the hashes have stood", || (SystemTime::now() > stood).then_some(()));
        dir.add_file(&format!("{PRODUCT}/metadata.json"), br#"{"release_title": "Titled"}"#);
        until("the hashes are written", || (written() > Some(stood)).then_some(()));
        assert_eq!(fs::metadata(&hashes).expect("hashes").mode() & 0o777, 0o600);
        let before = read(&watch);
        configure(&dir, "aliases = [\"path\"]");
        watch.says("from now on");
        dir.add_image(&version(2), "two");
        until_listed(&dir, &["20260101_0000", "20260102_0000"]);
        assert!(read(&watch) - before < large, "settings that changed made it hash again");
    }
    dir.add_image(&version(3), "three");
    let watch = Watch::start(&dir);
    until_listed(&dir, &["20260101_0000", "20260102_0000", "20260103_0000"]);
    assert!(read(&watch) < large, "everything was hashed again");
    assert!(!watch.log().contains("hash cache"), "{}", watch.log());
}

#[test]
fn several_streams_are_several_lists() {
    let dir = Dir::new();
    configure(&dir, "streams = [\"images-daily\"]");
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "one");
    dir.add_image("images-daily/busybox/1.36/amd64/daily/20260102_0000", "two");
    let said = succeed(&mut command(&dir, &["update"]));
    assert!(said.contains("added busybox:1.36:amd64:daily 20260102_0000\n"), "{said}");
    assert!(said.ends_with("2 products, 2 versions, 0 problems\n"), "{said}");
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(streams(&dir).join(name)).expect(name)).expect("JSON")
    };
    let index = read("index.json");
    for name in ["images", "images-daily"] {
        assert_eq!(index["index"][name]["path"], format!("streams/v1/{name}.json"), "{index}");
        assert_eq!(read(&format!("{name}.json"))["products"].as_object().expect(name).len(), 1);
    }
    assert_eq!(succeed(&mut command(&dir, &["update"])), "2 products, 2 versions, 0 problems\n");
}

/// systemd is told what the watch does, and that it lives.
#[test]
fn systemd_sees_reloads_and_signs_of_life() {
    let dir = Dir::new();
    configure(&dir, "");
    let socket = UnixDatagram::bind(dir.path().join("notify")).expect("socket");
    socket.set_read_timeout(Some(crate::harness::DEADLINE)).expect("timeout");
    let heard = |wanted: &str| loop {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap_or_else(|err| panic!("no {wanted}: {err}"));
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text.starts_with(wanted) {
            return text;
        }
    };
    let mut start = command(&dir, &["watch"]);
    start.env("NOTIFY_SOCKET", dir.path().join("notify")).env("WATCHDOG_USEC", "400000");
    let watch = Watch::start_as(&dir, &mut start);
    heard("READY=1");
    heard("STATUS=0 products");
    heard("WATCHDOG=1");
    heard("WATCHDOG=1");
    succeed(&mut command(&dir, &["reload"]));
    assert!(heard("RELOADING=1\n").contains("MONOTONIC_USEC="));
    heard("READY=1");
    drop(watch);
    heard("STOPPING=1");
}

#[test]
fn configuration_is_reloaded_by_signal_and_by_itself() {
    let dir = Dir::new();
    configure(&dir, "");
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "one");
    let watch = Watch::start(&dir);
    until_listed(&dir, &["20260101_0000"]);
    let aliases = || {
        let text = fs::read_to_string(streams(&dir).join("images.json")).expect("index");
        let json: Value = serde_json::from_str(&text).expect("json");
        json["products"]["busybox:1.36:amd64:default"]["aliases"].to_string()
    };
    assert!(aliases().contains("busybox/1.36/default"));

    // A file that changes is read, without a signal.
    configure(&dir, "aliases = [\"name\"]");
    until("the new aliases", || (aliases() == "\"busybox:1.36:amd64:default\"").then_some(()));
    // A wrong one is refused with its place, and changes nothing.
    configure(&dir, "aliases = [\"nmae\"]");
    watch.says("config.toml:7:1: key \"aliases\": \"nmae\" is none of short, path, name");
    watch.says("the last good configuration stays");
    configure(&dir, "aliases = [\"path\"]\nsetle = 1");
    until("the new aliases", || (aliases() == "\"busybox/1.36/amd64/default\"").then_some(()));
    watch.says("unknown key \"setle\" is ignored; did you mean \"settle\"?");

    let before = watch.log().matches("reading the configuration again").count();
    succeed(&mut command(&dir, &["reload"]));
    until("reload", || {
        let now = watch.log().matches("reading the configuration again").count();
        (now > before).then_some(())
    });
    // So does HUP by hand.
    signal(watch.process(), Signal::HUP);
    until("HUP", || {
        let now = watch.log().matches("reading the configuration again").count();
        (now > before + 1).then_some(())
    });
    assert_eq!(listed(&dir), ["20260101_0000"]);
}

#[test]
fn log_lines_for_files_journald_and_machines() {
    let dir = Dir::new();
    configure(&dir, "unknown_key = 1");
    let log = dir.path().join("some.log");
    let path = log.to_str().expect("path");
    succeed(&mut command(&dir, &["--log-file", path, "--log-format", "json", "update"]));
    for line in fs::read_to_string(&log).expect("log").lines() {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}"));
        assert!(json["message"].is_string() && json["level"].is_string(), "{line}");
    }
    // To journald, which standard error leads to if it is the stream that systemd names.
    let file = fs::File::create(dir.path().join("journal")).expect("file");
    let meta = file.metadata().expect("file");
    let stream = format!("{}:{}", meta.dev(), meta.ino());
    let output = command(&dir, &["update"]).env("JOURNAL_STREAM", stream).stderr(file).output();
    assert!(output.expect("runs").status.success());
    let lines = fs::read_to_string(dir.path().join("journal")).expect("lines");
    assert!(lines.lines().all(|line| line.starts_with('<')), "{lines}");
    assert!(lines.lines().any(|line| line.starts_with("<4>") && line.contains("unknown_key")));

    // A configured file is the watch's; what somebody types is answered where it was typed.
    configure(&dir, "[log]\nfile = \"@/rotated.log\"");
    let rotated = dir.path().join("rotated.log");
    let output = run(&mut command(&dir, &["update"]));
    assert!(stderr(&output).contains("the index in"), "{output:?}");
    let output = run(&mut command(&dir, &["reload"]));
    assert!(stderr(&output).contains("no watch is running"), "{output:?}");
    assert!(!rotated.exists());

    // It is opened again after rotation.
    let watch = Watch::start(&dir);
    until("lines", || fs::read_to_string(&rotated).ok().filter(|text| text.contains("watching")));
    fs::rename(&rotated, dir.path().join("rotated.log.1")).expect("rotated");
    signal(watch.process(), Signal::HUP);
    until("the file is there again", || rotated.exists().then_some(()));
    // Also while the configuration is wrong.
    configure(&dir, "settle = \"soon\"\n[log]\nfile = \"@/rotated.log\"");
    let said = |text: &str| fs::read_to_string(&rotated).ok().filter(|log| log.contains(text));
    until("the error", || said("the last good configuration stays"));
    fs::rename(&rotated, dir.path().join("rotated.log.2")).expect("rotated");
    signal(watch.process(), Signal::HUP);
    until("the file is there again", || rotated.exists().then_some(()));
}

/// A reader that has seen enough is no error, a full disk is one.
#[test]
fn standard_output_that_cannot_be_written() {
    let dir = Dir::new();
    configure(&dir, "");
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "one");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    for args in [&["config"][..], &["update"], &["--help"]] {
        let output = command(&dir, args).stdout(writer.try_clone().expect("pipe")).output();
        let output = output.expect("runs");
        assert!(output.status.success(), "{args:?}: {output:?}");
        assert!(!stderr(&output).contains("panicked"), "{output:?}");
    }
    assert_eq!(listed(&dir), ["20260101_0000"]);
    let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let output = command(&dir, &["config"]).stdout(full).output().expect("runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("cannot write to standard output: No space"), "{output:?}");
}

#[test]
fn wrong_usage_and_configuration() {
    let dir = Dir::new();
    configure(&dir, "");
    let code = |args: &[&str]| {
        let output = run(&mut command(&dir, args));
        (output.status.code(), stderr(&output))
    };
    assert_eq!(code(&["frobnicate"]).0, Some(2));
    let (status, said) = code(&["update", "--img_dir", "/no/such/directory"]);
    assert_eq!(status, Some(2));
    assert!(said.contains("img_dir \"/no/such/directory\" does not exist"), "{said}");
    let (status, said) = code(&["update", "--streams_dir", "/no/such/directory"]);
    assert_eq!(status, Some(2), "{said}");
    let (status, said) = code(&["--log-file", "/no/such/directory/log", "config"]);
    assert_eq!(status, Some(1));
    assert!(said.contains("cannot log to \"/no/such/directory/log\""), "{said}");
    configure(&dir, "settle = [");
    let (status, said) = code(&["update"]);
    assert_eq!(status, Some(2));
    assert!(said.contains("config.toml:7:"), "{said}");
    let missing = run(program::bare(&dir).args(["--config", "/no/such/config", "update"]));
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");

    configure(&dir, "threads = 4");
    let printed = succeed(&mut command(&dir, &["config"]));
    let line = printed.lines().find(|line| line.starts_with("threads")).expect("threads");
    assert!(line.contains("= 4 ") && line.contains("config.toml:7:1"), "{line}");
    assert!(printed.contains("# default"), "{printed}");
}

/// A file that cannot be written whole is not put in place.
#[test]
fn a_full_disk_leaves_the_old_index() {
    let dir = Dir::new();
    configure(&dir, "");
    fs::create_dir_all(streams(&dir)).expect("streams");
    let disk = match Mount::tmpfs("size=1m,mode=0755", &streams(&dir)) {
        Ok(disk) => disk,
        Err(reason) => return skip("a_full_disk_leaves_the_old_index", &reason),
    };
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "one");
    succeed(&mut command(&dir, &["update"]));
    let before = fs::read(streams(&dir).join("images.json")).expect("index");
    for day in 2..=5 {
        dir.add_image(&format!("{PRODUCT}/2026010{day}_0000"), &day.to_string());
    }
    let full = fs::write(streams(&dir).join("filler"), vec![b'x'; 4 << 20]);
    assert_eq!(full.expect_err("the disk is small").kind(), std::io::ErrorKind::StorageFull);
    let output = run(&mut command(&dir, &["update"]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("cannot write"), "{output:?}");
    assert!(before == fs::read(streams(&dir).join("images.json")).expect("index"));
    let names = fs::read_dir(streams(&dir)).expect("streams").flatten();
    let left = names.filter(|entry| entry.file_name().to_string_lossy().ends_with(".new")).count();
    assert_eq!(left, 0, "files are left beside");
    disk.end();
}

#[test]
fn without_permission_it_says_where() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP: only root can become another user");
        return;
    }
    let dir = Dir::new();
    configure(&dir, "");
    let mut other = Command::new("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let program = dir.path().join("lxd-image-server");
    fs::copy(env!("CARGO_BIN_EXE_lxd-image-server"), &program).expect("copied");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    other.arg(&program).arg("--config").arg(dir.path().join("config.toml")).arg("update");
    let output = run(&mut other);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stderr(&output);
    assert!(said.contains("cannot lock") && said.contains("Permission denied"), "{said}");
    assert!(said.contains("run this as root, who owns"), "{said}");
}
