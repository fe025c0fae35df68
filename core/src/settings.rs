//! What an index is made of: a root, its streams, and how they are watched.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of one index. Two equal settings mean the same index, which is then built once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The directory that holds the streams' directories, and below which paths in the index are
    /// relative; what a web server has as its document root.
    pub root: PathBuf,
    /// Names of the streams: each a directory under the root, served as `streams/v1/<name>.json`.
    pub streams: Vec<String>,
    /// Which aliases every product gets by default.
    pub aliases: Aliases,
    /// How long a file must have been unchanged before it is trusted, where nobody saw its writer
    /// close it.
    pub settle: Duration,
    /// How often the whole tree is looked at again, whatever the events said. Zero trusts events
    /// alone.
    pub rescan: Duration,
}

impl Settings {
    /// The stream that is there when nothing else is said.
    pub const DEFAULT_STREAM: &str = "images";
    /// Default of [`settle`](Self::settle).
    pub const DEFAULT_SETTLE: Duration = Duration::from_secs(2);
    /// Default of [`rescan`](Self::rescan).
    pub const DEFAULT_RESCAN: Duration = Duration::from_secs(300);

    /// Settings for `root`, everything else at its default.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            streams: vec![Self::DEFAULT_STREAM.to_owned()],
            aliases: Aliases::default(),
            settle: Self::DEFAULT_SETTLE,
            rescan: Self::DEFAULT_RESCAN,
        }
    }

    /// Name of this index among files: 32 hexadecimal digits, equal exactly for settings that make
    /// the same documents. How a tree is watched does not count: a reload that changes it goes on
    /// from what is there.
    pub fn id(&self) -> String {
        use std::os::unix::ffi::OsStrExt as _;
        let mut text = Vec::new();
        for part in std::iter::once(self.root.as_os_str().as_bytes())
            .chain(self.streams.iter().map(|s| s.as_bytes()))
        {
            text.extend_from_slice(part);
            text.push(0);
        }
        let Aliases { short, path, name } = self.aliases;
        text.extend([short, path, name].map(u8::from));
        format!("{:.32}", crate::Digest::of(&text))
    }
}

/// Checks the name of a stream: one to 64 ASCII letters, digits, `.`, `_` or `-`, not beginning
/// with a dot, and not `index` (its document would hide the index itself).
///
/// # Errors
///
/// Says what is wrong with the name, to be put behind the directive's or option's name.
pub fn check_stream_name(name: &str) -> Result<(), &'static str> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    match name {
        "" => Err("is empty"),
        "index" => Err("would hide index.json"),
        _ if name.len() > 64 => Err("is longer than 64 characters"),
        _ if name.starts_with('.') => Err("begins with a dot"),
        _ if !name.bytes().all(plain) => {
            Err("has a character other than letters, digits, \".\", \"_\" and \"-\"")
        }
        _ => Ok(()),
    }
}

/// Which aliases every product gets. Clients assign aliases in quadratic time (`CLIENTS.md`), so
/// sites with thousands of products give fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aliases {
    /// `os/release/variant`, and `os/release` for the variant `default` or none.
    pub short: bool,
    /// `os/release/arch/variant`.
    pub path: bool,
    /// `os:release:arch:variant`, the product's name.
    pub name: bool,
}

impl Aliases {
    /// No alias by default.
    pub const OFF: Self = Self { short: false, path: false, name: false };
}

impl Default for Aliases {
    fn default() -> Self {
        Self { short: true, path: true, name: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_tells_settings_apart() {
        let base = Settings::new("/srv/a");
        assert_eq!(base.id(), Settings::new("/srv/a").id());
        assert_eq!(base.id().len(), 32);
        let others = [
            Settings::new("/srv/b"),
            Settings { streams: vec!["images".into(), "daily".into()], ..base.clone() },
            Settings { streams: vec!["imagesdaily".into()], ..base.clone() },
            Settings { aliases: Aliases { name: false, ..Aliases::default() }, ..base.clone() },
        ];
        for other in others {
            assert_ne!(base.id(), other.id(), "{other:?}");
        }
        let settle = Duration::from_secs(3);
        assert_eq!(base.id(), Settings { settle, rescan: settle, ..base.clone() }.id());
    }

    #[test]
    fn stream_names() {
        for good in ["images", "images-daily", "a.b_c-1"] {
            assert_eq!(check_stream_name(good), Ok(()), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", "index", ".hidden", "..", "a/b", "a b", "ä", "a%2f", long.as_str()] {
            assert!(check_stream_name(bad).is_err(), "{bad}");
        }
    }
}
