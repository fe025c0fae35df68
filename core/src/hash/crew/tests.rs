use std::cell::Cell;
use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::*;
use crate::Digest;

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i / 3) ^ (i >> 9)) as u8).collect()
}

fn crew(content: &[u8], size: u64, prefixes: &[&[u8]]) -> Crew {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let lanes = prefixes.iter().map(|prefix| {
        let mut lane = [Lane::default()];
        sha256::update(&mut lane, prefix);
        let [lane] = lane;
        lane
    });
    Crew::new(Source::new(Arc::new(file), size), size, lanes.collect())
}

/// Several threads come to the same hashes as one, at every length around those of chunks.
#[test]
fn helpers_change_nothing() {
    let prefixes: [&[u8]; 3] = [b"", b"metadata of LXD", b"and another one of Incus"];
    for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 9 * CHUNK + 4321] {
        let content = content(length);
        for lanes in 1..=3 {
            let prefixes = &prefixes[..lanes];
            let expected: Vec<Digest> = prefixes
                .iter()
                .map(|prefix| Digest::of(&[prefix, &content[..]].concat()))
                .collect();
            for helpers in 0..=3 {
                let crew = crew(&content, length as u64, prefixes);
                let counted = Cell::new(0);
                let count = |bytes| counted.set(counted.get() + bytes);
                let done = thread::scope(|scope| {
                    for _ in 0..helpers {
                        scope.spawn(|| {
                            if crew.join() {
                                crew.help(|| true);
                            }
                        });
                    }
                    crew.work(&|_| true, &count).unwrap()
                });
                let (read, lanes) = done.unwrap();
                let digests: Vec<Digest> = lanes.into_iter().map(Lane::finish).collect();
                assert_eq!(digests, expected, "{length} bytes, {helpers} helpers");
                assert_eq!((read, counted.get()), (length as u64, length as u64));
            }
        }
    }
}

/// With a helper on board, it reads while the owner feeds: the owner, held up, finds all buffers
/// full. More helpers than there is work for are turned away.
#[test]
fn a_helper_reads_ahead_and_no_further() {
    let content = content(9 * CHUNK);
    let crew = crew(&content, content.len() as u64, &[b""]);
    let ahead = CHUNKS * CHUNK;
    thread::scope(|scope| {
        assert!(crew.join(), "one may help");
        assert!(!crew.join(), "a second would have nothing to do");
        scope.spawn(|| crew.help(|| true));
        let held_up = |crew: &Crew| {
            while crew.state().source.is_none() || crew.state().length < ahead as u64 {
                thread::yield_now();
            }
            false
        };
        assert!(crew.work(&held_up, &|_| {}).unwrap().is_none(), "told to stop");
    });
    assert!(crew.state().buffers <= CHUNKS);
}

#[test]
fn a_helper_leaves_when_it_is_wanted_elsewhere() {
    let content = content(9 * CHUNK);
    let crew = crew(&content, content.len() as u64, &[b""]);
    assert!(crew.join() && !crew.is_alone());
    let steps = AtomicUsize::new(0);
    crew.help(|| steps.fetch_add(1, Ordering::Relaxed) < 2);
    assert!(crew.is_alone());
    let (_, lanes) = crew.work(&|_| true, &|_| {}).unwrap().unwrap();
    let digests: Vec<Digest> = lanes.into_iter().map(Lane::finish).collect();
    assert_eq!(digests, [Digest::of(&content)], "the owner goes on where it left");
    assert!(!crew.join(), "there is nothing left to do");
}

/// Whoever relieves the others does all that is left, from where they are, while they wait or leave.
#[test]
fn the_relief_goes_on_alone() {
    let content = content(9 * CHUNK + 4321);
    let crew = crew(&content, content.len() as u64, &[b"", b"metadata"]);
    assert!(crew.join());
    // The helper holds a lane, and one lane is ahead of the other.
    for _ in 0..2 {
        match crew.next(Role::Helper) {
            Some(step @ Step::Read(..)) => crew.carry_out(step),
            _ => panic!("the first steps are to read"),
        }
    }
    let Some(step @ Step::Feed(..)) = crew.next(Role::Helper) else {
        panic!("there is something to feed");
    };
    assert!(crew.take_over() && !crew.take_over() && !crew.join(), "there is one relief");
    assert!(crew.next(Role::Helper).is_none(), "helpers leave");
    let steps = AtomicUsize::new(0);
    thread::scope(|scope| {
        let owner = scope.spawn(|| crew.work(&|_| true, &|_| {}).unwrap().unwrap());
        let relief = scope.spawn(|| crew.relieve(|| steps.fetch_add(1, Ordering::Relaxed) < 9));
        // It takes over when the steps have ended that were begun.
        crew.carry_out(step);
        relief.join().unwrap();
        assert!(!crew.state().relieved, "handed back");
        let (length, lanes) = owner.join().unwrap();
        assert_eq!(length, content.len() as u64);
        let digests: Vec<Digest> = lanes.into_iter().map(Lane::finish).collect();
        let behind = Digest::of(&[b"metadata", &content[..]].concat());
        assert_eq!(digests, [Digest::of(&content), behind]);
    });
    assert_eq!(steps.into_inner(), 10, "it went on until told not to");
    assert!(!crew.take_over(), "there is nothing left to do");
}

/// Appended to while it is read, it is read no further than shows that it grew.
#[test]
fn a_file_that_grew_has_another_length() {
    let content = content(9 * CHUNK);
    let crew = crew(&content, 2 * CHUNK as u64, &[b""]);
    let (length, _) = crew.work(&|_| true, &|_| {}).unwrap().unwrap();
    assert_eq!(length, 3 * CHUNK as u64);
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_for_owner_and_helpers() {
    let dir = tempfile::tempdir().unwrap();
    let unreadable = File::create(dir.path().join("written only")).unwrap();
    let source = Source::new(Arc::new(unreadable), 9 * CHUNK as u64);
    let crew = Crew::new(source, 9 * CHUNK as u64, vec![Lane::default()]);
    assert!(crew.join());
    crew.help(|| true);
    crew.work(&|_| true, &|_| {}).unwrap_err();
}

/// Reading fails while a helper is at work on a lane: an error for the owner, nothing for the helper.
#[test]
fn a_failure_while_a_helper_feeds_is_the_owners_alone() {
    let content = content(3 * CHUNK);
    let crew = crew(&content, content.len() as u64, &[b""]);
    assert!(crew.join());
    // One that is fed, and one ahead.
    for _ in 0..2 {
        match crew.next(Role::Owner) {
            Some(step @ Step::Read(..)) => crew.carry_out(step),
            _ => panic!("the first steps are to read"),
        }
    }
    let Some(Step::Feed(places, lanes, chunk)) = crew.next(Role::Owner) else {
        panic!("there is something to feed");
    };
    crew.state().failure = Some(io::Error::other("failed"));
    assert!(crew.work(&|_| true, &|_| {}).is_err());
    crew.carry_out(Step::Feed(places, lanes, chunk));
    assert!(crew.next(Role::Owner).is_none());
}
