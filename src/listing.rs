//! What an index lists, read back from its documents: for reports of what changed, and for mirrors,
//! which get what is listed and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
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

/// One of which every version is new, as lines for people.
#[derive(Deserialize)]
struct Added {
    #[serde(deserialize_with = "lines_of_added")]
    products: Vec<String>,
}

/// A product of which nothing but its versions' names is wanted.
#[derive(Deserialize)]
struct Names {
    #[serde(deserialize_with = "keys")]
    versions: Vec<String>,
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

    /// Adds what the bytes of a list of products say. What is not of the form is left out.
    pub fn add(&mut self, document: &str, bytes: &[u8]) {
        // One product at a time: there may be tens of thousands.
        for (product, text) in products(bytes) {
            for (name, version) in versions(text) {
                self.versions.insert((document.to_owned(), product.clone(), name), version);
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
}

/// What became of the versions that a list of products named, one line for each that is not as it
/// was: `added`, `removed` or `changed`.
///
/// Products are told apart as text first: of forty thousand hardly any is another one.
pub fn changes(before: &[u8], now: &[u8]) -> Vec<String> {
    let before = products(before);
    if before.is_empty() {
        return serde_json::from_slice(now)
            .map_or_else(|_| Vec::new(), |Added { products }| products);
    }
    let now = products(now);
    let mut lines = Vec::new();
    for product in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        let (was, is) = (before.get(product), now.get(product));
        if was.map(|of| of.get()) == is.map(|of| of.get()) {
            continue;
        }
        let (Some(was), Some(is)) = (was, is) else {
            let (what, text) = if was.is_none() { ("added", is) } else { ("removed", was) };
            let names = text.map_or_else(Vec::new, |of| names(of));
            lines.extend(names.iter().map(|version| format!("{what} {product} {version}")));
            continue;
        };
        let (was, is) = (versions(was), versions(is));
        for version in was.keys().chain(is.keys()).collect::<BTreeSet<_>>() {
            let what = match (was.get(version), is.get(version)) {
                (None, _) => "added",
                (_, None) => "removed",
                (was, is) if was != is => "changed",
                _ => continue,
            };
            lines.push(format!("{what} {product} {version}"));
        }
    }
    lines
}

/// Whether a list of products has any version.
pub fn lists_any(list: &[u8]) -> bool {
    products(list).values().any(|product| !versions(product).is_empty())
}

/// The products of a list; none if it is not of the form.
fn products(list: &[u8]) -> BTreeMap<String, &RawValue> {
    serde_json::from_slice(list)
        .map_or_else(|_| BTreeMap::new(), |list: Products<'_>| list.products)
}

/// The names of a product's versions.
fn names(product: &RawValue) -> Vec<String> {
    serde_json::from_str(product.get()).map_or_else(|_| Vec::new(), |Names { versions }| versions)
}

/// The keys of a map.
fn keys<'de, D: Deserializer<'de>>(map: D) -> Result<Vec<String>, D::Error> {
    let mut keys = Vec::new();
    each_entry(map, |key, IgnoredAny| keys.push(key))?;
    Ok(keys)
}

/// One line for each version of a map of products.
fn lines_of_added<'de, D: Deserializer<'de>>(map: D) -> Result<Vec<String>, D::Error> {
    let mut lines = Vec::new();
    each_entry(map, |product, Names { versions }| {
        lines.extend(versions.iter().map(|version| format!("added {product} {version}")));
    })?;
    Ok(lines)
}

/// Hands each entry of a map to `take`, and keeps none: there may be tens of thousands.
fn each_entry<'de, D: Deserializer<'de>, V: Deserialize<'de>>(
    map: D,
    take: impl FnMut(String, V),
) -> Result<(), D::Error> {
    struct Each<F, V>(F, PhantomData<V>);
    impl<'de, F: FnMut(String, V), V: Deserialize<'de>> Visitor<'de> for Each<F, V> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((key, value)) = map.next_entry()? {
                self.0(key, value);
            }
            Ok(())
        }
    }
    map.deserialize_map(Each(take, PhantomData))
}

/// The versions of a product.
fn versions(product: &RawValue) -> BTreeMap<String, Version> {
    let value = serde_json::from_str(product.get()).unwrap_or_default();
    let versions = table(value, "versions").into_iter();
    versions.map(|(name, of)| (name, Version::of(table(of, "items").values()))).collect()
}

fn table(value: Value, key: &str) -> serde_json::Map<String, Value> {
    match value {
        Value::Object(mut fields) => match fields.remove(key) {
            Some(Value::Object(table)) => table,
            _ => serde_json::Map::default(),
        },
        _ => serde_json::Map::default(),
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

    fn list(versions: &[(&str, &str)]) -> Vec<u8> {
        let versions: serde_json::Map<String, Value> = versions
            .iter()
            .map(|(name, sha256)| {
                let path = format!("images/{name}/root.squashfs");
                let item = serde_json::json!({"path": path, "sha256": sha256, "size": 1});
                ((*name).to_owned(), serde_json::json!({"items": {"root": item}}))
            })
            .collect();
        let text = serde_json::json!({"products": {"a:b:c:d": {"versions": versions}}});
        text.to_string().into_bytes()
    }

    #[test]
    fn changes_are_told_by_version() {
        let before = list(&[("1", "aa"), ("2", "bb"), ("3", "cc")]);
        let after = list(&[("2", "bb"), ("3", "dd"), ("4", "ee")]);
        assert_eq!(
            changes(&before, &after),
            ["removed a:b:c:d 1", "changed a:b:c:d 3", "added a:b:c:d 4"]
        );
        assert!(changes(&after, &after).is_empty());
        assert_eq!(changes(b"no list", &list(&[("1", "aa")])), ["added a:b:c:d 1"]);
        assert_eq!(changes(&list(&[("1", "aa")]), b""), ["removed a:b:c:d 1"]);
        // The same said in another way.
        let spaced = String::from_utf8(after.clone()).unwrap().replace(':', ": ");
        assert!(changes(spaced.replace("a: b: c: d", "a:b:c:d").as_bytes(), &after).is_empty());
    }

    #[test]
    fn a_listing_holds_another() {
        let listing = |versions: &[(&str, &str)]| {
            let mut listing = Listing::default();
            listing.add("images.json", &list(versions));
            listing
        };
        let before = listing(&[("1", "aa"), ("2", "bb"), ("3", "cc")]);
        assert!(before.holds(&listing(&[("2", "bb")])));
        assert!(!before.holds(&listing(&[("2", "xx")])));
        assert!(!before.holds(&listing(&[("2", "bb"), ("4", "ee")])));
    }
}
