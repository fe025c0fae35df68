//! Writers: they upload, replace and delete versions, each in products of its own, in all the ways
//! that people and tools do it.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use simplestreams::Digest;

use crate::Run;
use crate::harness::{self, Dir, metadata, until};
use crate::ledger::{Content, Files, Ledger};
use crate::tally::Count;

/// How many there are.
pub(crate) const WRITERS: usize = 3;

/// Products of each, and versions of each product that are there from the start and stay.
const PRODUCTS: usize = 4;
const FOUNDATION: usize = 4;

/// Most versions of a writer beside those.
const MOST: usize = 16;

const METADATA: &str = "lxd.tar.xz";
const ROOT: &str = "rootfs.squashfs";

/// Every version and content has a number of its own.
fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn product(writer: usize, number: usize) -> String {
    format!("images/os{writer}/r{number}/amd64/default")
}

fn version(writer: usize) -> String {
    let serial = serial();
    // A new day for every hundred.
    let day = 1 + serial / 100 % 28;
    let month = 1 + serial / 2800 % 12;
    let year = 2026 + serial / 33600;
    let product = product(writer, fastrand::usize(..PRODUCTS));
    format!("{product}/{year}{month:02}{day:02}_{serial:06}")
}

/// A root of its own kind. Its superblock says how long it is, as a real one does: that is how half a
/// file is known for what it is by a builder that did not see it being written.
fn root(length: usize) -> Vec<u8> {
    let base: Arc<[u8]> = harness::squashfs("soak");
    let mut bytes = base.to_vec();
    bytes.resize(length.max(base.len() + 8), 0);
    let at = bytes.len() - 8;
    bytes[at..].copy_from_slice(&u64::from(serial()).to_le_bytes());
    let middle = base.len()..at;
    bytes[middle].iter_mut().for_each(|byte| *byte = fastrand::u8(..));
    let length = bytes.len() as u64;
    bytes[40..48].copy_from_slice(&length.to_le_bytes());
    bytes
}

fn some_root() -> Vec<u8> {
    root(fastrand::usize(16 << 10..512 << 10))
}

fn content(bytes: &[u8]) -> Content {
    (Digest::of(bytes).to_string(), bytes.len() as u64)
}

fn files(root: &[u8]) -> Files {
    let files = [(METADATA, content(metadata())), (ROOT, content(root))];
    let pair = [metadata(), root].concat();
    Files {
        files: files.map(|(name, content)| (name.to_owned(), content)).into(),
        combined: [Digest::of(&pair).to_string()].into(),
    }
}

/// What is there from the start and stays as it is.
pub(crate) fn lay_foundation(dir: &Dir, ledger: &Ledger) {
    for writer in 0..WRITERS {
        for number in 0..PRODUCTS {
            for _ in 0..FOUNDATION {
                let root = some_root();
                let path = format!("{}/20250101_{:06}", product(writer, number), serial());
                ledger.begin(&path, files(&root));
                dir.add_file(&format!("{path}/{METADATA}"), metadata());
                dir.add_file(&format!("{path}/{ROOT}"), &root);
                ledger.end(&path);
            }
        }
    }
}

/// Uploads, replaces and deletes until the phase is over, and leaves the tree as it was.
pub(crate) fn work(run: &Run<'_>, writer: usize) {
    let mut own: Vec<String> = Vec::new();
    while run.goes_on() {
        let pick = |own: &Vec<String>| fastrand::usize(..own.len());
        match fastrand::u8(..100) {
            _ if own.len() < 2 => own.push(add(run, writer)),
            0..45 if own.len() < MOST => own.push(add(run, writer)),
            45..60 => replace(run, &own[pick(&own)]),
            60..65 => abandon(run, writer),
            _ => delete(run, &own.swap_remove(pick(&own))),
        }
        thread::park_timeout(Duration::from_millis(fastrand::u64(..100)));
    }
    own.iter().for_each(|version| delete(run, version));
}

fn add(run: &Run<'_>, writer: usize) -> String {
    let path = version(writer);
    let root = some_root();
    run.ledger.begin(&path, files(&root));
    let at = run.dir.tree().join(&path);
    match fastrand::u8(..4) {
        // As `cp` does, metadata first or last.
        0 => {
            create(&at.join(METADATA), metadata());
            create(&at.join(ROOT), &root);
        }
        1 => {
            create(&at.join(ROOT), &root);
            create(&at.join(METADATA), metadata());
        }
        // As `rsync` does.
        2 => {
            for (name, bytes) in [(METADATA, metadata()), (ROOT, &root)] {
                let beside = at.join(format!(".{name}.Xx{}", serial()));
                create(&beside, bytes);
                rename(&beside, &at.join(name));
            }
        }
        // As careful people do: a directory that shows when it is whole, with a promise in it.
        _ => {
            let beside = at.with_file_name(format!(".upload-{}", serial()));
            create(&beside.join(METADATA), metadata());
            create(&beside.join(ROOT), &root);
            let sums = [(METADATA, metadata()), (ROOT, &root)]
                .map(|(name, bytes)| format!("{}  {name}\n", Digest::of(bytes)));
            create(&beside.join("SHA256SUMS"), sums.concat().as_bytes());
            rename(&beside, &at);
        }
    }
    run.ledger.end(&path);
    run.tally.add(Count::Uploads, 1);
    if fastrand::bool() {
        until_listed(run, &path);
    }
    path
}

/// Waits until some client has seen it as it is.
fn until_listed(run: &Run<'_>, path: &str) {
    until(&format!("{path} is listed"), || {
        (run.ledger.is_seen(path) || !run.goes_on()).then_some(())
    });
}

/// Gives a version that may be listed another root, with the same name.
fn replace(run: &Run<'_>, path: &str) {
    let at = run.dir.tree().join(path);
    // A promise would be broken by it.
    if at.join("SHA256SUMS").exists() {
        return;
    }
    let root_path = at.join(ROOT);
    if fastrand::bool() {
        let root = some_root();
        let beside = at.join(format!(".{ROOT}.Xx{}", serial()));
        create(&beside, &root);
        run.ledger.begin(path, files(&root));
        rename(&beside, &root_path);
    } else {
        // In place, without cutting it: nginx says [alert] if what it sends is cut.
        let length = fs::metadata(&root_path).expect("own file").len();
        let root = root(usize::try_from(length).expect("small"));
        run.ledger.begin(path, files(&root));
        let mut file = fs::File::options().write(true).open(&root_path).expect("own file");
        for piece in root.chunks(64 << 10) {
            file.write_all(piece).expect("write");
        }
        assert_eq!(file.seek(SeekFrom::End(0)).expect("seek"), length);
    }
    run.ledger.end(path);
    run.tally.add(Count::Replacements, 1);
}

/// Half a file, and its writer is gone.
fn abandon(run: &Run<'_>, writer: usize) {
    let at = run.dir.tree().join(version(writer));
    create(&at.join(METADATA), metadata());
    let root = some_root();
    create(&at.join(ROOT), &root[..root.len() / 2]);
    let end = Instant::now() + Duration::from_millis(fastrand::u64(..3000));
    while run.goes_on() && Instant::now() < end {
        thread::park_timeout(Duration::from_millis(20));
    }
    fs::remove_dir_all(&at).expect("rm -r");
    run.tally.add(Count::Abandoned, 1);
}

fn delete(run: &Run<'_>, path: &str) {
    let at = run.dir.tree().join(path);
    run.ledger.delete(path);
    if fastrand::bool() {
        fs::remove_dir_all(&at).expect("rm -r");
    } else {
        let beside = at.with_file_name(format!(".trash-{}", serial()));
        rename(&at, &beside);
        fs::remove_dir_all(&beside).expect("rm -r");
    }
    run.tally.add(Count::Deletions, 1);
}

/// Writes a file in pieces, with pauses.
fn create(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("in the tree")).expect("directories");
    let mut file = fs::File::create_new(path).expect("a new file");
    for piece in bytes.chunks(128 << 10) {
        file.write_all(piece).expect("write");
        thread::park_timeout(Duration::from_millis(fastrand::u64(..10)));
    }
}

fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).expect("rename");
}
