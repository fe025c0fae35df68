//! From catalog to bytes, deterministically: nothing in a document comes from a clock, so the same
//! tree gives the same bytes, and the same entity tags, on every mirror and after every restart.

mod gzip;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::catalog::{Catalog, Product};
use crate::entry::Item;
use crate::name::ProductName;
use crate::snapshot::{Counts, Rendered};

pub(crate) use gzip::Compressor;

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
    /// What LXD 5.0.0 to 5.0.2 read.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    lxd_requirements: &'a BTreeMap<String, String>,
    os: &'a str,
    release: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    release_codename: Option<&'a str>,
    release_title: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    requirements: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    support_eol: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    supported: Option<bool>,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    versions: BTreeMap<&'a str, VersionDocument<'a>>,
}

#[derive(Serialize)]
struct VersionDocument<'a> {
    items: BTreeMap<String, Item>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
}

const DATATYPE: &str = "image-downloads";
const PRODUCTS_FORMAT: &str = "products:1.0";

/// Renders `index.json` and one document for each of `streams`, in that order. What `compressor` knows
/// from the last time is not compressed again.
pub fn render(catalog: &Catalog, streams: &[String], compressor: &mut Compressor) -> Vec<Rendered> {
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
        documents.push(document(file, &products, compressor));
    }
    documents.insert(0, document("index.json".to_owned(), &index, compressor));
    compressor.turn();
    documents
}

/// Counts what the catalog lists.
pub fn count(catalog: &Catalog) -> Counts {
    let mut counts = Counts { products: catalog.products.len() as u64, ..Counts::default() };
    for product in catalog.products.values() {
        for entry in product.versions.values() {
            counts.versions += 1;
            counts.items += entry.items(|base| product.is_base(base)).len() as u64;
            counts.bytes += entry.bytes();
        }
    }
    counts
}

fn product_document<'a>(name: &'a ProductName, product: &'a Product) -> ProductDocument<'a> {
    let fields = &product.fields;
    let versions = product.versions.iter().map(|(version, entry)| {
        let items = entry.items(|base| product.is_base(base));
        let label = fields.labels.get(version).map(String::as_str);
        (version.as_str(), VersionDocument { items, label })
    });
    ProductDocument {
        aliases: product.aliases.join(","),
        arch: name.arch(),
        lxd_requirements: &fields.requirements,
        os: fields.os.as_deref().unwrap_or(name.os()),
        release: name.release(),
        release_codename: fields.release_codename.as_deref(),
        release_title: fields.release_title.as_deref().unwrap_or(name.release()),
        requirements: &fields.requirements,
        support_eol: fields.support_eol.as_deref(),
        supported: fields.supported,
        variant: fields.variant.clone().unwrap_or_else(|| name.variant()),
        version: fields.version.as_deref(),
        versions: versions.collect(),
    }
}

fn document(name: String, value: &impl Serialize, compressor: &mut Compressor) -> Rendered {
    // Only strings, numbers and maps with string keys, which always serialize.
    let identity = serde_json::to_vec(value).expect("plain data serializes");
    let gzip = compressor.gzip(&identity);
    Rendered { name, identity, gzip }
}
