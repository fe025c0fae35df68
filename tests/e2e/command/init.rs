//! `lxd-image-server init`, with a real nginx in a directory of its own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use super::program::{bare, run, stderr, stdout, succeed};
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
    let said = succeed(&mut init(&dir, port, &["--san", "other.example.org"]));
    assert!(said.contains("is there already"), "{said}");
    assert_eq!(seen(), before);
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
}
