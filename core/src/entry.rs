//! One version on its way into the catalog: which of its files matter, and the items they become.
//!
//! Pure functions; the rules are those of `CLIENTS.md`, "Metadata items", "Roots and fingerprints"
//! and "Deltas".

use std::path::Path;
use std::sync::Arc;

use litemap::LiteMap;
use serde::{Serialize, Serializer};

use crate::kind::{Client, Kind, Root, delta_base, is_exported_root};
use crate::name::ProductName;
use crate::scan::{FoundFile, FoundVersion};
use crate::tree::join;
use crate::{Digest, Problem};

/// The files of a version that will be listed, and the promise about them. Files are shared with
/// whoever else knows them: there may be forty thousand versions, and several plans of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Split metadata, at most one file for each client.
    pub metadata: LiteMap<Client, Arc<FoundFile>>,
    /// Roots, at most one of a kind: two would be two images under one fingerprint key.
    pub roots: LiteMap<Root, Arc<FoundFile>>,
    /// Unified tarballs, at most one for each client.
    pub unified: LiteMap<Client, Arc<FoundFile>>,
    /// Whether the name of the unified tarball leaves open that it is one.
    pub doubtful: bool,
    /// Differences to the squashfs of another version, by that version's name.
    pub deltas: LiteMap<String, Arc<FoundFile>>,
    /// `SHA256SUMS`.
    pub sums: Option<Arc<FoundFile>>,
}

impl Plan {
    /// All files of the plan that are hashed, metadata first.
    pub fn files(&self) -> impl Iterator<Item = &FoundFile> {
        let Self { metadata, roots, unified, deltas, .. } = self;
        let files = metadata.values().chain(roots.values()).chain(unified.values());
        files.chain(deltas.values()).map(|file| &**file)
    }

    /// Length of the files that are hashed, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files().map(|file| file.stamp.size).sum()
    }

    /// All files of the plan.
    pub fn all_files(&self) -> impl Iterator<Item = &FoundFile> {
        self.files().chain(self.sums.as_deref())
    }
}

/// What keeps a version from being listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incomplete {
    /// The problem it is, if nothing more arrives.
    pub problem: Problem,
    /// What it may be instead, should the metadata turn out to be a unified tarball: distrobuilder
    /// gives both the same name.
    pub perhaps: Option<Plan>,
}

/// Chooses among the files of the version at `path`.
///
/// The second list are problems of files that are left out while the version is listed.
pub fn plan(path: &str, files: &[Arc<FoundFile>]) -> (Result<Plan, Incomplete>, Vec<Problem>) {
    let (mut plan, mut problems) = (Plan::default(), Vec::new());
    let mut tarballs = Vec::new();
    let mut sorted: Vec<_> = files.iter().collect();
    sorted.sort_by_key(|file| (Kind::rank(&file.name), &file.name));
    for file in sorted {
        let mut surplus = |listed: &str, what: &str| {
            problems.push(Problem::new(
                Path::new(&join(path, &file.name)),
                format!("the version already has {what}, \"{listed}\""),
                "keep one of them, or give it a version of its own",
            ));
        };
        match file.kind {
            Kind::Metadata(client) => match plan.metadata.get(&client) {
                Some(listed) => surplus(&listed.name, "metadata"),
                None => drop(plan.metadata.insert(client, file.clone())),
            },
            Kind::Root(root) => match plan.roots.get(&root) {
                Some(listed) => surplus(&listed.name, "a root of this kind"),
                None => drop(plan.roots.insert(root, file.clone())),
            },
            Kind::Unified(client) => drop(plan.unified.insert(client, file.clone())),
            Kind::Tarball => tarballs.push(file.clone()),
            Kind::Sums => plan.sums = Some(file.clone()),
            // Incus would apply the delta of a disk to the squashfs (see docs/metadata.md).
            Kind::Delta(Root::Squashfs) => match delta_base(&file.name) {
                Some(base) => match plan.deltas.get(base) {
                    Some(listed) => surplus(&listed.name, "a delta from this version"),
                    None => drop(plan.deltas.insert(base.to_owned(), file.clone())),
                },
                None => problems.push(Problem::new(
                    Path::new(&join(path, &file.name)),
                    "its name does not tell the version it is the difference to",
                    "name it delta-VERSION.vcdiff",
                )),
            },
            Kind::Delta(_) | Kind::Overrides(_) | Kind::Other => {}
        }
    }
    let exported = tarballs
        .iter()
        .find(|file| plan.metadata.values().any(|of| is_exported_root(&file.name, &of.name)));
    if let Some(file) = exported {
        plan.roots.entry(Root::TarXz).or_insert_with(|| file.clone());
    }
    if !plan.roots.contains_key(&Root::Squashfs) {
        plan.deltas.clear();
    }
    let split = !plan.metadata.is_empty() && !plan.roots.is_empty();
    if !split && plan.unified.is_empty() && plan.metadata.is_empty() && plan.roots.is_empty() {
        match &tarballs[..] {
            [one] => {
                plan.unified.insert(Client::Lxd, one.clone());
                plan.doubtful = true;
            }
            [_, second, ..] => problems.push(Problem::new(
                Path::new(&join(path, &second.name)),
                "the version holds more than one tarball that may be an image",
                "give every image a version of its own",
            )),
            [] => {}
        }
    }
    if split || !plan.unified.is_empty() {
        if !split {
            plan.metadata.clear();
            plan.roots.clear();
        }
        return (Ok(plan), problems);
    }
    (Err(incomplete(path, plan)), problems)
}

fn incomplete(path: &str, mut plan: Plan) -> Incomplete {
    let problem = |reason, remedy| Problem::new(Path::new(path), reason, remedy);
    if plan.metadata.is_empty() && plan.roots.is_empty() {
        let remedy = "add lxd.tar.xz or incus.tar.xz and a root such as rootfs.squashfs, or remove \
                      the directory";
        Incomplete { problem: problem("the version holds no image", remedy), perhaps: None }
    } else if plan.metadata.is_empty() {
        let remedy = "add lxd.tar.xz or incus.tar.xz; one is enough for both clients";
        Incomplete { problem: problem("the version holds no metadata", remedy), perhaps: None }
    } else {
        let remedy = "add rootfs.squashfs, rootfs.tar.xz or disk.qcow2";
        plan.unified = std::mem::take(&mut plan.metadata);
        plan.doubtful = true;
        Incomplete { problem: problem("the version holds no root", remedy), perhaps: Some(plan) }
    }
}

/// What hashing found out about the files of a [`Plan`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hashes {
    /// SHA-256 of each file, by name.
    pub files: LiteMap<String, Digest>,
    /// sha256(metadata ‖ root), for each pair.
    pub pairs: LiteMap<(Client, Root), Digest>,
}

/// An item, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item<'a> {
    ftype: &'static str,
    path: String,
    sha256: Digest,
    size: u64,
    /// The fingerprints of the images that this metadata makes with the roots beside it.
    #[serde(flatten, serialize_with = "as_map")]
    combined: LiteMap<&'static str, Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta_base: Option<&'a str>,
}

/// A part of a version that clients see as one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The metadata with this root.
    Split(Root),
    /// The unified tarball.
    Unified,
}

impl Part {
    /// What the image is called in a message.
    pub const fn ftype(self) -> &'static str {
        match self {
            Self::Split(root) => root.ftype(),
            Self::Unified => "unified",
        }
    }

    /// Whether it is a virtual machine.
    pub const fn is_vm(self) -> bool {
        match self {
            Self::Split(root) => root.is_vm(),
            Self::Unified => false,
        }
    }
}

/// A version with everything known that the catalog needs.
///
/// There may be forty thousand of them, with one or two files each: slices, where a `BTreeMap` would
/// take room for eleven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The product it belongs to.
    pub product: ProductName,
    /// The version's name.
    pub version: Box<str>,
    metadata: Box<[(Client, File)]>,
    roots: Box<[(Root, File)]>,
    unified: Box<[(Client, File)]>,
    deltas: Box<[(Box<str>, File)]>,
    pairs: Box<[((Client, Root), Digest)]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    name: Box<str>,
    size: u64,
    sha256: Digest,
}

impl Entry {
    /// Joins a plan with its hashes; `None` if a hash is missing.
    pub fn new(found: &FoundVersion, plan: &Plan, hashes: &Hashes) -> Option<Self> {
        fn files<K: Clone + Ord, L: From<K>>(
            planned: &LiteMap<K, Arc<FoundFile>>,
            hashes: &Hashes,
        ) -> Option<Box<[(L, File)]>> {
            let file = |(key, found): (&K, &Arc<FoundFile>)| {
                let sha256 = *hashes.files.get(&found.name)?;
                let name = found.name.as_str().into();
                Some((key.clone().into(), File { name, size: found.stamp.size, sha256 }))
            };
            planned.iter().map(file).collect()
        }
        Some(Self {
            product: found.product.clone(),
            version: found.name().into(),
            metadata: files(&plan.metadata, hashes)?,
            roots: files(&plan.roots, hashes)?,
            unified: files(&plan.unified, hashes)?,
            deltas: files(&plan.deltas, hashes)?,
            pairs: hashes.pairs.iter().map(|(&pair, &digest)| (pair, digest)).collect(),
        })
    }

    /// Path of the version's directory in the tree.
    pub fn path(&self) -> String {
        join(&self.product.path(), &self.version)
    }

    /// The images that clients see in it.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let unified = (!self.unified.is_empty()).then_some(Part::Unified);
        self.roots.iter().map(|(root, _)| Part::Split(*root)).chain(unified)
    }

    /// Fingerprints of an image, one for each client's metadata.
    pub fn fingerprints(&self, part: Part) -> impl Iterator<Item = Digest> {
        Client::ALL.into_iter().filter_map(move |client| match part {
            Part::Split(root) => get(&self.pairs, &(client, root)).copied(),
            Part::Unified => get(&self.unified, &client).map(|file| file.sha256),
        })
    }

    /// The entry without one of its images; `None` if none is left.
    pub fn without(&self, part: Part) -> Option<Self> {
        let mut rest = self.clone();
        match part {
            Part::Split(root) => {
                rest.roots = retain(rest.roots, |(of, _)| *of != root);
                rest.pairs = retain(rest.pairs, |((_, of), _)| *of != root);
                if root == Root::Squashfs {
                    rest.deltas = Box::default();
                }
                if rest.roots.is_empty() {
                    rest.metadata = Box::default();
                }
            }
            Part::Unified => rest.unified = Box::default(),
        }
        if rest.roots.is_empty() && rest.unified.is_empty() { None } else { Some(rest) }
    }

    /// The versions that its deltas start from, with the deltas' files.
    pub fn delta_bases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.deltas.iter().map(|(base, file)| (&**base, &*file.name))
    }

    /// A problem with the version that does not keep it from being listed.
    pub fn problem(&self) -> Option<Problem> {
        let differ = |files: &[(Client, File)]| {
            let mut hashes = files.iter().map(|(_, file)| file.sha256);
            hashes.next().zip(hashes.next()).is_some_and(|(first, second)| first != second)
        };
        let names = if differ(&self.metadata) {
            "lxd.tar.xz and incus.tar.xz"
        } else if differ(&self.unified) {
            "lxd_combined.tar.gz and incus_combined.tar.gz"
        } else {
            return None;
        };
        Some(Problem::new(
            Path::new(&self.path()),
            format!("{names} differ; LXD 5.0.3 and 5.18 to 5.20 take one of them at random"),
            "make them equal, or keep one: one is enough for both clients",
        ))
    }

    /// The items under their keys; `is_base` tells whether the product lists a squashfs under a
    /// version's name.
    ///
    /// Metadata and unified tarballs are listed twice, once for each client, with the same path
    /// where the version has only one of the two files: an index with LXD's item alone is an empty
    /// list to Incus.
    pub fn items(&self, is_base: impl Fn(&str) -> bool) -> LiteMap<&str, Item<'_>> {
        let directory = self.path();
        let item = |ftype, file| Item::new(&directory, ftype, file);
        let mut items = LiteMap::new();
        for client in Client::ALL {
            if let Some((of, file)) = for_client(&self.metadata, client) {
                let ftype = client.metadata_ftype();
                let mut item = item(ftype, file);
                item.combined = self
                    .roots
                    .iter()
                    .filter_map(|&(root, _)| {
                        Some((root.combined_key(), *get(&self.pairs, &(*of, root))?))
                    })
                    .collect();
                items.insert(ftype, item);
            }
            if let Some((_, file)) = for_client(&self.unified, client) {
                let ftype = client.unified_ftype();
                items.insert(ftype, item(ftype, file));
            }
        }
        for (root, file) in &self.roots {
            items.insert(&*file.name, item(root.ftype(), file));
        }
        for (base, file) in self.deltas.iter().filter(|(base, _)| is_base(base)) {
            let mut item = item("squashfs.vcdiff", file);
            item.delta_base = Some(&**base);
            items.insert(&*file.name, item);
        }
        items
    }

    /// How many [`items`](Self::items) there are.
    pub fn item_count(&self, is_base: impl Fn(&str) -> bool) -> u64 {
        let twice = [&self.metadata, &self.unified].into_iter().filter(|files| !files.is_empty());
        let deltas = self.deltas.iter().filter(|(base, _)| is_base(base));
        (twice.count() * Client::ALL.len() + self.roots.len() + deltas.count()) as u64
    }

    /// Bytes of all files, each once.
    pub fn bytes(&self) -> u64 {
        let Self { metadata, roots, unified, deltas, .. } = self;
        let files = metadata.iter().chain(unified).map(|(_, file)| file);
        let files = files.chain(roots.iter().map(|(_, file)| file));
        files.chain(deltas.iter().map(|(_, file)| file)).map(|file| file.size).sum()
    }
}

/// A map, to serde, which knows a [`LiteMap`] by other features only.
pub fn as_map<K: Serialize, V: Serialize, S: Serializer>(
    map: &LiteMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter())
}

impl<'a> Item<'a> {
    fn new(directory: &str, ftype: &'static str, file: &'a File) -> Self {
        let path = join(directory, &file.name);
        let combined = LiteMap::new();
        Self { ftype, path, sha256: file.sha256, size: file.size, combined, delta_base: None }
    }
}

/// The value of a key.
fn get<'a, K: PartialEq, V>(of: &'a [(K, V)], key: &K) -> Option<&'a V> {
    of.iter().find(|(known, _)| known == key).map(|(_, value)| value)
}

fn retain<T>(of: Box<[T]>, keep: impl Fn(&T) -> bool) -> Box<[T]> {
    of.into_iter().filter(|of| keep(of)).collect()
}

/// The file for a client: its own, or the other one's.
fn for_client(files: &[(Client, File)], client: Client) -> Option<&(Client, File)> {
    let own = files.iter().find(|(of, _)| *of == client);
    own.or_else(|| files.first())
}
