//! What a server tells of its indexes: JSON for people and scripts, text for Prometheus.
//!
//! A pure function of values; where they come from is the server's business. Both forms are
//! described in `docs/status.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::{Progress, Settings, Snapshot};

/// How long a process may be silent before it counts as gone, in milliseconds. Processes that are
/// well speak twice a second.
pub const SILENCE: u64 = 10_000;

/// Everything that is told. Times are in milliseconds since the epoch.
#[derive(Debug)]
pub struct Status<'a> {
    /// The server's name and version, such as `nginx/1.22.1`.
    pub server: &'a str,
    /// Now.
    pub now: u64,
    /// The last error that a process logged, other than problems of a tree.
    pub last_error: Option<Failure>,
    /// All indexes.
    pub indexes: Vec<IndexStatus<'a>>,
    /// All workers, by their numbers.
    pub workers: Vec<Worker>,
}

/// An error that was logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: u64,
    /// Which process logged it.
    pub process: String,
    /// What it said.
    pub text: String,
}

/// One index.
#[derive(Debug)]
pub struct IndexStatus<'a> {
    /// What it is made of.
    pub settings: &'a Settings,
    /// The generation that this process serves.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Whoever builds it; none if that is no process of this server.
    pub builder: Option<BuilderStatus>,
    /// Requests since the server was started, without those that never came.
    pub traffic: Vec<Traffic<'a>>,
}

/// A process that builds an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuilderStatus {
    /// Its id.
    pub pid: u64,
    /// When it was last heard of.
    pub seen: u64,
    /// How far it is.
    pub progress: Progress,
}

/// A process that answers requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its number, from 0.
    pub number: usize,
    /// Its id.
    pub pid: u64,
    /// When it was last heard of.
    pub seen: u64,
    /// The generation that it serves of each index, in the order of [`Status::indexes`].
    pub generations: Vec<u64>,
}

/// Requests for one document that ended in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic<'a> {
    /// Such as `images.json`; `other` for names that there are none of.
    pub document: &'a str,
    /// `identity`, `gzip`, or `none` for errors.
    pub variant: &'a str,
    /// HTTP status; 0 stands for all that are not counted apart.
    pub status: u16,
    /// How many.
    pub requests: u64,
    /// Bytes of bodies sent.
    pub bytes: u64,
}

impl IndexStatus<'_> {
    /// One word for how it is: `unavailable`, `unattended`, `hashing`, `waiting` or `current`.
    pub fn state(&self, now: u64) -> &'static str {
        let served = self.snapshot.as_ref().is_some_and(|snapshot| snapshot.has_documents());
        let builder = self.builder.filter(|builder| builder.is_up(now));
        match builder {
            _ if !served => "unavailable",
            None => "unattended",
            Some(builder) if builder.progress.hashing > 0 => "hashing",
            Some(builder) if builder.progress.waiting > 0 => "waiting",
            Some(_) => "current",
        }
    }
}

impl BuilderStatus {
    /// Whether it was heard of lately.
    pub fn is_up(&self, now: u64) -> bool {
        now.saturating_sub(self.seen) <= SILENCE
    }
}

impl Status<'_> {
    /// One JSON object, indented.
    pub fn to_json(&self) -> Vec<u8> {
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "server": self.server,
            "time": time(self.now),
            "last_error": self.last_error.as_ref().map(|failure| json!({
                "time": time(failure.at),
                "process": failure.process,
                "text": failure.text,
            })),
            "indexes": self.indexes.iter().map(|index| self.index(index)).collect::<Vec<_>>(),
            "workers": self.workers.iter().map(|worker| self.worker(worker)).collect::<Vec<_>>(),
        });
        // Strings, numbers and maps with string keys always serialize.
        let mut text = serde_json::to_vec_pretty(&status).unwrap_or_default();
        text.push(b'\n');
        text
    }

    fn index(&self, index: &IndexStatus<'_>) -> Value {
        let generation = index.snapshot.as_ref().map(|snapshot| {
            let counts = snapshot.counts();
            json!({
                "number": snapshot.generation(),
                "published": time(snapshot.published()),
                "age_seconds": self.now.saturating_sub(snapshot.published()) / 1000,
                "products": counts.products,
                "versions": counts.versions,
                "items": counts.items,
                "bytes": counts.bytes,
            })
        });
        let builder = index.builder.map(|builder| {
            let progress = builder.progress;
            json!({
                "pid": builder.pid,
                "up": builder.is_up(self.now),
                "seen": time(builder.seen),
                "generation": progress.generation,
                "versions_found": progress.found,
                "versions_waiting": progress.waiting,
                "hashing": {
                    "versions": progress.hashing,
                    "files": progress.files_to_hash,
                    "bytes": progress.bytes_to_hash,
                    "seconds_left": progress.seconds_left,
                },
                "hashed": { "files": progress.files_hashed, "bytes": progress.bytes_hashed },
                "cache": { "hits": progress.files_known, "misses": progress.files_hashed },
                "scans": progress.looks,
                "last_scan": (progress.last_look > 0).then(|| time(progress.last_look)),
                "watches": progress.watches,
                "unwatched_directories": progress.unwatched,
                "event_overflows": progress.overflows,
            })
        });
        let reports = index.snapshot.as_ref().map(|snapshot| snapshot.reports());
        let problems: Vec<Value> = reports
            .unwrap_or_default()
            .into_iter()
            .map(|report| {
                json!({
                    "path": report.problem.path,
                    "reason": report.problem.reason,
                    "remedy": report.problem.remedy,
                    "since": time(report.since),
                })
            })
            .collect();
        let traffic: Vec<Value> = index
            .traffic
            .iter()
            .map(|traffic| {
                json!({
                    "document": traffic.document,
                    "variant": traffic.variant,
                    "status": traffic.status,
                    "requests": traffic.requests,
                    "bytes": traffic.bytes,
                })
            })
            .collect();
        json!({
            "id": index.settings.id(),
            "root": index.settings.root.to_string_lossy(),
            "streams": index.settings.streams,
            "state": index.state(self.now),
            "generation": generation,
            "builder": builder,
            "problem_count": index.snapshot.as_ref().map(|snapshot| snapshot.problem_count()),
            "problems": problems,
            "requests": traffic,
        })
    }

    fn worker(&self, worker: &Worker) -> Value {
        let generations: BTreeMap<String, u64> = self
            .indexes
            .iter()
            .zip(&worker.generations)
            .map(|(index, generation)| (index.settings.id(), *generation))
            .collect();
        json!({
            "number": worker.number,
            "pid": worker.pid,
            "up": self.now.saturating_sub(worker.seen) <= SILENCE,
            "seen": time(worker.seen),
            "generations": generations,
        })
    }

    /// Prometheus' text format, version 0.0.4.
    pub fn to_prometheus(&self) -> Vec<u8> {
        let mut text = Metrics::default();
        let info = [("version", env!("CARGO_PKG_VERSION")), ("server", self.server)];
        text.one("info", "gauge", "Version of module and server.", &info, 1.0);
        let help = "When an error was logged last that is no problem of a tree.";
        text.head("last_error_timestamp_seconds", "gauge", help);
        if let Some(failure) = &self.last_error {
            text.sample("last_error_timestamp_seconds", &[], seconds(failure.at));
        }
        let labels: Vec<[String; 2]> = self
            .indexes
            .iter()
            .map(|index| [index.settings.id(), index.settings.root.to_string_lossy().into()])
            .collect();
        for metric in METRICS {
            text.head(metric.name, metric.kind, metric.help);
            for (index, [id, root]) in self.indexes.iter().zip(&labels) {
                if let Some(value) = (metric.value)(index, self.now) {
                    text.sample(metric.name, &[("index", id), ("root", root)], value);
                }
            }
        }
        let numbers: Vec<String> = self.workers.iter().map(|w| w.number.to_string()).collect();
        text.head("worker_seen_timestamp_seconds", "gauge", "When a worker was last heard of.");
        for (worker, number) in self.workers.iter().zip(&numbers) {
            let value = seconds(worker.seen);
            text.sample("worker_seen_timestamp_seconds", &[("worker", number)], value);
        }
        text.head("worker_generation", "gauge", "Generation that a worker serves.");
        for (worker, number) in self.workers.iter().zip(&numbers) {
            for ([id, root], generation) in labels.iter().zip(&worker.generations) {
                let labels = [("index", id.as_str()), ("root", root), ("worker", number)];
                text.sample("worker_generation", &labels, *generation as f64);
            }
        }
        for (name, help, bytes) in [
            ("requests_total", "Requests answered.", false),
            ("sent_bytes_total", "Bytes of bodies sent.", true),
        ] {
            text.head(name, "counter", help);
            for (index, [id, root]) in self.indexes.iter().zip(&labels) {
                for traffic in &index.traffic {
                    let status = match traffic.status {
                        0 => "other".to_owned(),
                        status => status.to_string(),
                    };
                    let labels = [
                        ("index", id.as_str()),
                        ("root", root),
                        ("document", traffic.document),
                        ("variant", traffic.variant),
                        ("status", &status),
                    ];
                    let value = if bytes { traffic.bytes } else { traffic.requests };
                    text.sample(name, &labels, value as f64);
                }
            }
        }
        text.0.into_bytes()
    }
}

/// A metric of each index.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&IndexStatus<'_>, u64) -> Option<f64>,
}

macro_rules! metric {
    ($name:literal, $kind:literal, $help:literal, $value:expr) => {
        Metric { name: $name, kind: $kind, help: $help, value: $value }
    };
}

/// Of the generation that is served.
fn of(index: &IndexStatus<'_>, value: fn(&Snapshot) -> u64) -> Option<f64> {
    index.snapshot.as_ref().map(|snapshot| value(snapshot) as f64)
}

/// Of the builder.
fn by(index: &IndexStatus<'_>, value: fn(&Progress) -> u64) -> Option<f64> {
    index.builder.as_ref().map(|builder| value(&builder.progress) as f64)
}

const METRICS: &[Metric] = &[
    metric!("available", "gauge", "Whether there is an index to serve.", |index, _| {
        let served = index.snapshot.as_ref().is_some_and(|snapshot| snapshot.has_documents());
        Some(f64::from(u8::from(served)))
    }),
    metric!("generation", "gauge", "Generation that is served.", |index, _| {
        of(index, Snapshot::generation)
    }),
    metric!("published_timestamp_seconds", "gauge", "When it was published.", |index, _| {
        index.snapshot.as_ref().map(|snapshot| seconds(snapshot.published()))
    }),
    metric!("products", "gauge", "Products listed.", |index, _| of(index, |s| s.counts().products)),
    metric!("versions", "gauge", "Versions listed.", |index, _| of(index, |s| s.counts().versions)),
    metric!("items", "gauge", "Items listed.", |index, _| of(index, |s| s.counts().items)),
    metric!("bytes", "gauge", "Bytes of the files listed.", |index, _| of(index, |s| s
        .counts()
        .bytes)),
    metric!("problems", "gauge", "Problems found in the tree.", |index, _| {
        of(index, Snapshot::problem_count)
    }),
    metric!("builder_up", "gauge", "Whether a process of this server builds it.", |index, now| {
        let up = index.builder.is_some_and(|builder| builder.is_up(now));
        Some(f64::from(u8::from(up)))
    }),
    metric!("versions_found", "gauge", "Versions on disk, listed or not.", |index, _| {
        by(index, |p| p.found)
    }),
    metric!("versions_waiting", "gauge", "Versions with a file being written.", |index, _| {
        by(index, |p| p.waiting)
    }),
    metric!("versions_hashing", "gauge", "Versions being hashed or queued.", |index, _| {
        by(index, |p| p.hashing)
    }),
    metric!("hashing_bytes", "gauge", "Bytes of the files in them.", |index, _| {
        by(index, |p| p.bytes_to_hash)
    }),
    metric!("hashed_bytes_total", "counter", "Bytes read for hashing.", |index, _| {
        by(index, |p| p.bytes_hashed)
    }),
    metric!("cache_misses_total", "counter", "Files of versions that were hashed.", |index, _| {
        by(index, |p| p.files_hashed)
    }),
    metric!("cache_hits_total", "counter", "Files whose hashes were known.", |index, _| {
        by(index, |p| p.files_known)
    }),
    metric!("watches", "gauge", "Directories watched.", |index, _| by(index, |p| p.watches)),
    metric!("unwatched_directories", "gauge", "Directories seen by rescans alone.", |index, _| {
        by(index, |p| p.unwatched)
    }),
    metric!("event_overflows_total", "counter", "Times that events were lost.", |index, _| {
        by(index, |p| p.overflows)
    }),
    metric!("scans_total", "counter", "Looks at the whole tree.", |index, _| by(index, |p| p
        .looks)),
    metric!("last_scan_timestamp_seconds", "gauge", "When the last one ended.", |index, _| {
        index.builder.as_ref().map(|builder| seconds(builder.progress.last_look))
    }),
];

#[derive(Default)]
struct Metrics(String);

impl Metrics {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP simplestreams_{name} {help}");
        let _ = writeln!(self.0, "# TYPE simplestreams_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.0, "simplestreams_{name}");
        for (at, (label, text)) in labels.iter().enumerate() {
            let begin = if at == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{begin}{label}=\"{text}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.head(name, kind, help);
        self.sample(name, labels, value);
    }
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// RFC 3339, in UTC.
fn time(milliseconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds));
    // Beyond the year 9999 there is no such form.
    let time = time.filter(|_| milliseconds < 253_402_300_800_000);
    time.map_or_else(String::new, |time| humantime::format_rfc3339_millis(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status<'a>(index: IndexStatus<'a>) -> Status<'a> {
        Status {
            server: "nginx/1",
            now: 1_000_000,
            last_error: None,
            indexes: vec![index],
            workers: vec![Worker { number: 0, pid: 7, seen: 999_000, generations: vec![3] }],
        }
    }

    fn index(settings: &Settings) -> IndexStatus<'_> {
        let traffic =
            Traffic { document: "a.json", variant: "gzip", status: 200, requests: 2, bytes: 9 };
        IndexStatus { settings, snapshot: None, builder: None, traffic: vec![traffic] }
    }

    #[test]
    fn labels_are_escaped_and_every_sample_has_its_type() {
        let settings = Settings::new("/a\"b\\c\nd");
        let text = String::from_utf8(status(index(&settings)).to_prometheus()).unwrap();
        let root = r#"root="/a\"b\\c\nd""#;
        assert!(text.contains(root), "{text}");
        let requests = format!(
            "simplestreams_requests_total{{index=\"{}\",{root},document=\"a.json\",\
             variant=\"gzip\",status=\"200\"}} 2\n",
            settings.id()
        );
        assert!(text.contains(&requests), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(text.contains(&format!("# TYPE {name} ")), "{line}");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }

    #[test]
    fn one_word_for_each_state() {
        let settings = Settings::new("/");
        let mut index = index(&settings);
        assert_eq!(index.state(0), "unavailable");
        let rendered = crate::snapshot::Rendered {
            name: "index.json".into(),
            identity: b"{}".to_vec(),
            gzip: Vec::new(),
        };
        let bytes = crate::snapshot::encode(
            &[rendered],
            &[],
            Default::default(),
            &crate::snapshot::Lineage::default(),
            1,
        );
        index.snapshot = Some(Arc::new(Snapshot::from_bytes(bytes).unwrap()));
        assert_eq!(index.state(0), "unattended");
        let progress = Progress { active: true, looks: 1, ..Progress::default() };
        let mut say = |progress, now| {
            index.builder = Some(BuilderStatus { pid: 1, seen: 5, progress });
            index.state(now)
        };
        assert_eq!(say(progress, 5), "current");
        assert_eq!(say(Progress { waiting: 1, ..progress }, 5), "waiting");
        assert_eq!(say(Progress { hashing: 1, waiting: 1, ..progress }, 5), "hashing");
        assert_eq!(say(progress, 6 + SILENCE), "unattended", "gone");
    }

    #[test]
    fn json_says_it_in_words() {
        let settings = Settings::new("/srv");
        let mut status = status(index(&settings));
        status.last_error = Some(Failure { at: 0, process: "builder".into(), text: "why".into() });
        let json: Value = serde_json::from_slice(&status.to_json()).unwrap();
        assert_eq!(json["time"], "1970-01-01T00:16:40.000Z");
        assert_eq!(json["last_error"]["text"], "why");
        assert_eq!(json["indexes"][0]["state"], "unavailable");
        assert_eq!(json["indexes"][0]["requests"][0]["requests"], 2);
        assert_eq!(json["workers"][0]["generations"][settings.id()], 3);
    }
}
