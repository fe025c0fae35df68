//! The Python tool's `[logging]` tables (Python's `logging.config` scheme), as far as they say level
//! and file. The rest has no meaning here, and is noted once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use log::LevelFilter;

use super::reader::{Reader, to_toml};
use super::source::{Sayings, Value};
use crate::logging::Target;

/// The Python tool's own logger; without it the root logger counts.
const LOGGER: &str = "lxd_image_server";

/// Keys that say how Python is to set its loggers up, and nothing else.
const SILENT: [&str; 4] = ["version", "disable_existing_loggers", "incremental", "propagate"];

/// The targets, or none if there is no `[logging]`, or it names none.
pub fn read(reader: &mut Reader) -> Option<Vec<(Target, LevelFilter)>> {
    let said = reader.take_below("logging");
    if said.is_empty() {
        return None;
    }
    let mut rest = Vec::new();
    for (key, said) in &said {
        let known = ["level", "filename", "class", "handlers", "stream"];
        let last = key.last().map_or("", String::as_str);
        if known.contains(&last) && key.first().is_some_and(|k| k != "formatters") {
            let key = format!("logging.{}", key.join("."));
            reader.show(&key, to_toml(&said.value), Some(&said.place));
        } else if !SILENT.contains(&last) {
            rest.push(key.join("."));
        }
    }
    if !rest.is_empty() {
        reader.note(format!(
            "[logging]: only levels, files and streams are used, not {}; lines have the form that \
             the key \"log.format\" names",
            rest.join(", ")
        ));
    }
    let logger = [&["loggers", LOGGER][..], &["root"]].into_iter().find(|logger| {
        get(&said, logger, "handlers").is_some() || level(&said, logger).is_some()
    })?;
    let most = level(&said, logger).unwrap_or(LevelFilter::Info);
    let Some(Value::List(handlers)) = get(&said, logger, "handlers") else {
        return Some(vec![(Target::Stderr, most)]);
    };
    let mut sinks: BTreeMap<Target, LevelFilter> = BTreeMap::new();
    for handler in handlers {
        let handler = ["handlers", handler];
        let target = match (text(&said, &handler, "filename"), text(&said, &handler, "stream")) {
            (Some(file), _) => Target::File(PathBuf::from(file)),
            (None, Some("ext://sys.stdout")) => Target::Stdout,
            (None, _) => Target::Stderr,
        };
        let least = level(&said, &handler).unwrap_or(most).min(most);
        sinks.insert(target, least);
    }
    (!sinks.is_empty()).then(|| sinks.into_iter().collect())
}

fn get<'s>(said: &'s Sayings, table: &[&str], key: &str) -> Option<&'s Value> {
    let key: Vec<String> = table.iter().chain([&key]).map(|&part| part.to_owned()).collect();
    said.get(&key).map(|said| &said.value)
}

fn text<'s>(said: &'s Sayings, table: &[&str], key: &str) -> Option<&'s str> {
    match get(said, table, key) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

/// Python's names of levels.
fn level(said: &Sayings, table: &[&str]) -> Option<LevelFilter> {
    match text(said, table, "level")? {
        "CRITICAL" | "FATAL" | "ERROR" => Some(LevelFilter::Error),
        "WARNING" | "WARN" => Some(LevelFilter::Warn),
        "INFO" => Some(LevelFilter::Info),
        "DEBUG" | "NOTSET" => Some(LevelFilter::Debug),
        _ => None,
    }
}
