//! From catalog to bytes, deterministically: nothing in a document comes from a clock, so the same
//! tree gives the same bytes, and the same entity tags, on every mirror and after every restart.

use std::collections::BTreeMap;
use std::io::Write as _;

use flate2::{Compression, GzBuilder};
use serde::Serialize;

use crate::catalog::{Catalog, Product};
use crate::entry::Item;
use crate::name::ProductName;
use crate::snapshot::{Counts, Rendered};

/// Compression level of the gzip variants. They are made once for each change, while every client
/// pays for the bytes.
const GZIP_LEVEL: u32 = 9;

#[derive(Serialize)]
struct Index<'a> {
    format: &'static str,
    index: BTreeMap<&'a str, IndexEntry>,
}

#[derive(Serialize)]
struct IndexEntry {
    datatype: &'static str,
    format: &'static str,
    path: String,
    products: Vec<String>,
}

#[derive(Serialize)]
struct Products<'a> {
    content_id: &'a str,
    datatype: &'static str,
    format: &'static str,
    products: BTreeMap<String, ProductDocument<'a>>,
}

#[derive(Serialize)]
struct ProductDocument<'a> {
    aliases: String,
    arch: &'a str,
    os: &'a str,
    release: &'a str,
    release_title: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
    versions: BTreeMap<&'a str, VersionDocument>,
}

#[derive(Serialize)]
struct VersionDocument {
    items: BTreeMap<String, Item>,
}

const DATATYPE: &str = "image-downloads";
const PRODUCTS_FORMAT: &str = "products:1.0";

/// Renders `index.json` and one document for each of `streams`, in that order.
pub fn render(catalog: &Catalog, streams: &[String]) -> Vec<Rendered> {
    let mut index = Index { format: "index:1.0", index: BTreeMap::new() };
    let mut documents = Vec::with_capacity(streams.len() + 1);
    for stream in streams {
        let file = format!("{stream}.json");
        let products = Products {
            content_id: stream,
            datatype: DATATYPE,
            format: PRODUCTS_FORMAT,
            products: catalog
                .products
                .iter()
                .filter(|(name, _)| name.stream() == stream)
                .map(|(name, product)| (name.to_string(), product_document(name, product)))
                .collect(),
        };
        index.index.insert(
            stream,
            IndexEntry {
                datatype: DATATYPE,
                format: PRODUCTS_FORMAT,
                path: format!("streams/v1/{file}"),
                products: products.products.keys().cloned().collect(),
            },
        );
        documents.push(document(file, &products));
    }
    documents.insert(0, document("index.json".to_owned(), &index));
    documents
}

/// Counts what the catalog lists.
pub fn count(catalog: &Catalog) -> Counts {
    let mut counts = Counts { products: catalog.products.len() as u64, ..Counts::default() };
    for entry in catalog.products.values().flat_map(|product| product.versions.values()) {
        counts.versions += 1;
        counts.items += entry.items().len() as u64;
        counts.bytes += entry.bytes();
    }
    counts
}

fn product_document<'a>(name: &'a ProductName, product: &'a Product) -> ProductDocument<'a> {
    ProductDocument {
        aliases: product.aliases.join(","),
        arch: name.arch(),
        os: name.os(),
        release: name.release(),
        release_title: name.release(),
        variant: name.variant(),
        versions: product
            .versions
            .iter()
            .map(|(version, entry)| (version.as_str(), VersionDocument { items: entry.items() }))
            .collect(),
    }
}

fn document(name: String, value: &impl Serialize) -> Rendered {
    // Only strings, numbers and maps with string keys, which always serialize.
    let identity = serde_json::to_vec(value).expect("plain data serializes");
    let gzip = gzip(&identity);
    Rendered { name, identity, gzip }
}

/// One gzip member, without name or time, so that equal documents compress to equal bytes.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(GZIP_LEVEL));
    // Writing into a vector cannot fail.
    encoder.write_all(bytes).expect("memory takes every byte");
    encoder.finish().expect("memory takes every byte")
}
