//! The state directory: builders that exclude each other, followers that never stop serving, and
//! snapshot files that are damaged, foreign or gone.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::common::{Site, VERSION};
use simplestreams::snapshot::{self, Lineage, Rendered};
use simplestreams::{
    Builder, BuilderOptions, Followed, Follower, Prepare, Problem, Settings, Snapshot,
    SnapshotCell, SnapshotError, state as requests,
};

fn rendered(text: &str) -> Vec<Rendered> {
    let of = |name: &str| Rendered {
        name: name.into(),
        identity: format!("{name} {text}").into_bytes(),
        gzip: format!("gz {name} {text}").into_bytes(),
    };
    vec![of("index.json"), of("images.json")]
}

fn encoded(text: &str, previous: &Lineage, now: u64) -> Vec<u8> {
    let problem = Problem::new(Path::new("images/a"), "reason", "remedy");
    snapshot::encode(&rendered(text), &[problem], snapshot::Counts::default(), previous, now)
}

#[test]
fn a_snapshot_reads_back() {
    let bytes = encoded("x", &Lineage::default(), 1_700_000_000_999);
    let snapshot = Snapshot::from_bytes(bytes).unwrap();
    assert_eq!(snapshot.generation(), 1);
    assert_eq!(snapshot.names().collect::<Vec<_>>(), ["images.json", "index.json"]);
    let images = snapshot.document("images.json").unwrap();
    assert_eq!(images.identity.bytes, b"images.json x");
    assert_eq!(images.gzip.bytes, b"gz images.json x");
    assert_ne!(images.identity.etag, images.gzip.etag);
    assert!(images.identity.etag.starts_with('"') && images.identity.etag.ends_with('"'));
    assert_eq!(images.last_modified, 1_700_000_000);
    assert_eq!(snapshot.problems().len(), 1);
    assert!(snapshot.document("nothing.json").is_none());
}

/// nginx compares If-Modified-Since exactly: a changed document must not keep its time, an
/// unchanged one must.
#[test]
fn modification_times_follow_the_content() {
    let first = Snapshot::from_bytes(encoded("x", &Lineage::default(), 10_000)).unwrap();
    let modified = |snapshot: &Snapshot| snapshot.document("images.json").unwrap().last_modified;
    let same = Snapshot::from_bytes(encoded("x", &Lineage::from(&first), 99_000)).unwrap();
    assert_eq!((modified(&same), same.generation()), (10, 2));
    let changed = Snapshot::from_bytes(encoded("y", &Lineage::from(&same), 10_400)).unwrap();
    assert_eq!(modified(&changed), 11, "in the same second");
    let back = Snapshot::from_bytes(encoded("x", &Lineage::from(&changed), 5_000)).unwrap();
    assert_eq!(modified(&back), 12, "although the clock went back");
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let good = encoded("x", &Lineage::default(), 1);
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(Snapshot::from_bytes(bad).is_err(), "byte {at}, bit {bit}");
        }
        assert!(Snapshot::from_bytes(good[..at].to_vec()).is_err(), "cut at {at}");
    }
    assert!(Snapshot::from_bytes([&good[..], b"x"].concat()).is_err(), "longer");
}

/// A file is read in pieces: damage shows in each of them, and at every border.
#[test]
fn a_file_of_several_pieces_is_checked_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.snapshot");
    let text: String = (0..130_000).map(|n| format!("{n} ")).collect();
    let good = encoded(&text, &Lineage::default(), 1);
    assert!(good.len() > 5 << 18);
    let open = |bytes: &[u8]| {
        fs::remove_file(&path).ok();
        snapshot::write_file(&path, bytes).unwrap();
        Snapshot::open(&path)
    };
    assert_eq!(
        open(&good).unwrap().document("images.json").unwrap().identity.bytes.len(),
        12 + text.len()
    );
    let borders = (0..=good.len()).step_by(1 << 18).chain([40, good.len()]);
    for border in borders {
        for at in border.saturating_sub(1)..(border + 2).min(good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(open(&bad).is_err(), "byte {at}");
            assert!(open(&good[..at]).is_err(), "cut at {at}");
        }
    }
    assert!(open(&[&good[..], b"x"].concat()).is_err(), "longer");
    for end in [0, 39, 40, good.len() as u64 - 1, good.len() as u64, 1 << 40, u64::MAX] {
        let mut bad = good.clone();
        bad[16..24].copy_from_slice(&end.to_le_bytes());
        assert!(open(&bad).is_err(), "a head at {end}");
    }
}

#[test]
fn a_newer_layout_is_named() {
    let mut newer = encoded("x", &Lineage::default(), 1);
    newer[8] = 3;
    let err = Snapshot::from_bytes(newer).unwrap_err();
    assert!(matches!(err, SnapshotError::Layout { found: 3, .. }), "{err}");
}

struct State {
    dir: tempfile::TempDir,
}

impl State {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn builder(&self, settings: &Settings) -> Builder {
        Builder::spawn(BuilderOptions {
            state_dir: self.dir.path().to_owned(),
            indexes: vec![settings.clone()],
            threads: NonZeroUsize::MIN,
            prepare: Prepare::default(),
        })
        .unwrap()
    }

    fn follow(&self, id: &str) -> (Follower, Arc<SnapshotCell>) {
        let cell = Arc::<SnapshotCell>::default();
        let followed = Followed { id: id.into(), cell: Arc::clone(&cell) };
        (Follower::spawn(self.dir.path(), vec![followed]).unwrap(), cell)
    }
}

#[track_caller]
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Site::DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

fn versions(cell: &SnapshotCell) -> u64 {
    cell.load().as_ref().map_or(0, |snapshot| snapshot.counts().versions)
}

#[test]
fn builder_and_follower_meet_in_the_state_directory() {
    let (site, state) = (Site::new(), State::new());
    site.image(VERSION, "one");
    let settings = site.settings();
    let (follower, cell) = state.follow(&settings.id());
    assert!(cell.load().is_none());
    let builder = state.builder(&settings);
    wait("the first version", || versions(&cell) == 1);
    site.image("images/a/1/amd64/default/20240102", "two");
    wait("the second version", || versions(&cell) == 2);
    drop((builder, follower));

    // What was published last is there at once, before anything looks at the tree.
    let (_follower, cell) = state.follow(&settings.id());
    assert_eq!(versions(&cell), 2);
}

#[test]
fn a_restart_without_a_change_is_no_new_generation() {
    let (site, state) = (Site::new(), State::new());
    site.image(VERSION, "one");
    let settings = site.settings();
    let (_follower, cell) = state.follow(&settings.id());
    let builder = state.builder(&settings);
    wait("a generation", || versions(&cell) == 1);
    drop(builder);
    let before = cell.load_full().unwrap();
    let builder = state.builder(&settings);
    site.image("images/a/1/amd64/default/20240102", "two");
    wait("the next generation", || versions(&cell) == 2);
    drop(builder);
    let after = cell.load_full().unwrap();
    assert_eq!(after.generation(), before.generation() + 1);
}

#[test]
fn the_second_builder_waits_and_takes_over() {
    let (site, state) = (Site::new(), State::new());
    site.image(VERSION, "one");
    let settings = site.settings();
    let (_follower, cell) = state.follow(&settings.id());
    let first = state.builder(&settings);
    wait("the first builder", || versions(&cell) == 1);
    let second = state.builder(&settings);
    drop(first);
    site.image("images/a/1/amd64/default/20240102", "two");
    wait("the second builder", || versions(&cell) == 2);
    drop(second);
}

#[test]
fn a_damaged_snapshot_is_kept_out_and_made_again() {
    let (site, state) = (Site::new(), State::new());
    site.image(VERSION, "one");
    let settings = site.settings();
    let (_follower, cell) = state.follow(&settings.id());
    drop({
        let builder = state.builder(&settings);
        wait("a generation", || versions(&cell) == 1);
        builder
    });
    let path = snapshot::path(state.dir.path(), &settings.id());
    let good = fs::read(&path).unwrap();
    let damage = |bytes: &[u8]| {
        let beside = state.dir.path().join("beside");
        fs::write(&beside, bytes).unwrap();
        fs::rename(&beside, &path).unwrap();
    };
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut newer = good.clone();
    newer[8] = 200;
    for bad in [&good[..good.len() / 2], &[], &flipped, &newer] {
        damage(bad);
        let (_fresh, empty) = state.follow(&settings.id());
        assert!(empty.load().is_none(), "a fresh follower took it");
        assert_eq!(versions(&cell), 1, "the running one let go of the good one");
        let builder = state.builder(&settings);
        wait("a new snapshot", || versions(&empty) == 1);
        drop(builder);
        assert!(Snapshot::open(&path).is_ok());
        let live = state.dir.path().join(format!("{}.live", settings.id()));
        fs::remove_file(live).unwrap();
    }
}

/// A builder announces a generation before it writes the file, and may end in between: what readers have
/// is newer then, and what it withdrew does not come back.
#[test]
fn a_follower_never_goes_back() {
    let state = State::new();
    let cells: [Arc<SnapshotCell>; 2] = std::array::from_fn(|_| Arc::default());
    // The same thread looks at both, in this order: the second tells that it has looked at the first.
    let followed = ["one", "two"].iter().zip(&cells);
    let followed = followed.map(|(id, cell)| Followed { id: (*id).into(), cell: Arc::clone(cell) });
    let _follower = Follower::spawn(state.dir.path(), followed.collect()).unwrap();
    let generation = |cell: &SnapshotCell| cell.load().as_ref().map(|of| of.generation());
    let write = |id: &str, bytes: &[u8]| {
        snapshot::write_file(&snapshot::path(state.dir.path(), id), bytes).unwrap();
    };
    let first = encoded("x", &Lineage::default(), 1_000);
    let second = encoded("y", &Lineage::from(&Snapshot::from_bytes(first.clone()).unwrap()), 2_000);
    write("one", &second);
    wait("the second generation", || generation(&cells[0]) == Some(2));
    write("one", &first);
    write("two", &first);
    wait("the other index", || generation(&cells[1]) == Some(1));
    assert_eq!(generation(&cells[0]), Some(2));
}

/// What cannot be saved is served all the same, and saved when that is possible again.
#[test]
fn a_snapshot_file_that_cannot_be_written_is_tried_again() {
    let (site, state) = (Site::new(), State::new());
    site.image(VERSION, "one");
    let settings = site.settings();
    let builder = state.builder(&settings);
    let (_follower, cell) = state.follow(&settings.id());
    wait("a generation", || versions(&cell) == 1);
    // Root writes everywhere, so a directory stands in the way instead of a missing permission.
    let path = snapshot::path(state.dir.path(), &settings.id());
    let saved = || Snapshot::open(&path).map_or(0, |snapshot| snapshot.counts().versions);
    wait("it to be saved", || saved() == 1);
    let mut beside = path.clone().into_os_string();
    beside.push(".new");
    fs::create_dir(&beside).unwrap();
    site.image("images/a/1/amd64/default/20240102", "two");
    wait("the generation to be served", || versions(&cell) == 2);
    assert_eq!(saved(), 1);
    fs::remove_dir(&beside).unwrap();
    wait("the next try", || saved() == 2);
    drop(builder);
}

/// Nobody who damages what has a name in the state directory can harm what is being served.
#[test]
fn truncating_files_in_place_does_no_harm() {
    let (site, state) = (Site::new(), State::new());
    site.image(VERSION, "one");
    let settings = site.settings();
    let builder = state.builder(&settings);
    let (_follower, cell) = state.follow(&settings.id());
    wait("a generation", || versions(&cell) == 1);
    let path = snapshot::path(state.dir.path(), &settings.id());
    wait("the snapshot file", || path.exists());
    for entry in fs::read_dir(state.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("snapshot" | "live")) {
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(0).unwrap();
        }
    }
    let intact = || {
        let snapshot = cell.load_full().unwrap();
        let images = snapshot.document("images.json").unwrap();
        let text = String::from_utf8(images.identity.bytes.to_vec()).unwrap();
        text.contains("20240101")
    };
    assert!(intact());
    site.image("images/a/1/amd64/default/20240102", "two");
    wait("the next generation", || {
        assert!(intact());
        versions(&cell) == 2
    });
    drop(builder);
    assert!(intact(), "although its builder is gone");
}

/// Hashes reach the disk once they have stood for three seconds; after that, neither a restart nor a
/// rename costs a byte.
#[test]
fn a_restart_and_a_rename_hash_nothing_again() {
    let (site, state) = (Site::new(), State::new());
    for number in 1..=9 {
        site.image(&format!("images/a/1/amd64/default/2024010{number}"), &number.to_string());
    }
    let settings = site.settings();
    let (_follower, cell) = state.follow(&settings.id());
    let builder = state.builder(&settings);
    wait("all versions", || versions(&cell) == 9);
    let hashed = builder.progress()[0].bytes_hashed;
    assert_eq!(hashed, 9 * ("metadata".len() as u64 + 1));

    // While it runs, in memory; a hard link is another name of the same file.
    let product = site.path("images/a/1/amd64/default");
    fs::rename(product.join("20240109"), product.join("20240110")).unwrap();
    fs::rename(product.join("20240108/rootfs.squashfs"), product.join("20240108/root.squashfs"))
        .unwrap();
    wait("both renames", || {
        versions(&cell) == 9
            && cell.load().as_ref().is_some_and(|snapshot| {
                let images = snapshot.document("images.json").unwrap().identity.bytes;
                let images = String::from_utf8_lossy(images).into_owned();
                images.contains("20240110") && images.contains("20240108/root.squashfs")
            })
    });
    assert_eq!(builder.progress()[0].bytes_hashed, hashed, "a rename was hashed again");

    let cache = state.dir.path().join("hashes.redb");
    let written = || fs::metadata(&cache).and_then(|meta| meta.modified()).unwrap();
    let before = written();
    // In several goes, if hashing took its time: until the last one has stood.
    let mut last = (before, Instant::now());
    wait("the cache to be written", || {
        let now = written();
        if now != last.0 {
            last = (now, Instant::now());
        }
        now > before && last.1.elapsed().as_secs() >= 5
    });
    drop(builder);

    let builder = state.builder(&settings);
    wait("a look", || builder.progress()[0].is_idle());
    assert_eq!(builder.progress()[0].bytes_hashed, 0, "a restart hashed again");
    drop(builder);

    // Without the cache, everything is hashed again, and nothing is unlisted meanwhile.
    fs::write(&cache, "not a cache").unwrap();
    let builder = state.builder(&settings);
    wait("a look", || {
        assert_eq!(versions(&cell), 9);
        builder.progress()[0].is_idle()
    });
    assert_eq!(builder.progress()[0].bytes_hashed, hashed);
}

/// A start reads no directory that is as it was; all that happened while nobody looked shows all the same.
#[test]
fn what_changes_between_two_processes_shows_although_directories_are_remembered() {
    let (site, state) = (Site::in_memory(), State::new());
    let product = |number: u32| format!("images/a/{number}/amd64/default");
    for number in 1..=6 {
        site.image(&format!("{}/20240101", product(number)), &number.to_string());
    }
    // What is young is not remembered; a rescan sees it grow old.
    let settings = Settings { rescan: std::time::Duration::from_millis(500), ..site.settings() };
    let directories = state.dir.path().join(format!("{}.directories", settings.id()));
    let (_follower, cell) = state.follow(&settings.id());
    let builder = state.builder(&settings);
    wait("all versions", || versions(&cell) == 6);
    wait("directories to be remembered", || directories.exists());
    drop(builder);
    let written = fs::read(&directories).unwrap();
    let count = u64::from_le_bytes(written[24..32].try_into().unwrap());
    // `images`, `a`, and four of each version; up to a sixteenth may have come later.
    assert!(count >= 25, "{count}");

    // A new version, one that is gone, one that was moved, a file that was added, one that was
    // replaced in place, and one that is a link to nowhere now.
    site.image(&format!("{}/20240102", product(1)), "new");
    fs::remove_dir_all(site.path(&product(2))).unwrap();
    fs::create_dir_all(site.path("images/a/7/amd64")).unwrap();
    fs::rename(site.path(&product(3)), site.path(&product(7))).unwrap();
    let version = |number: u32| site.version(&format!("{}/20240101", product(number)));
    version(4).write("incus.tar.xz", b"other metadata");
    version(5).write("rootfs.squashfs", b"another");
    let link = site.path(&format!("{}/20240101/rootfs.squashfs", product(6)));
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("nowhere", &link).unwrap();

    // This one is to see it all at its start.
    let settings = site.settings();
    let builder = state.builder(&settings);
    wait("what changed", || {
        let snapshot = cell.load();
        let Some(snapshot) = snapshot.as_ref() else { return false };
        let images = snapshot.document("images.json").unwrap().identity.bytes;
        let images = String::from_utf8_lossy(images);
        let lists = |path: &str| images.contains(path);
        let another = simplestreams::Digest::of(b"another").to_string();
        versions(&cell) == 5
            && lists("a/1/amd64/default/20240101/")
            && lists("a/1/amd64/default/20240102/")
            && lists("a/7/amd64/default/20240101/")
            && lists("a/4/amd64/default/20240101/incus.tar.xz")
            && lists(&another)
            && !["a/2/", "a/3/", "a/6/"].iter().any(|gone| lists(gone))
    });
    drop(builder);

    // Whatever has become of the file, it does no harm.
    fs::remove_file(&directories).unwrap();
    fs::write(&directories, "not a file of this kind").unwrap();
    site.image(&format!("{}/20240103", product(1)), "newer");
    let _builder = state.builder(&settings);
    wait("another version", || versions(&cell) == 6);
}

/// What was listed and is as it was needs no new hash to stay listed; what is gone or another does not
/// wait for that.
#[test]
fn without_hashes_what_was_listed_stays_and_what_is_gone_goes_at_once() {
    let (site, state) = (Site::new(), State::new());
    let product = "images/a/1/amd64/default";
    for number in 1..=3 {
        site.image(&format!("{product}/2024010{number}"), &number.to_string());
    }
    // A while to hash; nothing but zeros on disk.
    let long = site.version(&format!("{product}/20240104"));
    long.write("lxd.tar.xz", b"metadata");
    let root = fs::File::create(site.path(product).join("20240104/rootfs.tar.xz")).unwrap();
    root.set_len(2 << 30).unwrap();
    drop(root);
    let settings = site.settings();
    let (_follower, cell) = state.follow(&settings.id());
    let builder = state.builder(&settings);
    wait("all versions", || versions(&cell) == 4);
    wait("a look", || builder.progress()[0].is_idle());
    let images = || {
        let snapshot = Arc::clone(cell.load().as_ref().unwrap());
        let document = snapshot.document("images.json").unwrap();
        serde_json::from_slice::<serde_json::Value>(document.identity.bytes).unwrap()
    };
    let all = images();
    drop(builder);

    fs::remove_file(state.dir.path().join("hashes.redb")).unwrap();
    fs::remove_dir_all(site.path(product).join("20240101")).unwrap();
    fs::write(site.path(product).join("20240102/rootfs.squashfs"), "another").unwrap();
    let builder = state.builder(&settings);
    wait("it to be hashed", || builder.progress()[0].bytes_to_hash > 0);
    wait("what is gone to go", || !images().to_string().contains("20240101"));
    assert!(builder.progress()[0].bytes_to_hash > 0, "this test takes a longer file");
    let listed = |document: &serde_json::Value, version: &str| {
        document["products"]["a:1:amd64:default"]["versions"][version].clone()
    };
    for version in ["20240103", "20240104"] {
        assert!(listed(&all, version).is_object());
        assert_eq!(listed(&images(), version), listed(&all, version), "{version}");
    }
    assert_ne!(listed(&images(), "20240102"), listed(&all, "20240102"));
    wait("all versions", || versions(&cell) == 3 && builder.progress()[0].is_idle());
    assert_eq!(listed(&images(), "20240104"), listed(&all, "20240104"));
}

/// Everything is read again, nothing is unlisted meanwhile, and who asked learns of the end.
#[test]
fn everything_is_hashed_anew_when_somebody_asks() {
    use std::os::unix::fs::PermissionsExt as _;
    let (site, state) = (Site::new(), State::new());
    for number in 1..=9 {
        site.image(&format!("images/a/1/amd64/default/2024010{number}"), &number.to_string());
    }
    site.version("images/a/1/amd64/default/20240110").write("lxd.tar.xz", b"no root");
    let settings = site.settings();
    let (id, dir) = (settings.id(), state.dir.path());
    let (_follower, cell) = state.follow(&id);
    let find = |root: &Path| requests::find(dir, root).unwrap();
    assert!(find(&settings.root).is_empty(), "nothing is built yet");
    let builder = state.builder(&settings);
    wait("all versions", || versions(&cell) == 9);
    wait("a look", || builder.progress()[0].is_idle());
    let hashed = builder.progress()[0].bytes_hashed;

    wait("it to be found", || find(&settings.root) == [id.clone()]);
    let link = site.path("link");
    std::os::unix::fs::symlink(&settings.root, &link).unwrap();
    assert!(find(&link) == find(&settings.root), "the same directory by another name");
    assert!(find(&site.path("images")).is_empty());

    let generation = cell.load().as_ref().unwrap().generation();
    for round in 2..=3 {
        assert!(!requests::is_rehashing(dir, &id));
        requests::request_rehash(dir, &id).unwrap();
        requests::request_rehash(dir, &id).unwrap();
        let mode = |name: &str| fs::metadata(dir.join(name)).map(|meta| meta.permissions().mode());
        if let Ok(mode) = mode(&format!("{id}.rehash")) {
            assert_eq!(mode & 0o777, 0o600);
        }
        wait("the end", || {
            assert_eq!(versions(&cell), 9, "something was unlisted");
            !requests::is_rehashing(dir, &id)
        });
        // More, if the first of both was taken before the second came.
        assert!(builder.progress()[0].bytes_hashed >= round * hashed);
    }
    assert_eq!(cell.load().as_ref().unwrap().generation(), generation, "the same documents");

    // A builder that was killed in the middle leaves this.
    drop(builder);
    assert!(find(&settings.root).is_empty(), "nothing is built any more");
    fs::write(dir.join(format!("{id}.rehashing")), "").unwrap();
    let builder = state.builder(&settings);
    wait("the end", || !requests::is_rehashing(dir, &id));
    assert!(builder.progress()[0].bytes_hashed >= hashed);
}
