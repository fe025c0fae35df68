//! Clients that believe nothing: every index is compared with what the writers did, and every file
//! with the index that led to it.

use std::io::Read as _;
use std::time::Instant;

use simplestreams::Digest;

use crate::Run;
use crate::harness::{Answer, Ask, until};
use crate::ledger::{Content, Excuse, Files, Listed};
use crate::operator;
use crate::tally::Count;

/// How many files are fetched for each index.
const FILES: usize = 12;

const DOCUMENT: &str = "/streams/v1/images.json";

/// What one index said.
pub(crate) struct Seen {
    pub(crate) listed: Listed,
}

/// Index, files, index, files.
pub(crate) fn work(run: &Run<'_>) {
    while run.goes_on() {
        let Some(seen) = look(run) else {
            continue;
        };
        let versions: Vec<_> = seen.listed.iter().collect();
        for _ in 0..FILES {
            let (version, files) = versions[fastrand::usize(..versions.len())];
            fetch(run, version, files);
        }
    }
}

/// Fetches and judges an index; none if it is wrong, which has been noted, or its connection was cut.
pub(crate) fn look(run: &Run<'_>) -> Option<Seen> {
    let asked = Instant::now();
    let compressed = fastrand::bool();
    let mut ask = Ask::get(DOCUMENT);
    if compressed {
        ask = ask.header("Accept-Encoding", "gzip");
    }
    run.tally.add(Count::Asked, 1);
    let answer = get(run, &ask, DOCUMENT)?;
    let judged = read(&answer, compressed)
        .and_then(|listed| generation(run, &answer, asked).map(|()| listed))
        .and_then(|listed| run.ledger.judge(&listed, asked).map(|age| (listed, age)));
    match judged {
        Ok((listed, age)) => {
            run.tally.add(Count::Indexes, 1);
            run.tally.stale(age);
            Some(Seen { listed })
        }
        Err(why) => {
            run.tally.fail(format!("{why} (by worker {})", answer.worker()));
            None
        }
    }
}

/// An answer, if its connection was not cut by a kill, which is the only excuse.
pub(crate) fn get(run: &Run<'_>, ask: &Ask, path: &str) -> Option<Answer> {
    let begun = Instant::now();
    match ask.try_port(run.nginx.port()) {
        Ok(answer) => return Some(answer),
        Err(_) if operator::has_killed_since(begun) => run.tally.add(Count::Cut, 1),
        Err(why) => {
            let why: String = why.chars().take(300).collect();
            run.tally.fail(format!("{path}: {why}, and nobody was killed"));
        }
    }
    None
}

/// A worker never goes back: what it has answered before the question is no later than this answer.
fn generation(run: &Run<'_>, answer: &Answer, asked: Instant) -> Result<(), String> {
    let text = answer.header("X-Generation").unwrap_or_default();
    let generation = text.parse().map_err(|err| format!("generation {text:?}: {err}"))?;
    match run.ledger.answered(answer.worker(), generation, asked) {
        None => Ok(()),
        Some(before) => Err(format!("generation {generation} after {before}")),
    }
}

/// What an answer lists.
fn read(answer: &Answer, compressed: bool) -> Result<Listed, String> {
    if answer.status != 200 {
        return Err(format!("{DOCUMENT}: status {}: {}", answer.status, answer.text()));
    }
    let body = match answer.header("Content-Encoding") {
        Some("gzip") if compressed => {
            let mut text = Vec::new();
            let read = flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut text);
            read.map_err(|err| format!("{DOCUMENT}: {err}"))?;
            text
        }
        None if !compressed => answer.body.clone(),
        other => return Err(format!("{DOCUMENT}: encoding {other:?}")),
    };
    let json: serde_json::Value =
        serde_json::from_slice(&body).map_err(|err| format!("{DOCUMENT}: {err}"))?;
    let mut listed = Listed::new();
    let of = |value: &serde_json::Value| value.as_object().cloned().unwrap_or_default();
    for product in of(&json["products"]).values() {
        for version in of(&product["versions"]).values() {
            let mut files = Files::default();
            let mut directory = None;
            for item in of(&version["items"]).values() {
                let text = |key: &str| item[key].as_str().map(str::to_owned);
                let (Some(path), Some(hash), Some(size)) =
                    (text("path"), text("sha256"), item["size"].as_u64())
                else {
                    return Err(format!("{DOCUMENT}: an item without path, hash or size: {item}"));
                };
                let (of, name) = path.rsplit_once('/').ok_or("a path without a directory")?;
                if directory.replace(of.to_owned()).is_some_and(|other| other != of) {
                    return Err(format!("{DOCUMENT}: a version in two directories: {version}"));
                }
                files.files.insert(name.to_owned(), (hash, size));
                files.combined.extend(text("combined_squashfs_sha256"));
            }
            listed.insert(directory.ok_or("a version without items")?, files);
        }
    }
    Ok(listed)
}

/// Fetches a version as clients do: metadata and root; checks both, and the hash of the pair.
fn fetch(run: &Run<'_>, version: &str, files: &Files) {
    let mut pair = Vec::new();
    for (name, listed) in &files.files {
        // In this order by name: lxd.tar.xz, rootfs.squashfs.
        match fetch_file(run, version, name, listed) {
            Some(bytes) => pair.extend(bytes),
            None => return,
        }
    }
    if files.combined != [Digest::of(&pair).to_string()].into() {
        run.tally.fail(format!("{version}: the hash of the pair is not {:?}", files.combined));
    }
}

fn fetch_file(run: &Run<'_>, version: &str, name: &str, listed: &Content) -> Option<Vec<u8>> {
    let path = format!("/{version}/{name}");
    let answer = get(run, &Ask::get(&path), &path)?;
    let length = answer.body.len() as u64;
    if answer.status == 200 && *listed == (Digest::of(&answer.body).to_string(), length) {
        run.tally.add(Count::Files, 1);
        run.tally.add(Count::Bytes, length);
        return Some(answer.body);
    }
    let what = format!("{path}: listed as {listed:?}, and got {}, {length} bytes", answer.status);
    match (answer.status, run.ledger.excuse(version, name, listed)) {
        (404, Some(Excuse::Gone)) => run.tally.add(Count::Gone, 1),
        (200, Some(Excuse::Gone | Excuse::Overtaken)) => {
            run.tally.add(Count::Overtaken, 1);
            // Not for long.
            until(&format!("{what}; it is not listed so any more"), || {
                if run.tally.has_failed() {
                    return Some(());
                }
                let seen = look(run)?;
                let still = seen.listed.get(version).and_then(|files| files.files.get(name));
                (still != Some(listed)).then_some(())
            });
        }
        _ => run.tally.fail(what),
    }
    None
}
