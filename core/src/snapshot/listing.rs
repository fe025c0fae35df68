//! What a generation lists, read back from its documents.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::Snapshot;
use crate::entry::{Hashes, Plan};

/// A document of products; the index itself has none of this form.
#[derive(Deserialize)]
struct Products<T> {
    products: BTreeMap<String, Versions<T>>,
}

#[derive(Deserialize)]
struct Versions<T> {
    versions: BTreeMap<String, T>,
}

/// A version as it is listed.
#[derive(Debug, Deserialize)]
pub(crate) struct ListedVersion {
    items: BTreeMap<String, ListedItem>,
}

#[derive(Debug, Deserialize)]
struct ListedItem {
    path: String,
    sha256: String,
    size: u64,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

impl Snapshot {
    /// Directories of all listed versions, as paths in the tree.
    pub(crate) fn listed(&self) -> HashSet<String> {
        let mut listed = HashSet::new();
        self.each_version(|path, _: IgnoredAny| {
            listed.insert(path);
        });
        listed
    }

    /// Of the versions in these directories those that are listed.
    pub(crate) fn versions_in(
        &self,
        directories: &BTreeSet<String>,
    ) -> BTreeMap<String, ListedVersion> {
        let mut found = BTreeMap::new();
        self.each_version(|path, version| {
            if directories.contains(&path) {
                found.insert(path, version);
            }
        });
        found
    }

    fn each_version<T: for<'de> Deserialize<'de>>(&self, mut take: impl FnMut(String, T)) {
        for name in self.names() {
            let (Some(stream), Some(document)) = (name.strip_suffix(".json"), self.document(name))
            else {
                continue;
            };
            if let Ok(Products { products }) = serde_json::from_slice(document.identity.bytes) {
                for (product, Versions { versions }) in products {
                    let product = product.replace(':', "/");
                    for (version, value) in versions {
                        take(format!("{stream}/{product}/{version}"), value);
                    }
                }
            }
        }
    }
}

impl ListedVersion {
    /// The hashes of the files of `plan`; `None` if it is not just these files, at their lengths,
    /// that are listed.
    pub(crate) fn hashes(&self, plan: &Plan) -> Option<Hashes> {
        let named = |name: &str| {
            let is_it = |item: &&ListedItem| item.path.rsplit('/').next() == Some(name);
            self.items.values().find(is_it)
        };
        let mut hashes = Hashes::default();
        for file in plan.files() {
            let item = named(&file.name).filter(|item| item.size == file.stamp.size)?;
            hashes.files.insert(file.name.clone(), item.sha256.parse().ok()?);
        }
        for (&client, file) in &plan.metadata {
            let item = named(&file.name)?;
            for &root in plan.roots.keys() {
                let digest = item.rest.get(root.combined_key())?.as_str()?.parse().ok()?;
                hashes.pairs.insert((client, root), digest);
            }
        }
        Some(hashes)
    }
}
