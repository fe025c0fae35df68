//! Log lines: one event per line, for people, for journald, or as JSON.
//!
//! Every record goes to each of a few sinks that takes its level. Control characters are escaped, so
//! that no file name can forge a line. A log that cannot be written is no reason to stop serving, so
//! such an error goes no further.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use indicatif::MultiProgress;
use log::{Level, LevelFilter, Log, Metadata, Record};
use simplestreams::{Problem, printable};

/// Progress bars on the terminal, which log lines must not cut through.
pub static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Whether the core's own lines are left out, but for errors that are not a tree's problems.
static CORE_IS_QUIET: AtomicBool = AtomicBool::new(false);

static LOGGER: Logger = Logger { sinks: Mutex::new(Vec::new()) };

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Standard error, marked for journald where it leads there.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file, which is appended to.
    File(PathBuf),
}

impl Target {
    /// `STDERR`, `STDOUT` or a file's name.
    pub fn parse(text: &str) -> Self {
        match text {
            "STDERR" => Self::Stderr,
            "STDOUT" => Self::Stdout,
            file => Self::File(PathBuf::from(file)),
        }
    }
}

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line for people.
    Text,
    /// A JSON object.
    Json,
}

/// What the configuration says of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Targets, each with the least severe level that it takes.
    pub sinks: Vec<(Target, LevelFilter)>,
    /// How records are written.
    pub format: Format,
}

struct Sink {
    target: Target,
    level: LevelFilter,
    format: Format,
    journal: bool,
    file: Option<File>,
}

struct Logger {
    sinks: Mutex<Vec<Sink>>,
}

/// Puts settings in force, opening files anew: after log rotation has renamed them, too. A file that
/// cannot be opened is replaced by standard error, and returned with the reason.
pub fn apply(settings: &LogSettings) -> Vec<(PathBuf, io::Error)> {
    let mut failed = Vec::new();
    let mut sinks: Vec<Sink> = Vec::new();
    for (target, level) in &settings.sinks {
        let (mut target, mut file) = (target.clone(), None);
        if let Target::File(path) = &target {
            match open(path) {
                Ok(opened) => file = Some(opened),
                Err(err) => {
                    failed.push((path.clone(), err));
                    target = Target::Stderr;
                }
            }
        }
        if let Some(same) = sinks.iter_mut().find(|sink| sink.target == target) {
            same.level = same.level.max(*level);
            continue;
        }
        let journal = target == Target::Stderr && is_journal();
        sinks.push(Sink { target, level: *level, format: settings.format, journal, file });
    }
    let most = sinks.iter().map(|sink| sink.level).max().unwrap_or(LevelFilter::Off);
    *LOGGER.sinks.lock().unwrap_or_else(PoisonError::into_inner) = sinks;
    // Fails after the first time, when the logger is there already.
    let _there = log::set_logger(&LOGGER);
    log::set_max_level(most);
    failed
}

/// Leaves out what the core says of generations and problems, for commands that report it themselves.
pub fn quieten_core() {
    CORE_IS_QUIET.store(log::max_level() < LevelFilter::Debug, Ordering::Relaxed);
}

/// A file that root makes belongs to the owner of its directory, so that the service can go on writing
/// to it. In the directory of another user root follows no link, for it may lead anywhere.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o640);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let owner = std::fs::metadata(parent.unwrap_or(Path::new(".")))?;
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return options.create(true).open(path);
    }
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    match options.clone().create_new(true).open(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        file => {
            let file = file?;
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
            Ok(file)
        }
    }
}

/// Whether standard error leads to the journal: systemd says so by device and inode.
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    stream.to_str() == Some(&format!("{}:{}", stderr.dev(), stderr.ino()))
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let of_core = record.target().starts_with("simplestreams");
        let is_reported = record.level() > Level::Error || record.target() == Problem::LOG_TARGET;
        if of_core && is_reported && CORE_IS_QUIET.load(Ordering::Relaxed) {
            return;
        }
        let message = printable(&record.args().to_string());
        let now = SystemTime::now();
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        for sink in sinks.iter_mut().filter(|sink| record.level() <= sink.level) {
            let line = sink.line(record, &message, now);
            // See the module: there is nowhere left to report it.
            drop(match (&sink.target, &mut sink.file) {
                (Target::Stdout, _) => BARS.suspend(|| io::stdout().write_all(line.as_bytes())),
                (Target::File(_), Some(file)) => file.write_all(line.as_bytes()),
                _ => BARS.suspend(|| io::stderr().write_all(line.as_bytes())),
            });
        }
    }

    fn flush(&self) {}
}

impl Sink {
    fn line(&self, record: &Record<'_>, message: &str, now: SystemTime) -> String {
        let level = record.level();
        let time = humantime::format_rfc3339_millis(now);
        if self.format == Format::Json {
            let object = serde_json::json!({
                "time": time.to_string(),
                "level": level.as_str().to_lowercase(),
                "target": record.target(),
                "message": message,
            });
            return format!("{object}\n");
        }
        if self.journal {
            return format!("<{}>{message}\n", priority(level));
        }
        format!("{time} {level:5} {message}\n")
    }
}

/// syslog's number, which journald takes from the beginning of a line (sd-daemon(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: Format, journal: bool) -> String {
        let sink =
            Sink { target: Target::Stderr, level: LevelFilter::Info, format, journal, file: None };
        let args = format_args!("unused");
        let record = Record::builder().level(Level::Warn).target("t").args(args).build();
        sink.line(&record, &printable("a \"b\"\nforged"), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn what_root_makes_for_others_is_theirs() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(12345), Some(12346)).unwrap();
        let (log, link) = (dir.path().join("log"), dir.path().join("link"));
        for _ in 0..2 {
            let meta = open(&log).unwrap().metadata().unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (12345, 12346, 0o640));
        }
        std::os::unix::fs::symlink("log", &link).unwrap();
        assert!(open(&link).is_err(), "a link in the directory of another user");
        std::os::unix::fs::chown(dir.path(), Some(0), Some(0)).unwrap();
        assert!(open(&link).is_ok(), "one that root made");
    }

    #[test]
    fn one_event_is_one_line() {
        let text = line(Format::Text, false);
        assert_eq!(text, "1970-01-01T00:00:00.000Z WARN  a \"b\"\\nforged\n");
        assert_eq!(line(Format::Text, true), "<4>a \"b\"\\nforged\n");
        let json: serde_json::Value = serde_json::from_str(&line(Format::Json, false)).unwrap();
        assert_eq!(json["level"], "warn");
        assert_eq!(json["message"], "a \"b\"\\nforged");
    }
}
