//! One version on its way into the catalog: which of its files matter, and the items they become.
//!
//! Pure functions; the rules are those of `CLIENTS.md`, "Metadata items" and "Roots and
//! fingerprints".

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::kind::{Client, Kind, Root};
use crate::name::ProductName;
use crate::scan::{FoundFile, FoundVersion};
use crate::tree::join;
use crate::{Digest, Problem};

/// The files of a version that will be listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Split metadata, at most one file for each client.
    pub metadata: BTreeMap<Client, FoundFile>,
    /// Roots, at most one of a kind: two would be two images under one fingerprint key.
    pub roots: BTreeMap<Root, FoundFile>,
}

impl Plan {
    /// All files of the plan, metadata first.
    pub fn files(&self) -> impl Iterator<Item = &FoundFile> {
        self.metadata.values().chain(self.roots.values())
    }
}

/// Chooses among the files of the version at `path`.
///
/// The second list are problems of files that are left out while the version is listed.
///
/// # Errors
///
/// The problem that keeps the whole version from being listed.
pub fn plan(path: &str, files: &[FoundFile]) -> (Result<Plan, Problem>, Vec<Problem>) {
    let (mut plan, mut problems) = (Plan::default(), Vec::new());
    let mut sorted: Vec<_> = files.iter().collect();
    sorted.sort_by_key(|file| (Kind::rank(&file.name), &file.name));
    for file in sorted {
        match file.kind {
            Kind::Metadata(client) => {
                plan.metadata.insert(client, file.clone());
            }
            Kind::Root(root) => {
                if let Some(listed) = plan.roots.get(&root) {
                    problems.push(Problem::new(
                        Path::new(&join(path, &file.name)),
                        format!("the version already has a root of this kind, \"{}\"", listed.name),
                        "keep one of them, or give it a version of its own",
                    ));
                } else {
                    plan.roots.insert(root, file.clone());
                }
            }
            Kind::Other => {}
        }
    }
    let incomplete = |reason, remedy: &str| Err(Problem::new(Path::new(path), reason, remedy));
    let result = match (plan.metadata.is_empty(), plan.roots.is_empty()) {
        (false, false) => Ok(plan),
        (true, true) => incomplete(
            "the version holds no image",
            "add lxd.tar.xz or incus.tar.xz and a root such as rootfs.squashfs, or remove the directory",
        ),
        (true, false) => incomplete(
            "the version holds no metadata",
            "add lxd.tar.xz or incus.tar.xz; one is enough for both clients",
        ),
        (false, true) => incomplete(
            "the version holds no root",
            "add rootfs.squashfs, rootfs.tar.xz or disk.qcow2",
        ),
    };
    (result, problems)
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
    /// Split metadata, at most one file for each client.
    metadata: BTreeMap<Client, File>,
    roots: BTreeMap<Root, File>,
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
        let file = |found: &FoundFile| {
            let sha256 = *hashes.files.get(&found.name)?;
            Some(File { name: found.name.clone(), size: found.stamp.size, sha256 })
        };
        Some(Self {
            path: found.path.clone(),
            product: found.product.clone(),
            version: found.name.clone(),
            metadata: plan
                .metadata
                .iter()
                .map(|(&c, f)| Some((c, file(f)?)))
                .collect::<Option<_>>()?,
            roots: plan.roots.iter().map(|(&r, f)| Some((r, file(f)?))).collect::<Option<_>>()?,
            pairs: hashes.pairs.clone(),
        })
    }

    /// The kinds of roots that the version has.
    pub fn roots(&self) -> impl Iterator<Item = Root> {
        self.roots.keys().copied()
    }

    /// Fingerprints of the images with this root, one for each client's metadata.
    pub fn fingerprints(&self, root: Root) -> impl Iterator<Item = Digest> {
        Client::ALL.into_iter().filter_map(move |client| self.pairs.get(&(client, root)).copied())
    }

    /// The entry without one of its roots; `None` if none is left.
    pub fn without(&self, root: Root) -> Option<Self> {
        let mut rest = self.clone();
        rest.roots.remove(&root);
        rest.pairs.retain(|(_, of), _| *of != root);
        (!rest.roots.is_empty()).then_some(rest)
    }

    /// A problem with the version that does not keep it from being listed.
    pub fn problem(&self) -> Option<Problem> {
        let mut hashes = self.metadata.values().map(|file| file.sha256);
        let (first, second) = (hashes.next()?, hashes.next()?);
        (first != second).then(|| {
            Problem::new(
                Path::new(&self.path),
                "lxd.tar.xz and incus.tar.xz differ; LXD 5.0.3 and 5.18 to 5.20 take one of them \
                 at random",
                "make them equal, or keep one: one is enough for both clients",
            )
        })
    }

    /// The items under their keys.
    ///
    /// Metadata is listed twice, once for each client, with the same path where the version has
    /// only one of the two files: an index with LXD's item alone is an empty list to Incus.
    pub fn items(&self) -> BTreeMap<String, Item> {
        let mut items = BTreeMap::new();
        for client in Client::ALL {
            let own = self.metadata.get_key_value(&client);
            if let Some((&of, file)) = own.or_else(|| self.metadata.first_key_value()) {
                let combined = self
                    .roots
                    .keys()
                    .filter_map(|&root| Some((root.combined_key(), *self.pairs.get(&(of, root))?)));
                let ftype = client.metadata_ftype();
                items.insert(ftype.to_owned(), self.item(ftype, file, combined.collect()));
            }
        }
        for (root, file) in &self.roots {
            items.insert(file.name.clone(), self.item(root.ftype(), file, BTreeMap::new()));
        }
        items
    }

    /// Bytes of all files, each once.
    pub fn bytes(&self) -> u64 {
        self.metadata.values().chain(self.roots.values()).map(|file| file.size).sum()
    }

    fn item(
        &self,
        ftype: &'static str,
        file: &File,
        combined: BTreeMap<&'static str, Digest>,
    ) -> Item {
        let path = join(&self.path, &file.name);
        Item { ftype, path, sha256: file.sha256, size: file.size, combined }
    }
}
