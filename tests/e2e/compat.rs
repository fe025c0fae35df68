//! What users of the Python tool have, and keep: command lines, configuration files, and an index that
//! their clients know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use simplestreams::Digest;

use crate::command::program::{Watch, bare, run, stderr, streams, succeed};
use crate::harness::{Ask, Dir, signal, until};

/// As the Python tool's documentation shows it.
const CONFIG: &str = "\
[mirrors]
  [mirror1]
  user = \"lxdadm\"
  remote = \"mirror1.xxxxxxx.com\"
  key_path = \"/etc/lxd-image-server/lxdhub.key\"
  [mirror2]
  user = \"lxdadm\"
  remote = \"mirror2.xxxxxxx.com\"
  key_path = \"/etc/lxd-image-server/lxdhub.key\"
";

/// The file that the Python tool's package put into /etc, with its example of a mirror in force.
const PACKAGED: &str = "\
[mirrors]
  # Add each mirror with its info. Example:
  [lxdhub]
  user = \"lxdadm\"
  url = \"https://lxdhub.xxxxxxx.com:8443\"
  # remote is replacing url, but url is not removed for backward compatibility
  remote = \"lxdhub.xxxxxxx.com\"
  # Make sure key has 700 permission and the ownership is lxdadm:www-data
  key_path = \"/etc/lxd-image-server/lxdhub.key\"

[logging]
  version = 1
  disable_existing_loggers = 1

[logging.formatters.simple]
  format = \"%(message)s\"

[logging.formatters.complex]
  format = \"%(levelname)s %(asctime)s %(message)s\"

[logging.handlers.filelog]
  level = \"INFO\"
  class = \"logging.FileHandler\"
  filename = \"/var/log/lxd-image-server/lxd-image-server.log\"
  formatter = \"complex\"

[logging.handlers.console]
  level = \"ERROR\"
  class = \"logging.StreamHandler\"
  formatter = \"simple\"

# Main logger of the application
[logging.loggers.lxd_image_server]
  handlers = [\"console\", \"filelog\"]
  level = \"INFO\"
  propagate = false
";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/old-tool").join(name)
}

/// The fixture's images in the tree of a test.
fn tree(dir: &Dir) {
    fs::create_dir_all(streams(dir)).expect("streams");
    succeed(Command::new("cp").arg("-r").arg(fixture("images")).arg(dir.tree()));
}

fn with_dirs<'c>(command: &'c mut Command, dir: &Dir) -> &'c mut Command {
    command.arg("--img_dir").arg(dir.tree().join("images")).arg("--streams_dir").arg(streams(dir))
}

fn json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// Each item as product, version, path, sha256 and size; and each combined hash by product and version.
type Items = BTreeSet<(String, String, String, String, u64)>;
type Combined = BTreeMap<(String, String), BTreeSet<String>>;

fn parts(images: &Value) -> (Items, Combined) {
    let (mut items, mut combined) = (Items::new(), Combined::new());
    for (product, value) in images["products"].as_object().expect("products") {
        for (version, value) in value["versions"].as_object().expect("versions") {
            for (_, item) in value["items"].as_object().expect("items") {
                let text = |key: &str| item[key].as_str().map(str::to_owned);
                let (path, sha256) = (text("path").expect("path"), text("sha256").expect("sha256"));
                let size = item["size"].as_u64().expect("size");
                items.insert((product.clone(), version.clone(), path, sha256, size));
                if let Some(hash) = text("combined_squashfs_sha256") {
                    let key = (product.clone(), version.clone());
                    combined.entry(key).or_default().insert(hash);
                }
            }
        }
    }
    (items, combined)
}

/// Frozen output of the Python tool (version 0.0.4) over `tests/fixtures/old-tool/images`: all that is
/// in it is in ours. It computes the combined hash over all files in the order in which the directory
/// lists them; where that is not metadata and root, its clients cannot use the image, and ours differs.
#[test]
fn everything_in_the_old_index_is_in_ours() {
    let dir = Dir::new();
    tree(&dir);
    succeed(with_dirs(bare(&dir).args(["--verbose", "update"]), &dir));
    let (old_items, old_combined) = parts(&json(&fixture("images.json")));
    let (items, combined) = parts(&json(&streams(&dir).join("images.json")));
    let missing: Vec<_> = old_items.difference(&items).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(old_items.len() >= 9, "the fixture has items");

    let mut differences = Vec::new();
    for (key, old) in &old_combined {
        let version = dir.tree().join("images").join(key.0.replace(':', "/")).join(&key.1);
        let read = |name: &str| fs::read(version.join(name)).expect("file");
        let right = Digest::of(&[read("lxd.tar.xz"), read("rootfs.squashfs")].concat()).to_string();
        assert_eq!(combined[key], BTreeSet::from([right]), "{key:?}");
        if combined[key] != *old {
            differences.push(format!("{} {}", key.0, key.1));
        }
    }
    // One with a delta in it, and one whose root was listed before its metadata.
    assert_eq!(
        differences,
        ["iats:bionic:arm64:devel 20190101_00:00", "iats:xenial:amd64:default 20180717_08:30"]
    );

    let products = |index: &Value| -> BTreeSet<String> {
        let list = index["index"]["images"]["products"].as_array().expect("products");
        list.iter().map(|name| name.as_str().expect("name").to_owned()).collect()
    };
    let (old, ours) = (json(&fixture("index.json")), json(&streams(&dir).join("index.json")));
    assert_eq!(products(&old), products(&ours));
    assert_eq!(old["index"]["images"]["path"], ours["index"]["images"]["path"]);
    // Aliases in scripts are those names.
    for (name, product) in json(&fixture("images.json"))["products"].as_object().expect("products")
    {
        let aliases = |images: &Value| -> BTreeSet<String> {
            let text = images["products"][name]["aliases"].as_str().expect("aliases");
            text.split(',').map(str::to_owned).collect()
        };
        let old = product["aliases"].as_str().expect("aliases");
        assert!(aliases(&json(&streams(&dir).join("images.json"))).contains(old), "{old}");
    }
}

/// An index that the Python tool wrote is replaced, and what differs is said.
#[test]
fn an_old_index_is_taken_over() {
    let dir = Dir::new();
    tree(&dir);
    for name in ["index.json", "images.json"] {
        fs::copy(fixture(name), streams(&dir).join(name)).expect("copied");
    }
    let said = succeed(with_dirs(bare(&dir).arg("update"), &dir));
    assert_eq!(
        said,
        "changed iats:bionic:arm64:devel 20190101_00:00\n\
         changed iats:xenial:amd64:default 20180717_08:30\n\
         3 products, 4 versions, 0 problems\n"
    );
}

#[test]
fn the_packaged_configuration_is_understood() {
    let dir = Dir::new();
    let log = dir.path().join("its.log");
    let text = PACKAGED
        .replace("/var/log/lxd-image-server/lxd-image-server.log", log.to_str().expect("a path"));
    fs::write(dir.path().join("packaged.toml"), text).expect("config");
    let output = run(bare(&dir).args(["--config", "packaged.toml", "config"]));
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8_lossy(&output.stdout);
    for line in [
        "mirrors.lxdhub.remote = \"lxdhub.xxxxxxx.com\"",
        "logging.handlers.console.level = \"ERROR\"",
        &format!("logging.handlers.filelog.filename = \"{}\"", log.display()),
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    // Its file and its levels are for the watch: whoever types a command looks at the terminal.
    assert!(!log.exists());
    let log = stderr(&output);
    assert!(log.contains("write [mirrors.lxdhub]"), "{log}");
    assert!(log.contains("[logging]: only levels, files and streams are used, not formatters"));
    assert_eq!(log.lines().count(), 2, "{log}");
}

/// What the Python tool's package has nginx do, in clear: its site includes the rest.
const SITE: &str = r"
@GLOBALS@
events {}
http {
    @HTTP_GLOBALS@
    server {
        listen 127.0.0.1:@PORT@;
        root @TREE@;
        @INDEX@
        location ~ \.json$ { add_header Content-Type application/json; }
        location ~ \.squashfs$ { add_header Content-Type application/octet-stream; }
        location ~ \.tar.xz$ { add_header Content-Type application/octet-stream; }
        location ~ ^/(images/)?$ { return 403; }
    }
}
";

/// With the lines that `docs/migrating.md` puts into that site the module answers, whose entity tags are
/// not nginx's; without the `^~` the file that is left there would.
#[test]
fn the_module_takes_over_in_the_old_site() {
    let dir = Dir::new();
    tree(&dir);
    fs::write(streams(&dir).join("images.json"), "frozen").expect("index file");
    let document =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migrating.md"));
    let document = document.expect("docs/migrating.md");
    let lines = document.split("   ```").nth(1).expect("the first block");
    assert!(lines.contains("location ^~ /streams/v1/ {"), "{lines}");
    let lines = lines.replace("/var/www/simplestreams", "@TREE@");
    let ask = |lines: &str| {
        let nginx = dir.start(&SITE.replace("@INDEX@", lines));
        let answer = until("the index", || {
            let answer = Ask::get("/streams/v1/images.json").of(&nginx);
            (answer.status == 200).then_some(answer)
        });
        assert_eq!(Ask::get("/images/").of(&nginx).status, 403);
        nginx.finish();
        answer
    };
    let live = ask(&lines);
    let tag = live.header("ETag").expect("ETag").trim_matches('"').to_owned();
    assert!(tag.len() == 32 && tag.bytes().all(|c| c.is_ascii_hexdigit()), "{tag}");
    assert!(!live.versions().is_empty());
    assert_eq!(ask(&lines.replace("^~ ", "")).text(), "frozen");
}

#[test]
fn documented_configuration_and_command_lines() {
    let dir = Dir::new();
    tree(&dir);
    let config = dir.path().join("documented.toml");
    fs::write(&config, CONFIG).expect("config");
    let named = |args: &[&str]| {
        let mut command = bare(&dir);
        command.env("LXD_IMAGE_SERVER_CONFIG", &config).args(args);
        command
    };
    let printed = succeed(&mut named(&["config"]));
    for mirror in ["mirror1", "mirror2"] {
        let line = format!("mirrors.{mirror}.remote = \"{mirror}.xxxxxxx.com\"");
        assert!(printed.contains(&line), "{printed}");
    }

    // Defaults are the documented ones.
    let defaults = succeed(bare(&dir).arg("config"));
    assert!(defaults.contains("img_dir = \"/var/www/simplestreams/images\""), "{defaults}");
    assert!(defaults.contains("streams_dir = \"/var/www/simplestreams/streams/v1\""), "{defaults}");
    for help in
        [vec!["--help"], vec!["init", "--help"], vec!["update", "--help"], vec!["watch", "--help"]]
    {
        succeed(bare(&dir).args(help));
    }
    if !Path::new("/var/www/simplestreams/images").exists() {
        let output = run(bare(&dir).arg("update"));
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("\"/var/www/simplestreams/images\" does not exist"));
    }

    // The watch as documented: the mirrors cannot be reached, for there is no key; the index can.
    fs::write(dir.path().join("config.toml"), "").expect("config");
    let mut start = named(&["--verbose", "watch", "--skip-watch-config-non-existent"]);
    fs::write(
        &config,
        format!(
            "pid_file = \"{0}/pidfile\"\ndata_dir = \"{0}/data\"\n{CONFIG}",
            dir.path().display()
        ),
    )
    .expect("config");
    let watch = Watch::start_as(&dir, with_dirs(&mut start, &dir));
    until("the index", || fs::read(streams(&dir).join("index.json")).ok());
    if !Path::new("/etc/lxd-image-server/lxdhub.key").exists() {
        for mirror in ["mirror1", "mirror2"] {
            watch.says(&format!("mirror {mirror}: cannot use the key"));
        }
    }
    let pid: i32 =
        fs::read_to_string(dir.path().join("pidfile")).expect("pid").trim().parse().expect("pid");
    assert_eq!(pid, watch.process().0);
    succeed(&mut named(&["reload"]));
    watch.says("reading the configuration again");
    signal(watch.process(), rustix::process::Signal::HUP);
    drop(watch);
}
