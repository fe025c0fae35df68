use super::*;
use std::fs;

/// A file with this stamp.
fn file(stamp: &Stamp) -> FoundFile {
    FoundFile::new("rootfs.squashfs".to_owned(), *stamp, 1)
}

const STAMP: Stamp = Stamp { device: 1, inode: 2, size: 3, modified: 4, changed: 5, born: Some(6) };

/// That of a file which changed a moment ago.
fn young(inode: u64) -> Stamp {
    Stamp { inode, changed: since_epoch(SystemTime::now()), ..STAMP }
}

#[test]
fn a_rename_keeps_the_hash_and_a_rewrite_does_not() {
    let cache = HashCache::default();
    let digest = Digest::of(b"x");
    cache.put_file("a", &file(&STAMP), digest, &Attempt::begin());
    assert_eq!(cache.file("a", &STAMP), Some(digest));
    let touched = Stamp { changed: 6, ..STAMP };
    assert_eq!(cache.file("a", &touched), None, "the same name with another time");
    assert_eq!(cache.file("b", &touched), Some(digest), "another name");
    assert_eq!(cache.file("a", &touched), Some(digest), "and both names, once linked");
    for other in [
        Stamp { device: 9, ..STAMP },
        Stamp { inode: 9, ..STAMP },
        Stamp { size: 9, ..STAMP },
        Stamp { modified: 9, ..STAMP },
        // The number of an inode that was freed, with everything else the same.
        Stamp { born: Some(9), ..STAMP },
    ] {
        assert_eq!(cache.file("b", &other), None, "{other:?}");
    }
    cache.forget(&touched);
    assert_eq!(cache.file("b", &touched), None);
    let unborn = Stamp { born: None, ..STAMP };
    cache.put_file("a", &file(&unborn), digest, &Attempt::begin());
    assert_eq!(cache.file("a", &unborn), Some(digest));
    assert_eq!(cache.file("b", &Stamp { changed: 6, ..unborn }), None, "it may be another file");
}

fn filled(path: &Path) {
    let cache = HashCache::default();
    cache.persist(path);
    for number in 0..500 {
        let stamp = Stamp { inode: number, ..STAMP };
        cache.put_file("a", &file(&stamp), Digest::of(&number.to_le_bytes()), &Attempt::begin());
    }
    cache.put_pair(
        Digest::of(b"m"),
        (Digest::of(b"r"), &file(&STAMP)),
        Digest::of(b"mr"),
        &Attempt::begin(),
    );
    cache.flush();
}

/// Right answers among `0..500`; a wrong one fails the test.
fn found(path: &Path) -> usize {
    let cache = HashCache::default();
    cache.persist(path);
    let known = (0..500_u64).filter(|number| {
        let known = cache.file("a", &Stamp { inode: *number, ..STAMP });
        known.is_some_and(|known| {
            assert_eq!(known, Digest::of(&number.to_le_bytes()), "a wrong hash");
            true
        })
    });
    known.count()
}

#[test]
fn what_was_written_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hashes");
    filled(&path);
    assert_eq!(found(&path), 500);
    let cache = HashCache::default();
    cache.persist(&path);
    assert_eq!(cache.pair(Digest::of(b"m"), Digest::of(b"r")), Some(Digest::of(b"mr")));
    cache.forget(&Stamp { inode: 7, ..STAMP });
    cache.put_text("/a".into(), b"text".to_vec());
    cache.flush();
    drop(cache);
    assert_eq!(found(&path), 499, "forgotten on disk too");
    let cache = HashCache::default();
    cache.persist(&path);
    assert_eq!(cache.text("/a").as_deref(), Some(&b"text"[..]));
}

/// A file that is gone, and its pairs, go after a time; one that is there, or comes back, stays.
#[test]
fn what_is_gone_for_long_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hashes");
    let digest = |number: u64| Digest::of(&number.to_le_bytes());
    filled(&path);
    let cache = HashCache::default();
    cache.persist(&path);
    cache.put_pair(digest(1), (digest(2), &file(&STAMP)), Digest::of(b"12"), &Attempt::begin());
    cache.put_pair(digest(1), (digest(400), &file(&STAMP)), Digest::of(b"1400"), &Attempt::begin());
    cache.put_text("/a".into(), b"a".to_vec());
    cache.put_text("/b".into(), b"b".to_vec());
    cache.flush();
    // Hashed a moment ago, and not on disk yet.
    cache.put_file("x", &file(&young(1000)), Digest::of(b"x"), &Attempt::begin());
    cache.put_pair(
        Digest::of(b"x"),
        (digest(3), &file(&STAMP)),
        Digest::of(b"x3"),
        &Attempt::begin(),
    );
    cache.put_text("/a".into(), b"a".to_vec());
    cache.flush();
    let start = (Instant::now(), SystemTime::now());
    cache.shared_by(BTreeSet::from(["one".to_owned(), "two".to_owned()]), start.0);
    let mut passed = Duration::ZERO;
    let mut count = |of_one: std::ops::Range<u64>, texts: &[&str], later: Duration| {
        passed += later;
        let now = (start.0 + passed, start.1 + passed);
        for (index, inodes) in [("one", of_one), ("two", 0..10)] {
            assert!(cache.asks(index, now.0), "{index}");
            let stamps: Vec<_> = inodes.map(|inode| Stamp { inode, ..STAMP }).collect();
            let texts = texts.iter().map(|text| (*text).to_owned());
            cache.present(index, stamps.iter(), texts, now);
        }
        let known = |number: &u64| {
            cache.file("a", &Stamp { inode: *number, ..STAMP }) == Some(digest(*number))
        };
        (0..500_u64).filter(known).count()
    };
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(count(0..500, &["/a", "/b"], day), 500);
    assert_eq!(count(0..300, &["/a"], day), 500, "gone, but not for long");
    assert_eq!(count(0..350, &["/a"], census::KEEP - day), 500, "fifty are back");
    assert_eq!(count(0..300, &["/a"], day), 350, "and gone anew");
    assert_eq!(cache.pair(digest(1), digest(2)), Some(Digest::of(b"12")));
    assert_eq!(cache.pair(digest(1), digest(400)), None);
    assert_eq!(cache.pair(Digest::of(b"x"), digest(3)), Some(Digest::of(b"x3")));
    assert_eq!(cache.text("/a").as_deref(), Some(&b"a"[..]));
    assert_eq!(cache.text("/b"), None);
    assert_eq!(count(0..300, &["/a"], census::KEEP), 300);
    drop(cache);
    assert_eq!(found(&path), 300, "on disk too");
}

#[test]
fn files_with_one_name_need_not_be_remembered() {
    let cache = HashCache::default();
    cache.keep_links_only();
    let linked = FoundFile { links: 2, ..file(&Stamp { inode: 9, ..STAMP }) };
    for file in [file(&STAMP), linked] {
        let digest = Digest::of(&file.links.to_le_bytes());
        cache.put_file("a", &file, digest, &Attempt::begin());
        cache.put_pair(digest, (digest, &file), digest, &Attempt::begin());
        let is_kept = file.links > 1;
        assert_eq!(cache.file("a", &file.stamp).is_some(), is_kept);
        assert_eq!(cache.file("b", &file.stamp).is_some(), is_kept, "another name of it");
        let touched = Stamp { changed: 99, ..file.stamp };
        assert_eq!(cache.file("b", &touched), None, "it may have been written to");
        assert_eq!(cache.pair(digest, digest).is_some(), is_kept);
    }
}

/// While an index looks at its tree for the first time, what changes is not known by what was read
/// before.
#[test]
fn what_is_read_ahead_does_not_outlive_what_it_is_about() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hashes");
    let of = |inode: u64| Stamp { inode, ..STAMP };
    filled(&path);
    let cache = HashCache::default();
    cache.persist(&path);
    cache.begin_first_look();
    cache.begin_first_look();
    cache.end_first_look();
    assert_eq!(cache.inner().ahead.as_ref().map(|ahead| ahead.files.len()), Some(500));
    assert_eq!(cache.file("a", &of(8)), Some(Digest::of(&8_u64.to_le_bytes())));
    let renamed = Stamp { changed: 6, ..of(10) };
    assert_eq!(cache.file("b", &renamed), Some(Digest::of(&10_u64.to_le_bytes())));
    assert_eq!(cache.pair(Digest::of(b"m"), Digest::of(b"r")), Some(Digest::of(b"mr")));
    cache.forget(&of(7));
    cache.put_file(
        "b",
        &file(&Stamp { changed: 9, ..of(8) }),
        Digest::of(b"new"),
        &Attempt::begin(),
    );
    cache.flush();
    assert_eq!(cache.file("a", &of(7)), None);
    assert_eq!(cache.file("b", &Stamp { changed: 9, ..of(8) }), Some(Digest::of(b"new")));
    assert_eq!(cache.file("b", &Stamp { changed: 7, ..renamed }), None, "written to since");
    cache.end_first_look();
    assert!(cache.inner().ahead.is_none());
    assert_eq!(cache.file("a", &of(9)), Some(Digest::of(&9_u64.to_le_bytes())));
}

/// While another process has the file, hashes are kept in memory; they go there when it is free.
#[test]
fn a_file_that_could_not_be_had_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hashes");
    let (before, cache) = (HashCache::default(), HashCache::default());
    before.persist(&path);
    cache.persist(&path);
    assert!(cache.inner().store.is_none(), "the other has it");
    let written = Stamp { inode: 77, ..STAMP };
    before.put_file("b", &file(&written), Digest::of(b"old"), &Attempt::begin());
    before.flush();
    cache.forget(&written);
    cache.put_file("a", &file(&STAMP), Digest::of(b"x"), &Attempt::begin());
    cache.flush();
    let later = Instant::now() + RETRY;
    cache.inner().try_again(later);
    assert!(cache.inner().store.is_none(), "the other has it still");
    drop(before);
    cache.inner().try_again(later);
    assert!(cache.inner().store.is_none(), "tried a moment ago");
    cache.inner().try_again(later + RETRY);
    assert_eq!(cache.file("b", &written), None, "it was forgotten meanwhile");
    cache.flush();
    drop(cache);
    let cache = HashCache::default();
    cache.persist(&path);
    assert_eq!(cache.file("a", &STAMP), Some(Digest::of(b"x")));
    assert_eq!(cache.file("b", &written), None, "on disk too");
}

/// The writer was seen while a file was hashed: what was read of it is not remembered afterwards.
#[test]
fn what_is_void_is_not_remembered() {
    let cache = HashCache::default();
    let attempt = Attempt::begin();
    cache.put_file("a", &file(&STAMP), Digest::of(b"x"), &attempt);
    attempt.make_void();
    cache.forget(&STAMP);
    cache.put_file("a", &file(&STAMP), Digest::of(b"x"), &attempt);
    cache.put_pair(
        Digest::of(b"m"),
        (Digest::of(b"x"), &file(&STAMP)),
        Digest::of(b"mx"),
        &attempt,
    );
    assert_eq!(cache.file("a", &STAMP), None);
    assert_eq!(cache.pair(Digest::of(b"m"), Digest::of(b"x")), None);
}

#[test]
fn what_is_young_stays_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hashes");
    let cache = HashCache::default();
    cache.persist(&path);
    let (young, ahead) = (young(1), Stamp { changed: i64::MAX, ..young(2) });
    for stamp in [&young, &ahead, &STAMP] {
        cache.put_file("a", &file(stamp), Digest::of(b"x"), &Attempt::begin());
    }
    cache.flush();
    drop(cache);
    let cache = HashCache::default();
    cache.persist(&path);
    assert_eq!(cache.file("a", &young), None);
    assert_eq!(cache.file("a", &ahead), None, "by a clock that was set back");
    assert_eq!(cache.file("a", &STAMP), Some(Digest::of(b"x")), "it was old when it was hashed");
}

/// Has all files counted as present.
fn count_all(path: &Path) {
    let cache = HashCache::default();
    cache.persist(path);
    let now = (Instant::now() + Duration::from_secs(3600), SystemTime::now());
    cache.shared_by(BTreeSet::new(), Instant::now());
    let stamps: Vec<_> = (0..500).map(|inode| Stamp { inode, ..STAMP }).collect();
    cache.present("", stamps.iter(), std::iter::empty(), now);
}

/// Damage anywhere may cost hashes, but gives neither a wrong one nor a panic.
#[test]
fn damage_never_gives_a_wrong_hash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hashes");
    filled(&path);
    let good = fs::read(&path).unwrap();
    let mut lost = 0;
    for step in 0..150 {
        let mut bad = good.clone();
        let at = (step * 7919 * 13) % bad.len();
        bad[at] ^= 1 << (step % 8);
        fs::write(&path, &bad).unwrap();
        if step % 5 == 0 {
            count_all(&path);
        }
        lost += 500 - found(&path);
    }
    for cut in [0, 1, 100, 4096, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..cut]).unwrap();
        lost += 500 - found(&path);
    }
    assert!(lost > 0, "nothing was damaged");
    fs::write(&path, b"something else altogether").unwrap();
    assert_eq!(found(&path), 0);
    filled(&path);
    assert_eq!(found(&path), 500, "begun anew");
}
