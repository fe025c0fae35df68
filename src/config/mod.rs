//! The configuration: where it is read from, how files are merged, and what it comes to.
//!
//! ```text
//! files ──source──▶ keys and values, later files over earlier ──reader──▶ Config
//! ```
//!
//! Every value knows the file, line and column that it comes from: for messages, and for
//! `lxd-image-server config`.

mod logging;
mod mirrors;
mod reader;
mod source;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use log::LevelFilter;
use simplestreams::{Aliases, Settings, check_stream_name, default_threads};

pub use mirrors::Mirror;
pub use reader::quote as toml_text;
pub use source::Refusal;

use crate::logging::{Format, LogSettings, Target};
use crate::out;
use reader::{Reader, Shown};
use source::Sayings;

/// Where the Python tool had its pid file, which scripts know.
const PID_FILE: &str = "/var/run/lxd-image-server/pidfile";
const IMG_DIR: &str = "/var/www/simplestreams/images";
const STREAMS_DIR: &str = "/var/www/simplestreams/streams/v1";
const DATA_DIR: &str = "/var/lib/lxd-image-server";

/// How many mirrors are pushed to at once.
const CONCURRENCY: u32 = 4;

/// Longest time between two tries to reach a mirror that is down. It catches up at most this long
/// after it is back.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// The shortest one, and the first.
pub const RETRY_MIN: Duration = Duration::from_secs(1);

/// Environment variable that names one more file.
const NAMED: &str = "LXD_IMAGE_SERVER_CONFIG";

/// The merged configuration.
#[derive(Debug)]
pub struct Config {
    pub img_dir: PathBuf,
    pub streams_dir: PathBuf,
    /// Directories beside `img_dir` that are streams, too.
    pub streams: Vec<String>,
    pub pid_file: PathBuf,
    /// The pid file was asked for, so that it must be possible to write it.
    pub pid_file_named: bool,
    /// Where `watch` keeps what it knows of the mirrors.
    pub data_dir: PathBuf,
    pub settle: Duration,
    pub rescan: Duration,
    pub threads: Option<NonZeroUsize>,
    pub aliases: Aliases,
    pub log: LogSettings,
    pub mirrors: BTreeMap<String, Mirror>,
    pub mirroring: Mirroring,
    /// Every value with the place it comes from, for people.
    pub shown: Vec<Shown>,
    /// What the administrator should know: unknown keys and the like. One line each.
    pub notes: Vec<String>,
}

/// What holds for all mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirroring {
    /// How many are pushed to at once.
    pub concurrency: u32,
    /// Longest time between two tries.
    pub retry_max: Duration,
}

/// What tells whether files are other ones than before: name, device, inode, length, time.
pub type Stamp = Vec<(PathBuf, Option<(u64, u64, u64, SystemTime)>)>;

/// Where configuration is looked for.
#[derive(Clone, Debug)]
pub enum Sources {
    /// One file and no other.
    Only(PathBuf),
    /// The system's, the user's, and the one that the environment names.
    Usual,
}

impl Sources {
    /// The files, in the order in which they are merged.
    pub fn files(&self) -> Vec<PathBuf> {
        let path = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        match self {
            Self::Only(file) => vec![file.clone()],
            Self::Usual => source::files(Path::new("/etc"), path("HOME").as_deref(), path(NAMED)),
        }
    }

    /// What tells whether any file has changed.
    pub fn stamp(&self) -> Stamp {
        use std::os::unix::fs::MetadataExt as _;
        let of = |file: &PathBuf| {
            let meta = std::fs::metadata(file).ok()?;
            Some((meta.dev(), meta.ino(), meta.len(), meta.modified().ok()?))
        };
        self.files().into_iter().map(|file| (file.clone(), of(&file))).collect()
    }

    /// Reads and merges everything.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong in any file, with its place.
    pub fn load(&self) -> Result<Config, Refusal> {
        let mut said = Sayings::new();
        let mut notes = Vec::new();
        for file in self.files() {
            let mut more = source::read(&file)?;
            notes.extend(mirrors::adopt(&mut more));
            said.extend(more);
        }
        Config::new(said, notes)
    }
}

impl Config {
    fn new(said: Sayings, notes: Vec<String>) -> Result<Self, Refusal> {
        let mut reader = Reader::new(said, notes)?;
        let aliases = aliases(&mut reader)?;
        let streams = streams(&mut reader)?;
        let threads = u32::try_from(default_threads().get()).ok();
        let pid_file_named = reader.is_said("pid_file");
        let config = Self {
            img_dir: reader.path("img_dir", IMG_DIR)?,
            streams_dir: reader.path("streams_dir", STREAMS_DIR)?,
            streams,
            pid_file: reader.path("pid_file", PID_FILE)?,
            pid_file_named,
            data_dir: reader.path("data_dir", DATA_DIR)?,
            settle: reader.duration("settle", Settings::DEFAULT_SETTLE)?,
            rescan: reader.duration("rescan", Settings::DEFAULT_RESCAN)?,
            threads: reader
                .count("threads", 1024, threads)?
                .and_then(|n| NonZeroUsize::new(n as usize)),
            aliases,
            log: log_settings(&mut reader)?,
            mirroring: Mirroring {
                concurrency: reader
                    .count("mirroring.concurrency", 64, Some(CONCURRENCY))?
                    .unwrap_or(CONCURRENCY),
                retry_max: retry_max(&mut reader)?,
            },
            mirrors: mirrors::read(&mut reader)?,
            shown: Vec::new(),
            notes: Vec::new(),
        };
        let (shown, notes) = reader.finish();
        Ok(Self { shown, notes, ..config })
    }
}

/// Prints the merged configuration as TOML, each value with the place that it comes from.
pub fn print(config: &Config) {
    let line = |shown: &Shown| format!("{} = {}", shown.key, shown.value);
    let width = config.shown.iter().map(|shown| line(shown).len()).max().unwrap_or(0);
    for shown in &config.shown {
        out::line(format_args!("{:width$}  # {}", line(shown), shown.origin));
    }
}

fn aliases(reader: &mut Reader) -> Result<Aliases, Refusal> {
    let default = ["short", "path", "name"].map(str::to_owned);
    let Some((words, place)) = reader.list("aliases", &default)? else {
        return Ok(Aliases::default());
    };
    let mut aliases = Aliases::OFF;
    for word in words {
        match word.as_str() {
            "short" => aliases.short = true,
            "path" => aliases.path = true,
            "name" => aliases.name = true,
            other => {
                return Err(Refusal(format!(
                    "{place}: key \"aliases\": \"{other}\" is none of short, path, name"
                )));
            }
        }
    }
    Ok(aliases)
}

fn streams(reader: &mut Reader) -> Result<Vec<String>, Refusal> {
    let Some((names, place)) = reader.list("streams", &[])? else {
        return Ok(Vec::new());
    };
    for name in &names {
        if let Err(what) = check_stream_name(name) {
            return Err(Refusal(format!("{place}: key \"streams\": the name \"{name}\" {what}")));
        }
    }
    Ok(names)
}

fn retry_max(reader: &mut Reader) -> Result<Duration, Refusal> {
    let place = reader.place("mirroring.retry_max");
    let time = reader.duration("mirroring.retry_max", RETRY_MAX)?;
    match place {
        // A mirror that is down is not to be asked all the time.
        Some(place) if time < RETRY_MIN => {
            Err(reader::wrong(&place, "mirroring.retry_max", "must be at least 1s"))
        }
        _ => Ok(time),
    }
}

fn log_settings(reader: &mut Reader) -> Result<LogSettings, Refusal> {
    let level = reader.choice("log.level", &["error", "warn", "info", "debug"], "info")?;
    let said = reader.is_said("log.file") || level.is_some();
    let file = reader.text("log.file", "STDERR")?;
    let format = match reader.choice("log.format", &["text", "json"], "text")?.as_deref() {
        Some("json") => Format::Json,
        _ => Format::Text,
    };
    let python = logging::read(reader);
    let sinks = match python {
        Some(sinks) if !said => sinks,
        _ => {
            let target = file.map_or(Target::Stderr, |(file, _)| Target::parse(&file));
            let level = level.and_then(|level| level.parse().ok());
            vec![(target, level.unwrap_or(LevelFilter::Info))]
        }
    };
    Ok(LogSettings { sinks, format })
}

#[cfg(test)]
mod tests;
