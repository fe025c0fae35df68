//! What `simplestreams_status` tells, and the variables for logs.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Answer, Ask, Dir, Nginx, signal, until};

const CONF: &str = r#"
@GLOBALS@
worker_processes 2;
events {}
http {
    @HTTP_GLOBALS@
    log_format streams '$request $status $simplestreams_generation $simplestreams_age';
    access_log @DIR@/access.log streams;
    add_header X-Worker $pid always;
    server {
        listen 127.0.0.1:@PORT@ reuseport;
        root @TREE@;
        simplestreams_settle 200ms;
        location / {
            simplestreams on;
        }
        location = /broken/ {
            error_page 405 =200 /page;
            alias @TREE@/;
            simplestreams on;
        }
        location = /status {
            simplestreams_status;
        }
        location = /metrics {
            simplestreams_status prometheus;
        }
        location = /elsewhere {
            return 204;
        }
    }
}"#;

const PRODUCT: &str = "images/os/1/amd64/default";
const LISTED: &str = "os:1:amd64:default 20260101_0000";

/// One version, and one directory that is none.
fn with_a_problem() -> Dir {
    let dir = Dir::new();
    dir.add_image(&format!("{PRODUCT}/20260101_0000"), "first");
    dir.add_file("images/os/1/pdp11/default/20260101_0000/lxd.tar.xz", b"x");
    dir
}

#[track_caller]
fn status(nginx: &Nginx<'_>) -> Value {
    let answer = Ask::get("/status").of(nginx);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!(answer.header("Cache-Control"), Some("no-store"));
    answer.json()
}

/// The only index, once it is `right`.
#[track_caller]
fn index(nginx: &Nginx<'_>, what: &str, right: impl Fn(&Value) -> bool) -> Value {
    until(what, || {
        let index = status(nginx)["indexes"][0].clone();
        right(&index).then_some(index)
    })
}

fn is_current(index: &Value) -> bool {
    index["state"] == "current" && index["builder"]["generation"] == index["generation"]["number"]
}

/// Requests and bytes that are counted for a document in one form.
fn counted(index: &Value, document: &str, variant: &str, status: u16) -> (u64, u64) {
    let requests = index["requests"].as_array().expect("a list");
    let is_it = |of: &&Value| {
        of["document"] == document && of["variant"] == variant && of["status"] == status
    };
    let number = |of: &Value, name: &str| of[name].as_u64().expect("a number");
    requests.iter().find(is_it).map_or((0, 0), |of| (number(of, "requests"), number(of, "bytes")))
}

#[test]
fn json_tells_of_tree_builder_and_workers() {
    let dir = with_a_problem();
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[LISTED]);
    let told = index(&nginx, "current", is_current);
    assert_eq!(told["root"], dir.tree().display().to_string());
    assert_eq!(told["streams"], serde_json::json!(["images"]));
    let generation = &told["generation"];
    assert_eq!((&generation["products"], &generation["versions"]), (&1.into(), &1.into()));
    assert!(generation["bytes"].as_u64().expect("bytes") > 0);
    let builder = &told["builder"];
    assert_eq!(builder["pid"], nginx.helper().0);
    assert_eq!(builder["up"], true);
    assert_eq!(builder["versions_found"], 1);
    assert_eq!(builder["hashing"]["versions"], 0);
    assert_eq!(builder["cache"], serde_json::json!({"hits": 0, "misses": 2}));
    assert_eq!(builder["hashed"]["bytes"], generation["bytes"]);
    let watches = builder["watches"].as_u64().expect("watches");
    assert_eq!(watches, nginx.helper().watches() as u64);
    let problems = told["problems"].as_array().expect("a list");
    assert_eq!(told["problem_count"], problems.len());
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0]["reason"].as_str().expect("text").contains("architecture"));
    let since = problems[0]["since"].clone();
    assert_eq!(since, generation["published"]);

    // Every worker, with the generation that it serves.
    let pids: BTreeSet<i64> = nginx.workers().iter().map(|worker| worker.0.into()).collect();
    until("both workers are told of", || {
        let workers = status(&nginx)["workers"].as_array().expect("a list").clone();
        let number = &generation["number"];
        let id = told["id"].as_str().expect("an id");
        let current = |w: &&Value| w["up"] == true && w["generations"][id] == *number;
        let told: BTreeSet<i64> =
            workers.iter().filter(current).filter_map(|w| w["pid"].as_i64()).collect();
        (told == pids).then_some(())
    });

    // A change is a generation, and the problem is as old as before; also after a restart.
    dir.add_image(&format!("{PRODUCT}/20260202_0000"), "second");
    let next = index(&nginx, "two versions", |index| index["generation"]["versions"] == 2);
    assert!(next["generation"]["number"].as_u64() > generation["number"].as_u64());
    assert_eq!(next["problems"][0]["since"], since);
    index(&nginx, "current again", is_current);
    until("the snapshot is on disk", || {
        let files = fs::read_dir(dir.state()).expect("state").flatten();
        let fresh = |path: &std::path::Path| {
            let snapshot = simplestreams::Snapshot::open(path).ok()?;
            (snapshot.counts().versions == 2).then_some(())
        };
        let mut files = files.map(|entry| entry.path());
        files
            .find(|path| path.extension().is_some_and(|e| e == "snapshot") && fresh(path).is_some())
    });
    nginx.finish();
    let nginx = dir.start(CONF);
    let restarted = index(&nginx, "current after a restart", is_current);
    assert_eq!(restarted["problems"][0]["since"], since);
    nginx.finish();
}

#[test]
fn requests_are_counted_over_all_workers_and_reloads() {
    let dir = with_a_problem();
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[LISTED]);
    let before = index(&nginx, "current", is_current);
    let count = |index: &Value, variant: &str, status: u16| {
        let of = |index| counted(index, "images.json", variant, status);
        let (now, then) = (of(index), of(&before));
        (now.0 - then.0, now.1 - then.1)
    };
    let ask = Ask::get("/streams/v1/images.json");
    let plain = ask.of(&nginx);
    for _ in 1..10 {
        assert_eq!(ask.of(&nginx).status, 200);
    }
    let gzip = ask.clone().header("Accept-Encoding", "gzip").of(&nginx);
    let etag = plain.header("ETag").expect("a tag");
    let conditional = ask.clone().header("If-None-Match", etag).of(&nginx);
    let range = ask.clone().header("Range", "bytes=0-9").of(&nginx);
    let head = Ask::new("HEAD", "/streams/v1/images.json", "1.1").of(&nginx);
    let post = Ask::new("POST", "/streams/v1/images.json", "1.1").body("x").of(&nginx);
    let statuses: Vec<u16> =
        [&gzip, &conditional, &range, &head, &post].iter().map(|a| a.status).collect();
    assert_eq!(statuses, [200, 304, 206, 200, 405]);
    assert_eq!(Ask::get("/streams/v1/none.json").of(&nginx).status, 404);
    // Their pools go a moment after the last byte.
    let size = plain.body.len() as u64;
    let told = index(&nginx, "all are counted", |index| {
        count(index, "identity", 200).0 == 11
            && count(index, "none", 405).0 == 1
            && counted(index, "other", "none", 404).0 == 1
    });
    assert_eq!(count(&told, "identity", 200), (11, 10 * size), "ten with a body, one without");
    assert_eq!(count(&told, "gzip", 200), (1, gzip.body.len() as u64));
    assert_eq!(count(&told, "identity", 304), (1, 0));
    assert_eq!(count(&told, "identity", 206), (1, 10));
    assert_eq!(counted(&told, "index.json", "identity", 200), (0, 0));

    nginx.reload();
    let told = index(&nginx, "current after a reload", is_current);
    assert_eq!(count(&told, "identity", 200).0, 11, "a reload forgets nothing");
    nginx.finish();
}

#[test]
fn a_builder_that_was_killed_and_an_error_show() {
    let dir = with_a_problem();
    let mut nginx = dir.start(CONF);
    nginx.allow("exited on signal 9");
    nginx.every_worker_lists(&[LISTED]);
    let told = index(&nginx, "current", is_current);
    assert_eq!(status(&nginx)["last_error"], Value::Null, "a problem is no error");
    // From here on nothing can be written.
    fs::set_permissions(dir.state(), Permissions::from_mode(0o500)).expect("chmod");
    let old = nginx.helper();
    signal(old, Signal::KILL);
    index(&nginx, "another builder", |index| {
        index["builder"]["pid"] != told["builder"]["pid"] && index["state"] == "current"
    });
    dir.add_image(&format!("{PRODUCT}/20260202_0000"), "second");
    let failure = until("the error is told", || {
        Some(status(&nginx)["last_error"].clone()).filter(|failure| !failure.is_null())
    });
    assert_eq!(failure["process"], "builder", "{failure}");
    let state = dir.state().display().to_string();
    assert!(failure["text"].as_str().expect("text").contains(&state), "{failure}");
    fs::set_permissions(dir.state(), Permissions::from_mode(0o700)).expect("chmod");
    index(&nginx, "the second version", |index| index["generation"]["versions"] == 2);
    nginx.finish();
}

/// `if` has requests answered with a configuration of its own, which stands for that around it; and
/// what an `error_page` leads to is one request.
#[test]
fn conditions_and_error_pages_change_nothing() {
    let dir = with_a_problem();
    let conf = CONF
        .replace(
            "simplestreams_status prometheus;",
            "simplestreams_status prometheus; if ($arg_a) { set $b 1; }",
        )
        .replace(
            "simplestreams_settle 200ms;",
            "simplestreams_settle 200ms; simplestreams on; if ($arg_x) { return 410; }",
        )
        .replace(
            "location / {\n            simplestreams on;",
            "location / {\n            simplestreams @TREE@/other;",
        )
        .replace(
            "location = /broken/ {",
            "location ~ ^/streams/v1/ {
            root @TREE@;
            error_page 404 =200 /streams/v1/index.json;
            if ($arg_a) { set $b 1; }
        }
        location = /broken/ {",
        );
    let nginx = dir.start(&conf);
    let ask = Ask::get("/streams/v1/images.json?a=1");
    until("an if changes nothing", || (ask.of(&nginx).status == 200).then_some(()));
    let answer = Ask::get("/metrics?a=1").of(&nginx);
    assert!(answer.text().starts_with("# HELP"), "{}", answer.text());
    let told = status(&nginx);
    let roots: BTreeSet<&str> = told["indexes"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|i| i["root"].as_str())
        .collect();
    let tree = dir.tree().display().to_string();
    assert_eq!(roots, BTreeSet::from([tree.as_str(), &format!("{tree}/other")]), "of no if");

    assert_eq!(Ask::get("/streams/v1/none.json").of(&nginx).status, 200);
    let is_it = |index: &&Value| index["root"] == tree;
    let counts = until("it is counted", || {
        let told = status(&nginx);
        let index = told["indexes"].as_array().expect("a list").iter().find(is_it)?.clone();
        let document = counted(&index, "index.json", "identity", 200).0;
        (document > 0).then(|| (document, counted(&index, "other", "none", 200).0))
    });
    assert_eq!(counts, (1, 0));
    nginx.finish();
}

/// As after the loss of the hash cache.
#[test]
fn a_builder_that_hashes_anew_what_is_served_is_told_of() {
    let dir = with_a_problem();
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[LISTED]);
    index(&nginx, "current", is_current);
    until("the snapshot is on disk", || {
        let files = fs::read_dir(dir.state()).expect("state").flatten();
        files.map(|f| f.path()).find(|path| path.extension().is_some_and(|e| e == "snapshot"))
    });
    nginx.finish();
    fs::remove_file(dir.state().join("hashes.redb")).expect("a hash cache");
    // So large that it is seen being hashed, and of nothing, so that it costs no disk.
    let root = dir.tree().join(format!("{PRODUCT}/20260101_0000/disk.qcow2"));
    let root = fs::File::create(root).expect("a file");
    root.set_len(24 << 30).expect("a sparse file");
    let nginx = dir.start(CONF);
    let told = index(&nginx, "hashing", |index| index["state"] == "hashing");
    assert_eq!(told["builder"]["pid"], nginx.helper().0, "{told}");
    nginx.stop();
}

#[test]
fn prometheus_is_told_the_same_and_all_of_it_is_documented() {
    let dir = with_a_problem();
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[LISTED]);
    index(&nginx, "current", is_current);
    let answer = Ask::get("/metrics").of(&nginx);
    assert_eq!(answer.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    let labels = format!("root=\"{}\"}}", dir.tree().display());
    let value = |name: &str| {
        let is_it = |line: &&str| line.starts_with(&format!("{name}{{")) && line.contains(&labels);
        let line = text.lines().find(is_it).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().expect("a value").to_owned()
    };
    for (name, expected) in [
        ("simplestreams_available", "1"),
        ("simplestreams_builder_up", "1"),
        ("simplestreams_problems", "1"),
        ("simplestreams_products", "1"),
        ("simplestreams_versions", "1"),
        ("simplestreams_versions_hashing", "0"),
        ("simplestreams_cache_misses_total", "2"),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
    let documentation = include_str!("../../docs/status.md");
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = name.split(' ').next().expect("a name");
        assert!(documentation.contains(&format!("`{name}`")), "{name} is not in docs/status.md");
    }
    let rules = include_str!("../../nginx-conf/alerts.yml");
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    // The directive's name is there too.
    let names = words.filter(|word| word.starts_with("simplestreams_"));
    for name in names.filter(|name| *name != "simplestreams_status") {
        assert!(text.contains(&format!("# TYPE {name} ")), "alerts.yml: there is no {name}");
    }
    nginx.finish();
}

#[test]
fn logs_have_the_generation_that_was_sent() {
    let dir = with_a_problem();
    let nginx = dir.start(CONF);
    nginx.every_worker_lists(&[LISTED]);
    let told = index(&nginx, "current", is_current);
    let number = told["generation"]["number"].as_u64().expect("a number");
    assert_eq!(Ask::get("/streams/v1/index.json").of(&nginx).status, 200);
    assert_eq!(Ask::get("/elsewhere").of(&nginx).status, 204);
    let line = |start: &str| {
        until(start, || {
            let log = fs::read_to_string(dir.path().join("access.log")).unwrap_or_default();
            log.lines().rfind(|line| line.starts_with(start)).map(str::to_owned)
        })
    };
    let line_of_index = line("GET /streams/v1/index.json");
    let fields: Vec<&str> = line_of_index.split(' ').collect();
    assert_eq!(fields[3..5], ["200", &number.to_string()], "{line_of_index}");
    let age: f64 = fields[5].parse().expect("seconds");
    assert!((0.0..3600.0).contains(&age), "{line_of_index}");
    assert!(line("GET /elsewhere").ends_with("204 - -"));
    nginx.finish();
}

#[test]
fn one_process_counts_too() {
    let dir = with_a_problem();
    let conf = CONF.replace("worker_processes 2;", "master_process off;");
    let nginx = dir.start(&conf);
    until("listed", || {
        let answer: Answer = Ask::get("/streams/v1/images.json").of(&nginx);
        (answer.status == 200 && answer.versions() == [LISTED]).then_some(())
    });
    let told = index(&nginx, "current", is_current);
    assert_eq!(told["builder"]["pid"], nginx.master().0);
    assert!(counted(&told, "images.json", "identity", 200).0 > 0);
    assert_eq!(status(&nginx)["workers"][0]["pid"], nginx.master().0);
    nginx.finish();
}

#[test]
fn what_the_directive_refuses() {
    let dir = Dir::new();
    let conf = |line: &str| CONF.replace("simplestreams_status;", line);
    assert_eq!(
        dir.refusal(&conf("simplestreams_status xml;")).split(" in ").next(),
        Some(
            "\"simplestreams_status\" directive invalid value \"xml\", it must be \"json\" or \
             \"prometheus\""
        )
    );
    let twice = dir.refusal(&conf("simplestreams_status; simplestreams_status json;"));
    assert!(twice.starts_with("\"simplestreams_status\" directive is duplicate"), "{twice}");
    let both = dir.refusal(&conf("simplestreams_status; simplestreams @TREE@;"));
    assert!(both.starts_with("\"simplestreams\" has no effect"), "{both}");
    let dir = Dir::new();
    // Without any index there is nothing to tell, and nothing wrong.
    let none = "@GLOBALS@\nevents {}\nhttp {\n    @HTTP_GLOBALS@\n    server {\n        \
                listen 127.0.0.1:@PORT@;\n        location /status {\n            \
                simplestreams_status;\n        }\n    }\n}";
    let nginx = dir.start(none);
    let answer = Ask::get("/status").of(&nginx);
    assert_eq!((answer.status, answer.json()["indexes"].clone()), (200, serde_json::json!([])));
    assert_eq!(Ask::new("POST", "/status", "1.1").body("x").of(&nginx).status, 405);
    nginx.finish();
}
