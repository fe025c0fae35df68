//! What files in the tree say about a product beyond its path: `metadata.json`, the `image.yaml` of
//! lxd-imagebuilder, and `.requirements`.
//!
//! Parsing only; where such files are found, and which of them wins, is decided in
//! [`crate::fields`].

mod de;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::kind;
use crate::name::ProductName;

/// Most bytes of such a file that are read. Real ones have a few hundred.
pub const MAX_BYTES: u64 = 1 << 20;

/// What one file says. Every field is optional; a field that is absent says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Said {
    /// Name of the operating system, as clients show it.
    #[serde(default, deserialize_with = "de::text")]
    pub os: Option<String>,
    /// Name of the release, as clients show it.
    #[serde(default, deserialize_with = "de::text")]
    pub release_title: Option<String>,
    /// Code name of the release.
    #[serde(default, deserialize_with = "de::text")]
    pub release_codename: Option<String>,
    /// Version of the release.
    #[serde(default, deserialize_with = "de::text")]
    pub version: Option<String>,
    /// Variant, as clients show it; aliases go by the path.
    #[serde(default, deserialize_with = "de::text")]
    pub variant: Option<String>,
    /// Label of the version whose directory the file is in.
    #[serde(default, deserialize_with = "de::text")]
    pub label: Option<String>,
    /// Aliases beside the default ones.
    #[serde(default, deserialize_with = "de::aliases")]
    pub aliases: Option<Vec<String>>,
    /// What clients need to run the image; values are strings.
    #[serde(default, deserialize_with = "de::requirements")]
    pub requirements: Option<BTreeMap<String, String>>,
    /// End of support, `YYYY-MM-DD`.
    #[serde(default, deserialize_with = "de::date")]
    pub support_eol: Option<String>,
    /// Whether the release is supported.
    #[serde(default, deserialize_with = "de::flag")]
    pub supported: Option<bool>,
    /// `image.yaml` only: aliases of releases, each with all its forms.
    #[serde(skip)]
    pub release_aliases: BTreeMap<String, Vec<String>>,
    /// `image.yaml` only: requirements for some products.
    #[serde(skip)]
    pub filtered: Vec<Filtered>,
}

/// Requirements that hold for the products that every filter lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    releases: Vec<String>,
    architectures: Vec<String>,
    variants: Vec<String>,
    requirements: BTreeMap<String, String>,
}

impl Said {
    /// Requirements that it states for a product; `None` if it says nothing about requirements.
    pub fn requirements_of(&self, product: &ProductName) -> Option<BTreeMap<String, String>> {
        if self.requirements.is_none() && self.filtered.is_empty() {
            return None;
        }
        let mut all = self.requirements.clone().unwrap_or_default();
        for filtered in &self.filtered {
            let passes = |filter: &[String], value: &str| {
                filter.is_empty() || filter.iter().any(|allowed| allowed == value)
            };
            if passes(&filtered.releases, product.release())
                && passes(&filtered.architectures, product.arch())
                && passes(&filtered.variants, &product.variant())
            {
                all.extend(filtered.requirements.clone());
            }
        }
        Some(all)
    }
}

/// Reads a file of this format. The second value are keys that mean nothing, probably misspelled.
///
/// # Errors
///
/// What is wrong, with line and column where the parser knows them.
pub fn parse(format: kind::Overrides, content: &[u8]) -> Result<(Said, Vec<String>), String> {
    if content.starts_with(b"\xef\xbb\xbf") {
        return Err("it begins with a byte order mark, expected text without one".to_owned());
    }
    match format {
        kind::Overrides::MetadataJson => {
            let mut unknown = Vec::new();
            let mut json = serde_json::Deserializer::from_slice(content);
            let said = serde_ignored::deserialize(&mut json, |key| unknown.push(key.to_string()));
            let said = said.and_then(|said| json.end().map(|()| said));
            let said = said.map_err(|err| err.to_string())?;
            // An array would do for a struct.
            if !content.trim_ascii_start().starts_with(b"{") {
                return Err("expected an object at line 1 column 1".to_owned());
            }
            Ok((said, unknown))
        }
        kind::Overrides::Requirements => {
            let de::Requirements(requirements) =
                serde_json::from_slice(content).map_err(|err| err.to_string())?;
            Ok((Said { requirements: Some(requirements), ..Said::default() }, Vec::new()))
        }
        kind::Overrides::ImageYaml => yaml(content).map(|said| (said, Vec::new())),
    }
}

/// The part of an lxd-imagebuilder definition that is for the index. The rest of the definition is
/// for building the image, and is passed over.
#[derive(Default, Deserialize)]
struct Definition {
    #[serde(default)]
    simplestream: Option<Simplestream>,
}

#[derive(Default, Deserialize)]
struct Simplestream {
    #[serde(default)]
    distro_name: Option<String>,
    #[serde(default)]
    release_aliases: BTreeMap<String, de::Scalar>,
    #[serde(default)]
    requirements: Vec<YamlRequirements>,
}

#[derive(Default, Deserialize)]
struct YamlRequirements {
    #[serde(default)]
    releases: Vec<de::Scalar>,
    #[serde(default)]
    architectures: Vec<de::Scalar>,
    /// Its documentation says `variant`, its code `variants`.
    #[serde(default, alias = "variant")]
    variants: Vec<de::Scalar>,
    #[serde(default)]
    requirements: de::Requirements,
}

fn yaml(content: &[u8]) -> Result<Said, String> {
    let text = str::from_utf8(content).map_err(|err| err.to_string())?;
    // An empty document is a definition that says nothing.
    let definition: Option<Definition> =
        serde_saphyr::from_str(text).map_err(|err| first_line(&err.to_string()))?;
    let Some(simplestream) = definition.and_then(|definition| definition.simplestream) else {
        return Ok(Said::default());
    };
    simplestream.distro_name.as_deref().map_or(Ok(()), de::check)?;
    let lists = simplestream.requirements.iter().flat_map(|of| &of.requirements.0);
    de::check_requirements(lists)?;
    let release_aliases = simplestream
        .release_aliases
        .into_iter()
        .map(|(release, of)| {
            let aliases = de::split_aliases(&of.0);
            de::check_aliases(&aliases).map(|()| (release, aliases))
        })
        .collect::<Result<_, _>>()?;
    let strings = |scalars: Vec<de::Scalar>| scalars.into_iter().map(|scalar| scalar.0).collect();
    let filtered = |of: YamlRequirements| Filtered {
        releases: strings(of.releases),
        architectures: strings(of.architectures),
        variants: strings(of.variants),
        requirements: of.requirements.0,
    };
    Ok(Said {
        os: simplestream.distro_name.filter(|name| !name.is_empty()),
        release_aliases,
        filtered: simplestream.requirements.into_iter().map(filtered).collect(),
        ..Said::default()
    })
}

/// The message without the excerpt that the YAML reader draws below it.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or(message).to_owned()
}

#[cfg(test)]
mod tests;
