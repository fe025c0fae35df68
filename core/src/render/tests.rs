//! Whatever changes in whatever order: what is kept up to date is what a fresh start makes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::entry::{Entry, Hashes, Plan};
use crate::kind::{Client, Kind, Root};
use crate::live::Live;
use crate::scan::{FoundFile, FoundVersion};
use crate::settings::Aliases;
use crate::snapshot::{self, Counts};
use crate::tree::{Stamp, join};
use crate::{Digest, Problem};

/// Small, so that few products make many chunks.
const BOUNDS: Bounds = Bounds { min: 2048, max: 8192, average: 2048 };

const STREAMS: [&str; 3] = ["daily", "empty", "images"];

/// One of them sorts between another one and what lies in that.
const VARIANTS: [&[&str]; 4] = [&["default"], &["default-x"], &["default", "deep"], &[]];

#[derive(Clone, Debug)]
enum Step {
    /// A version is there, with this content.
    Put { product: usize, version: u8, content: u8 },
    /// A version goes.
    Remove { product: usize, version: u8 },
    /// All versions of a range of products go.
    Clear { from: usize, count: usize },
    /// A file of overrides says something else, or goes.
    Override { product: usize, depth: usize, says: Option<u8> },
}

fn product(number: usize) -> ProductName {
    let (number, variant) = (number / VARIANTS.len(), VARIANTS[number % VARIANTS.len()]);
    let stream = if number % 10 == 3 { "daily" } else { "images" };
    let release = (number / 2).to_string();
    let mut components = vec!["os", &release, if number % 2 == 0 { "amd64" } else { "arm64" }];
    components.extend(variant);
    ProductName::new(stream, &components).unwrap()
}

/// Few contents, so that fingerprints collide.
fn entry(product: &ProductName, version: &str, content: u8, own: u64) -> Entry {
    let stamp = Stamp { device: 1, inode: own, size: 100, modified: 1, changed: 1, born: None };
    let file = |name: &str| {
        Arc::new(FoundFile { name: name.into(), kind: Kind::of(name), stamp, links: 1 })
    };
    let mut plan = Plan::default();
    let mut hashes = Hashes::default();
    let digest = |what: &str, of: u64| Digest::of(format!("{what}{of}").as_bytes());
    let shared = if content < 60 { u64::from(content) } else { own << 8 | u64::from(content) };
    plan.metadata.insert(Client::Lxd, file("lxd.tar.xz"));
    hashes.files.insert("lxd.tar.xz".into(), digest("metadata", own));
    let roots = [(Root::Squashfs, "rootfs.squashfs", 1), (Root::DiskKvm, "disk.qcow2", 2)];
    for (root, name, bit) in roots {
        if content & bit == 0 || bit == 1 {
            plan.roots.insert(root, file(name));
            hashes.files.insert(name.into(), digest(name, shared));
            hashes.pairs.insert((Client::Lxd, root), digest("pair", shared << 2 | bit as u64));
        }
    }
    if content.is_multiple_of(5) {
        plan.deltas.insert("20240101".into(), file("delta-20240101.vcdiff"));
        hashes.files.insert("delta-20240101.vcdiff".into(), digest("delta", shared));
    }
    let path = join(&product.path(), version);
    let found = FoundVersion { path: path.into(), product: product.clone() };
    Entry::new(&found, &plan, &hashes).unwrap()
}

/// All that can be known of a generation.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    documents: Vec<(Tags, Vec<u8>, Vec<u8>)>,
    counts: Counts,
    problems: Vec<Problem>,
}

/// What a generation is made of.
struct Site {
    catalog: Catalog,
    documents: Documents,
}

impl Site {
    fn new() -> Self {
        Self::with(&STREAMS, BOUNDS)
    }

    fn with(streams: &[&str], bounds: Bounds) -> Self {
        let streams: Vec<String> = streams.iter().map(|&stream| stream.to_owned()).collect();
        let documents = Documents::with_bounds(&streams, bounds);
        Self { catalog: Catalog::new(Aliases::default()), documents }
    }

    fn make(&mut self, overrides: &fields::Files) -> Made {
        let changed = self.catalog.settle(overrides);
        self.documents.update(&self.catalog, overrides, &changed).unwrap();
        let mut memory = snapshot::begin().unwrap();
        let placed = self.documents.place(&mut memory).unwrap();
        self.documents.keep(memory.clone(), &placed);
        let mut problems: Vec<Problem> = self.catalog.problems().cloned().collect();
        problems.sort_unstable();
        let read = |span: snapshot::Span| memory.read(span.offset as u64, span.length).unwrap();
        let documents =
            placed.into_iter().map(|of| (of.tags, read(of.identity), read(of.gzip))).collect();
        Made { documents, counts: self.catalog.counts(), problems }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let product = 0..160_usize;
    prop_oneof![
        20 => (product.clone(), 0..4_u8, any::<u8>())
            .prop_map(|(product, version, content)| Step::Put { product, version, content }),
        8 => (product.clone(), 0..4_u8).prop_map(|(product, version)| Step::Remove { product, version }),
        1 => (product.clone(), 0..80_usize).prop_map(|(from, count)| Step::Clear { from, count }),
        4 => (product, 0..6_usize, proptest::option::of(any::<u8>()))
            .prop_map(|(product, depth, says)| Step::Override { product, depth, says }),
    ]
}

fn take(
    step: &Step,
    entries: &mut BTreeMap<(ProductName, String), Arc<Entry>>,
    site: &mut Site,
    overrides: &mut fields::Files,
) {
    let version = |number: u8| format!("2024010{}", number + 1);
    match step {
        Step::Put { product: number, version: of, content } => {
            let (product, version) = (product(*number), version(*of));
            let own = (*number as u64) << 8 | u64::from(*of);
            let entry = Arc::new(entry(&product, &version, *content, own));
            site.catalog.set(&product, &version, Some(&entry));
            entries.insert((product, version), entry);
        }
        Step::Remove { product: number, version: of } => {
            let (product, version) = (product(*number), version(*of));
            site.catalog.set(&product, &version, None);
            entries.remove(&(product, version));
        }
        Step::Clear { from, count } => {
            for number in *from..from + count {
                for of in 0..4 {
                    let step = Step::Remove { product: number, version: of };
                    take(&step, entries, site, overrides);
                }
            }
        }
        Step::Override { product: number, depth, says } => {
            let path = join(&product(*number).path(), "20240101");
            let parts: Vec<&str> = path.split('/').take(*depth).collect();
            let directory = parts.join("/");
            let name = if *depth < 4 { ".requirements" } else { "metadata.json" };
            let path = join(&directory, name);
            match says {
                None => drop(overrides.remove(&path)),
                Some(says) => {
                    let text = if *depth < 4 {
                        format!("{{\"key\": \"{says}\"}}")
                    } else {
                        let says = says % 20;
                        format!(
                            "{{\"os\": \"os {says}\", \"aliases\": \"x{says}\", \"label\": \"{says}\"}}"
                        )
                    };
                    let stamp =
                        Stamp { device: 1, inode: 1, size: 1, modified: 0, changed: 0, born: None };
                    let format = fields::format(name).unwrap();
                    assert!(overrides.insert(&path, format, stamp, Ok(text.as_bytes()), || None));
                }
            }
            site.catalog.reconsider(&directory);
        }
    }
}

fn check(made: &Made) {
    let mut fingerprints = BTreeSet::new();
    for (tags, identity, gzip) in &made.documents {
        let mut plain = Vec::new();
        let mut decoder = flate2::bufread::GzDecoder::new(&gzip[..]);
        decoder.read_to_end(&mut plain).unwrap();
        assert!(decoder.into_inner().is_empty(), "one member and no more");
        assert!(plain == *identity, "{}", tags.name);
        let document: serde_json::Value = serde_json::from_slice(identity).unwrap();
        // No key is there twice, and no space.
        assert!(serde_json::to_vec(&document).unwrap().len() == identity.len(), "{}", tags.name);
        let Some(products) = document["products"].as_object() else {
            continue;
        };
        for version in products.values().flat_map(|of| of["versions"].as_object().unwrap().values())
        {
            let metadata = version["items"]["lxd.tar.xz"].as_object().unwrap();
            for (key, value) in metadata.iter().filter(|(key, _)| key.starts_with("combined")) {
                assert!(fingerprints.insert(value.as_str().unwrap().to_owned()), "{key} {value}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn what_is_kept_up_to_date_is_what_a_fresh_start_makes(
        steps in proptest::collection::vec(proptest::collection::vec(step(), 1..40), 1..12)
    ) {
        let (mut site, mut entries) = (Site::new(), BTreeMap::new());
        let mut overrides = fields::Files::default();
        for steps in steps {
            for step in &steps {
                take(step, &mut entries, &mut site, &mut overrides);
            }
            let made = site.make(&overrides);
            let mut fresh = Site::new();
            for ((product, version), entry) in &entries {
                fresh.catalog.set(product, version, Some(entry));
            }
            prop_assert!(made == fresh.make(&overrides), "{steps:?}");
            check(&made);
        }
    }
}

/// A stream is named in front of the next one that has a product, as long as it has none itself.
#[test]
fn a_stream_that_fills_and_empties_between_two_others_is_named_once() {
    // Each piece is a chunk.
    let bounds = Bounds { min: 1, max: 1, average: 1 };
    let streams = ["a", "b", "c"];
    let mut site = Site::with(&streams, bounds);
    let overrides = fields::Files::default();
    let mut listed: BTreeMap<(&str, u8), u8> = BTreeMap::new();
    let steps: [&[(&str, u8, Option<u8>)]; 5] = [
        &[("a", 1, Some(61)), ("c", 1, Some(63))],
        &[("b", 1, Some(65))],
        &[("a", 2, Some(67)), ("b", 1, None)],
        &[("a", 1, None), ("a", 2, None), ("b", 2, Some(69))],
        &[("b", 2, None)],
    ];
    for step in steps {
        let mut fresh = Site::with(&streams, bounds);
        for &(stream, release, content) in step {
            match content {
                Some(content) => listed.insert((stream, release), content),
                None => listed.remove(&(stream, release)),
            };
        }
        let put = |site: &mut Site, stream: &str, release: u8, content: Option<u8>| {
            let name = ProductName::new(stream, &["os", &release.to_string(), "amd64"]).unwrap();
            let own = u64::from(stream.as_bytes()[0]) << 8 | u64::from(release);
            let entry = content.map(|content| Arc::new(entry(&name, "20240101", content, own)));
            site.catalog.set(&name, "20240101", entry.as_ref());
        };
        for &(stream, release, content) in step {
            put(&mut site, stream, release, content);
        }
        for (&(stream, release), &content) in &listed {
            put(&mut fresh, stream, release, Some(content));
        }
        let made = site.make(&overrides);
        check(&made);
        assert_eq!(made, fresh.make(&overrides), "{step:?}");
    }
}

/// After a restart chunks are not compressed again: but for the first, which tells whether they would
/// come out the same.
#[test]
fn what_an_earlier_process_compressed_is_used_if_it_comes_out_the_same() {
    let overrides = fields::Files::default();
    let filled = || {
        let mut site = Site::new();
        for number in 0..80 {
            let product = product(number);
            let entry = Arc::new(entry(&product, "20240101", 67, number as u64));
            site.catalog.set(&product, "20240101", Some(&entry));
        }
        site
    };
    let gzip_of = |made: &Made| {
        let images = made.documents.iter().find(|(tags, ..)| tags.name == "images.json");
        images.map(|(_, _, gzip)| gzip.clone()).unwrap()
    };
    let mut before = filled();
    let made = before.make(&overrides);
    // As it was saved, but for one byte of the compressed document.
    let restarted = |wrong: Option<usize>| {
        let mut memory = snapshot::begin().unwrap();
        let placed = before.documents.place(&mut memory).unwrap();
        let images = placed.iter().find(|placed| placed.tags.name == "images.json").unwrap();
        if let Some(at) = wrong {
            let at = (images.gzip.offset + at) as u64;
            let byte = memory.read(at, 1).unwrap()[0];
            memory.write(&[byte ^ 1], at).unwrap();
        }
        let (counts, lineage) = (Counts::default(), snapshot::Lineage::default());
        snapshot::finish(&mut memory, &placed, &[], counts, &lineage, 1).unwrap();
        let snapshot = Snapshot::of_memory(&Live::seal(memory).unwrap()).unwrap();
        let mut after = filled();
        after.documents.inherit(&snapshot);
        after.make(&overrides)
    };
    assert_eq!(restarted(None), made);
    let length = gzip_of(&made).len();
    assert_eq!(restarted(Some(20)), made, "in the first chunk");
    let used = gzip_of(&restarted(Some(length - 30)));
    let differ = |at: &usize| used[*at] != gzip_of(&made)[*at];
    assert_eq!((0..length).filter(differ).collect::<Vec<_>>(), [length - 30], "in the last");
}

/// After a restart without a change the text is that of the generation before, and is gone on with.
#[test]
fn what_a_restart_renders_again_is_not_kept_twice() {
    let overrides = fields::Files::default();
    let put = |site: &mut Site, numbers: std::ops::Range<usize>| {
        for number in numbers {
            let product = product(number);
            let entry = Arc::new(entry(&product, "20240101", 67, number as u64));
            site.catalog.set(&product, "20240101", Some(&entry));
        }
    };
    let [mut before, mut after, mut full] = [(); 3].map(|()| Site::new());
    put(&mut before, 0..80);
    put(&mut after, 0..80);
    put(&mut full, 0..90);
    before.make(&overrides);
    let mut memory = snapshot::begin().unwrap();
    let placed = before.documents.place(&mut memory).unwrap();
    let (counts, lineage) = (Counts::default(), snapshot::Lineage::default());
    snapshot::finish(&mut memory, &placed, &[], counts, &lineage, 1).unwrap();
    let live = Live::seal(memory).unwrap();
    let snapshot = Snapshot::of_memory(&live).unwrap();
    let changed = after.catalog.settle(&overrides);
    after.documents.update(&after.catalog, &overrides, &changed).unwrap();
    assert!(after.documents.has_fresh_text());
    after.documents.keep_that_of(live.memory().unwrap(), &snapshot);
    assert!(!after.documents.has_fresh_text());
    put(&mut after, 80..90);
    assert_eq!(after.make(&overrides), full.make(&overrides));
}
