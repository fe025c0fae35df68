//! `python-simplestreams`, which tools around Ubuntu's images read and mirror servers with.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use simplestreams::Digest;

use super::cases;
use super::image::Image;
use crate::clients::client::stdout_of;
use crate::harness::{Ask, Dir, Nginx, until};

/// Plain HTTP, for trust is not its subject.
const CONF: &str = "
@GLOBALS@
worker_processes 1;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    server {
        listen 127.0.0.1:@PORT@;
        root @TREE@;
        simplestreams_streams images images-daily;
        location / {
            simplestreams on;
        }
    }
}";

const STREAMS: [&str; 2] = ["images", "images-daily"];

/// A program of python-simplestreams, which is installed on first use and kept between runs.
fn program(name: &str) -> Command {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    let programs = PROGRAMS.get_or_init(|| {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-simplestreams");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/sstream.sh");
        stdout_of(Command::new(script).arg(&place));
        place.join("bin")
    });
    let mut program = Command::new(programs.join(name));
    program.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
    program
}

/// An item: stream, product, version, name, path, hash.
type Item = [String; 6];

/// Every item that the server lists.
fn items(nginx: &Nginx<'_>) -> BTreeSet<Item> {
    let mut items = BTreeSet::new();
    for stream in STREAMS {
        let document = Ask::get(&format!("/streams/v1/{stream}.json")).of(nginx).json();
        for (product, of) in document["products"].as_object().expect("products") {
            for (version, of) in of["versions"].as_object().expect("versions") {
                for (name, item) in of["items"].as_object().expect("items") {
                    let text = |key: &str| item[key].as_str().expect(key).to_owned();
                    let keys = [stream, product, version, name].map(str::to_owned);
                    let [stream, product, version, name] = keys;
                    items.insert([stream, product, version, name, text("path"), text("sha256")]);
                }
            }
        }
    }
    items
}

#[test]
fn python_simplestreams_queries_and_mirrors_the_whole_server() {
    let dir = Dir::new();
    cases::add_all(&dir);
    let daily = Image::make("20250303_0000");
    dir.add_file("images-daily/daily/1/amd64/default/20250303_0000/lxd.tar.xz", &daily.metadata());
    dir.add_file(
        "images-daily/daily/1/amd64/default/20250303_0000/rootfs.squashfs",
        &daily.squashfs(),
    );
    let nginx = dir.start(CONF);
    let versions = |stream: &str| {
        let answer = Ask::get(&format!("/streams/v1/{stream}.json")).of(&nginx);
        if answer.status == 200 { answer.versions().len() } else { 0 }
    };
    until("all versions are listed", || {
        (STREAMS.map(versions) == [cases::CASES.len(), 1]).then_some(())
    });
    let items = items(&nginx);
    let url = format!("http://127.0.0.1:{}/streams/v1/index.json", nginx.port());

    let queried = stdout_of(program("sstream-query").args(["--no-verify", "--json", &url]));
    let queried: Vec<Value> = serde_json::from_str(&queried).expect("an array");
    let seen: BTreeSet<Item> = queried
        .iter()
        .map(|item| {
            ["content_id", "product_name", "version_name", "item_name", "path", "sha256"]
                .map(|key| item[key].as_str().unwrap_or_default().to_owned())
        })
        .collect();
    assert_eq!(seen, items);
    assert_eq!(queried.len(), items.len());

    let mirror = tempfile::tempdir().expect("temporary directory");
    stdout_of(program("sstream-mirror").args(["--no-verify", &url]).arg(mirror.path()));
    for [_, product, _, name, path, sha256] in &items {
        let bytes = fs::read(mirror.path().join(path));
        let bytes = bytes.unwrap_or_else(|err| panic!("{path} of {product} {name}: {err}"));
        assert_eq!(Digest::of(&bytes).to_string(), *sha256, "{path}");
        assert!(bytes == fs::read(dir.tree().join(path)).expect("file"), "{path}");
    }
    for name in ["index", "images", "images-daily"] {
        let text = fs::read(mirror.path().join(format!("streams/v1/{name}.json")));
        let document: Value = serde_json::from_slice(&text.expect(name)).expect("JSON");
        assert!(document.is_object(), "{name}");
    }
    nginx.finish();
}
