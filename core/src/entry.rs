//! One version on its way into the catalog: which of its files matter, and the items they become.
//!
//! Pure functions; the rules are those of `CLIENTS.md`, "Metadata items", "Roots and fingerprints"
//! and "Deltas".

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::kind::{Client, Kind, Root, delta_base, is_exported_root};
use crate::name::ProductName;
use crate::scan::{FoundFile, FoundVersion};
use crate::tree::join;
use crate::{Digest, Problem};

/// The files of a version that will be listed, and the promise about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Split metadata, at most one file for each client.
    pub metadata: BTreeMap<Client, FoundFile>,
    /// Roots, at most one of a kind: two would be two images under one fingerprint key.
    pub roots: BTreeMap<Root, FoundFile>,
    /// Unified tarballs, at most one for each client.
    pub unified: BTreeMap<Client, FoundFile>,
    /// Whether the name of the unified tarball leaves open that it is one.
    pub doubtful: bool,
    /// Differences to the squashfs of another version, by that version's name.
    pub deltas: BTreeMap<String, FoundFile>,
    /// `SHA256SUMS`.
    pub sums: Option<FoundFile>,
}

impl Plan {
    /// All files of the plan that are hashed, metadata first.
    pub fn files(&self) -> impl Iterator<Item = &FoundFile> {
        let Self { metadata, roots, unified, deltas, .. } = self;
        metadata.values().chain(roots.values()).chain(unified.values()).chain(deltas.values())
    }

    /// All files of the plan.
    pub fn all_files(&self) -> impl Iterator<Item = &FoundFile> {
        self.files().chain(&self.sums)
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
pub fn plan(path: &str, files: &[FoundFile]) -> (Result<Plan, Incomplete>, Vec<Problem>) {
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
    pub files: BTreeMap<String, Digest>,
    /// sha256(metadata ‖ root), for each pair.
    pub pairs: BTreeMap<(Client, Root), Digest>,
}

/// An item, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    ftype: &'static str,
    path: String,
    sha256: Digest,
    size: u64,
    /// The fingerprints of the images that this metadata makes with the roots beside it.
    #[serde(flatten)]
    combined: BTreeMap<&'static str, Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta_base: Option<String>,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path of the version's directory in the tree.
    pub path: String,
    /// The product it belongs to.
    pub product: ProductName,
    /// The version's name.
    pub version: String,
    metadata: BTreeMap<Client, File>,
    roots: BTreeMap<Root, File>,
    unified: BTreeMap<Client, File>,
    deltas: BTreeMap<String, File>,
    pairs: BTreeMap<(Client, Root), Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    name: String,
    size: u64,
    sha256: Digest,
}

impl Entry {
    /// Joins a plan with its hashes; `None` if a hash is missing.
    pub fn new(found: &FoundVersion, plan: &Plan, hashes: &Hashes) -> Option<Self> {
        fn files<K: Ord + Clone>(
            planned: &BTreeMap<K, FoundFile>,
            hashes: &Hashes,
        ) -> Option<BTreeMap<K, File>> {
            let file = |(key, found): (&K, &FoundFile)| {
                let sha256 = *hashes.files.get(&found.name)?;
                let file = File { name: found.name.clone(), size: found.stamp.size, sha256 };
                Some((key.clone(), file))
            };
            planned.iter().map(file).collect()
        }
        Some(Self {
            path: found.path.clone(),
            product: found.product.clone(),
            version: found.name.clone(),
            metadata: files(&plan.metadata, hashes)?,
            roots: files(&plan.roots, hashes)?,
            unified: files(&plan.unified, hashes)?,
            deltas: files(&plan.deltas, hashes)?,
            pairs: hashes.pairs.clone(),
        })
    }

    /// The images that clients see in it.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let unified = (!self.unified.is_empty()).then_some(Part::Unified);
        self.roots.keys().copied().map(Part::Split).chain(unified)
    }

    /// Fingerprints of an image, one for each client's metadata.
    pub fn fingerprints(&self, part: Part) -> impl Iterator<Item = Digest> {
        Client::ALL.into_iter().filter_map(move |client| match part {
            Part::Split(root) => self.pairs.get(&(client, root)).copied(),
            Part::Unified => self.unified.get(&client).map(|file| file.sha256),
        })
    }

    /// The entry without one of its images; `None` if none is left.
    pub fn without(&self, part: Part) -> Option<Self> {
        let mut rest = self.clone();
        match part {
            Part::Split(root) => {
                rest.roots.remove(&root);
                rest.pairs.retain(|(_, of), _| *of != root);
                if root == Root::Squashfs {
                    rest.deltas.clear();
                }
                if rest.roots.is_empty() {
                    rest.metadata.clear();
                }
            }
            Part::Unified => rest.unified.clear(),
        }
        if rest.roots.is_empty() && rest.unified.is_empty() { None } else { Some(rest) }
    }

    /// The versions that its deltas start from, with the deltas' files.
    pub fn delta_bases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.deltas.iter().map(|(base, file)| (base.as_str(), file.name.as_str()))
    }

    /// A problem with the version that does not keep it from being listed.
    pub fn problem(&self) -> Option<Problem> {
        let differ = |files: &BTreeMap<Client, File>| {
            let mut hashes = files.values().map(|file| file.sha256);
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
            Path::new(&self.path),
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
    pub fn items(&self, is_base: impl Fn(&str) -> bool) -> BTreeMap<String, Item> {
        let mut items = BTreeMap::new();
        for client in Client::ALL {
            if let Some((of, file)) = for_client(&self.metadata, client) {
                let ftype = client.metadata_ftype();
                let mut item = self.item(ftype, file);
                item.combined = self
                    .roots
                    .keys()
                    .filter_map(|&root| Some((root.combined_key(), *self.pairs.get(&(of, root))?)))
                    .collect();
                items.insert(ftype.to_owned(), item);
            }
            if let Some((_, file)) = for_client(&self.unified, client) {
                let ftype = client.unified_ftype();
                items.insert(ftype.to_owned(), self.item(ftype, file));
            }
        }
        for (root, file) in &self.roots {
            items.insert(file.name.clone(), self.item(root.ftype(), file));
        }
        for (base, file) in self.deltas.iter().filter(|(base, _)| is_base(base)) {
            let mut item = self.item("squashfs.vcdiff", file);
            item.delta_base = Some(base.clone());
            items.insert(file.name.clone(), item);
        }
        items
    }

    /// Bytes of all files, each once.
    pub fn bytes(&self) -> u64 {
        let Self { metadata, roots, unified, deltas, .. } = self;
        let files = metadata.values().chain(roots.values()).chain(unified.values());
        files.chain(deltas.values()).map(|file| file.size).sum()
    }

    fn item(&self, ftype: &'static str, file: &File) -> Item {
        let path = join(&self.path, &file.name);
        let combined = BTreeMap::new();
        Item { ftype, path, sha256: file.sha256, size: file.size, combined, delta_base: None }
    }
}

/// The file for a client: its own, or the other one's.
fn for_client(files: &BTreeMap<Client, File>, client: Client) -> Option<(Client, &File)> {
    let own = files.get_key_value(&client);
    own.or_else(|| files.first_key_value()).map(|(&of, file)| (of, file))
}
