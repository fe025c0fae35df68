//! What is wrong with the tree, as values an administrator can read.
//!
//! A bad image never stops the index and is never left out silently: it becomes a [`Problem`] that
//! names the path, the reason and the remedy. `Err` is for "no index can be made".

use std::path::{Path, PathBuf};
use std::{cmp, fmt};

use serde::{Deserialize, Serialize};

/// One thing in the tree that keeps something from being listed, or that will surprise someone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// Where it is, relative to the root; lossy where the name is not UTF-8.
    pub path: PathBuf,
    /// What is wrong: lower case, no full stop.
    pub reason: String,
    /// What the administrator can do about it: lower case, no full stop.
    pub remedy: String,
}

impl Problem {
    /// The target of log records that tell of problems, by which they are told from errors of the
    /// software.
    pub const LOG_TARGET: &str = "simplestreams::problem";

    /// Makes a problem; what is not [`printable`] is made visible, so that a name cannot forge a line
    /// in a log.
    pub fn new(path: &Path, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        let path = PathBuf::from(visible(&path.to_string_lossy(), MAX_PATH));
        let (reason, remedy) = (reason.into(), remedy.into());
        Self { path, reason: visible(&reason, MAX_TEXT), remedy: visible(&remedy, MAX_TEXT) }
    }
}

/// A problem, and since when it has been there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What is wrong.
    #[serde(flatten)]
    pub problem: Problem,
    /// When it was published first, in milliseconds since the epoch.
    #[serde(default)]
    pub since: u64,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\": {}; {}", self.path.display(), self.reason, self.remedy)
    }
}

impl Ord for Problem {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        (&self.path, &self.reason, &self.remedy).cmp(&(&other.path, &other.reason, &other.remedy))
    }
}

impl PartialOrd for Problem {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// `text` as one line of a log or a terminal: control characters, and those that turn the direction of
/// the text around them (Unicode's bidirectional controls, and its separators of lines and
/// paragraphs), are escaped. Names of files may hold any.
pub fn printable(text: &str) -> String {
    visible(text, usize::MAX)
}

/// Longest path and longest text, in bytes. Both may quote what was uploaded.
const MAX_PATH: usize = 4096;
const MAX_TEXT: usize = 1024;

/// As [`printable`], cut at `limit` bytes or a little more.
fn visible(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for c in text.chars() {
        if out.len() > limit {
            out.push('…');
            break;
        }
        let turns = matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
            || ('\u{2066}'..='\u{2069}').contains(&c);
        if turns || c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_a_log_line() {
        let problem = Problem::new(Path::new("images/a\nb\x1b[31m"), "why\r", "do");
        assert_eq!(problem.to_string(), r#""images/a\nb\u{1b}[31m": why\r; do"#);
        assert_eq!(printable("ä\u{202e}\u{2028}\u{1b}[2J"), r"ä\u{202e}\u{2028}\u{1b}[2J");
        assert!(Problem::new(Path::new("a"), "x".repeat(1 << 20), "y").reason.len() < 2000);
    }
}
