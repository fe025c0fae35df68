//! One configuration file: from TOML to keys with values, each knowing its line and column.
//!
//! Which keys mean anything is not decided here.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

/// A key from the top, such as `["mirrors", "one", "user"]`.
pub type Key = Vec<String>;

/// Where something was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// A value that is not a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
    Switch(bool),
    List(Vec<String>),
    /// An empty table, which says only that it is there.
    Table,
    /// Anything else, by the name of its type.
    Other(&'static str),
}

impl Value {
    /// The name of its type, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Number(_) => "a number",
            Self::Switch(_) => "true or false",
            Self::List(_) => "a list of strings",
            Self::Table => "a table",
            Self::Other(name) => name,
        }
    }
}

/// A value and where it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub value: Value,
    pub place: Place,
}

/// What files say, keys in order. Values of a later file override those of an earlier one.
pub type Sayings = BTreeMap<Key, Said>;

/// Why a file cannot be used: one line, with file, line and column where there are any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Reads one file.
///
/// # Errors
///
/// When it cannot be read, or is no TOML.
pub fn read(path: &Path) -> Result<Sayings, Refusal> {
    let refuse = |err: io::Error| Refusal(format!("cannot read \"{}\" ({err})", path.display()));
    let mut file = File::open(path).map_err(refuse)?;
    check_writers(path, &file.metadata().map_err(refuse)?).map_err(Refusal)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(refuse)?;
    parse(path, &text)
}

/// Refuses a file that everybody may write to or replace: it names directories, keys and hosts.
fn check_writers(path: &Path, meta: &Metadata) -> Result<(), String> {
    let everybody = |what: &Path| {
        let (what, shown) = (what.display(), path.display());
        Err(format!(
            "everybody may write to \"{what}\", so \"{shown}\" is not read; run: chmod o-w {what}"
        ))
    };
    if meta.is_file() && meta.mode() & 0o002 != 0 {
        return everybody(path);
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let Ok(dir) = std::fs::metadata(parent) else {
        return Ok(());
    };
    let own = [0, rustix::process::geteuid().as_raw()].contains(&meta.uid());
    // In a sticky one, everybody may add a file, and replace none but their own.
    let sticky = dir.mode() & 0o1000 != 0 && own;
    if meta.is_file() && dir.mode() & 0o002 != 0 && !sticky {
        return everybody(parent);
    }
    Ok(())
}

/// Parses the text of the file `path`.
pub fn parse(path: &Path, text: &str) -> Result<Sayings, Refusal> {
    let text = &Text { file: path.into(), text };
    let table = DeTable::parse(text.text).map_err(|err| {
        let span = err.span().unwrap_or_default();
        let near = text.text.get(span.clone()).and_then(|near| near.lines().next());
        let near = near.filter(|near| !near.is_empty()).map(|near| format!(" at \"{near}\""));
        let message = err.message().replace('\n', ", ");
        Refusal(format!("{}: {message}{}", text.place(span), near.unwrap_or_default()))
    })?;
    let mut said = BTreeMap::new();
    flatten(text, &Vec::new(), table.get_ref(), &mut said);
    Ok(said)
}

fn flatten(text: &Text<'_>, above: &Key, table: &DeTable<'_>, said: &mut Sayings) {
    for (name, value) in table {
        let mut key = above.clone();
        key.push(name.get_ref().to_string());
        let place = text.place(name.span());
        let value = match value.get_ref() {
            DeValue::Table(table) if !table.is_empty() => {
                flatten(text, &key, table, said);
                continue;
            }
            DeValue::Table(_) => Value::Table,
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Value::Other("a number too large"), Value::Number),
            DeValue::Boolean(value) => Value::Switch(*value),
            DeValue::Array(values) => {
                let texts = values.iter().map(|value| value.get_ref().as_str().map(str::to_owned));
                texts.collect::<Option<_>>().map_or(Value::Other("a list"), Value::List)
            }
            DeValue::Float(_) => Value::Other("a fraction"),
            DeValue::Datetime(_) => Value::Other("a date"),
        };
        said.insert(key, Said { value, place });
    }
}

struct Text<'t> {
    file: Arc<Path>,
    text: &'t str,
}

impl Text<'_> {
    fn place(&self, span: Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Place { file: Arc::clone(&self.file), line, column }
    }
}

/// The configuration files that are there, in the order in which they are read.
///
/// `home` is the user's home, `named` what the environment names; `etc` is `/etc`.
pub fn files(etc: &Path, home: Option<&Path>, named: Option<PathBuf>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let homes = home.map(|home| home.join(".config"));
    for dir in [Some(etc.to_owned()), homes].into_iter().flatten() {
        let dir = dir.join("lxd-image-server");
        files.extend(Some(dir.join("config.toml")).filter(|file| file.exists()));
        let mut parts: Vec<PathBuf> = std::fs::read_dir(dir.join("conf.d"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file() && !is_hidden(path))
            .collect();
        parts.sort();
        files.extend(parts);
    }
    // One that is named and missing is an error, found when it is read.
    files.extend(named);
    files
}

/// Editors' and package managers' left-overs.
fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || name.ends_with('~') || name.contains(".dpkg-")
}
