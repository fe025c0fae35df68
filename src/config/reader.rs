//! Takes keys out of what the files said, one type at a time, and remembers where each value came
//! from. What nobody took is unknown.

use std::path::PathBuf;
use std::time::Duration;

use super::source::{Place, Refusal, Said, Sayings, Value};

/// Keys beside those of mirrors and `[logging]`, for the nearest known one to a misspelt key.
const KNOWN: [&str; 14] = [
    "img_dir",
    "streams_dir",
    "streams",
    "pid_file",
    "data_dir",
    "settle",
    "rescan",
    "threads",
    "aliases",
    "log.level",
    "log.file",
    "log.format",
    "mirroring.concurrency",
    "mirroring.retry_max",
];

/// What must be a table wherever it is said.
const TABLES: [&str; 4] = ["log", "logging", "mirroring", "mirrors"];

/// How far a misspelt key may be from the one that is proposed (`strsim::normalized_levenshtein`).
const NEAR: f64 = 0.6;

/// A value as `lxd-image-server config` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub key: String,
    /// As TOML.
    pub value: String,
    /// `default`, or the place.
    pub origin: String,
}

/// See the module.
pub struct Reader {
    said: Sayings,
    shown: Vec<Shown>,
    notes: Vec<String>,
}

impl Reader {
    /// # Errors
    ///
    /// A table was given as something else, so that none of its keys would count.
    pub fn new(said: Sayings, notes: Vec<String>) -> Result<Self, Refusal> {
        for name in TABLES {
            match said.get([name.to_owned()].as_slice()) {
                Some(said) if said.value != Value::Table => {
                    return Err(wrong_type(&said.place, name, "a table", &said.value));
                }
                _ => {}
            }
        }
        Ok(Self { said, shown: Vec::new(), notes })
    }

    /// Whether any file says `key`.
    pub fn is_said(&self, key: &str) -> bool {
        self.said.contains_key(&split(key))
    }

    /// Where a file says `key`.
    pub fn place(&self, key: &str) -> Option<Place> {
        self.said.get(&split(key)).map(|said| said.place.clone())
    }

    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Takes everything whose key begins with `first`, without it.
    pub fn take_below(&mut self, first: &str) -> Sayings {
        let (below, rest) = std::mem::take(&mut self.said)
            .into_iter()
            .partition::<Sayings, _>(|(key, _)| key.first().is_some_and(|k| k == first));
        self.said = rest;
        below.into_iter().map(|(key, said)| (key[1..].to_vec(), said)).collect()
    }

    /// Records a value for people.
    pub fn show(&mut self, key: &str, value: String, place: Option<&Place>) {
        let origin = place.map_or_else(|| "default".to_owned(), Place::to_string);
        self.shown.push(Shown { key: key.to_owned(), value, origin });
    }

    fn take(&mut self, key: &str, default: &str) -> Option<Said> {
        let said = self.said.remove(&split(key));
        match &said {
            Some(said) => self.show(key, to_toml(&said.value), Some(&said.place)),
            None => self.show(key, default.to_owned(), None),
        }
        said
    }

    pub fn text(&mut self, key: &str, default: &str) -> Result<Option<(String, Place)>, Refusal> {
        let Some(said) = self.take(key, &quote(default)) else {
            return Ok(None);
        };
        match said.value {
            Value::Text(text) if !text.is_empty() => Ok(Some((text, said.place))),
            Value::Text(_) => Err(wrong(&said.place, key, "must not be empty")),
            other => Err(wrong_type(&said.place, key, "a string", &other)),
        }
    }

    pub fn path(&mut self, key: &str, default: &str) -> Result<PathBuf, Refusal> {
        Ok(self.text(key, default)?.map_or_else(|| default.into(), |(path, _)| path.into()))
    }

    /// One of a few words.
    pub fn choice(
        &mut self,
        key: &str,
        words: &[&str],
        default: &str,
    ) -> Result<Option<String>, Refusal> {
        match self.text(key, default)? {
            Some((word, place)) if !words.contains(&word.as_str()) => {
                let words = words.join(", ");
                Err(wrong(&place, key, &format!("must be one of {words}")))
            }
            word => Ok(word.map(|(word, _)| word)),
        }
    }

    /// A time: a string such as `"90s"` or `"5m"`, or a number of seconds.
    pub fn duration(&mut self, key: &str, default: Duration) -> Result<Duration, Refusal> {
        let shown = quote(&humantime::format_duration(default).to_string());
        let Some(said) = self.take(key, &shown) else {
            return Ok(default);
        };
        let seconds = |n: i64| u64::try_from(n).ok().map(Duration::from_secs);
        let duration = match &said.value {
            Value::Text(text) => humantime::parse_duration(text).ok(),
            Value::Number(number) => seconds(*number),
            other => return Err(wrong_type(&said.place, key, "a time", other)),
        };
        let what = "must be a time, such as \"90s\" or \"5m\"";
        duration.ok_or_else(|| wrong(&said.place, key, what))
    }

    /// A number from 1 to `most`; none if it was not said, which comes to `default`.
    pub fn count(
        &mut self,
        key: &str,
        most: u32,
        default: Option<u32>,
    ) -> Result<Option<u32>, Refusal> {
        let shown = default.map_or(String::new(), |number| number.to_string());
        let Some(said) = self.take(key, &shown) else {
            return Ok(None);
        };
        let Value::Number(number) = said.value else {
            return Err(wrong_type(&said.place, key, "a number", &said.value));
        };
        let what = format!("must be from 1 to {most}");
        let number = u32::try_from(number).ok().filter(|n| (1..=most).contains(n));
        number.map(Some).ok_or_else(|| wrong(&said.place, key, &what))
    }

    pub fn list(
        &mut self,
        key: &str,
        default: &[String],
    ) -> Result<Option<(Vec<String>, Place)>, Refusal> {
        let Some(said) = self.take(key, &to_toml(&Value::List(default.to_vec()))) else {
            return Ok(None);
        };
        match said.value {
            Value::List(list) => Ok(Some((list, said.place))),
            other => Err(wrong_type(&said.place, key, "a list of strings", &other)),
        }
    }

    /// What was read, and what there is to say about it: whatever is left is unknown.
    pub fn finish(mut self) -> (Vec<Shown>, Vec<String>) {
        for (key, said) in std::mem::take(&mut self.said) {
            if said.value == Value::Table {
                continue;
            }
            self.unknown(&key.join("."), &KNOWN, &said.place);
        }
        (self.shown, self.notes)
    }

    /// Notes an unknown key, with the nearest of those that are known.
    pub fn unknown(&mut self, key: &str, known: &[&str], place: &Place) {
        let nearest = known
            .iter()
            .map(|known| (strsim::normalized_levenshtein(key, known), known))
            .filter(|(near, _)| *near >= NEAR)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = nearest.map_or(String::new(), |(_, k)| format!("; did you mean \"{k}\"?"));
        self.note(format!("{place}: unknown key \"{key}\" is ignored{hint}"));
    }
}

fn split(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

/// A key's value is not what it must be.
pub fn wrong(place: &Place, key: &str, what: &str) -> Refusal {
    Refusal(format!("{place}: key \"{key}\" {what}"))
}

/// A key's value is of another type.
pub fn wrong_type(place: &Place, key: &str, wanted: &str, value: &Value) -> Refusal {
    wrong(place, key, &format!("must be {wanted}, not {}", value.kind()))
}

/// A string as TOML has it.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

/// A value as TOML has it.
pub fn to_toml(value: &Value) -> String {
    match value {
        Value::Text(text) => quote(text),
        Value::Number(number) => number.to_string(),
        Value::Switch(value) => value.to_string(),
        Value::List(list) => {
            format!("[{}]", list.iter().map(|text| quote(text)).collect::<Vec<_>>().join(", "))
        }
        Value::Table => "{}".to_owned(),
        Value::Other(name) => format!("({name})"),
    }
}
