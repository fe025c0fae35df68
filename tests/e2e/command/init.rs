//! `lxd-image-server init`, with a real nginx in a directory of its own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use super::program::{bare, command, configure, run, stderr, stdout, streams, succeed};
use crate::harness::{Dir, until};

/// nginx as Debian configures it, as far as it matters here.
const AROUND: &str = "
@GLOBALS@
events {}
http {
    @HTTP_GLOBALS@
    server { listen 127.0.0.1:@PORT@; }
    include @DIR@/sites-enabled/*;
}
";

fn init(dir: &Dir, port: u16, more: &[&str]) -> Command {
    let mut command = bare(dir);
    // The nginx of the harness is told where its error log is; this one writes where Debian's does.
    command.args(["init", "--root_dir"]).arg(dir.path().join("www"));
    command.arg("--ssl_dir").arg(dir.path().join("ssl"));
    command.arg("--nginx-dir").arg(dir.path()).args(["--port", &port.to_string()]).args(more);
    command
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("0.0.0.0:0").expect("a free port");
    socket.local_addr().expect("an address").port()
}

#[test]
fn init_prepares_a_host_once() {
    let dir = Dir::new();
    let port = free_port();
    // Whatever it would do, --dry-run does nothing.
    assert!(dir.test(AROUND).status.success());
    let before = dir.listing();
    let said = succeed(&mut init(&dir, port, &["--dry-run"]));
    assert!(said.contains("would make certificate") && said.contains("would link"), "{said}");
    assert_eq!(dir.listing(), before);

    let said = succeed(&mut init(&dir, port, &["--san", "images.example.org"]));
    let add = format!("incus remote add mine https://images.example.org:{port} --protocol=simple");
    assert!(said.contains(&add) && said.contains("lxc remote add mine https://"), "{said}");
    let mode = |path: &str| fs::metadata(dir.path().join(path)).expect(path).mode() & 0o7777;
    for (path, expected) in [
        ("www", 0o755),
        ("www/images", 0o755),
        ("www/streams/v1", 0o755),
        ("www/streams/v1/index.json", 0o644),
        // Whoever can open it can lock it.
        ("www/streams/v1/.lxd-image-server.lock", 0o600),
        ("ssl", 0o755),
        ("ssl/nginx.crt", 0o644),
        ("ssl/nginx.key", 0o600),
    ] {
        assert_eq!(mode(path), expected, "{path}");
    }
    let text = succeed(
        Command::new("openssl")
            .args(["x509", "-noout", "-text", "-in"])
            .arg(dir.path().join("ssl/nginx.crt")),
    );
    for name in ["DNS:images.example.org", "DNS:localhost", "IP Address:127.0.0.1"] {
        assert!(text.contains(name), "{name}: {text}");
    }

    // The site serves the index, trusted by that certificate.
    let nginx = dir.start(AROUND);
    let index = until("the index is served", || {
        let url = format!("https://localhost:{port}/streams/v1/index.json");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--tlsv1.3", "--cacert"]);
        let output = curl.arg(dir.path().join("ssl/nginx.crt")).arg(url).output().expect("curl");
        output.status.success().then_some(output.stdout)
    });
    assert_eq!(index, fs::read(dir.path().join("www/streams/v1/index.json")).expect("index"));
    // An uploader's link to a file of somebody else publishes nothing.
    let images = dir.path().join("www/images");
    fs::write(dir.path().join("secret"), "of root").expect("a secret");
    fs::write(images.join("plain"), "of the uploader").expect("a file");
    std::os::unix::fs::symlink(dir.path().join("secret"), images.join("link")).expect("a link");
    std::os::unix::fs::lchown(images.join("link"), Some(65534), None).expect("lchown");
    let status = |name: &str| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert"]);
        curl.arg(dir.path().join("ssl/nginx.crt"));
        succeed(curl.arg(format!("https://localhost:{port}/images/{name}")))
    };
    assert_eq!((status("plain").trim(), status("link").trim()), ("200", "403"));
    nginx.finish();

    // Again: nothing is touched.
    let seen = || {
        ["ssl/nginx.crt", "ssl/nginx.key", "sites-available/simplestreams.conf"].map(|path| {
            let meta = fs::metadata(dir.path().join(path)).expect(path);
            (meta.ino(), meta.mtime(), meta.mtime_nsec())
        })
    };
    let before = seen();
    let other = free_port();
    let output = run(&mut init(&dir, other, &["--san", "other.example.org"]));
    assert!(output.status.success() && stdout(&output).contains("is there already"), "{output:?}");
    assert_eq!(seen(), before);
    // What had no effect is said, and the lines are right nevertheless.
    assert!(stdout(&output).contains(&add), "{output:?}");
    let said = stderr(&output);
    assert!(said.contains("--san other.example.org has no effect"), "{said}");
    assert!(said.contains(&format!("--port {other} has no effect")), "{said}");
    assert!(said.contains(&format!("is there already on port {port}")), "{said}");
    let output = run(&mut init(&dir, port, &["--san", "localhost"]));
    assert!(!stderr(&output).contains("no effect"), "{output:?}");
    assert!(stdout(&output).contains(&format!("https://localhost:{port} ")), "{output:?}");

    // Its link alone is missing.
    fs::remove_file(dir.path().join("sites-enabled/simplestreams.conf")).expect("removed");
    let output = run(&mut init(&dir, other, &[]));
    let said = stdout(&output);
    assert!(said.contains("sites-available/simplestreams.conf is there already"), "{said}");
    assert!(said.contains("link ") && said.contains(&add), "{said}");
    assert_eq!(seen(), before);
}

#[test]
fn init_leaves_nginx_alone() {
    let dir = Dir::new();
    assert!(dir.test(AROUND).status.success());
    let said = succeed(&mut init(&dir, free_port(), &["--nginx_skip"]));
    assert!(
        said.contains("nginx is left alone") && said.contains("https://YOUR-SERVER "),
        "{said}"
    );
    for path in ["ssl", "sites-available", "sites-enabled"] {
        assert!(!dir.path().join(path).exists(), "{path}");
    }
    assert!(dir.path().join("www/streams/v1/index.json").exists());

    // There is nginx, but not where it was said to be.
    let elsewhere = dir.path().join("elsewhere");
    let mut command = bare(&dir);
    command.args(["init", "--ssl-skip", "--root-dir"]).arg(dir.path().join("www"));
    let said = succeed(command.arg("--nginx-dir").arg(&elsewhere));
    let missing = format!("there is no directory {} (--nginx-dir)", elsewhere.display());
    assert!(said.contains(&missing), "{said}");
}

#[test]
fn init_refuses_nonsense() {
    let dir = Dir::new();
    for nonsense in
        [["--san", "bad name!"], ["--san", "300.1.1.1"], ["--port", "0"], ["--port", "65536"]]
    {
        let output = run(bare(&dir).arg("init").args(nonsense));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains(nonsense[1]), "{output:?}");
    }
}

/// The root is the configured one if none is given; for another one it says what the service needs.
#[test]
fn init_says_what_the_service_needs() {
    let dir = Dir::new();
    configure(&dir, "streams = [\"images-daily\"]");
    let tree = dir.tree();
    let said = succeed(&mut command(&dir, &["init", "--nginx-skip"]));
    assert!(
        said.contains(&format!("make the first index in {}", streams(&dir).display())),
        "{said}"
    );
    assert!(!said.contains("img_dir = "), "it is what is configured: {said}");
    let unit =
        |root: &std::path::Path| format!("    [Service]\n    ReadWritePaths={}\n", root.display());
    assert!(said.contains(&unit(&tree)), "{said}");

    let other = dir.path().join("other");
    let mut command = command(&dir, &["init", "--nginx-skip", "--root-dir"]);
    let said = succeed(command.arg(&other));
    for (key, below) in [("img_dir", "images"), ("streams_dir", "streams/v1")] {
        let line = format!("    {key} = \"{}\"\n", other.join(below).display());
        assert!(said.contains(&line), "{line}: {said}");
    }
    assert!(said.contains(&unit(&other)), "{said}");
}

#[test]
fn init_behind_a_proxy_makes_no_certificate() {
    let dir = Dir::new();
    assert!(dir.test(AROUND).status.success());
    let port = free_port();
    let said = succeed(&mut init(&dir, port, &["--ssl_skip"]));
    assert!(said.contains("https://YOUR-PROXY"), "{said}");
    assert!(!dir.path().join("ssl").exists());
    let site = fs::read_to_string(dir.path().join("sites-available/simplestreams.conf"));
    assert!(!site.expect("site").contains("ssl"));
}

#[test]
fn init_makes_a_certificate_and_nothing_else() {
    let dir = Dir::new();
    let said = succeed(&mut init(&dir, free_port(), &["--certificate-only", "--san", "192.0.2.1"]));
    assert!(said.contains("make certificate") && said.contains("192.0.2.1"), "{said}");
    assert!(dir.path().join("ssl/nginx.key").exists());
    assert!(!dir.path().join("www").exists() && !dir.path().join("sites-available").exists());
    let said = succeed(&mut init(&dir, free_port(), &["--certificate-only"]));
    assert!(said.contains("is there already"), "{said}");
}

#[test]
fn init_undoes_what_nginx_refuses() {
    let dir = Dir::new();
    assert!(dir.test(AROUND).status.success());
    let port = free_port();
    fs::create_dir_all(dir.path().join("sites-available")).expect("directory");
    let site = dir.path().join("sites-available/simplestreams.conf");
    fs::write(&site, "server { listen 127.0.0.1:1; nonsense; }\n").expect("site");
    let output = run(&mut init(&dir, port, &[]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("unknown directive \"nonsense\""), "{output:?}");
    assert!(!dir.path().join("sites-enabled/simplestreams.conf").exists(), "{}", stdout(&output));

    // A port that is taken, before anything is linked.
    fs::remove_file(&site).expect("removed");
    let taken = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let output = run(&mut init(&dir, port, &[]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stderr(&output);
    assert!(
        said.contains(&format!("port {port} is in use; choose another one with --port")),
        "{said}"
    );
    assert!(!site.exists());

    // A link that leads nowhere: to the site that is missing, or elsewhere.
    let link = dir.path().join("sites-enabled/simplestreams.conf");
    std::os::unix::fs::symlink("/no/such/site", &link).expect("link");
    let output = run(&mut init(&dir, free_port(), &[]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("leads nowhere; remove it"), "{output:?}");
    fs::remove_file(&link).expect("removed");
    std::os::unix::fs::symlink(&site, &link).expect("link");
    let said = succeed(&mut init(&dir, free_port(), &[]));
    assert!(said.contains("write nginx site") && link.exists(), "{said}");

    // Half a pair of key and certificate is nothing to guess about.
    fs::remove_file(dir.path().join("ssl/nginx.key")).expect("removed");
    let output = run(&mut init(&dir, free_port(), &[]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("without its key"), "{output:?}");
    assert!(stderr(&output).contains("restore that, or remove"), "{output:?}");
}

/// What was made in the run that failed goes, and the next one is not hindered by it.
#[test]
fn init_takes_away_a_site_that_nginx_refuses() {
    let dir = Dir::new();
    assert!(dir.test(AROUND).status.success());
    let (port, ssl) = (free_port(), dir.path().join("ssl"));
    fs::create_dir(&ssl).expect("directory");
    for name in ["nginx.crt", "nginx.key"] {
        fs::write(ssl.join(name), "no certificate").expect("file");
    }
    let output = run(&mut init(&dir, port, &[]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("nginx refuses the new site: "), "{output:?}");
    for sites in ["sites-available", "sites-enabled"] {
        assert_eq!(fs::read_dir(dir.path().join(sites)).expect(sites).count(), 0, "{sites}");
    }

    // It was wrong before, by somebody else's file.
    fs::remove_dir_all(&ssl).expect("removed");
    let foreign = dir.path().join("sites-enabled/foreign");
    fs::write(&foreign, "nonsense;\n").expect("file");
    let output = run(&mut init(&dir, port, &[]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stderr(&output);
    assert!(said.contains("nginx refused its configuration before anything was changed"), "{said}");
    assert!(said.contains("unknown directive \"nonsense\""), "{said}");
    assert_eq!(fs::read_dir(dir.path().join("sites-available")).expect("sites").count(), 0);
    fs::remove_file(&foreign).expect("removed");
    succeed(&mut init(&dir, port, &[]));
}

/// Where a stream is configured, its files are served as those of `images` are.
#[test]
fn init_makes_a_location_for_each_stream() {
    let dir = Dir::new();
    assert!(dir.test(AROUND).status.success());
    configure(&dir, "streams = [\"images-daily\"]");
    dir.add_file("images-daily/some/file", b"of another stream");
    dir.add_file("images-daily/.upload", b"hidden");
    dir.add_file("elsewhere/file", b"of none");
    let port = free_port();
    let mut command = command(&dir, &["init", "--ssl-skip", "--port", &port.to_string()]);
    succeed(command.arg("--nginx-dir").arg(dir.path()));
    let nginx = dir.start(AROUND);
    let status = |path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]);
        succeed(curl.arg(format!("http://127.0.0.1:{port}{path}"))).trim().to_owned()
    };
    for (path, expected) in [
        ("/images-daily/some/file", "200"),
        ("/images-daily/.upload", "404"),
        ("/streams/v1/images-daily.json", "200"),
        ("/streams/v1/.lxd-image-server.lock", "404"),
        ("/elsewhere/file", "404"),
    ] {
        assert_eq!(status(path), expected, "{path}");
    }
    nginx.finish();
}
