//! The catalog: products with their versions, free of everything clients stumble over.
//!
//! A pure function of the entries: no clock, no disk, the same entries in any order give the same
//! catalog.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use crate::entry::{Entry, Part};
use crate::fields::{self, Fields, short_aliases};
use crate::kind::Root;
use crate::name::ProductName;
use crate::settings::Aliases;
use crate::tree::join;
use crate::{Digest, Problem, arch};

/// All products of an index, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Products by stream and name.
    pub products: BTreeMap<ProductName, Product>,
}

/// A product with at least one version.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Product {
    /// Aliases, in the order in which they are listed.
    pub aliases: Vec<String>,
    /// Versions by name.
    pub versions: BTreeMap<String, Arc<Entry>>,
    /// What overrides in the tree say.
    pub fields: Fields,
}

impl Product {
    /// Whether a delta can start from the version called `name`: clients find the base by the
    /// fingerprint of its squashfs.
    pub fn is_base(&self, name: &str) -> bool {
        let base = self.versions.get(name);
        base.is_some_and(|entry| entry.parts().any(|part| part == Part::Split(Root::Squashfs)))
    }
}

impl Catalog {
    /// Makes the catalog of `entries`, of which no two have the same path.
    ///
    /// The problems are those that only show when entries are seen together.
    pub fn new<'a>(
        entries: impl IntoIterator<Item = &'a Arc<Entry>>,
        overrides: &fields::Files,
        aliases: Aliases,
    ) -> (Self, Vec<Problem>) {
        let mut catalog = Self::default();
        let mut problems = Vec::new();
        for entry in entries {
            problems.extend(entry.problem());
            let product = catalog.products.entry(entry.product.clone()).or_default();
            product.versions.insert(entry.version.clone(), Arc::clone(entry));
        }
        for (name, product) in &mut catalog.products {
            product.fields = overrides.fields(name, product.versions.keys().map(String::as_str));
            product.aliases = default_aliases(name, aliases);
            for alias in &product.fields.aliases {
                if !product.aliases.contains(alias) {
                    product.aliases.push(alias.clone());
                }
            }
        }
        catalog.drop_equal_fingerprints(&mut problems);
        catalog.report_alias_clashes(&mut problems);
        catalog.report_deltas(&mut problems);
        (catalog, problems)
    }

    /// Keeps each fingerprint once: clients refuse an image whose fingerprint is there twice, even
    /// when asked for it by alias (`CLIENTS.md`, "Roots and fingerprints").
    ///
    /// What is kept is the image that is its product's newest, then the newest version, then the
    /// first product. Where a product loses its newest image to another product's, its aliases go
    /// along, provided that architecture and type agree.
    fn drop_equal_fingerprints(&mut self, problems: &mut Vec<Problem>) {
        let mut candidates = BTreeMap::new();
        for (name, product) in &self.products {
            let newest = product.versions.last_key_value().map(|(version, _)| version);
            for (version, entry) in &product.versions {
                for part in entry.parts() {
                    let candidate = Candidate {
                        older: newest != Some(version),
                        version: std::cmp::Reverse(version.clone()),
                        product: name.clone(),
                        part,
                    };
                    candidates.insert(candidate, entry.fingerprints(part).collect::<Vec<_>>());
                }
            }
        }
        // Best first: whoever comes to a fingerprint that is taken goes, and takes none.
        let mut taken: HashMap<Digest, Candidate> = HashMap::new();
        let mut losers = Vec::new();
        for (candidate, fingerprints) in candidates {
            match fingerprints.iter().find_map(|fingerprint| taken.get(fingerprint)) {
                Some(winner) => losers.push((candidate, winner.clone())),
                None => taken.extend(fingerprints.into_iter().map(|of| (of, candidate.clone()))),
            }
        }
        for (loser, winner) in losers {
            self.drop_loser(&loser, &winner, problems);
        }
    }

    fn drop_loser(&mut self, loser: &Candidate, winner: &Candidate, problems: &mut Vec<Problem>) {
        let Some(winner_path) = self.entry(winner).map(|entry| entry.path.clone()) else {
            return; // Cannot be: a winner is never dropped.
        };
        let Some(product) = self.products.get_mut(&loser.product) else {
            return;
        };
        let Some(entry) = product.versions.remove(&loser.version.0) else {
            return;
        };
        let rest = entry.without(loser.part);
        let gone = rest.is_none();
        if let Some(rest) = rest {
            product.versions.insert(loser.version.0.clone(), Arc::new(rest));
        }
        let mut remedy = "remove one of the two";
        if loser.product != winner.product && !loser.older {
            let aliases =
                if gone { std::mem::take(&mut product.aliases) } else { product.aliases.clone() };
            let same_arch =
                arch::canonical(loser.product.arch()) == arch::canonical(winner.product.arch());
            if same_arch && loser.part.is_vm() == winner.part.is_vm() {
                remedy = "remove one of the two; until then its aliases lead to the other";
                if let Some(winner) = self.products.get_mut(&winner.product) {
                    for alias in aliases {
                        if !winner.aliases.contains(&alias) {
                            winner.aliases.push(alias);
                        }
                    }
                }
            }
        }
        if self.products.get(&loser.product).is_some_and(|product| product.versions.is_empty()) {
            self.products.remove(&loser.product);
        }
        problems.push(Problem::new(
            Path::new(&entry.path),
            format!(
                "its {} image has the fingerprint of \"{winner_path}\"; clients refuse an image \
                 that is there twice",
                loser.part.ftype()
            ),
            remedy,
        ));
    }

    fn entry(&self, candidate: &Candidate) -> Option<&Arc<Entry>> {
        let entry = self.products.get(&candidate.product)?.versions.get(&candidate.version.0)?;
        entry.parts().any(|part| part == candidate.part).then_some(entry)
    }

    /// Reports deltas that are left out because no client could use them.
    fn report_deltas(&self, problems: &mut Vec<Problem>) {
        for product in self.products.values() {
            for entry in product.versions.values() {
                for (base, file) in entry.delta_bases().filter(|(base, _)| !product.is_base(base)) {
                    problems.push(Problem::new(
                        Path::new(&join(&entry.path, file)),
                        format!("it is the difference to \"{base}\", which is not listed with a squashfs"),
                        "remove it, or bring that version back",
                    ));
                }
            }
        }
    }

    /// Reports aliases that two products of one architecture and type claim. Clients give such an
    /// alias to the lowest os, release and variant (`shared/simplestreams/sort.go`).
    fn report_alias_clashes(&self, problems: &mut Vec<Problem>) {
        let mut owners: HashMap<(&str, Option<&str>, bool), &ProductName> = HashMap::new();
        let mut sorted: Vec<_> = self.products.iter().collect();
        sorted.sort_by_cached_key(|(name, product)| {
            let os = product.fields.os.clone().unwrap_or_else(|| name.os().to_owned());
            let variant = product.fields.variant.clone().unwrap_or_else(|| name.variant());
            (os, name.release().to_owned(), variant, (*name).clone())
        });
        for (name, product) in sorted {
            let types: BTreeSet<bool> = product
                .versions
                .values()
                .flat_map(|entry| entry.parts().map(Part::is_vm))
                .collect();
            let mut clashes = BTreeSet::new();
            for alias in &product.aliases {
                for &vm in &types {
                    let key = (alias.as_str(), arch::canonical(name.arch()), vm);
                    let owner = owners.entry(key).or_insert(name);
                    if *owner != name {
                        clashes.insert((alias, *owner));
                    }
                }
            }
            let path = format!("{}/{}", name.stream(), name.join("/"));
            problems.extend(clashes.into_iter().map(|(alias, owner)| {
                Problem::new(
                    Path::new(&path),
                    format!(
                        "the alias \"{alias}\" is also that of product \"{owner}\" in stream \
                         \"{}\", to which clients give it",
                        owner.stream()
                    ),
                    "rename one of the products, or take the alias from one of them",
                )
            }));
        }
    }
}

/// An image in the contest for its fingerprint; the least one wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    older: bool,
    version: std::cmp::Reverse<String>,
    product: ProductName,
    part: Part,
}

/// The aliases that a product gets without anybody asking.
fn default_aliases(product: &ProductName, forms: Aliases) -> Vec<String> {
    let mut aliases = Vec::new();
    if forms.short {
        aliases.extend(short_aliases(product.os(), product.release(), &product.variant()));
    }
    if forms.path {
        aliases.push(product.join("/"));
    }
    if forms.name {
        aliases.push(product.join(":"));
    }
    aliases
}
