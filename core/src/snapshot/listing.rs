//! What a generation lists, read back from its documents.

use std::collections::BTreeMap;
use std::fmt;

use foldhash::{HashSet, HashSetExt as _};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Snapshot;
use crate::entry::{Hashes, Plan};
use crate::tree::join;

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

/// What is above versions in a document of products. Nothing of it is kept: there may be tens of
/// thousands of versions, each of which goes to `take` with its directory.
struct Above<'a, T> {
    level: Level,
    path: String,
    take: &'a mut dyn FnMut(String, T),
}

#[derive(Clone, Copy)]
enum Level {
    Document,
    Products,
    Product,
    Versions,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Above<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Above<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document of products")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { level, path, take } = self;
        while let Some(key) = map.next_key::<String>()? {
            let (level, path) = match (level, key.as_str()) {
                (Level::Document, "products") => (Level::Products, path.clone()),
                (Level::Products, product) => {
                    (Level::Product, join(&path, &product.replace(':', "/")))
                }
                (Level::Product, "versions") => (Level::Versions, path.clone()),
                (Level::Versions, version) => {
                    take(join(&path, version), map.next_value()?);
                    continue;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            map.next_value_seed(Above { level, path, take: &mut *take })?;
        }
        Ok(())
    }
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

    /// Hands every version that is listed to `take`, with its directory as a path in the tree.
    pub(crate) fn each_version<T: for<'de> Deserialize<'de>>(
        &self,
        mut take: impl FnMut(String, T),
    ) {
        for name in self.names() {
            if let (Some(stream), Some(document)) =
                (name.strip_suffix(".json"), self.document(name))
            {
                let (level, path) = (Level::Document, stream.to_owned());
                let mut json = serde_json::Deserializer::from_slice(document.identity.bytes);
                if let Err(err) = (Above { level, path, take: &mut take }).deserialize(&mut json) {
                    log::error!("reading back \"{name}\": {err}");
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
