//! A client that never stops asking, and that believes nothing it has not compared with the disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use simplestreams::Digest;

use crate::harness::{Ask, Dir, Nginx, metadata, until};

/// Bytes that give no sign of how many they should be, so that only the guard can tell whether all
/// are there.
pub(crate) fn blob(serial: u64, length: usize) -> Arc<[u8]> {
    let mut state = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(length).collect()
}

/// What each root may be once somebody has finished writing it, by its path in the tree.
#[derive(Default)]
pub(crate) struct Finished {
    roots: BTreeMap<String, Vec<Root>>,
}

struct Root {
    content: Arc<[u8]>,
    hash: String,
    fingerprint: String,
}

impl Finished {
    pub(crate) fn add(&mut self, path: &str, content: &Arc<[u8]>) {
        self.roots.entry(path.to_owned()).or_default().push(Root {
            content: Arc::clone(content),
            hash: Digest::of(content).to_string(),
            fingerprint: Digest::of(&[metadata(), content].concat()).to_string(),
        });
    }

    /// Looks at every root that is listed: its hash and fingerprint are of something finished, and
    /// that is what is on disk, or is listed no longer. Gives how many there were.
    fn compare(&self, dir: &Dir, port: u16) -> usize {
        let listed = roots(port);
        for (path, hash, fingerprint) in &listed {
            let known = self.roots.get(path).unwrap_or_else(|| panic!("{path} was never meant"));
            let root = known
                .iter()
                .find(|root| root.hash == *hash)
                .unwrap_or_else(|| panic!("{path} is listed with the hash of nothing finished"));
            assert_eq!(root.fingerprint, *fingerprint, "{path}");
            let is_there = || {
                std::fs::read(dir.tree().join(path)).is_ok_and(|bytes| bytes == root.content[..])
            };
            if !is_there() {
                // Somebody writes to it or removed it just now: who asks again must not see it.
                until(&format!("{path} is not listed as what it is no more"), || {
                    let still = roots(port).iter().any(|(at, of, _)| at == path && of == hash);
                    (!still || is_there()).then_some(())
                });
            }
        }
        listed.len()
    }
}

/// Path, hash and fingerprint of every squashfs that is listed. The index must be there.
fn roots(port: u16) -> Vec<(String, String, String)> {
    let answer = Ask::get("/streams/v1/images.json").try_port(port).expect("an answer");
    assert_eq!(answer.status, 200, "the index is gone");
    let json = answer.json();
    let mut out = Vec::new();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    for product in json["products"].as_object().into_iter().flatten() {
        for version in product.1["versions"].as_object().into_iter().flatten() {
            let items = version.1["items"].as_object().expect("items");
            let fingerprint = items.values().find(|item| item["ftype"] == "lxd.tar.xz");
            let fingerprint = fingerprint.map(|item| text(&item["combined_squashfs_sha256"]));
            for root in items.values().filter(|item| item["ftype"] == "squashfs") {
                let fingerprint = fingerprint.clone().unwrap_or_default();
                out.push((text(&root["path"]), text(&root["sha256"]), fingerprint));
            }
        }
    }
    out
}

/// Lets `story` happen while a client compares all the time. The index must be there from the
/// beginning. Gives what the story gives.
pub(crate) fn observed<T>(
    nginx: &Nginx<'_>,
    dir: &Dir,
    may: &Finished,
    story: impl FnOnce() -> T,
) -> T {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    let port = nginx.port();
    std::thread::scope(|scope| {
        let observer = scope.spawn(|| {
            let mut compared = 0;
            loop {
                let last = done.load(Ordering::Relaxed);
                compared += may.compare(dir, port);
                if last {
                    return compared;
                }
            }
        });
        let end = Done(&done);
        let told = story();
        drop(end);
        let compared = observer.join().expect("what is listed is what is on disk");
        assert!(compared > 0, "the observer saw nothing");
        told
    })
}
