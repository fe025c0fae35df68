//! What an index lists, read back from its documents: for reports of what changed, and for mirrors,
//! which get what is listed and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use simplestreams::Snapshot;

use crate::streams::INDEX;

/// What an index lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// By document, product and name.
    pub versions: BTreeMap<(String, String, String), Version>,
}

/// A list of products.
#[derive(Deserialize)]
struct Products<'a> {
    #[serde(borrow)]
    products: BTreeMap<String, &'a RawValue>,
}

/// A version of a product.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Hash (sha256, hexadecimal) and size of each file, by path below the root.
    pub files: BTreeMap<String, (String, u64)>,
    /// Fingerprints of its images.
    pub fingerprints: BTreeSet<String>,
}

impl Listing {
    /// What `snapshot` lists.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut listing = Self::default();
        for name in snapshot.names().filter(|name| *name != INDEX) {
            if let Some(document) = snapshot.document(name) {
                listing.add(name, document.identity.bytes);
            }
        }
        listing
    }

    /// Adds what the document `name` in `dir` lists, whoever wrote it; nothing if it cannot be read.
    pub fn read(&mut self, dir: &Path, name: &str) {
        let path = dir.join(name);
        // Reading anything else may take for ever.
        if path.is_file()
            && let Ok(bytes) = fs::read(path)
        {
            self.add(name, &bytes);
        }
    }

    /// Adds what the bytes of a list of products say. What is not of the form is left out.
    pub fn add(&mut self, document: &str, bytes: &[u8]) {
        // One product at a time: there may be tens of thousands.
        let Ok(Products { products }) = serde_json::from_slice(bytes) else {
            return;
        };
        let table = |value: Value, key: &str| match value {
            Value::Object(mut fields) => match fields.remove(key) {
                Some(Value::Object(table)) => table,
                _ => serde_json::Map::default(),
            },
            _ => serde_json::Map::default(),
        };
        for (product, text) in products {
            let value = serde_json::from_str(text.get()).unwrap_or_default();
            for (name, version) in table(value, "versions") {
                let items = table(version, "items");
                let key = (document.to_owned(), product.clone(), name);
                self.versions.insert(key, Version::of(items.values()));
            }
        }
    }

    /// Hash and size of every file, by path.
    pub fn files(&self) -> BTreeMap<&str, (&str, u64)> {
        let files = self.versions.values().flat_map(|version| &version.files);
        files.map(|(path, (sha256, size))| (path.as_str(), (sha256.as_str(), *size))).collect()
    }

    /// Whether every file that `other` lists is listed here too, with the same hash.
    pub fn holds(&self, other: &Self) -> bool {
        let own = self.files();
        other.files().iter().all(|(path, file)| own.get(path) == Some(file))
    }

    /// What became of `before`, one line for each version: `added`, `removed` or `changed`.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let keys: BTreeSet<_> = self.versions.keys().chain(before.versions.keys()).collect();
        let change = |key: &(String, String, String)| match (
            before.versions.get(key),
            self.versions.get(key),
        ) {
            (None, Some(_)) => Some("added"),
            (Some(_), None) => Some("removed"),
            (Some(before), Some(now)) => (before != now).then_some("changed"),
            (None, None) => None,
        };
        let line = |key: &(String, String, String)| {
            change(key).map(|change| format!("{change} {} {}", key.1, key.2))
        };
        keys.into_iter().filter_map(line).collect()
    }
}

impl Version {
    fn of<'v>(items: impl Iterator<Item = &'v Value>) -> Self {
        let mut version = Self::default();
        for item in items {
            let text = |key: &str| item.get(key).and_then(Value::as_str).map(str::to_owned);
            if let (Some(path), Some(sha256)) = (text("path"), text("sha256")) {
                let size = item.get("size").and_then(Value::as_u64).unwrap_or_default();
                version.files.insert(path, (sha256, size));
            }
            let fields = item.as_object().into_iter().flatten();
            let combined = fields.filter(|(key, _)| key.starts_with("combined_"));
            let hashes = combined.filter_map(|(_, value)| value.as_str());
            version.fingerprints.extend(hashes.map(str::to_owned));
        }
        version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(versions: &[(&str, &str)]) -> Listing {
        let versions: serde_json::Map<String, Value> = versions
            .iter()
            .map(|(name, sha256)| {
                let path = format!("images/{name}/root.squashfs");
                let item = serde_json::json!({"path": path, "sha256": sha256, "size": 1});
                ((*name).to_owned(), serde_json::json!({"items": {"root": item}}))
            })
            .collect();
        let text = serde_json::json!({"products": {"a:b:c:d": {"versions": versions}}});
        let mut listing = Listing::default();
        listing.add("images.json", text.to_string().as_bytes());
        listing
    }

    #[test]
    fn changes() {
        let before = listing(&[("1", "aa"), ("2", "bb"), ("3", "cc")]);
        let after = listing(&[("2", "bb"), ("3", "dd"), ("4", "ee")]);
        assert_eq!(
            after.changes_since(&before),
            ["removed a:b:c:d 1", "changed a:b:c:d 3", "added a:b:c:d 4"]
        );
        assert!(after.changes_since(&after).is_empty());
        assert!(before.holds(&listing(&[("2", "bb")])));
        assert!(!before.holds(&listing(&[("2", "xx")])) && !before.holds(&after));
    }
}
