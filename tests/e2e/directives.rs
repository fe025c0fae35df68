//! What the directives take and refuse, how levels inherit them, and which indexes they make.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use simplestreams::{Aliases, Settings, snapshot};

use crate::harness::{Ask, Dir, Nginx, until};

/// A configuration with these lines in it, one for each level.
fn conf(http: &str, server: &str, location: &str) -> String {
    "\
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    @HTTP@
    server {
        listen 127.0.0.1:@PORT@;
        root @TREE@;
        @SERVER@
        location / {
            @LOCATION@
        }
    }
}"
    .replace("@HTTP@", http)
    .replace("@SERVER@", server)
    .replace("@LOCATION@", location)
}

/// The line of the first of `conf` that contains `text`, after the harness has filled it in.
fn line_of(dir: &Dir, text: &str) -> usize {
    let conf = fs::read_to_string(dir.path().join("nginx.conf")).expect("conf");
    conf.lines().position(|line| line.contains(text)).expect("the line") + 1
}

#[test]
fn errors_name_directive_value_and_line() {
    let dir = Dir::new();
    let long = "x".repeat(65);
    let stream = format!("simplestreams_streams {long};");
    let too_long = format!("\"{long}\", it is longer than 64 characters");
    let invalid = [
        // directive with its arguments, what is said of the value
        ("simplestreams \"\";", "\"\", it is empty"),
        ("simplestreams yes;", "\"yes\", it is neither \"on\" nor \"off\", nor a directory"),
        ("simplestreams On;", "\"On\", it is neither \"on\" nor \"off\", nor a directory"),
        ("simplestreams /srv/$host;", "\"/srv/$host\", variables are not supported"),
        ("simplestreams_streams \"\";", "\"\", it is empty"),
        ("simplestreams_streams .x;", "\".x\", it begins with a dot"),
        ("simplestreams_streams index;", "\"index\", it would hide index.json"),
        (
            "simplestreams_streams images a/b;",
            "\"a/b\", it has a character other than letters, digits, \".\", \"_\" and \"-\"",
        ),
        (stream.as_str(), too_long.as_str()),
        ("simplestreams_streams images images;", "\"images\", it is named twice"),
        ("simplestreams_aliases long;", "\"long\""),
        ("simplestreams_aliases short short;", "\"short\", it is named twice"),
        ("simplestreams_aliases short off;", "\"off\", it stands alone"),
        ("simplestreams_aliases off off;", "\"off\", it stands alone"),
        ("simplestreams_settle x;", "\"x\""),
        ("simplestreams_settle -1;", "\"-1\""),
        ("simplestreams_rescan 5parsecs;", "\"5parsecs\""),
        ("simplestreams_rescan \"\";", "\"\""),
    ];
    for (directive, said) in invalid {
        let name = directive.split(' ').next().expect("a name");
        for conf in [conf(directive, "", ""), conf("", directive, ""), conf("", "", directive)] {
            let refusal = dir.refusal(&conf);
            let line = line_of(&dir, directive);
            let expected =
                format!("\"{name}\" directive invalid value {said} in nginx.conf:{line}");
            assert_eq!(refusal, expected, "{directive}");
        }
    }
    for directive in ["0", "-1", "x", "1025", "99999999999999999999"] {
        let refusal = dir.refusal(&conf(&format!("simplestreams_threads {directive};"), "", ""));
        let expected = format!(
            "\"simplestreams_threads\" directive invalid value \"{directive}\", \
             it must be between 1 and 1024 in nginx.conf:{}",
            line_of(&dir, "simplestreams_threads")
        );
        assert_eq!(refusal, expected);
    }
}

#[test]
fn nothing_is_said_twice() {
    let dir = Dir::new();
    for directive in [
        "simplestreams on;",
        "simplestreams_streams images;",
        "simplestreams_aliases off;",
        "simplestreams_settle 1s;",
        "simplestreams_rescan 1m;",
    ] {
        let name = directive.split(' ').next().expect("a name");
        let twice = format!("{directive} {directive}");
        for conf in [conf(&twice, "", ""), conf("", &twice, ""), conf("", "", &twice)] {
            let refusal = dir.refusal(&conf);
            let line = line_of(&dir, directive);
            assert_eq!(refusal, format!("\"{name}\" directive is duplicate in nginx.conf:{line}"));
        }
        // Once on each level is what inheriting is for.
        let output = dir.test(&conf(directive, directive, directive));
        assert!(output.status.success(), "{directive}: {output:?}");
    }
    for directive in ["simplestreams_threads 1;", "simplestreams_state_path state;"] {
        let name = directive.split(' ').next().expect("a name");
        let refusal = dir.refusal(&conf(&format!("{directive} {directive}"), "", ""));
        let expected = format!("\"{name}\" directive is duplicate in nginx.conf:");
        assert!(refusal.starts_with(&expected), "{refusal}");
    }
}

#[test]
fn directives_have_their_places() {
    let dir = Dir::new();
    for directive in ["simplestreams_threads 1;", "simplestreams_state_path x;"] {
        let name = directive.split(' ').next().expect("a name");
        for conf in [conf("", directive, ""), conf("", "", directive)] {
            let refusal = dir.refusal(&conf);
            let expected = format!("\"{name}\" directive is not allowed here in nginx.conf:");
            assert!(refusal.starts_with(&expected), "{refusal}");
        }
    }
    for directive in ["simplestreams;", "simplestreams a b;", "simplestreams_streams;"] {
        let name = directive.trim_end_matches(';').split(' ').next().expect("a name");
        let refusal = dir.refusal(&conf("", "", directive));
        let expected =
            format!("invalid number of arguments in \"{name}\" directive in nginx.conf:");
        assert!(refusal.starts_with(&expected), "{refusal}");
    }
}

#[test]
fn a_root_with_variables_cannot_be_indexed() {
    let dir = Dir::new();
    for location in ["root /srv/$host; simplestreams on;", "alias /srv/$host/; simplestreams on;"] {
        let refusal = dir.refusal(&conf("", "", location));
        let line = line_of(&dir, "simplestreams on");
        let expected =
            format!("\"simplestreams on\" needs a \"root\" without variables in nginx.conf:{line}");
        assert_eq!(refusal, expected);
    }
    let fine = "root /srv/$host; simplestreams @TREE@;";
    assert!(dir.test(&conf("", "", fine)).status.success());
}

#[test]
fn the_state_path_is_for_nothing_else() {
    let dir = Dir::new();
    let http = "proxy_temp_path @DIR@/taken;";
    let conf = conf("", "simplestreams on;", "")
        .replace("@HTTP_GLOBALS@", &format!("{http} simplestreams_state_path taken/;"));
    let refusal = dir.refusal(&conf);
    let line = line_of(&dir, "simplestreams_state_path");
    let expected = format!(
        "\"simplestreams_state_path\" \"taken\" holds other files of nginx already in nginx.conf:{line}"
    );
    assert_eq!(refusal, expected);
}

/// nginx creates its directories even when it only tests; ours are left alone, but what could not
/// be created is found.
#[test]
fn a_test_of_the_configuration_leaves_nothing_behind() {
    let dir = Dir::new();
    dir.add_image("images/os/1/amd64/default/20260101_0000", "one");
    let output = dir.test(&conf("", "simplestreams on;", ""));
    assert!(output.status.success(), "{output:?}");
    assert!(!dir.state().exists(), "{}", dir.listing());

    let missing = conf("", "simplestreams on;", "")
        .replace("@HTTP_GLOBALS@", "simplestreams_state_path @DIR@/no/where;");
    let refusal = dir.refusal(&missing);
    assert!(
        refusal.starts_with(
            "\"simplestreams_state_path\" \"no/where\" cannot be created (No such file or directory"
        ),
        "{refusal}"
    );
    fs::write(dir.path().join("file"), "in the way").expect("file");
    let file = missing.replace("no/where", "file");
    assert!(dir.refusal(&file).contains("cannot be created (not a directory)"));
}

/// The settings of the indexes that are being built, as far as their names tell.
fn is_built(dir: &Dir, settings: &Settings) -> bool {
    snapshot::path(&dir.state(), &settings.id()).exists()
}

/// Waits for exactly these indexes.
#[track_caller]
fn indexes_are(dir: &Dir, expected: &[Settings]) {
    until("every index has a snapshot", || {
        expected.iter().all(|settings| is_built(dir, settings)).then_some(())
    });
    let names = fs::read_dir(dir.state()).expect("state directory").flatten();
    let snapshots = names.filter(|name| name.path().extension().is_some_and(|e| e == "snapshot"));
    assert_eq!(snapshots.count(), expected.len(), "{}", dir.listing());
}

#[test]
fn the_state_directory_is_the_workers() {
    let dir = Dir::new();
    let _nginx = dir.start(&conf("", "simplestreams on;", ""));
    let state = dir.state().metadata().expect("state directory");
    assert_eq!(state.permissions().mode() & 0o777, 0o700);
    let worker = fs::read_to_string("/etc/passwd").expect("passwd");
    let worker = worker.lines().find_map(|line| line.strip_prefix("www-data:x:"));
    assert_eq!(Some(state.uid().to_string().as_str()), worker.and_then(|w| w.split(':').next()));
    indexes_are(&dir, &[Settings::new(dir.tree())]);
}

#[test]
fn every_setting_reaches_the_index_and_is_inherited() {
    let dir = Dir::new();
    let http = "simplestreams_streams one two; simplestreams_aliases name; \
                simplestreams_settle 100ms; simplestreams_rescan 1h30m;";
    let server = "simplestreams on; simplestreams_streams three;";
    let location = "simplestreams_settle 3; simplestreams_rescan 0;
        location /nested/ { simplestreams_aliases off; }
        location = /streams/v1/three.json { simplestreams_aliases path short; }";
    let _nginx = dir.start(&conf(http, server, location));
    let here = Settings {
        streams: vec!["three".into()],
        aliases: Aliases { name: true, ..Aliases::OFF },
        settle: Duration::from_secs(3),
        rescan: Duration::ZERO,
        ..Settings::new(dir.tree())
    };
    let exact = Settings { aliases: Aliases { name: false, ..Aliases::default() }, ..here.clone() };
    // /nested/ inherits `on`, but cannot be asked for /streams/v1/.
    indexes_are(&dir, &[here, exact]);
}

#[test]
fn equal_settings_share_one_index() {
    let dir = Dir::new();
    dir.add_image("images/os/1/amd64/default/20260101_0000", "one");
    let all = "
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    add_header X-Worker $pid always;
    simplestreams on;
    root @TREE@/;
    server {
        listen 127.0.0.1:@PORT@ reuseport;
        server_name a;
        location / { }
        location /streams/ {
            location = /streams/v1/x.json { add_header X-Where nested always; }
        }
    }
    server {
        listen 127.0.0.1:@PORT@;
        server_name b;
        simplestreams @TREE@;
    }
    server {
        listen 127.0.0.1:@PORT@;
        server_name c;
        location /lxd/ { alias @TREE@//; }
        location ~ ^/x(?<rest>/.*)$ { simplestreams tree/; rewrite ^/x(/.*) $1 break; }
    }
    server {
        listen 127.0.0.1:@PORT@;
        server_name d;
        root /nowhere;
        simplestreams off;
    }
}";
    let nginx = dir.start(all);
    let ask = |host: &str, path: &str| Ask::get(path).host(host).of(&nginx);
    nginx.every_worker_lists(&["os:1:amd64:default 20260101_0000"]);
    for (host, path) in [
        ("a", "/streams/v1/images.json"),
        ("b", "/streams/v1/images.json"),
        ("c", "/streams/v1/images.json"),
        ("c", "/lxd/streams/v1/images.json"),
        ("c", "/x/streams/v1/images.json"),
    ] {
        let answer = ask(host, path);
        assert_eq!(answer.status, 200, "{host} {path}");
        assert_eq!(answer.versions(), ["os:1:amd64:default 20260101_0000"], "{host} {path}");
    }
    assert_eq!(ask("a", "/streams/v1/x.json").header("X-Where"), Some("nested"));
    assert_eq!(ask("d", "/streams/v1/images.json").status, 404);
    indexes_are(&dir, &[Settings::new(dir.tree())]);
    let threads = nginx.helper().threads();
    let indexers = threads.iter().filter(|name| *name == "ss-index");
    assert_eq!(indexers.count(), 1, "{threads:?}");
}

#[test]
fn several_roots_are_several_indexes() {
    let dir = Dir::new();
    dir.add_image("images/os/1/amd64/default/20260101_0000", "one");
    dir.add_image("../other/daily/os/2/amd64/default/20260202_0000", "two");
    let nginx = dir.start(
        "
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    server {
        listen 127.0.0.1:@PORT@;
        location / {
            root @TREE@;
            simplestreams on;
        }
        location /other/ {
            alias @DIR@/other/;
            simplestreams on;
            simplestreams_streams daily;
            location /other/deeper/ { }
        }
        location /noslash {
            root /nowhere;
            simplestreams @DIR@/other;
            simplestreams_streams daily;
        }
        location /off/ {
            root @TREE@;
        }
    }
}",
    );
    let rows = [
        ("/streams/v1/images.json", "os:1:amd64:default 20260101_0000"),
        ("/other/streams/v1/daily.json", "os:2:amd64:default 20260202_0000"),
        ("/other/deeper/streams/v1/daily.json", ""),
        ("/noslash/streams/v1/daily.json", "os:2:amd64:default 20260202_0000"),
        ("/other/streams/v1/images.json", ""),
        ("/off/streams/v1/images.json", ""),
    ];
    for (path, listed) in rows {
        if listed.is_empty() {
            assert_eq!(Ask::get(path).of(&nginx).status, 404, "{path}");
        } else {
            listed_soon(&nginx, path, listed);
        }
    }
    let index = Ask::get("/other/streams/v1/").of(&nginx).json();
    assert_eq!(index["index"]["daily"]["path"], "streams/v1/daily.json", "{index}");
    let daily =
        Settings { streams: vec!["daily".into()], ..Settings::new(dir.path().join("other")) };
    indexes_are(&dir, &[Settings::new(dir.tree()), daily]);
    let file = Ask::get("/other/daily/os/2/amd64/default/20260202_0000/rootfs.squashfs").of(&nginx);
    assert_eq!(file.body, crate::harness::squashfs("two")[..]);
}

#[track_caller]
fn listed_soon(nginx: &Nginx<'_>, path: &str, version: &str) {
    until(path, || {
        let answer = Ask::get(path).of(nginx);
        (answer.status == 200 && answer.versions() == [version]).then_some(())
    });
}

/// `simplestreams on` for a server is a matter of its locations, if they cover it: the root that the
/// server would have without them is not indexed.
#[test]
fn a_server_that_is_covered_makes_no_index() {
    let dir = Dir::new();
    let nginx = dir.start(
        "
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    simplestreams on;
    server {
        listen 127.0.0.1:@PORT@;
        location / {
            root @TREE@;
        }
        location /css/ {
            root @DIR@/css;
        }
        location = /favicon.ico {
            root @DIR@/icons;
        }
    }
}",
    );
    until("the index", || (Ask::get("/streams/v1/").of(&nginx).status == 200).then_some(()));
    indexes_are(&dir, &[Settings::new(dir.tree())]);
}

/// What a regular expression's location only inherits is no reason to refuse the configuration.
#[test]
fn a_root_with_variables_in_a_regular_expression_is_left_alone() {
    let dir = Dir::new();
    let homes = "location ~ ^/~([^/]+)(/.*)?$ { alias /home/$1/public_html$2; }";
    let server = |here: &str| conf("", &format!("simplestreams on;\n        {here}"), "");
    let output = dir.test(&server(homes));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = homes.replace("alias", "simplestreams on; alias");
    let refusal = dir.refusal(&server(&said));
    assert!(refusal.contains("needs a \"root\" without variables"), "{refusal}");
}

/// Without any index the module is not there: no helper, no directory, no thread.
#[test]
fn without_an_index_nothing_runs() {
    let dir = Dir::new();
    let nginx = dir.start(&conf("simplestreams_threads 2;", "simplestreams off;", ""));
    assert_eq!(Ask::get("/streams/v1/index.json").of(&nginx).status, 404);
    assert!(nginx.helpers().is_empty());
    assert!(!dir.state().exists());
    for worker in nginx.workers() {
        assert_eq!(worker.threads(), ["nginx"]);
    }
}

#[test]
fn a_missing_root_is_no_error() {
    let dir = Dir::new();
    let nginx = dir.start(&conf("", "", "simplestreams @DIR@/later;"));
    until("it is reported", || nginx.error_log().contains("/later").then_some(()));
    fs::create_dir(dir.path().join("new")).expect("directory");
    fs::create_dir_all(dir.path().join("new/images/os/1/amd64/default")).expect("directories");
    dir.add_image("../new/images/os/1/amd64/default/20260101_0000", "one");
    fs::rename(dir.path().join("new"), dir.path().join("later")).expect("mounted, as it were");
    listed_soon(&nginx, "/streams/v1/images.json", "os:1:amd64:default 20260101_0000");
}
