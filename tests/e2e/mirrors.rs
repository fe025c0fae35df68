//! Mirrors: real sshd, real rsync, on loopback.

pub(crate) mod sshd;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use simplestreams::Digest;

use crate::command::program::{Watch, command, configure, family, run, streams, succeed};
use crate::harness::{Ask, Dir, Nginx, until};
use sshd::Sshd;

const PRODUCT: &str = "images/busybox/1.36/amd64/default";

/// The master's tree and those of three mirrors, each indexed by the module.
const CONF: &str = "
@GLOBALS@
worker_processes 1;
events {}
http {
    @HTTP_GLOBALS@
    simplestreams_settle 300ms;
    simplestreams_rescan 0;
    server {
        listen 127.0.0.1:@PORT@;
        location /master/ { simplestreams @TREE@; }
        location /one/ { simplestreams @DIR@/one; }
        location /two/ { simplestreams @DIR@/two; }
        location /three/ { simplestreams @DIR@/three; }
    }
}
";

/// The configuration of a mirror `name`, whose root is the directory of that name.
fn mirror(name: &str, sshd: &Sshd, more: &str) -> String {
    let (user, port) = (sshd::user(), sshd.port);
    format!(
        "[mirrors.{name}]\nuser = \"{user}\"\nremote = \"127.0.0.1\"\nport = {port}\n\
         key_path = \"@/key\"\nknown_hosts = \"@/known_hosts\"\npath = \"@/{name}\"\n{more}\n"
    )
}

const QUICK: &str = "[mirroring]\nretry_max = \"1s\"\n";

/// Hash of every file below `dir`, by path; nothing is left out.
fn files(dir: &Path) -> BTreeMap<String, Digest> {
    fn walk(dir: &Path, below: &str, out: &mut BTreeMap<String, Digest>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = format!("{below}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                walk(&entry.path(), &name, out);
            } else if let Ok(bytes) = fs::read(entry.path()) {
                out.insert(name, Digest::of(&bytes));
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, "", &mut out);
    out
}

fn images(dir: &Dir, root: &str) -> BTreeMap<String, Digest> {
    files(&dir.path().join(root).join("images"))
}

#[track_caller]
fn until_same(dir: &Dir, root: &str) {
    until(&format!("{root} has what the master has"), || {
        (images(dir, root) == images(dir, "tree")).then_some(())
    });
}

/// What `lxd-image-server mirrors` says of one.
fn state(dir: &Dir, name: &str) -> Value {
    let text = succeed(&mut command(dir, &["mirrors", "--json"]));
    let json: Value = serde_json::from_str(&text).expect("JSON");
    json["mirrors"][name].clone()
}

/// The exit code with `--strict`.
fn strict(dir: &Dir) -> Option<i32> {
    run(&mut command(dir, &["mirrors", "--strict"])).status.code()
}

/// The entity tag of the index at `root`, once it lists `versions`.
#[track_caller]
fn etag(nginx: &Nginx<'_>, root: &str, versions: usize) -> String {
    until(&format!("{root} lists {versions} versions"), || {
        let answer = Ask::get(&format!("/{root}/streams/v1/images.json")).of(nginx);
        let right = answer.status == 200 && answer.versions().len() == versions;
        right.then(|| answer.header("ETag").expect("ETag").to_owned())
    })
}

/// A root that does not compress and takes a while at a limited rate.
fn add_large(dir: &Dir, version: &str, seed: u64) {
    let mut state = seed | 1;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(512 * 1024)
    .flatten()
    .collect();
    // A root file system may be padded.
    let root = [&crate::harness::squashfs(version)[..], &bytes].concat();
    dir.add_file(&format!("{PRODUCT}/{version}/rootfs.squashfs"), &root);
    dir.add_file(&format!("{PRODUCT}/{version}/lxd.tar.xz"), crate::harness::metadata());
}

#[test]
fn two_mirrors_one_of_them_fails_and_catches_up() {
    let dir = Dir::new();
    let (one, mut two, three) =
        (Sshd::start(&dir, "one"), Sshd::start(&dir, "two"), Sshd::start(&dir, "three"));
    let slow = mirror("two", &two, "bandwidth = 1024");
    configure(&dir, &format!("{QUICK}{}{slow}", mirror("one", &one, "")));
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "first");
    let nginx = dir.start(CONF);
    let watch = Watch::start(&dir);
    until_same(&dir, "one");
    until_same(&dir, "two");

    // Killed in the middle of a transfer: nothing of it is listed there, and the other goes on.
    add_large(&dir, "20260102_0000", 2);
    until("a transfer is under way", || {
        let partial = |path: &String| path.contains("20260102_0000") && path.contains("/.");
        files(&dir.path().join("two")).keys().any(partial).then_some(())
    });
    two.kill();
    until_same(&dir, "one");
    etag(&nginx, "two", 1);
    let listed_by_two =
        || !dir.path().join("two").join(PRODUCT).join("20260102_0000/rootfs.squashfs").exists();
    assert!(listed_by_two(), "a version is there that did not arrive");

    // Meanwhile an image comes and one goes.
    dir.add_image(&format!("{PRODUCT}/20260103_0000"), "third");
    until_same(&dir, "one");
    fs::remove_dir_all(dir.tree().join(PRODUCT).join("20260101_0000")).expect("removed");
    until_same(&dir, "one");
    until("two is known to fail", || state(&dir, "two")["last_error"].as_str().map(str::to_owned));
    until("one is up to date", || {
        let state = state(&dir, "one");
        (state["last_error"].is_null() && state["generation"].as_u64() > Some(2)).then_some(())
    });
    let said = succeed(&mut command(&dir, &["mirrors"]));
    assert!(said.contains("one: up to date"), "{said}");
    assert_eq!(strict(&dir), Some(3), "two fails and is behind");
    assert!(said.contains("two: ") && said.contains("behind") && said.contains("failed"), "{said}");

    // It is back, and both are what the master is.
    two.restart();
    until_same(&dir, "two");
    let master = etag(&nginx, "master", 2);
    for root in ["one", "two"] {
        assert_eq!(etag(&nginx, root, 2), master, "{root}");
    }
    until("two is up to date", || state(&dir, "two")["last_error"].is_null().then_some(()));
    assert_eq!(strict(&dir), Some(0));

    // A mirror is added, one is taken away, while all runs.
    configure(&dir, &format!("{QUICK}{slow}{}", mirror("three", &three, "")));
    until_same(&dir, "three");
    assert_eq!(etag(&nginx, "three", 2), master);
    watch.says("mirror one is forgotten");
    assert!(state(&dir, "one").is_null());
    let before = images(&dir, "one");
    dir.add_image(&format!("{PRODUCT}/20260104_0000"), "fourth");
    until_same(&dir, "three");
    until_same(&dir, "two");
    assert_eq!(images(&dir, "one"), before, "a mirror that was taken away is pushed to");
    assert!(!watch.log().contains("panicked"));
    drop(watch);
    let said = succeed(&mut command(&dir, &["mirrors"]));
    assert!(said.contains("no watch is running"), "{said}");
    assert_eq!(strict(&dir), Some(3), "no watch is running");
    nginx.finish();
}

/// Whoever stops the watch does not wait for a transfer, and nothing of it is left running; the next
/// watch goes on with it.
#[test]
fn stopping_ends_a_transfer() {
    let dir = Dir::new();
    let one = Sshd::start(&dir, "one");
    configure(&dir, &mirror("one", &one, "bandwidth = 64"));
    add_large(&dir, "20260101_0000", 1);
    let watch = Watch::start(&dir);
    until("a transfer is under way", || {
        let partial = |path: &String| path.contains("20260101_0000") && path.contains("/.");
        files(&dir.path().join("one")).keys().any(partial).then_some(())
    });
    let family = family(watch.process());
    assert!(family.len() > 2, "rsync and ssh run: {family:?}");
    drop(watch);
    assert_eq!(state(&dir, "one")["pushing"], false);

    // One that is killed leaves no rsync behind either.
    let watch = Watch::start(&dir);
    let family = until("rsync and ssh run", || {
        let family = self::family(watch.process());
        (family.len() > 2).then_some(family)
    });
    watch.kill();
    assert_eq!(state(&dir, "one")["pushing"], false);
    let said = succeed(&mut command(&dir, &["mirrors"]));
    assert!(said.contains("no watch is running"), "{said}");
    for process in &family[1..] {
        until("what watch started is gone", || process.title().is_none().then_some(()));
    }
    configure(&dir, &mirror("one", &one, ""));
    let _watch = Watch::start(&dir);
    until_same(&dir, "one");
}

/// A version that is being uploaded is not pushed, hidden names neither; and names that look like
/// options or commands are names.
#[test]
fn what_is_pushed_is_what_is_listed() {
    let dir = Dir::new();
    let one = Sshd::start(&dir, "one");
    configure(&dir, &format!("{QUICK}{}", mirror("one", &one, "")));
    let odd = "images/-e touch pwned/$(touch pwned)/amd64/--delete";
    dir.add_image(&format!("{odd}/20260101_0000"), "odd");
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "first");
    dir.add_file(&format!("{PRODUCT}/metadata.json"), br#"{"release_title": "Titled"}"#);
    dir.add_file(&format!("{PRODUCT}/.upload/rootfs.squashfs"), b"half");
    let watch = Watch::start(&dir);
    let has = |path: &str| dir.path().join("one").join(path).exists();
    until("both versions are there", || {
        (has(&format!("{odd}/20260101_0000/rootfs.squashfs"))
            && has(&format!("{PRODUCT}/20260101_0000/rootfs.squashfs")))
        .then_some(())
    });
    assert!(has(&format!("{PRODUCT}/metadata.json")), "what changes the index goes along");

    let upload = dir.tree().join(PRODUCT).join("20260102_0000");
    fs::create_dir_all(&upload).expect("directory");
    fs::write(upload.join("lxd.tar.xz"), crate::harness::metadata()).expect("metadata");
    let mut root = fs::File::create(upload.join("rootfs.squashfs")).expect("root");
    root.write_all(&crate::harness::squashfs("upload")[..100]).expect("half");
    dir.add_image(&format!("{PRODUCT}/20260103_0000"), "third");
    until("the third is there", || {
        has(&format!("{PRODUCT}/20260103_0000/rootfs.squashfs")).then_some(())
    });
    assert!(!has(&format!("{PRODUCT}/20260102_0000")), "pushed while it is uploaded");
    assert!(!has(&format!("{PRODUCT}/.upload")));
    root.write_all(&crate::harness::squashfs("upload")[100..]).expect("rest");
    drop(root);
    until("the second is there", || {
        has(&format!("{PRODUCT}/20260102_0000/rootfs.squashfs")).then_some(())
    });

    // What is only in the mirror's tree goes, but for what an administrator keeps at its top.
    for path in ["images/.keep/file", "images/stray/x", "images/busybox/stray"] {
        let path = dir.path().join("one").join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        fs::write(path, "stray").expect("file");
    }
    fs::remove_dir_all(dir.tree().join(odd)).expect("removed");
    until("the odd one is gone", || (!has(odd) && !has("images/stray")).then_some(()));
    until("so is what was never here", || (!has("images/busybox/stray")).then_some(()));
    until("no empty directory is left", || (!has("images/-e touch pwned")).then_some(()));
    assert!(has("images/.keep/file"));

    // A tree with nothing in it deletes nothing.
    let images = dir.tree().join("images/busybox");
    fs::rename(&images, dir.path().join("away")).expect("moved away");
    watch.says("nothing is listed, so nothing is deleted there either");
    assert!(has(&format!("{PRODUCT}/20260101_0000/rootfs.squashfs")));
    drop(watch);
    assert!(!files(dir.path()).keys().any(|path| path.ends_with("/pwned")), "a name was run");
}

/// Whoever may write to the tree replaces a file that is about to be sent by a link to what the watch
/// may read: the mirror never gets a byte of that.
#[test]
fn a_link_in_place_of_a_listed_file_sends_nothing_else() {
    let dir = Dir::new();
    let mut one = Sshd::start(&dir, "one");
    one.kill();
    configure(&dir, &format!("{QUICK}{}", mirror("one", &one, "bandwidth = 512")));
    // Sent in the order of their names: the first takes a while.
    add_large(&dir, "20260101_0000", 1);
    dir.add_image(&format!("{PRODUCT}/20260102_0000"), "second");
    let secret = b"a secret of the watch's user";
    fs::write(dir.path().join("secret"), secret).expect("secret");
    let watch = Watch::start(&dir);
    watch.says("trying again");
    one.restart();
    let there = |name: &str| files(&dir.path().join("one")).keys().any(|path| path.contains(name));
    until("the first is under way", || there("20260101_0000/.").then_some(()));
    assert!(!there("20260102_0000"), "the second was sent before the first");
    let root = dir.tree().join(PRODUCT).join("20260102_0000/rootfs.squashfs");
    let image = Digest::of(&fs::read(&root).expect("root"));
    std::os::unix::fs::symlink(dir.path().join("secret"), root.with_extension("new"))
        .expect("link");
    fs::rename(root.with_extension("new"), &root).expect("swapped");
    let secret = Digest::of(secret);
    until("the push has ended", || {
        let all = files(&dir.path().join("one"));
        assert!(!all.values().any(|digest| *digest == secret), "the secret was sent: {all:?}");
        // The next generation is without the second.
        let ended = state(&dir, "one")["last_success"].is_u64();
        ended.then(|| assert!(all.values().filter(|digest| **digest == image).count() <= 1))
    });
    assert!(there("20260101_0000/rootfs.squashfs"));
    assert!(!there("20260101_0000/."), "temporary files are left");
    let left = fs::read_dir(dir.path().join("data/mirrors")).expect("data").flatten();
    assert_eq!(left.filter(|entry| entry.path().is_dir()).count(), 0, "staging is left");
}

/// Symbolic links to directories: what is listed behind one goes to the mirror and goes from there, and
/// one that leads out of the tree, or into itself, has nobody read on without end.
#[test]
fn links_to_directories_are_kept_up_to_date_and_lead_nowhere_else() {
    let dir = Dir::new();
    let one = Sshd::start(&dir, "one");
    configure(&dir, &format!("{QUICK}{}", mirror("one", &one, "")));
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, dir.tree().join("images").join(name)).expect("link");
    };
    for day in [1, 2] {
        dir.add_image(&format!("store/1.36/amd64/default/2026010{day}_0000"), &day.to_string());
    }
    dir.add_image(&format!("{PRODUCT}/20260103_0000"), "real");
    link("../store", "linked");
    let _watch = Watch::start(&dir);
    let there = |day: u32, product: &str| {
        let version = format!("one/images/{product}/1.36/amd64/default/2026010{day}_0000");
        dir.path().join(version).join("rootfs.squashfs").exists()
    };
    until("all is there", || {
        (there(1, "linked") && there(2, "linked") && there(3, "busybox")).then_some(())
    });
    link("/", "out");
    link(".", "loop");
    link("../images", "again");
    fs::remove_dir_all(dir.tree().join("store/1.36/amd64/default/20260101_0000")).expect("removed");
    until("what is gone behind the link is gone there", || (!there(1, "linked")).then_some(()));
    assert!(there(2, "linked") && there(3, "busybox"));
    until("the push has ended well", || {
        let state: Value =
            serde_json::from_str(&succeed(&mut command(&dir, &["mirrors", "--json"])))
                .expect("JSON");
        let one = &state["mirrors"]["one"];
        assert!(one["last_error"].is_null(), "{one}");
        (one["generation"] == state["generation"] && one["pushing"] == false).then_some(())
    });
}

/// Somebody removes a file from a mirror, by hand: the next push puts it back.
#[test]
fn what_goes_missing_on_a_mirror_comes_back() {
    let dir = Dir::new();
    let one = Sshd::start(&dir, "one");
    configure(&dir, &format!("{QUICK}{}", mirror("one", &one, "")));
    let version = |day: u32| format!("{PRODUCT}/2026010{day}_0000");
    dir.add_image(&version(1), "first");
    let _watch = Watch::start(&dir);
    until_same(&dir, "one");
    until("it is known to have it", || state(&dir, "one")["last_success"].as_u64());
    fs::remove_file(dir.path().join("one").join(version(1)).join("rootfs.squashfs"))
        .expect("there");
    dir.add_image(&version(2), "second");
    until_same(&dir, "one");
}

/// With `push_streams` a mirror is any web server. Whatever happens at the master, what its index
/// lists is there, with the hash that it lists.
#[test]
fn pushed_index_files_never_list_what_is_not_there() {
    let dir = Dir::new();
    let one = Sshd::start(&dir, "one");
    configure(&dir, &format!("{QUICK}{}", mirror("one", &one, "push_streams = true")));
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "0");
    let root = dir.path().join("one");
    let index = root.join("streams/v1/images.json");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let observer = scope.spawn(|| observe(&root, &stop));
        let story = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _watch = Watch::start(&dir);
            let same = || {
                until("the index is the master's", || {
                    let own = fs::read(streams(&dir).join("images.json")).ok()?;
                    (fs::read(&index).ok()? == own).then_some(own)
                })
            };
            let mut before = same();
            for round in 1..=4 {
                let day = format!("{PRODUCT}/2026020{round}_0000");
                dir.add_image(&day, &format!("day {round}"));
                // The file of a listed version is replaced by another of the same size and time.
                let path = dir.tree().join(PRODUCT).join("20260101_0000/rootfs.squashfs");
                let times = fs::metadata(&path).expect("root").modified().expect("time");
                fs::write(&path, &*crate::harness::squashfs(&round.to_string())).expect("root");
                let file = fs::File::options().write(true).open(&path).expect("root");
                file.set_modified(times).expect("time");
                drop(file);
                if round > 1 {
                    let gone = format!("{PRODUCT}/2026020{}_0000", round - 1);
                    fs::remove_dir_all(dir.tree().join(gone)).expect("removed");
                }
                let digest = Digest::of(&crate::harness::squashfs(&round.to_string())).to_string();
                before = until("the new hash is listed", || {
                    let now = same();
                    let text = String::from_utf8_lossy(&now).into_owned();
                    let right = text.contains(&digest) && text.contains(&day);
                    (now != before && right).then_some(now)
                });
                until_same(&dir, "one");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let looks = observer.join().expect("the observer saw nothing wrong");
        if let Err(panic) = story {
            std::panic::resume_unwind(panic);
        }
        assert!(looks > 50, "only {looks} looks");
    });
}

/// Reads the mirror's index all the time, and checks each file that it lists; says how often.
fn observe(root: &Path, stop: &AtomicBool) -> usize {
    let index = root.join("streams/v1/images.json");
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(before) = fs::read(&index) else {
            std::thread::yield_now();
            continue;
        };
        let json: Value = serde_json::from_slice(&before).expect("never half of an index");
        let wrong: Vec<String> = listed(&json)
            .into_iter()
            .filter(|(path, sha256)| {
                fs::read(root.join(path)).map(|bytes| Digest::of(&bytes).to_string()).ok()
                    != Some(sha256.clone())
            })
            .map(|(path, _)| path)
            .collect();
        // Unless it lists them no more by now.
        let after = fs::read(&index).expect("an index once there stays");
        assert!(wrong.is_empty() || after != before, "listed, and not there: {wrong:?}");
        looks += 1;
    }
    looks
}

fn listed(json: &Value) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for product in json["products"].as_object().into_iter().flatten() {
        for version in product.1["versions"].as_object().into_iter().flatten() {
            for (_, item) in version.1["items"].as_object().into_iter().flatten() {
                let text = |key: &str| item[key].as_str().expect("text").to_owned();
                out.push((text("path"), text("sha256")));
            }
        }
    }
    out
}

#[test]
fn trouble_comes_with_a_remedy() {
    let dir = Dir::new();
    let one = Sshd::start(&dir, "one");
    configure(&dir, &format!("{QUICK}{}", mirror("one", &one, "")));
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "first");
    let chmod = |mode| {
        let key = dir.path().join("key");
        fs::set_permissions(key, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    chmod(0o640);
    let watch = Watch::start(&dir);
    let error = |text: &str| {
        until(&format!("the error: {text}"), || {
            state(&dir, "one")["last_error"]
                .as_str()
                .filter(|e| e.contains(text))
                .map(str::to_owned)
        })
    };
    error("run: chmod 600 ");
    assert!(images(&dir, "one").is_empty());
    chmod(0o600);
    until_same(&dir, "one");

    // A host that nobody has vouched for.
    let known = dir.path().join("known_hosts");
    let line = fs::read(&known).expect("known_hosts");
    fs::write(&known, "").expect("known_hosts");
    dir.add_image(&format!("{PRODUCT}/20260102_0000"), "second");
    let said = error("the host key of 127.0.0.1 is not known; run: ssh-keyscan");
    assert!(said.contains(&format!("-p {}", one.port)), "{said}");
    fs::write(&known, line).expect("known_hosts");
    until_same(&dir, "one");

    // A key that the mirror does not take.
    let authorized = dir.path().join("authorized_keys");
    let line = fs::read(&authorized).expect("authorized_keys");
    fs::write(&authorized, "").expect("authorized_keys");
    dir.add_image(&format!("{PRODUCT}/20260103_0000"), "third");
    error("does not take the key");
    fs::write(&authorized, line).expect("authorized_keys");
    until_same(&dir, "one");
    drop(watch);

    // Programs that are missing are named with their packages.
    dir.add_image(&format!("{PRODUCT}/20260104_0000"), "fourth");
    for (there, missing) in
        [("ssh", "install the package rsync"), ("rsync", "install the package openssh-client")]
    {
        let bin = dir.path().join(format!("only-{there}"));
        fs::create_dir(&bin).expect("directory");
        std::os::unix::fs::symlink(format!("/usr/bin/{there}"), bin.join(there)).expect("link");
        let mut start = command(&dir, &["watch"]);
        let watch = Watch::start_as(&dir, start.env("PATH", &bin));
        watch.says(missing);
    }
}
