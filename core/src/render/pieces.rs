//! What documents are made of: one piece for each version, or for each product in `index.json`, with
//! whatever stands between it and the piece before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use litemap::LiteMap;
use serde::Serialize;

use crate::catalog::{Catalog, View};
use crate::entry::{Entry, Item, as_map};
use crate::fields;
use crate::name::ProductName;

/// Which document.
#[derive(Clone, Debug)]
pub(super) enum Of {
    /// `index.json`, which names these streams.
    Index(BTreeSet<String>),
    /// The products of this stream.
    Stream(String),
}

/// Where a piece stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) product: ProductName,
    /// Empty in `index.json`.
    pub(super) version: Box<str>,
}

/// What the piece before is, which decides how this one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Nothing,
    /// Of the same product.
    Sibling,
    /// Of another product of the same stream.
    Product,
    /// Of another stream.
    Stream,
}

impl Before {
    pub(super) fn of(before: Option<&At>, at: &At) -> Self {
        match before {
            None => Self::Nothing,
            Some(before) if before.product == at.product => Self::Sibling,
            Some(before) if before.product.stream() == at.product.stream() => Self::Product,
            Some(_) => Self::Stream,
        }
    }
}

#[derive(Serialize)]
struct ProductHead<'a> {
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
}

#[derive(Serialize)]
struct VersionDocument<'a> {
    #[serde(serialize_with = "as_map")]
    items: LiteMap<&'a str, Item<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
}

const DATATYPE: &str = "image-downloads";
const PRODUCTS_FORMAT: &str = "products:1.0";

/// Writes the pieces of a document, one after the other.
pub(super) struct Writer<'a> {
    of: &'a Of,
    catalog: &'a Catalog,
    overrides: &'a fields::Files,
    /// The product whose versions are being written.
    view: Option<View<'a>>,
}

impl Of {
    /// Its file name under `streams/v1/`.
    pub(super) fn file(&self) -> String {
        match self {
            Self::Index(_) => "index.json".to_owned(),
            Self::Stream(stream) => format!("{stream}.json"),
        }
    }

    /// The pieces from `from` on.
    pub(super) fn pieces<'a>(
        &'a self,
        catalog: &'a Catalog,
        from: Option<&At>,
    ) -> Box<dyn Iterator<Item = At> + 'a> {
        match self {
            Self::Index(_) => {
                let products = catalog.listed_from(from.map(|from| &from.product));
                Box::new(products.map(|(name, _)| At { product: name.clone(), version: "".into() }))
            }
            Self::Stream(stream) => {
                let bound = ProductName::bound(stream);
                let products = catalog.listed_from(Some(from.map_or(&bound, |from| &from.product)));
                let from = from.cloned();
                let mut products = products.take_while(move |(name, _)| name.stream() == stream);
                let first = products.next().map(move |(name, versions)| {
                    let skip = from.filter(|from| from.product == *name).map_or(0, |from| {
                        versions.partition_point(|entry| entry.version < from.version)
                    });
                    (name, &versions[skip..])
                });
                let at = |(name, versions): (&'a ProductName, &'a [Arc<Entry>])| {
                    versions
                        .iter()
                        .map(|entry| At { product: name.clone(), version: entry.version.clone() })
                };
                Box::new(first.into_iter().chain(products).flat_map(at))
            }
        }
    }

    /// Whether this product is of it.
    pub(super) fn has(&self, product: &ProductName) -> bool {
        match self {
            Self::Index(_) => true,
            Self::Stream(stream) => product.stream() == stream,
        }
    }
}

impl<'a> Writer<'a> {
    pub(super) fn new(of: &'a Of, catalog: &'a Catalog, overrides: &'a fields::Files) -> Self {
        Self { of, catalog, overrides, view: None }
    }

    /// Appends the piece at `at`, which stands behind `before`.
    pub(super) fn piece(&mut self, before: Option<&At>, at: &At, out: &mut Vec<u8>) {
        match self.of {
            Of::Index(streams) => index_piece(streams, before, at, out),
            Of::Stream(stream) => self.version(stream, before, at, out),
        }
    }

    /// Appends the end of the document, of which `last` is the last piece.
    pub(super) fn end(&self, last: Option<&At>, out: &mut Vec<u8>) {
        match self.of {
            Of::Index(streams) => {
                if last.is_none() {
                    out.extend(INDEX);
                } else {
                    out.extend(b"]}");
                }
                let behind = |stream: &&String| {
                    last.is_none_or(|last| stream.as_str() > last.product.stream())
                };
                empty_streams(streams.iter().filter(behind), last.is_none(), out);
                out.extend(b"}}");
            }
            Of::Stream(stream) => {
                match last {
                    None => products(stream, out),
                    Some(_) => out.extend(b"}}"),
                }
                out.extend(b"}}");
            }
        }
    }

    fn version(&mut self, stream: &str, before: Option<&At>, at: &At, out: &mut Vec<u8>) {
        if self.view.as_ref().is_none_or(|view| *view.name != at.product) {
            self.view = self.catalog.view(&at.product, self.overrides);
        }
        let Some(view) = &self.view else {
            return; // Pieces are of listed products.
        };
        match Before::of(before, at) {
            Before::Sibling => out.push(b','),
            Before::Nothing | Before::Stream => {
                products(stream, out);
                head(view, out);
            }
            Before::Product => {
                out.extend(b"}},");
                head(view, out);
            }
        }
        let known = view.versions.binary_search_by(|entry| entry.version.cmp(&at.version));
        let Ok(entry) = known.map(|known| &view.versions[known]) else {
            return; // Pieces are of listed versions.
        };
        json(&*at.version, out);
        out.push(b':');
        let label = view.fields.labels.get(&*at.version).map(String::as_str);
        json(&VersionDocument { items: entry.items(|base| view.is_base(base)), label }, out);
    }
}

/// All that stands before the products of a stream.
fn products(stream: &str, out: &mut Vec<u8>) {
    out.extend(b"{\"content_id\":");
    json(stream, out);
    for (key, value) in [("datatype", DATATYPE), ("format", PRODUCTS_FORMAT)] {
        out.push(b',');
        json(key, out);
        out.push(b':');
        json(value, out);
    }
    out.extend(b",\"products\":{");
}

/// All that stands before the versions of a product.
fn head(view: &View<'_>, out: &mut Vec<u8>) {
    let (name, fields) = (view.name, &view.fields);
    json(name.as_str(), out);
    out.push(b':');
    json(
        &ProductHead {
            aliases: view.aliases.join(","),
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
        },
        out,
    );
    // It goes on with the versions.
    out.pop();
    out.extend(b",\"versions\":{");
}

const INDEX: &[u8] = b"{\"format\":\"index:1.0\",\"index\":{";

fn index_piece(streams: &BTreeSet<String>, before: Option<&At>, at: &At, out: &mut Vec<u8>) {
    let before = match before {
        Some(before) if before.product.stream() == at.product.stream() => {
            out.push(b',');
            return json(at.product.as_str(), out);
        }
        Some(before) => {
            out.extend(b"]}");
            Some(before.product.stream())
        }
        None => {
            out.extend(INDEX);
            None
        }
    };
    let between = |stream: &&String| {
        before.is_none_or(|before| stream.as_str() > before)
            && stream.as_str() < at.product.stream()
    };
    let first = empty_streams(streams.iter().filter(between), before.is_none(), out);
    stream(at.product.stream(), first, out);
    json(at.product.as_str(), out);
}

/// Streams without a product; `first` tells whether no stream stands before them, and the result,
/// whether none stands there now.
fn empty_streams<'a>(
    streams: impl Iterator<Item = &'a String>,
    mut first: bool,
    out: &mut Vec<u8>,
) -> bool {
    for name in streams {
        stream(name, first, out);
        out.extend(b"]}");
        first = false;
    }
    first
}

/// All that stands before the names of a stream's products.
fn stream(name: &str, first: bool, out: &mut Vec<u8>) {
    if !first {
        out.push(b',');
    }
    json(name, out);
    let path = format!("streams/v1/{name}.json");
    for (lead, key, value) in [
        (":{", "datatype", DATATYPE),
        (",", "format", PRODUCTS_FORMAT),
        (",", "path", path.as_str()),
    ] {
        out.extend(lead.as_bytes());
        json(key, out);
        out.push(b':');
        json(value, out);
    }
    out.extend(b",\"products\":[");
}

fn json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    // Only strings, numbers and maps with string keys, which always serialize.
    serde_json::to_writer(out, value).expect("plain data serializes");
}
