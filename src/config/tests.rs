use std::collections::BTreeMap;
use std::path::Path;

use log::LevelFilter;

use super::*;

fn load(text: &str) -> Result<Config, String> {
    let mut said = source::parse(Path::new("c.toml"), text).map_err(|err| err.to_string())?;
    let notes = mirrors::adopt(&mut said);
    Config::new(said, notes).map_err(|err| err.to_string())
}

#[test]
fn nothing_said_is_every_default() {
    let config = load("").unwrap();
    assert_eq!(config.img_dir, Path::new("/var/www/simplestreams/images"));
    assert_eq!(config.streams_dir, Path::new("/var/www/simplestreams/streams/v1"));
    assert_eq!(config.pid_file, Path::new("/var/run/lxd-image-server/pidfile"));
    assert_eq!(config.log.sinks, [(Target::Stderr, LevelFilter::Info)]);
    assert!(config.mirrors.is_empty() && config.notes.is_empty());
    assert!(config.shown.iter().all(|shown| shown.origin == "default"), "{:?}", config.shown);
}

#[test]
fn both_spellings_of_mirrors() {
    let nested = "[mirrors]\n  [mirror1]\n  user = \"lxdadm\"\n  remote = \"m1.example.org\"\n  \
                  key_path = \"/k\"\n";
    let proper = nested.replace("[mirrors]\n  [mirror1]", "[mirrors.mirror1]");
    let (nested, proper) = (load(nested).unwrap(), load(&proper).unwrap());
    assert_eq!(nested.mirrors, proper.mirrors);
    assert_eq!(nested.mirrors["mirror1"].host, "m1.example.org");
    assert_eq!(proper.notes, Vec::<String>::new());
    assert!(nested.notes[0].starts_with("c.toml:5:3: [mirror1]"), "{:?}", nested.notes);
    let url = "[mirrors.a]\nuser=\"u\"\nkey_path=\"/k\"\nurl=\"https://h.example.org:8443\"";
    assert_eq!(load(url).unwrap().mirrors["a"].host, "h.example.org");
}

#[test]
fn what_is_wrong_has_file_line_column_and_key() {
    let mirror = "[mirrors.a]\nuser = \"u\"\nremote = \"h\"\nkey_path = \"/k\"\n";
    let cases = [
        ("x = ", "c.toml:1:5: "),
        ("threads = 1\nthreads = 2", "c.toml:2:1: duplicate key at \"threads\""),
        ("\nimg_dir = 5", "c.toml:2:1: key \"img_dir\" must be a string, not a number"),
        (
            "[mirroring]\nretry_max = 0",
            "c.toml:2:1: key \"mirroring.retry_max\" must be at least 1s",
        ),
        ("settle = \"soon\"", "c.toml:1:1: key \"settle\" must be a time"),
        ("aliases = [\"long\"]", "c.toml:1:1: key \"aliases\": \"long\" is none of"),
        ("[log]\nlevel = \"loud\"", "c.toml:2:1: key \"log.level\" must be one of"),
        (
            "[mirroring]\nconcurrency = 0",
            "c.toml:2:1: key \"mirroring.concurrency\" must be from 1",
        ),
        (
            "[mirrors.a]\nremote = \"h\"\nuser = \"u\"",
            "c.toml:2:1: mirror \"a\" needs a \"key_path\"",
        ),
        (&format!("{mirror}port = 70000"), "c.toml:5:1: key \"mirrors.a.port\" must be from 1"),
        (
            &format!("{mirror}path = \"x\""),
            "c.toml:5:1: key \"mirrors.a.path\" must be an absolute",
        ),
        (&format!("{mirror}bandwidth = \"fast\""), "c.toml:5:1: key \"mirrors.a.bandwidth\" must"),
        (
            &mirror.replace("\"h\"", "\"-oProxyCommand=x\""),
            "c.toml:3:1: key \"mirrors.a.remote\" is",
        ),
        (&mirror.replace("\"u\"", "\"u x\""), "c.toml:2:1: key \"mirrors.a.user\" is no user"),
        ("log = \"x\"", "c.toml:1:1: key \"log\" must be a table, not a string"),
        ("logging = 1", "c.toml:1:1: key \"logging\" must be a table, not a number"),
        ("mirroring = 4", "c.toml:1:1: key \"mirroring\" must be a table, not a number"),
        ("[[mirrors]]\na = 5", "c.toml:1:3: key \"mirrors\" must be a table, not a list"),
        ("[mirrors]\na = 5", "c.toml:2:1: key \"mirrors.a\" must be a table, not a number"),
    ];
    for (text, expected) in cases {
        let err = load(text).expect_err(text);
        assert!(err.starts_with(expected), "{text}: {err}");
        assert!(!err.contains('\n'), "{err}");
    }
}

#[test]
fn unknown_keys_are_noted_with_the_nearest() {
    let notes = load("imgdir = \"/x\"\nzzz = 1\n[mirroring]\nconcurency = 2").unwrap().notes;
    assert_eq!(
        notes,
        [
            "c.toml:1:1: unknown key \"imgdir\" is ignored; did you mean \"img_dir\"?",
            "c.toml:4:1: unknown key \"mirroring.concurency\" is ignored; did you mean \
             \"mirroring.concurrency\"?",
            "c.toml:2:1: unknown key \"zzz\" is ignored",
        ]
    );
    let text = "[mirrors.a]\nuser=\"u\"\nremote=\"h\"\nkeypath=\"/k\"\nkey_path=\"/k\"";
    let notes = load(text).unwrap().notes;
    assert_eq!(
        notes,
        ["c.toml:4:1: unknown key \"keypath\" is ignored; did you mean \"key_path\"?"]
    );
}

#[test]
fn python_logging_says_level_and_file() {
    let text = "[logging]\nversion = 1\n[logging.formatters.simple]\nformat = \"%(message)s\"\n\
                [logging.handlers.filelog]\nlevel = \"INFO\"\nclass = \"logging.FileHandler\"\n\
                filename = \"/var/log/x.log\"\nformatter = \"simple\"\n\
                [logging.handlers.console]\nlevel = \"ERROR\"\nclass = \"logging.StreamHandler\"\n\
                [logging.loggers.lxd_image_server]\nhandlers = [\"console\", \"filelog\"]\n\
                level = \"INFO\"\npropagate = false\n";
    let config = load(text).unwrap();
    assert_eq!(
        config.log.sinks,
        [
            (Target::Stderr, LevelFilter::Error),
            (Target::File("/var/log/x.log".into()), LevelFilter::Info)
        ]
    );
    assert_eq!(config.notes.len(), 1, "{:?}", config.notes);
    let ours = format!("{text}[log]\nfile = \"STDOUT\"");
    assert_eq!(load(&ours).unwrap().log.sinks, [(Target::Stdout, LevelFilter::Info)]);
}

#[test]
fn files_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    };
    write("etc/lxd-image-server/config.toml", "settle = 1\nrescan = 1");
    write("etc/lxd-image-server/conf.d/20-b.toml", "settle = 3");
    write("etc/lxd-image-server/conf.d/10-a.toml", "settle = 2");
    write("etc/lxd-image-server/conf.d/.hidden.swp", "settle = 9");
    write("home/.config/lxd-image-server/config.toml", "img_dir = \"/home/images\"");
    let named = write("named.toml", "rescan = 7");
    let home = dir.path().join("home");
    let files = source::files(&dir.path().join("etc"), Some(&home), Some(named.clone()));
    let mut said = BTreeMap::new();
    for file in &files {
        said.extend(source::read(file).unwrap());
    }
    let config = Config::new(said, Vec::new()).unwrap();
    assert_eq!(config.settle, Duration::from_secs(3));
    assert_eq!(config.rescan, Duration::from_secs(7));
    assert_eq!(config.img_dir, Path::new("/home/images"));
    let rescan = config.shown.iter().find(|shown| shown.key == "rescan").unwrap();
    assert_eq!(rescan.origin, format!("{}:1:1", named.display()));
}

#[test]
fn a_file_that_everybody_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "").unwrap();
    let chmod = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    source::read(&file).unwrap();
    chmod(&file, 0o646);
    let err = source::read(&file).unwrap_err().to_string();
    assert!(err.contains(&format!("run: chmod o-w {}", file.display())), "{err}");
    chmod(&file, 0o664);
    chmod(dir.path(), 0o777);
    let err = source::read(&file).unwrap_err().to_string();
    assert!(err.contains(&format!("run: chmod o-w {}", dir.path().display())), "{err}");
    // As of /tmp, where this file is its owner's.
    chmod(dir.path(), 0o1777);
    source::read(&file).unwrap();
    assert!(source::read(Path::new("/dev/null")).unwrap().is_empty());
}

#[test]
fn keys_of_mirrors_are_where_ssh_would_look() {
    let mirror = |key: &str| {
        let text = format!("[mirrors.a]\nuser=\"u\"\nremote=\"h\"\nkey_path=\"{key}\"");
        load(&text).unwrap().mirrors["a"].clone()
    };
    let home = std::env::var("HOME").unwrap();
    assert_eq!(mirror("~/.ssh/id").key_path, Path::new(&home).join(".ssh/id"));
    assert_eq!(mirror("key").key_path, std::env::current_dir().unwrap().join("key"));
    assert_eq!(mirror("/k").key_path, Path::new("/k"));
    assert_eq!(mirror("/k").port, None);
}

/// The annotated file says what is true: every key is known, and stands at its default.
#[test]
fn the_annotated_file_has_every_key_at_its_default() {
    let text = include_str!("../../packaging/config.toml");
    assert!(load(text).unwrap().notes.is_empty());
    let is_key = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    let keys = text.lines().filter(|line| is_key(line) || line.starts_with('['));
    let said: String = keys.map(|line| format!("{}\n", line.trim_start_matches('#'))).collect();
    let (ours, default) = (load(&said).unwrap(), load("").unwrap());
    assert_eq!(ours.notes, Vec::<String>::new());
    let shown = |config: &Config| -> BTreeMap<String, String> {
        config.shown.iter().map(|shown| (shown.key.clone(), shown.value.clone())).collect()
    };
    let (ours, default) = (shown(&ours), shown(&default));
    assert!(ours.keys().eq(default.keys()), "{ours:?}");
    // The default of threads hangs on the machine.
    for (key, value) in default.iter().filter(|(key, _)| *key != "threads") {
        assert_eq!(ours.get(key), Some(value), "{key}");
    }

    let mirror: String = text
        .lines()
        .skip_while(|line| *line != "# [mirrors.one]")
        .filter_map(|line| line.strip_prefix("# "))
        .map(|line| format!("{line}\n"))
        .collect();
    let config = load(&mirror).unwrap();
    assert_eq!(config.notes, Vec::<String>::new());
    assert_eq!(config.mirrors["one"].port, Some(22));
}
