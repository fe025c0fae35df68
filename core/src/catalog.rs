//! The catalog: products with their versions, free of everything clients stumble over.
//!
//! What it lists is a pure function of the entries: no clock, no disk, the same entries in any order
//! give the same catalog. It is kept up to date with work that grows with the change: a product that
//! changed is judged anew together with those that share a fingerprint or an alias with it, and no
//! other.

mod claims;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};

use crate::entry::{Entry, Part};
use crate::fields::{self, Fields, short_aliases};
use crate::kind::Root;
use crate::name::ProductName;
use crate::settings::Aliases;
use crate::snapshot::Counts;
use crate::tree::{is_below, join};
use crate::{Digest, Problem, arch};

use claims::Claims;

/// Most aliases that a product has, those of others with the same image included: clients assign them
/// in quadratic time (`CLIENTS.md`).
const MAX_MERGED: usize = 256;

/// All products of an index, in order.
#[derive(Debug)]
pub struct Catalog {
    forms: Aliases,
    products: BTreeMap<ProductName, Product>,
    /// Which products have an image of this fingerprint, by the start of it.
    fingerprints: Claims,
    /// Which listed products have an alias, by a hash of it, architecture and type.
    aliases: Claims,
    /// Products to be judged anew.
    changed: BTreeSet<ProductName>,
    /// Keys of aliases that several products have, or had, and of which nothing was said yet.
    clashes: HashSet<u64>,
    problems: BTreeMap<ProductName, Problems>,
    counts: Counts,
}

/// A product with at least one version.
#[derive(Debug, Default)]
struct Product {
    /// By version.
    entries: Vec<Arc<Entry>>,
    /// What is listed, where that is not what the product has by itself.
    listed: Option<Box<Listed>>,
    /// Its keys among the aliases.
    keys: Box<[u64]>,
    counts: Counts,
}

/// What is listed of a product.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    /// In the order in which they are listed.
    aliases: Vec<String>,
    /// By version; may be none.
    versions: Vec<Arc<Entry>>,
}

/// What is wrong with a product.
#[derive(Debug, Default)]
struct Problems {
    /// With its versions, and with what they share with others.
    images: Vec<Problem>,
    /// With its aliases.
    aliases: Vec<Problem>,
}

/// A product as it is listed.
#[derive(Debug)]
pub struct View<'a> {
    /// Its name.
    pub name: &'a ProductName,
    /// Aliases, in the order in which they are listed.
    pub aliases: Cow<'a, [String]>,
    /// Versions, sorted; at least one.
    pub versions: &'a [Arc<Entry>],
    /// What overrides in the tree say.
    pub fields: Fields,
}

impl View<'_> {
    /// Whether a delta can start from the version called `name`.
    pub fn is_base(&self, name: &str) -> bool {
        is_base(self.versions, name)
    }
}

/// Whether a delta can start from the version called `name`: clients find the base by the fingerprint
/// of its squashfs.
fn is_base(versions: &[Arc<Entry>], name: &str) -> bool {
    let base = versions.binary_search_by(|entry| (*entry.version).cmp(name));
    base.is_ok_and(|at| versions[at].parts().any(|part| part == Part::Split(Root::Squashfs)))
}

impl Catalog {
    /// An empty catalog, whose products get these aliases.
    pub fn new(forms: Aliases) -> Self {
        Self {
            forms,
            products: BTreeMap::new(),
            fingerprints: Claims::default(),
            aliases: Claims::default(),
            changed: BTreeSet::new(),
            clashes: HashSet::new(),
            problems: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// What is known of a version is now `entry`.
    pub fn set(&mut self, name: &ProductName, version: &str, entry: Option<&Arc<Entry>>) {
        if entry.is_none() && !self.products.contains_key(name) {
            return;
        }
        let product = self.products.entry(name.clone()).or_default();
        let at = product.entries.binary_search_by(|known| (*known.version).cmp(version));
        let before = at.ok().map(|at| Arc::clone(&product.entries[at]));
        match (&before, entry) {
            (None, None) => return,
            (Some(before), Some(entry)) if before == entry => return,
            _ => {}
        }
        match (at, entry) {
            (Ok(at), Some(entry)) => product.entries[at] = Arc::clone(entry),
            (Err(at), Some(entry)) => product.entries.insert(at, Arc::clone(entry)),
            (Ok(at), None) => drop(product.entries.remove(at)),
            (Err(_), None) => {}
        }
        self.changed.insert(name.clone());
        // Those that shared a fingerprint may be free of it; those that share one now are found when
        // the product is judged.
        for key in before.iter().flat_map(|entry| fingerprint_keys(entry)) {
            self.changed.extend(self.fingerprints.shared(key).iter().cloned());
            self.fingerprints.remove(key, name);
        }
        for key in entry.into_iter().flat_map(|entry| fingerprint_keys(entry)) {
            self.fingerprints.insert(key, name);
        }
    }

    /// The overrides in this directory changed: products in and below it are judged anew, and the
    /// one that it belongs to.
    pub fn reconsider(&mut self, directory: &str) {
        let mut above = directory;
        while !above.is_empty() {
            let product = ProductName::of(above);
            self.changed.extend(product.filter(|name| self.products.contains_key(name)));
            above = above.rsplit_once('/').map_or("", |(above, _)| above);
        }
        let bound = ProductName::bound(directory);
        let behind = self.products.range(bound.clone()..).map(|(name, _)| name);
        // Others may lie between those in the directory: "a-b" sorts before "a:b".
        let like = behind.take_while(|name| {
            directory.is_empty()
                || name.stream() == bound.stream() && name.as_str().starts_with(bound.as_str())
        });
        self.changed.extend(like.filter(|name| is_below(&name.path(), directory)).cloned());
    }

    /// Judges anew what changed since the last time. Gives the products that may be listed in
    /// another way than before, or not at all.
    pub fn settle(&mut self, overrides: &fields::Files) -> BTreeSet<ProductName> {
        let mut done = self.settle_what_is_alone(overrides);
        let mut keys = std::mem::take(&mut self.clashes);
        while let Some(name) = self.changed.pop_first() {
            if !done.contains(&name) {
                let group = self.group(name);
                self.judge(&group, overrides, &mut keys);
                done.extend(group);
            }
        }
        self.report_alias_clashes(&keys, overrides);
        done
    }

    /// The same for those that have no fingerprint in common with others, as nearly all: what is gathered
    /// piece by piece is judged with less waiting. Clashes of aliases are left to [`settle`](Self::settle).
    pub fn settle_what_is_alone(&mut self, overrides: &fields::Files) -> BTreeSet<ProductName> {
        let changed = std::mem::take(&mut self.changed);
        let (alone, rest): (BTreeSet<_>, _) =
            changed.into_iter().partition(|name| self.is_alone(name));
        self.changed = rest;
        let mut keys = std::mem::take(&mut self.clashes);
        for name in &alone {
            let draft = self.draft(name, overrides);
            self.conclude(name, draft, false, &mut keys);
        }
        self.clashes = keys;
        alone
    }

    /// Whether the product, as nearly every one, has no fingerprint that another has.
    fn is_alone(&self, name: &ProductName) -> bool {
        let entries = self.products.get(name).into_iter().flat_map(|of| &of.entries);
        let mut keys = entries.flat_map(|entry| fingerprint_keys(entry));
        keys.all(|key| self.fingerprints.shared(key).is_empty())
    }

    /// The products that have fingerprints in common with this one, directly or over others.
    fn group(&self, name: ProductName) -> BTreeSet<ProductName> {
        let mut group = BTreeSet::from([name.clone()]);
        let mut next = vec![name];
        while let Some(name) = next.pop() {
            let entries = self.products.get(&name).into_iter().flat_map(|of| &of.entries);
            for key in entries.flat_map(|entry| fingerprint_keys(entry)) {
                for other in self.fingerprints.shared(key) {
                    if group.insert(other.clone()) {
                        next.push(other.clone());
                    }
                }
            }
        }
        group
    }

    /// Judges a group of products, which shares no fingerprint with any other. `keys` gets the keys
    /// of aliases that several products have, or had.
    fn judge(
        &mut self,
        group: &BTreeSet<ProductName>,
        overrides: &fields::Files,
        keys: &mut HashSet<u64>,
    ) {
        let mut problems: BTreeMap<&ProductName, Vec<Problem>> = BTreeMap::new();
        let mut drafts = BTreeMap::new();
        for name in group {
            if let Some((draft, own)) = self.draft(name, overrides) {
                problems.insert(name, own);
                drafts.insert(name, draft);
            }
        }
        let mut touched = HashSet::new();
        self.drop_equal_fingerprints(&mut drafts, &mut touched, &mut problems);
        for name in group {
            let own = problems.remove(name).unwrap_or_default();
            let draft = drafts.remove(name).map(|draft| (draft, own));
            self.conclude(name, draft, touched.contains(name), keys);
        }
    }

    /// The product as it is by itself, and what is wrong with it; `None` if it has no version.
    fn draft(
        &self,
        name: &ProductName,
        overrides: &fields::Files,
    ) -> Option<(Listed, Vec<Problem>)> {
        let product = self.products.get(name).filter(|of| !of.entries.is_empty())?;
        let own = product.entries.iter().filter_map(|entry| entry.problem()).collect();
        let fields = fields_of(name, product, overrides);
        let aliases = aliases_of(name, self.forms, &fields);
        Some((Listed { aliases, versions: product.entries.clone() }, own))
    }

    /// Takes in how a product is listed, and what is wrong with it; it is not as it is by itself if it is
    /// `touched`.
    fn conclude(
        &mut self,
        name: &ProductName,
        draft: Option<(Listed, Vec<Problem>)>,
        touched: bool,
        keys: &mut HashSet<u64>,
    ) {
        self.problems.remove(name);
        let Self { products, aliases, counts, .. } = self;
        let Some(product) = products.get_mut(name) else {
            return;
        };
        for &key in &product.keys {
            if !aliases.shared(key).is_empty() {
                keys.insert(key);
            }
            aliases.remove(key, name);
        }
        counts.take(product.counts);
        let Some((draft, mut images)) = draft else {
            products.remove(name);
            return;
        };
        report_deltas(&draft.versions, &mut images);
        product.keys = alias_keys(name, &draft);
        for &key in &product.keys {
            aliases.insert(key, name);
            if !aliases.shared(key).is_empty() {
                keys.insert(key);
            }
        }
        product.counts = count(&draft.versions);
        counts.add(product.counts);
        product.listed = touched.then(|| Box::new(draft));
        product.entries.shrink_to_fit();
        if !images.is_empty() {
            self.problems.entry(name.clone()).or_default().images = images;
        }
    }

    /// Keeps each fingerprint once: clients refuse an image whose fingerprint is there twice, even
    /// when asked for it by alias (`CLIENTS.md`, "Roots and fingerprints").
    ///
    /// What is kept is the image that is its product's newest, then the newest version, then the
    /// first product. Where a product loses its newest image to another product's, its aliases go
    /// along, provided that architecture and type agree.
    fn drop_equal_fingerprints<'a>(
        &self,
        drafts: &mut BTreeMap<&'a ProductName, Listed>,
        touched: &mut HashSet<&'a ProductName>,
        problems: &mut BTreeMap<&'a ProductName, Vec<Problem>>,
    ) {
        let mut candidates = BTreeMap::new();
        for (&name, draft) in &*drafts {
            let newest = draft.versions.last().map(|entry| &entry.version);
            for entry in &draft.versions {
                for part in entry.parts() {
                    let fingerprints: Vec<Digest> = entry.fingerprints(part).collect();
                    let alone =
                        |of: &Digest| self.fingerprints.shared(fingerprint_key(of)).is_empty();
                    if fingerprints.iter().all(alone) {
                        continue;
                    }
                    let candidate = Candidate {
                        older: newest != Some(&entry.version),
                        version: Reverse(entry.version.clone()),
                        product: name,
                        part,
                    };
                    candidates.insert(candidate, fingerprints);
                }
            }
        }
        // Best first: whoever comes to a fingerprint that is taken goes, and takes none.
        let mut taken: HashMap<Digest, Candidate<'a>> = HashMap::new();
        let mut losers = Vec::new();
        for (candidate, fingerprints) in candidates {
            match fingerprints.iter().find_map(|fingerprint| taken.get(fingerprint)) {
                Some(winner) => losers.push((candidate, winner.clone())),
                None => taken.extend(fingerprints.into_iter().map(|of| (of, candidate.clone()))),
            }
        }
        for (loser, winner) in losers {
            touched.extend([loser.product, winner.product]);
            if let Some(problem) = drop_loser(drafts, &loser, &winner) {
                problems.entry(loser.product).or_default().push(problem);
            }
        }
    }

    /// Reports aliases that two products of one architecture and type claim, of those with these
    /// keys. Clients give such an alias to the lowest os, release and variant
    /// (`shared/simplestreams/sort.go`).
    fn report_alias_clashes(&mut self, keys: &HashSet<u64>, overrides: &fields::Files) {
        let mut names: BTreeSet<ProductName> = BTreeSet::new();
        for key in keys {
            names.extend(self.aliases.of(*key).iter().cloned());
        }
        // Their other aliases may clash too, with products that did not change.
        let mut rivals: BTreeSet<&ProductName> = names.iter().collect();
        for name in &names {
            let keys = self.products.get(name).into_iter().flat_map(|product| &*product.keys);
            rivals.extend(keys.flat_map(|key| self.aliases.shared(*key)));
        }
        let mut sorted: Vec<_> = rivals
            .into_iter()
            .filter_map(|name| {
                let View { name, aliases, versions, fields } = self.view(name, overrides)?;
                let os = fields.os.unwrap_or_else(|| name.os().to_owned());
                let variant = fields.variant.unwrap_or_else(|| name.variant());
                let order = (os, name.release().to_owned(), variant, name.clone());
                Some((order, aliases, types(versions).collect::<Vec<bool>>()))
            })
            .collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        let mut owners: HashMap<(&str, Option<&str>, bool), &ProductName> = HashMap::new();
        let mut found: Vec<(ProductName, Vec<Problem>)> = Vec::new();
        for ((_, _, _, name), aliases, types) in &sorted {
            let mut clashes = BTreeSet::new();
            for alias in aliases.iter() {
                for &vm in types {
                    let key = (alias.as_str(), arch::canonical(name.arch()), vm);
                    let owner = owners.entry(key).or_insert(name);
                    if *owner != name {
                        clashes.insert((alias, *owner));
                    }
                }
            }
            let path = name.path();
            let problem = |(alias, owner): (&String, &ProductName)| {
                Problem::new(
                    Path::new(&path),
                    format!(
                        "the alias \"{alias}\" is also that of product \"{owner}\" in stream \
                         \"{}\", to which clients give it",
                        owner.stream()
                    ),
                    "rename one of the products, or take the alias from one of them",
                )
            };
            found.push((name.clone(), clashes.into_iter().map(problem).collect()));
        }
        drop(sorted);
        for (name, clashes) in found.into_iter().filter(|(name, _)| names.contains(name)) {
            let problems = self.problems.entry(name.clone()).or_default();
            problems.aliases = clashes;
            if problems.aliases.is_empty() && problems.images.is_empty() {
                self.problems.remove(&name);
            }
        }
    }

    /// A product as it is listed; `None` if it is not.
    pub fn view<'a>(&'a self, name: &ProductName, overrides: &fields::Files) -> Option<View<'a>> {
        let (name, product) = self.products.get_key_value(name)?;
        let versions = product.versions();
        if versions.is_empty() {
            return None;
        }
        let fields = fields_of(name, product, overrides);
        let aliases = match &product.listed {
            Some(listed) => Cow::Borrowed(&listed.aliases[..]),
            None => Cow::Owned(aliases_of(name, self.forms, &fields)),
        };
        Some(View { name, aliases, versions, fields })
    }

    /// The listed products from `from` on, with their listed versions.
    pub fn listed_from<'a>(
        &'a self,
        from: Option<&ProductName>,
    ) -> impl Iterator<Item = (&'a ProductName, &'a [Arc<Entry>])> + use<'a> {
        use std::ops::Bound::{Included, Unbounded};
        let from = from.cloned().map_or(Unbounded, Included);
        let listed = self.products.range((from, Unbounded));
        listed.map(|(name, of)| (name, of.versions())).filter(|(_, versions)| !versions.is_empty())
    }

    /// How much is listed.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The problems that only show when entries are seen together.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flat_map(|of| of.images.iter().chain(&of.aliases))
    }
}

impl Product {
    fn versions(&self) -> &[Arc<Entry>] {
        self.listed.as_ref().map_or(&self.entries, |listed| &listed.versions)
    }
}

/// An image in the contest for its fingerprint; the least one wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate<'a> {
    older: bool,
    version: Reverse<Box<str>>,
    product: &'a ProductName,
    part: Part,
}

fn drop_loser(
    drafts: &mut BTreeMap<&ProductName, Listed>,
    loser: &Candidate<'_>,
    winner: &Candidate<'_>,
) -> Option<Problem> {
    // A winner is never dropped, so it is there.
    let winner_path = {
        let versions = &drafts.get(winner.product)?.versions;
        versions.iter().find(|entry| entry.version == winner.version.0)?.path()
    };
    let draft = drafts.get_mut(loser.product)?;
    let at = draft.versions.iter().position(|entry| entry.version == loser.version.0)?;
    let entry = draft.versions.remove(at);
    let rest = entry.without(loser.part);
    let gone = rest.is_none();
    if let Some(rest) = rest {
        draft.versions.insert(at, Arc::new(rest));
    }
    let mut remedy = "remove one of the two";
    if loser.product != winner.product && !loser.older {
        let aliases = if gone { std::mem::take(&mut draft.aliases) } else { draft.aliases.clone() };
        let same_arch =
            arch::canonical(loser.product.arch()) == arch::canonical(winner.product.arch());
        if same_arch && loser.part.is_vm() == winner.part.is_vm() {
            remedy = "remove one of the two; until then its aliases lead to the other";
            if let Some(winner) = drafts.get_mut(winner.product) {
                for alias in aliases {
                    if winner.aliases.contains(&alias) {
                        continue;
                    }
                    if winner.aliases.len() < MAX_MERGED {
                        winner.aliases.push(alias);
                    } else {
                        remedy =
                            "remove one of the two; the other has too many aliases to take its too";
                    }
                }
            }
        }
    }
    Some(Problem::new(
        Path::new(&entry.path()),
        format!(
            "its {} image has the fingerprint of \"{winner_path}\"; clients refuse an image that \
             is there twice",
            loser.part.ftype()
        ),
        remedy,
    ))
}

/// Reports deltas that are left out because no client could use them.
fn report_deltas(versions: &[Arc<Entry>], problems: &mut Vec<Problem>) {
    for entry in versions {
        for (base, file) in entry.delta_bases().filter(|(base, _)| !is_base(versions, base)) {
            problems.push(Problem::new(
                Path::new(&join(&entry.path(), file)),
                format!("it is the difference to \"{base}\", which is not listed with a squashfs"),
                "remove it, or bring that version back",
            ));
        }
    }
}

fn fields_of(name: &ProductName, product: &Product, overrides: &fields::Files) -> Fields {
    overrides.fields(name, product.entries.iter().map(|entry| &*entry.version))
}

/// The aliases that a product has by itself.
fn aliases_of(name: &ProductName, forms: Aliases, fields: &Fields) -> Vec<String> {
    let mut aliases = Vec::new();
    if forms.short {
        aliases.extend(short_aliases(name.os(), name.release(), &name.variant()));
    }
    if forms.path {
        aliases.push(name.as_str().replace(':', "/"));
    }
    if forms.name {
        aliases.push(name.as_str().to_owned());
    }
    for alias in &fields.aliases {
        if !aliases.contains(alias) {
            aliases.push(alias.clone());
        }
    }
    aliases
}

/// The types that a product's images have: whether they are virtual machines.
fn types(versions: &[Arc<Entry>]) -> impl Iterator<Item = bool> {
    let any = |vm: &bool| versions.iter().any(|of| of.parts().any(|part| part.is_vm() == *vm));
    [false, true].into_iter().filter(any)
}

fn alias_keys(name: &ProductName, listed: &Listed) -> Box<[u64]> {
    let arch = arch::canonical(name.arch()).unwrap_or("-");
    let mut keys = Vec::new();
    for vm in types(&listed.versions) {
        let vm = if vm { "vm" } else { "" };
        keys.extend(listed.aliases.iter().map(|alias| claims::key(&[arch, vm, alias])));
    }
    keys.sort_unstable();
    keys.dedup();
    keys.into()
}

fn fingerprint_keys(entry: &Entry) -> impl Iterator<Item = u64> {
    entry.parts().flat_map(|part| entry.fingerprints(part)).map(|of| fingerprint_key(&of))
}

/// The start of a fingerprint. That two have it in common without being equal costs time and no more.
fn fingerprint_key(fingerprint: &Digest) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|at| fingerprint.as_bytes()[at]))
}

/// Counts what is listed of one product.
fn count(versions: &[Arc<Entry>]) -> Counts {
    let mut counts = Counts { products: u64::from(!versions.is_empty()), ..Counts::default() };
    for entry in versions {
        counts.versions += 1;
        counts.items += entry.item_count(|base| is_base(versions, base));
        counts.bytes += entry.bytes();
    }
    counts
}
