//! Which names in the tree can be served, and what they mean.
//!
//! The rules are those of the strictest client: a listed path must be one that `lxc` and `incus`
//! both fetch unchanged (`CLIENTS.md`, "Aliases, paths").

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Longest product: components below the stream, the version not counted. A bound for symbolic
/// links that lead into themselves; real trees have three or four.
pub const MAX_COMPONENTS: usize = 12;

/// Components that every product has: os, release and architecture.
pub const MIN_COMPONENTS: usize = 3;

/// What is wrong with a name, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName {
    /// Why it cannot be listed.
    pub reason: &'static str,
    /// What helps.
    pub remedy: &'static str,
}

/// Checks that clients can fetch a path with this component in it. Names that begin with a dot
/// never get here: they are invisible.
///
/// # Errors
///
/// For invalid UTF-8, control characters, `%`, `?` and `\`.
pub fn check_path_component(name: &[u8]) -> Result<&str, BadName> {
    const RENAME: &str = "rename it";
    let bad = |reason| Err(BadName { reason, remedy: RENAME });
    let Ok(name) = str::from_utf8(name) else {
        return bad("the name is not valid UTF-8, which JSON cannot carry");
    };
    for c in name.chars() {
        match c {
            '%' => return bad("the name has a \"%\", which Incus cannot fetch"),
            '?' => return bad("the name has a \"?\", which ends the path in a URL"),
            '\\' => return bad("the name has a \"\\\", which clients turn into \"/\""),
            c if c.is_control() => return bad("the name has a control character"),
            _ => {}
        }
    }
    Ok(name)
}

/// Checks a component of a product: os, release, architecture or variant.
///
/// # Errors
///
/// As [`check_path_component`], and for `,`, which clients split aliases at, and `:`, which
/// separates the components of a product's name.
pub fn check_product_component(name: &[u8]) -> Result<&str, BadName> {
    let name = check_path_component(name)?;
    let bad = |reason| Err(BadName { reason, remedy: "rename the directory" });
    match name {
        _ if name.contains(',') => bad("the name has a comma, at which clients split aliases"),
        _ if name.contains(':') => {
            bad("the name has a colon, which separates the parts of a product's name")
        }
        _ if name.trim() != name => bad("the name begins or ends with white space"),
        _ => Ok(name),
    }
}

/// Whether a directory's name is that of a version: it starts with a real date, `YYYYMMDD`.
///
/// Clients drop every other version without a word.
pub fn is_version(name: &str) -> bool {
    let Some(date) = name.as_bytes().first_chunk::<8>() else {
        return false;
    };
    if !date.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let number = |digits: &[u8]| digits.iter().fold(0_u32, |n, d| n * 10 + u32::from(d - b'0'));
    let (year, month, day) = (number(&date[..4]), number(&date[4..6]), number(&date[6..]));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 0,
    };
    (1..=days).contains(&day)
}

/// A product: the path between stream and version. Cheap to clone: thousands of versions share it.
///
/// Ordered as documents are: by stream, then by the name under which the product is listed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProductName(Arc<Text>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Text {
    /// `stream/os:release:arch:…`.
    text: Box<str>,
    /// Length of the stream's name, in bytes.
    stream: usize,
}

impl ProductName {
    /// A product from a stream and at least [`MIN_COMPONENTS`] components, none of which has a colon.
    pub fn new(stream: &str, components: &[&str]) -> Option<Self> {
        (components.len() >= MIN_COMPONENTS).then(|| {
            let text = format!("{stream}/{}", components.join(":")).into();
            Self(Arc::new(Text { text, stream: stream.len() }))
        })
    }

    /// The product in `directory`, if one can be there.
    pub fn of(directory: &str) -> Option<Self> {
        let (stream, components) = directory.split_once('/')?;
        Self::new(stream, &components.split('/').collect::<Vec<_>>())
    }

    /// A bound for ranges: not behind any product in `directory`, which may be a stream's, or empty.
    pub fn bound(directory: &str) -> Self {
        let (stream, components) = directory.split_once('/').unwrap_or((directory, ""));
        let text = format!("{stream}/{}", components.replace('/', ":")).into();
        Self(Arc::new(Text { text, stream: stream.len() }))
    }

    /// The stream it belongs to.
    pub fn stream(&self) -> &str {
        &self.0.text[..self.0.stream]
    }

    /// The name under which it is listed: components joined by `:`.
    pub fn as_str(&self) -> &str {
        &self.0.text[self.0.stream + 1..]
    }

    /// Operating system or distribution.
    pub fn os(&self) -> &str {
        self.component(0)
    }

    /// Release of the operating system.
    pub fn release(&self) -> &str {
        self.component(1)
    }

    /// Architecture, as the tree spells it.
    pub fn arch(&self) -> &str {
        self.component(2)
    }

    fn component(&self, number: usize) -> &str {
        self.components().nth(number).unwrap_or_default()
    }

    /// What follows the architecture, joined by `/`; empty if nothing does.
    pub fn variant(&self) -> String {
        let variant = self.as_str().splitn(MIN_COMPONENTS + 1, ':').nth(MIN_COMPONENTS);
        variant.unwrap_or_default().replace(':', "/")
    }

    /// All components.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.as_str().split(':')
    }

    /// Its directory in the tree.
    pub fn path(&self) -> String {
        self.0.text.replace(':', "/")
    }
}

impl Ord for ProductName {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ordering::Equal;
        }
        if self.0.stream == other.0.stream {
            // Where the streams' names are equally long, that compares them first.
            return self.0.text.cmp(&other.0.text);
        }
        (self.stream(), self.as_str()).cmp(&(other.stream(), other.as_str()))
    }
}

impl PartialOrd for ProductName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ProductName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_start_with_a_real_date() {
        for good in [
            "20180716_12:00",
            "20180716_1200",
            "202407161200",
            "20180716",
            "20240229",
            "20000229-beta",
            "00010101",
        ] {
            assert!(is_version(good), "{good}");
        }
        for bad in [
            "",
            "2018071",
            "2026-08-23",
            "v2",
            "latest",
            "20180732",
            "20181301",
            "20180012",
            "20230229",
            "19000229",
            "20180700",
            "2018071x",
            "²0180716",
            "x20180716",
        ] {
            assert!(!is_version(bad), "{bad}");
        }
    }

    #[test]
    fn components_that_clients_fetch() {
        for good in ["xenial", "18.04", "a b", "a+b", "a#b", "ünï", "20180716_12:00", "a,b", "~"]
        {
            assert_eq!(check_path_component(good.as_bytes()), Ok(good));
        }
        for bad in ["a%b", "a?b", "a\\b", "a\nb", "a\u{7f}", "a\u{85}b"] {
            assert!(check_path_component(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(check_path_component(b"\xff\xfe").is_err());
    }

    #[test]
    fn products_have_neither_comma_nor_colon() {
        assert_eq!(check_product_component(b"a+b#c"), Ok("a+b#c"));
        for bad in ["a,b", "a:b", " a", "a\u{a0}", "a%"] {
            assert!(check_product_component(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_variant_is_what_follows_the_architecture() {
        let product = |path: &str| ProductName::new("images", &path.split('/').collect::<Vec<_>>());
        assert_eq!(product("ubuntu/noble"), None);
        let plain = product("ubuntu/noble/amd64").unwrap();
        assert_eq!(
            (plain.variant().as_str(), plain.to_string().as_str()),
            ("", "ubuntu:noble:amd64")
        );
        let deep = product("ubuntu/noble/amd64/cloud/minimal").unwrap();
        assert_eq!(deep.variant(), "cloud/minimal");
        assert_eq!(deep.to_string(), "ubuntu:noble:amd64:cloud:minimal");
    }
}
