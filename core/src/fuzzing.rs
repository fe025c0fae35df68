//! Entries for fuzzing: one function for everything that reads what somebody else wrote.
//!
//! Each takes any bytes, and panics if something that must always hold does not. `fuzz/` runs them
//! under libFuzzer; the tests below run its seeds, and thousands of variations of each, with every
//! `cargo test`. Not part of the library's interface.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::MemfdFlags;

use crate::cache::{Attempt, HashCache};
use crate::kind::{self, Kind};
use crate::name::ProductName;
use crate::render::Documents;
use crate::scan::FoundFile;
use crate::snapshot::Lineage;
use crate::tree::Stamp;
use crate::{
    Digest, Snapshot, arch, entry, fields, name, overrides, snapshot, sums, unified, whole,
};

/// A target's name, that of its folder of seeds as well, and its entry.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("path", path),
    ("overrides", overrides),
    ("sums", sums),
    ("snapshot", snapshot),
    ("cache", cache),
    ("image", image),
];

/// Names in the tree: the components of a path, and the names of a version's files, one per line
/// after the first.
pub fn path(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let raw: Vec<&[u8]> = first.split(|&byte| byte == b'/').collect();
    for part in &raw {
        if let Ok(part) = name::check_path_component(part) {
            let unsafe_in_urls = |c: char| c.is_control() || "%?\\".contains(c);
            assert!(!part.contains(unsafe_in_urls), "{part:?}");
        }
    }
    let checked: Option<Vec<&str>> =
        raw.iter().map(|part| name::check_product_component(part).ok()).collect();
    let product = checked.as_ref().and_then(|parts| {
        let (stream, components) = parts.split_first()?;
        Some((ProductName::new(stream, components)?, components))
    });
    if let Some((product, components)) = product {
        // The name leads back to the path, and clients split no alias of it.
        assert_eq!(product.to_string().split(':').collect::<Vec<_>>(), components);
        let (os, release, variant) = (product.os(), product.release(), product.variant());
        for alias in fields::short_aliases(os, release, &variant) {
            assert!(!alias.contains(','), "{alias:?}");
        }
        if let Some(kernel) = arch::canonical(product.arch()) {
            assert_eq!(arch::canonical(kernel).unwrap_or(kernel), kernel);
        }
    }
    let stamp = Stamp { device: 1, inode: 1, size: 1, modified: 1, changed: 1, born: None };
    let files: Vec<Arc<FoundFile>> = lines
        .filter_map(|line| name::check_path_component(line).ok())
        .map(|name| {
            Arc::new(FoundFile { kind: Kind::of(name), name: name.to_owned(), stamp, links: 1 })
        })
        .collect();
    for file in &files {
        if name::is_version(&file.name) {
            assert!(file.name.as_bytes()[..8].iter().all(u8::is_ascii_digit), "{}", file.name);
        }
        if let Some(base) = kind::delta_base(&file.name) {
            assert!(file.name.contains(base) && name::is_version(base), "{}", file.name);
        }
        for other in &files {
            kind::is_exported_root(&file.name, &other.name);
        }
    }
    if let (Ok(plan), _) = entry::plan("images/a/1/amd64/b/20240101", &files) {
        assert!(plan.unified.len() + plan.roots.len() > 0, "nothing to list");
        for file in plan.all_files() {
            assert!(files.iter().any(|of| of.name == file.name), "{}", file.name);
        }
    }
}

/// Files of overrides: which format, by the first byte, and the content.
pub fn overrides(data: &[u8]) {
    let Some((format, content)) = data.split_first() else {
        return;
    };
    let formats =
        [kind::Overrides::MetadataJson, kind::Overrides::Requirements, kind::Overrides::ImageYaml];
    let format = formats[usize::from(*format) % formats.len()];
    let parsed = overrides::parse(format, content);
    assert_eq!(parsed, overrides::parse(format, content), "another time, another meaning");
    match parsed {
        Ok((said, _)) => {
            let aliases = said.aliases.iter().chain(said.release_aliases.values()).flatten();
            for alias in aliases {
                assert!(!alias.contains(',') && !alias.is_empty(), "{alias:?}");
            }
            let product = ProductName::new("images", &["a", "1", "amd64", "default"]);
            said.requirements_of(&product.expect("four components"));
        }
        Err(why) => assert!(!why.is_empty() && !why.contains('\n'), "{why:?}"),
    }
}

/// `SHA256SUMS`.
pub fn sums(data: &[u8]) {
    match sums::parse(data) {
        Ok(sums) => {
            let lines = sums.iter().map(|(name, digest)| format!("{digest}  ./{name}\r\n"));
            let text: String = lines.collect();
            assert_eq!(sums::parse(text.as_bytes()).as_ref(), Ok(&sums), "{text:?}");
            // What is as promised is good; a hash that is not promised never is.
            let check = |found: &BTreeMap<String, Digest>| {
                let found = found.clone().into_iter().collect();
                sums::check("v", "SHA256SUMS", data, &found, |_| false).is_ok()
            };
            assert!(check(&sums));
            for name in sums.keys() {
                let other = Digest::of(name.as_bytes());
                let mut found = sums.clone();
                found.insert(name.clone(), other);
                assert_eq!(check(&found), sums[name] == other, "{name:?}");
            }
        }
        Err(line) => assert!((1..=data.len() + 1).contains(&line)),
    }
}

/// A file of a generation, as it is; and, since nothing but a good one gets past the checksum, as
/// head and body of one with the right checksum: the head's length is the first byte times eight.
pub fn snapshot(data: &[u8]) {
    use_snapshot(data.to_vec());
    let Some((length, rest)) = data.split_first() else {
        return;
    };
    let (head, body) = rest.split_at(rest.len().min(usize::from(*length) * 8));
    use_snapshot(snapshot::assemble(head.trim_ascii(), body));
}

fn use_snapshot(bytes: Vec<u8>) {
    let Ok(snapshot) = Snapshot::from_bytes(bytes) else {
        return;
    };
    for name in snapshot.names() {
        let document = snapshot.document(name).expect("checked when it was read");
        std::hint::black_box(document.identity.bytes.iter().chain(document.gzip.bytes).max());
    }
    std::hint::black_box((snapshot.listed(), snapshot.problems(), snapshot.counts()));
    let streams = snapshot.names().filter_map(|name| name.strip_suffix(".json"));
    Documents::new(&streams.map(str::to_owned).collect::<Vec<_>>()).inherit(&snapshot);
    let lineage = Lineage::from(&snapshot);
    let next = snapshot::encode(&[], &[], snapshot.counts(), &lineage, snapshot.published());
    let next = Snapshot::from_bytes(next).expect("of our own making");
    assert!(next.generation() > snapshot.generation(), "generations go up");
}

/// A hash cache on disk with known content, damaged: positions, 4 bytes, and what is there then, one
/// byte, over and over; the file is cut there where that byte is 0xcc. Whatever it gives afterwards
/// is what was put in.
pub fn cache(data: &[u8]) {
    let dir = tempfile();
    let path = dir.0.join("hashes.redb");
    let known = known_cache(&path);
    let mut bytes = std::fs::read(&path).expect("own file");
    for edit in data.chunks_exact(5).take(64) {
        let at = u32::from_le_bytes(std::array::from_fn(|i| edit[i])) as usize % bytes.len();
        match edit[4] {
            0xcc if at > 0 => bytes.truncate(at),
            byte => bytes[at] = byte,
        }
    }
    std::fs::write(&path, &bytes).expect("own file");

    let cache = HashCache::default();
    cache.persist(&path);
    for (stamp, digest) in &known {
        let found = cache.file("a", stamp);
        assert!(found.is_none_or(|found| found == *digest), "{found:?}, and was {digest:?}");
        let pair = cache.pair(*digest, *digest);
        assert!(pair.is_none_or(|pair| pair == *digest), "{pair:?}, and was {digest:?}");
    }
    let text = cache.text("/a");
    assert!(text.as_deref().is_none_or(|text| text == b"{}"), "{text:?}");
    // It goes on from there: what is written is found, if not at once, then after the damage that
    // was met has been repaired.
    let (stamp, digest) = (stamp(9999), Digest::of(b"new"));
    let found = (0..3).any(|_| {
        cache.put_file("new", &file(&stamp), digest, &Attempt::begin());
        cache.flush_young();
        cache.file("new", &stamp) == Some(digest)
    });
    assert!(found, "it never works again");
    cache.shared_by(["x".to_owned()].into(), Instant::now());
    let now = (Instant::now() + Duration::from_secs(86_400 * 2), SystemTime::now());
    cache.present("x", [&stamp].into_iter(), std::iter::empty(), now);
    drop(cache);
    let cache = HashCache::default();
    cache.persist(&path);
    let found = cache.file("new", &stamp);
    assert!(found.is_none_or(|found| found == digest), "{found:?}");
}

fn stamp(number: u64) -> Stamp {
    Stamp { device: 1, inode: number, size: number, modified: 4, changed: 5, born: Some(6) }
}

fn file(stamp: &Stamp) -> FoundFile {
    FoundFile::new("rootfs.squashfs".to_owned(), *stamp, 1)
}

/// Makes a hash cache at `path`; says what it knows.
fn known_cache(path: &Path) -> HashMap<Stamp, Digest> {
    static MADE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let known: HashMap<Stamp, Digest> =
        (0..100_u64).map(|n| (stamp(n), Digest::of(&n.to_le_bytes()))).collect();
    let bytes = MADE.get_or_init(|| {
        let cache = HashCache::default();
        cache.persist(path);
        for (stamp, digest) in &known {
            cache.put_file("a", &file(stamp), *digest, &Attempt::begin());
            cache.put_pair(*digest, (*digest, &file(stamp)), *digest, &Attempt::begin());
        }
        cache.put_text("/a".to_owned(), b"{}".to_vec());
        cache.flush_young();
        drop(cache);
        std::fs::read(path).expect("own file")
    });
    std::fs::write(path, bytes).expect("own file");
    known
}

/// A directory in memory where there is one, removed when dropped.
fn tempfile() -> Temporary {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let path = base.join(format!("simplestreams-fuzz-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a temporary directory");
    Temporary(path)
}

struct Temporary(std::path::PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The files of an image: whether they are whole, and what a unified tarball holds.
pub fn image(data: &[u8]) {
    let memory = rustix::fs::memfd_create("image", MemfdFlags::CLOEXEC).expect("memory");
    let mut file = File::from(memory);
    file.write_all(data).expect("memory");
    let whole = whole::check(&file, data.len() as u64, &|| true).expect("memory can be read");
    if let Err(whole::CutShort(why)) = whole {
        assert!(!why.is_empty());
    }
    unified::look(&file, &|| true).expect("memory can be read");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{Strategy, any};
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    /// Variations of its seeds that each target is given.
    const ROUNDS: u32 = 3000;
    /// The same, of a target that writes and reads a file each time.
    const SLOW_ROUNDS: u32 = 150;

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|err| panic!("{dir:?}: {err}"));
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{target}: no seeds");
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    /// Some of it changed, cut out, doubled, or put in from another seed.
    fn vary(seeds: &[Vec<u8>], (which, edits): (usize, Vec<(u8, usize, usize, u8)>)) -> Vec<u8> {
        let mut bytes = seeds[which % seeds.len()].clone();
        for (what, at, length, byte) in edits {
            let at = at % (bytes.len() + 1);
            let end = bytes.len().min(at + length % 64);
            match what % 5 {
                0 => bytes[at..end].fill(byte),
                1 => drop(bytes.drain(at..end)),
                2 => bytes.insert(at, byte),
                3 => {
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                _ => {
                    let other = &seeds[usize::from(byte) % seeds.len()];
                    let part = other.iter().skip(length % (other.len() + 1)).take(32).copied();
                    bytes.splice(at..at, part.collect::<Vec<_>>());
                }
            }
        }
        bytes
    }

    fn run(name: &str, rounds: u32) {
        let (_, target) = TARGETS.iter().find(|(of, _)| *of == name).unwrap();
        let seeds = seeds(name);
        seeds.iter().for_each(|seed| target(seed));
        target(&[]);
        let config = Config { cases: rounds, failure_persistence: None, ..Config::default() };
        // The same every time: what fails here fails for everybody.
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let edits = proptest::collection::vec(
            (any::<u8>(), any::<usize>(), any::<usize>(), any::<u8>()),
            0..8,
        );
        let varied = (any::<usize>(), edits).prop_map(|edits| vary(&seeds, edits));
        let result = TestRunner::new_with_rng(config, rng).run(&varied, |bytes| {
            target(&bytes);
            Ok(())
        });
        result.unwrap_or_else(|err| panic!("{name}: {err}"));
    }

    #[test]
    fn path_grammar() {
        run("path", ROUNDS);
    }

    #[test]
    fn overrides_of_every_format() {
        run("overrides", ROUNDS);
    }

    #[test]
    fn promised_hashes() {
        run("sums", ROUNDS);
    }

    #[test]
    fn generations() {
        run("snapshot", ROUNDS);
    }

    #[test]
    fn hash_cache() {
        run("cache", SLOW_ROUNDS);
    }

    #[test]
    fn images() {
        run("image", ROUNDS);
    }
}
