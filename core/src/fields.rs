//! What a product is called and needs: its path, and what overrides in the tree say.
//!
//! From the weakest to the strongest: the path; `.requirements` from the root down; files in the
//! product's directory; files in its listed versions, the newest last. In one directory
//! `metadata.json` is stronger than `image.yaml`. Each field goes by itself.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Problem;
use crate::kind::{self, Kind};
use crate::name::ProductName;
use crate::overrides::{self, Said};
use crate::tree::{Stamp, is_below, join};

/// The fields of a product that overrides can change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Name of the operating system.
    pub os: Option<String>,
    /// Name of the release.
    pub release_title: Option<String>,
    /// Code name of the release.
    pub release_codename: Option<String>,
    /// Version of the release.
    pub version: Option<String>,
    /// Variant.
    pub variant: Option<String>,
    /// Aliases beside the default ones.
    pub aliases: Vec<String>,
    /// What clients need to run the image.
    pub requirements: BTreeMap<String, String>,
    /// End of support, `YYYY-MM-DD`.
    pub support_eol: Option<String>,
    /// Whether the release is supported.
    pub supported: Option<bool>,
    /// Labels of versions, by their names.
    pub labels: BTreeMap<String, String>,
}

/// A file of overrides, as it was last understood.
#[derive(Clone, Debug)]
struct File {
    stamp: Stamp,
    said: Said,
    problem: Option<Problem>,
}

/// All files of overrides in the tree, by path.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<String, File>,
}

impl Files {
    /// Whether the file at `path` is known as it is.
    pub fn is_current(&self, path: &str, stamp: &Stamp) -> bool {
        self.files.get(path).is_some_and(|file| file.stamp == *stamp)
    }

    /// Takes in the file at `path`. If it cannot be understood, what it said before stays; after a
    /// restart that is what `remembered` gives. Says whether it was understood.
    pub fn insert(
        &mut self,
        path: &str,
        format: kind::Overrides,
        stamp: Stamp,
        content: Result<&[u8], Problem>,
        remembered: impl FnOnce() -> Option<Vec<u8>>,
    ) -> bool {
        let problem = |reason, remedy| Problem::new(Path::new(path), reason, remedy);
        let parsed = content.and_then(|content| {
            overrides::parse(format, content).map_err(|reason| {
                problem(reason, "correct it; until then what it said before stays in force")
            })
        });
        let understood = parsed.is_ok();
        let (said, problem) = match parsed {
            Ok((said, unknown)) if unknown.is_empty() => (said, None),
            Ok((said, unknown)) => {
                let reason = format!("unknown key \"{}\"", unknown.join("\", \""));
                let remedy = "remove it, or look for a misspelling (see docs/metadata.md)";
                (said, Some(problem(reason, remedy)))
            }
            Err(problem) => {
                let before = self.files.get(path).map(|file| file.said.clone());
                let before = before.or_else(|| {
                    overrides::parse(format, &remembered()?).ok().map(|(said, _)| said)
                });
                (before.unwrap_or_default(), Some(problem))
            }
        };
        self.files.insert(path.to_owned(), File { stamp, said, problem });
        understood
    }

    /// Forgets the file at `path`, if it is known; says whether it was.
    pub fn remove(&mut self, path: &str) -> bool {
        self.files.remove(path).is_some()
    }

    /// Paths of the known files in `directory` and below.
    pub fn below(&self, directory: &str) -> Vec<String> {
        let from = self.files.range(directory.to_owned()..).map(|(path, _)| path);
        from.take_while(|path| path.starts_with(directory))
            .filter(|path| is_below(path, directory))
            .cloned()
            .collect()
    }

    /// What is wrong with the files.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.files.values().filter_map(|file| file.problem.as_ref())
    }

    /// The fields of a product that lies at `stream/os/release/…`, with these listed versions in
    /// their order.
    pub fn fields<'a>(
        &self,
        product: &ProductName,
        versions: impl Iterator<Item = &'a str>,
    ) -> Fields {
        let mut fields = Fields::default();
        if self.files.is_empty() {
            return fields;
        }
        let mut directory = product.stream().to_owned();
        let mut inherited = BTreeMap::new();
        let mut inherit = |directory: &str| {
            if let Some(said) = self.said(directory, kind::Overrides::Requirements) {
                inherited.extend(said.requirements.clone().unwrap_or_default());
            }
        };
        inherit("");
        inherit(&directory);
        for component in product.components() {
            directory = join(&directory, component);
            inherit(&directory);
        }
        self.apply_all(&mut fields, product, &directory);
        for version in versions {
            let directory = join(&directory, version);
            inherit(&directory);
            if let Some(label) = self.apply_all(&mut fields, product, &directory) {
                fields.labels.insert(version.to_owned(), label);
            }
        }
        inherited.extend(std::mem::take(&mut fields.requirements));
        fields.requirements = inherited;
        fields
    }

    /// Applies the files in one directory; gives the label.
    fn apply_all(
        &self,
        fields: &mut Fields,
        product: &ProductName,
        directory: &str,
    ) -> Option<String> {
        let mut label = None;
        for format in [kind::Overrides::ImageYaml, kind::Overrides::MetadataJson] {
            if let Some(said) = self.said(directory, format) {
                apply(fields, said, product);
                label = said.label.clone().or(label);
            }
        }
        label
    }

    fn said(&self, directory: &str, format: kind::Overrides) -> Option<&Said> {
        let names: &[&str] = match format {
            kind::Overrides::Requirements => &[".requirements"],
            kind::Overrides::ImageYaml => &["image.yaml", "images.yaml"],
            kind::Overrides::MetadataJson => &["metadata.json"],
        };
        let file = names.iter().find_map(|name| self.files.get(&join(directory, name)))?;
        Some(&file.said)
    }
}

fn apply(fields: &mut Fields, said: &Said, product: &ProductName) {
    let stronger = |field: &mut Option<String>, said: &Option<String>| {
        if said.is_some() {
            field.clone_from(said);
        }
    };
    stronger(&mut fields.os, &said.os);
    stronger(&mut fields.release_title, &said.release_title);
    stronger(&mut fields.release_codename, &said.release_codename);
    stronger(&mut fields.version, &said.version);
    stronger(&mut fields.variant, &said.variant);
    stronger(&mut fields.support_eol, &said.support_eol);
    fields.supported = said.supported.or(fields.supported);
    if let Some(requirements) = said.requirements_of(product) {
        fields.requirements = requirements;
    }
    if let Some(aliases) = &said.aliases {
        fields.aliases.clone_from(aliases);
    } else if let Some(releases) = said.release_aliases.get(product.release()) {
        let short = |release: &String| short_aliases(product.os(), release, &product.variant());
        fields.aliases = releases.iter().flat_map(short).collect();
    }
}

/// The aliases `os/release/variant`, and the shorter ones that follow from the variant `default`
/// and, as `simplestream-maintainer` has it, from the release `current`.
pub fn short_aliases(os: &str, release: &str, variant: &str) -> Vec<String> {
    let current = release == "current";
    let default = variant.is_empty() || variant == "default";
    let mut aliases = Vec::new();
    let mut add = |parts: &[&str]| {
        let alias = parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>();
        let alias = alias.join("/");
        if !aliases.contains(&alias) {
            aliases.push(alias);
        }
    };
    add(&[os, release, variant]);
    if default {
        add(&[os, release]);
    }
    if current {
        add(&[os, variant]);
    }
    if current && default {
        add(&[os]);
    }
    aliases
}

/// The format of the overrides in a file of this name.
pub fn format(name: &str) -> Option<kind::Overrides> {
    match Kind::of(name) {
        Kind::Overrides(format) => Some(format),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_aliases_of_default_and_current() {
        let table: &[((&str, &str), &[&str])] = &[
            (("noble", "cloud"), &["u/noble/cloud"]),
            (("noble", "default"), &["u/noble/default", "u/noble"]),
            (("noble", ""), &["u/noble"]),
            (("current", "cloud"), &["u/current/cloud", "u/cloud"]),
            (("current", "default"), &["u/current/default", "u/current", "u/default", "u"]),
            (("current", ""), &["u/current", "u"]),
        ];
        for ((release, variant), aliases) in table {
            assert_eq!(short_aliases("u", release, variant), *aliases, "{release} {variant}");
        }
    }

    const STAMP: Stamp =
        Stamp { device: 1, inode: 1, size: 1, modified: 0, changed: 0, born: None };

    fn files(of: &[(&str, &str)]) -> Files {
        let mut files = Files::default();
        of.iter().for_each(|(path, text)| put(&mut files, path, text));
        files
    }

    fn put(files: &mut Files, path: &str, text: &str) {
        let name = path.rsplit('/').next().unwrap();
        files.insert(path, format(name).unwrap(), STAMP, Ok(text.as_bytes()), || None);
    }

    fn fields(files: &Files) -> Fields {
        let product = ProductName::new("images", &["u", "noble", "amd64", "default"]).unwrap();
        files.fields(&product, ["20240101", "20240102"].into_iter())
    }

    #[test]
    fn the_newest_listed_version_wins_field_by_field() {
        let product = "images/u/noble/amd64/default";
        let fields = fields(&files(&[
            (&format!("{product}/metadata.json"), r#"{"os": "P", "version": "1", "label": "p"}"#),
            (
                &format!("{product}/20240101/metadata.json"),
                r#"{"os": "A", "release_title": "T", "label": "a"}"#,
            ),
            (&format!("{product}/20240102/metadata.json"), r#"{"os": "B", "aliases": "x"}"#),
            (&format!("{product}/20240103/metadata.json"), r#"{"os": "not listed"}"#),
        ]));
        assert_eq!(fields.os.as_deref(), Some("B"));
        assert_eq!(fields.release_title.as_deref(), Some("T"));
        assert_eq!(fields.version.as_deref(), Some("1"));
        assert_eq!(fields.aliases, ["x"]);
        assert_eq!(fields.labels, BTreeMap::from([("20240101".into(), "a".into())]));
    }

    #[test]
    fn requirements_come_from_above() {
        let fields = fields(&files(&[
            ("images/.requirements", r#"{"a": "stream", "b": "stream"}"#),
            ("images/u/.requirements", r#"{"b": "os"}"#),
            ("images/v/.requirements", r#"{"b": "another os"}"#),
            (
                "images/u/noble/amd64/default/20240102/metadata.json",
                r#"{"requirements": {"c": true}}"#,
            ),
        ]));
        let all = [("a", "stream"), ("b", "os"), ("c", "true")];
        assert_eq!(fields.requirements, all.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn aliases_of_a_release_have_all_their_forms() {
        let yaml = "simplestream: {distro_name: Ubuntu, release_aliases: {noble: '24.04, 24'}}";
        let version = "images/u/noble/amd64/default/20240102";
        let mut files = files(&[(&format!("{version}/images.yaml"), yaml)]);
        let of = fields(&files);
        assert_eq!(of.aliases, ["u/24.04/default", "u/24.04", "u/24/default", "u/24"]);
        assert_eq!(of.os.as_deref(), Some("Ubuntu"));
        put(&mut files, &format!("{version}/metadata.json"), r#"{"os": "stronger"}"#);
        assert_eq!(fields(&files).os.as_deref(), Some("stronger"));
    }

    #[test]
    fn a_malformed_file_keeps_what_it_said() {
        let path = "images/u/noble/amd64/default/metadata.json";
        let mut files = files(&[(path, r#"{"os": "good"}"#)]);
        put(&mut files, path, r#"{"os": 7}"#);
        assert_eq!(fields(&files).os.as_deref(), Some("good"));
        let problems: Vec<_> = files.problems().map(ToString::to_string).collect();
        assert!(problems[0].contains("expected a string at line 1 column 8"), "{problems:?}");
        put(&mut files, path, r#"{"os": "mended"}"#);
        assert_eq!(files.problems().count(), 0);
        assert_eq!(fields(&files).os.as_deref(), Some("mended"));
        assert!(files.remove(path));
        assert_eq!(fields(&files), Fields::default());
        let remembered = || Some(br#"{"os": "remembered"}"#.to_vec());
        let format = kind::Overrides::MetadataJson;
        assert!(!files.insert(path, format, STAMP, Ok(b"bad"), remembered), "after a restart");
        assert_eq!(fields(&files).os.as_deref(), Some("remembered"));
    }
}
