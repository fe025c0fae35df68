//! An index without some of its versions: for the time in which a mirror has not got them.

use std::io::Write as _;

use flate2::{Compression, GzBuilder};
use serde_json::Value;
use simplestreams::Snapshot;

use crate::listing::Listing;
use crate::streams::INDEX;

/// The files of `snapshot`, in the order in which they are to appear, without the versions that
/// `there` does not list just so.
///
/// # Errors
///
/// When a document is no JSON.
pub fn documents(snapshot: &Snapshot, there: &Listing) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let here = Listing::of(snapshot);
    let mut files = Vec::new();
    let mut left: Vec<String> = Vec::new();
    let names = snapshot.names().filter(|name| *name != INDEX).chain([INDEX]);
    for name in names {
        let Some(document) = snapshot.document(name) else {
            continue;
        };
        let mut value: Value = serde_json::from_slice(document.identity.bytes)?;
        if name == INDEX {
            keep_products(&mut value, &left);
        } else if let Some(products) = value.get_mut("products").and_then(Value::as_object_mut) {
            for (product, value) in products.iter_mut() {
                if let Some(versions) = value.get_mut("versions").and_then(Value::as_object_mut) {
                    versions.retain(|version, _| {
                        let key = (name.to_owned(), product.clone(), version.clone());
                        there.versions.get(&key) == here.versions.get(&key)
                    });
                }
            }
            products.retain(|_, value| {
                value.get("versions").and_then(Value::as_object).is_some_and(|v| !v.is_empty())
            });
            left.extend(products.keys().cloned());
        }
        let bytes = serde_json::to_vec(&value)?;
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
        gzip.write_all(&bytes)?;
        files.push((format!("{name}.gz"), gzip.finish()?));
        files.push((name.to_owned(), bytes));
    }
    Ok(files)
}

fn keep_products(index: &mut Value, left: &[String]) {
    let streams = index.get_mut("index").and_then(Value::as_object_mut);
    for stream in streams.into_iter().flat_map(|streams| streams.values_mut()) {
        if let Some(products) = stream.get_mut("products").and_then(Value::as_array_mut) {
            products.retain(|name| name.as_str().is_some_and(|n| left.iter().any(|l| l == n)));
        }
    }
}
