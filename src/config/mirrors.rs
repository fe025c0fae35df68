//! `[mirrors.NAME]`: who is pushed to, and how.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::reader::{Reader, to_toml, wrong, wrong_type};
use super::source::{Key, Place, Refusal, Said, Sayings, Value};

const KEYS: [&str; 9] = [
    "user",
    "url",
    "remote",
    "key_path",
    "port",
    "path",
    "bandwidth",
    "known_hosts",
    "push_streams",
];

/// A mirror, as configured. Two equal ones are the same mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub user: String,
    /// Host name or address, for ssh.
    pub host: String,
    /// ssh's own, which its configuration may name, if it is not said.
    pub port: Option<u16>,
    pub key_path: PathBuf,
    /// The root there, which holds the directory of images; the same as here if it is not said.
    pub path: Option<String>,
    /// As rsync's `--bwlimit` has it: KiB per second, or with a unit.
    pub bandwidth: Option<String>,
    pub known_hosts: Option<PathBuf>,
    /// Whether the index files are pushed too.
    pub push_streams: bool,
}

/// Moves mirrors at the top level to where they belong, and says so.
///
/// The Python tool's documentation indents `[mirror1]` below `[mirrors]`. To TOML, to which
/// indentation means nothing, that is a table at the top.
pub fn adopt(said: &mut Sayings) -> Vec<String> {
    if !said.keys().any(|key| key[0] == "mirrors") {
        return Vec::new();
    }
    let names: BTreeSet<String> = said
        .keys()
        .filter(|key| key.len() == 2 && ["remote", "url", "key_path"].contains(&key[1].as_str()))
        .map(|key| key[0].clone())
        .filter(|name| !["mirrors", "mirroring", "log", "logging"].contains(&name.as_str()))
        .collect();
    let mut notes = Vec::new();
    for name in names {
        let keys: Vec<Key> = said.keys().filter(|key| key[0] == name).cloned().collect();
        let place = keys.first().and_then(|key| said.get(key)).map(|said| said.place.clone());
        for key in keys {
            if let Some(value) = said.remove(&key) {
                said.insert([&["mirrors".to_owned()], &key[..]].concat(), value);
            }
        }
        let file = place.map_or(String::new(), |place| format!("{place}: "));
        notes.push(format!(
            "{file}[{name}] is taken for a mirror; write [mirrors.{name}], for in TOML [{name}] \
             stands at the top whatever its indentation"
        ));
    }
    notes
}

/// Reads every mirror.
pub fn read(reader: &mut Reader) -> Result<BTreeMap<String, Mirror>, Refusal> {
    let mut tables: BTreeMap<String, Sayings> = BTreeMap::new();
    for (key, said) in reader.take_below("mirrors") {
        match key.split_first() {
            Some((name, [])) if said.value == Value::Table => {
                return Err(wrong(&said.place, &format!("mirrors.{name}"), "has no keys"));
            }
            Some((name, [])) => {
                let key = format!("mirrors.{name}");
                return Err(wrong_type(&said.place, &key, "a table", &said.value));
            }
            Some((name, rest)) => {
                tables.entry(name.clone()).or_default().insert(rest.to_vec(), said);
            }
            None => {} // An empty [mirrors].
        }
    }
    let mut mirrors = BTreeMap::new();
    for (name, said) in tables {
        let place = said.values().next().map(|said| said.place.clone());
        let table = Table { reader, name: &name, said };
        let mirror = table.read().map_err(|problem| match (problem, place) {
            (Problem::At(refusal), _) => refusal,
            (Problem::Missing(what), Some(place)) => {
                Refusal(format!("{place}: mirror \"{name}\" needs {what}"))
            }
            (Problem::Missing(what), None) => Refusal(format!("mirror \"{name}\" needs {what}")),
        })?;
        mirrors.insert(name, mirror);
    }
    Ok(mirrors)
}

enum Problem {
    At(Refusal),
    Missing(&'static str),
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::At(refusal)
    }
}

struct Table<'r> {
    reader: &'r mut Reader,
    name: &'r str,
    said: Sayings,
}

impl Table<'_> {
    fn read(mut self) -> Result<Mirror, Problem> {
        if !is_plain(self.name, "") {
            let what = "is no name for a mirror: letters, digits, \".\", \"_\" and \"-\" are";
            let place = self.said.values().next().map(|said| said.place.clone());
            return Err(place.map_or(Problem::Missing("a name"), |place| {
                Problem::At(wrong(&place, &format!("mirrors.{}", self.name), what))
            }));
        }
        let user = self.text("user")?;
        let (remote, url) = (self.text("remote")?, self.text("url")?);
        let key_path = self.text("key_path")?;
        let mirror = Mirror {
            user: self.checked("user", user)?.ok_or(Problem::Missing("a \"user\""))?,
            host: self.host(remote, url)?,
            port: self.port()?,
            key_path: file(key_path.ok_or(Problem::Missing("a \"key_path\""))?.0),
            path: self.root()?,
            bandwidth: self.bandwidth()?,
            known_hosts: self.text("known_hosts")?.map(|(path, _)| file(path)),
            push_streams: self.switch("push_streams")?,
        };
        for (key, said) in std::mem::take(&mut self.said) {
            self.reader.unknown(&key.join("."), &KEYS, &said.place);
        }
        Ok(mirror)
    }

    fn key(&self, key: &str) -> String {
        format!("mirrors.{}.{key}", self.name)
    }

    fn take(&mut self, key: &str) -> Option<Said> {
        let said = self.said.remove(&vec![key.to_owned()])?;
        let shown = self.key(key);
        self.reader.show(&shown, to_toml(&said.value), Some(&said.place));
        Some(said)
    }

    fn text(&mut self, key: &str) -> Result<Option<(String, Place)>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Said { value: Value::Text(text), place }) if !text.is_empty() => {
                Ok(Some((text, place)))
            }
            Some(said) => Err(wrong_type(
                &said.place,
                &self.key(key),
                "a string with something in it",
                &said.value,
            )),
        }
    }

    /// A user or host: nothing that ssh or rsync could take for an option or for several words.
    fn checked(&self, key: &str, text: Option<(String, Place)>) -> Result<Option<String>, Refusal> {
        // To rsync, a colon in the user ends the host.
        let more = if key == "user" { "" } else { ":%[]" };
        match text {
            Some((text, place)) if !is_plain(&text, more) => {
                Err(wrong(&place, &self.key(key), &format!("is no {key}: \"{text}\"")))
            }
            text => Ok(text.map(|(text, _)| text)),
        }
    }

    /// `remote` is a host, or a host of ours in a `url`, whose port is the web server's.
    fn host(
        &self,
        remote: Option<(String, Place)>,
        url: Option<(String, Place)>,
    ) -> Result<String, Problem> {
        if let Some(remote) = self.checked("remote", remote)? {
            return Ok(remote);
        }
        let (url, place) = url.ok_or(Problem::Missing("a \"remote\" or a \"url\""))?;
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let authority = rest.unwrap_or(&url).split(['/', '?', '#']).next().unwrap_or_default();
        let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => authority.split(':').next().unwrap_or_default(),
        };
        let host = self.checked("url", Some((host.to_owned(), place)))?;
        host.ok_or(Problem::Missing("a host in its \"url\""))
    }

    fn port(&mut self) -> Result<Option<u16>, Refusal> {
        let Some(said) = self.take("port") else {
            return Ok(None);
        };
        match said.value {
            Value::Number(port @ 1..=65535) => Ok(u16::try_from(port).ok()),
            Value::Number(_) => {
                Err(wrong(&said.place, &self.key("port"), "must be from 1 to 65535"))
            }
            other => Err(wrong_type(&said.place, &self.key("port"), "a number", &other)),
        }
    }

    fn root(&mut self) -> Result<Option<String>, Refusal> {
        match self.text("path")? {
            Some((path, place)) if !path.starts_with('/') || path.contains(char::is_control) => {
                Err(wrong(&place, &self.key("path"), "must be an absolute path"))
            }
            Some((path, _)) => Ok(Some(path.trim_end_matches('/').to_owned())),
            None => Ok(None),
        }
    }

    fn bandwidth(&mut self) -> Result<Option<String>, Refusal> {
        let Some(said) = self.take("bandwidth") else {
            return Ok(None);
        };
        let what = "must be a number of KiB per second, or a string such as \"10m\"";
        let refusal = wrong(&said.place, &self.key("bandwidth"), what);
        match said.value {
            Value::Number(number) if number > 0 => Ok(Some(number.to_string())),
            Value::Text(text) => {
                let digits = text.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G']);
                let number = digits.parse::<f64>().is_ok_and(|n| n > 0.0 && n.is_finite());
                if number && text.len() <= digits.len() + 1 { Ok(Some(text)) } else { Err(refusal) }
            }
            _ => Err(refusal),
        }
    }

    fn switch(&mut self, key: &str) -> Result<bool, Refusal> {
        match self.take(key) {
            None => Ok(false),
            Some(Said { value: Value::Switch(value), .. }) => Ok(value),
            Some(said) => {
                Err(wrong_type(&said.place, &self.key(key), "true or false", &said.value))
            }
        }
    }
}

/// The path of a file that ssh is to use. As for ssh, `~/` is the user's home; and what is relative is so to
/// where this process runs, not to where rsync does.
fn file(path: String) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let path = match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    };
    std::path::absolute(&path).unwrap_or(path)
}

fn is_plain(text: &str, more: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || more.contains(c);
    !text.is_empty() && !text.starts_with(['-', '.']) && text.chars().all(plain)
}
