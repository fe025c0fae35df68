//! The container image and the LXD and Incus image that `make image` makes, as their users start them.
//!
//! `make image` runs these; alone they would have nothing to try.

mod container;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use simplestreams::Digest;

use crate::clients::client::{Client, Kind, REMOTE, stdout_of};
use crate::clients::site::{NEWEST, OLDER, Site, arch, demo_image};
use crate::daemons::daemon::Daemon;
use crate::daemons::start;
use crate::harness::{DEADLINE, Dir, until, within};
use container::{Container, Engine};

/// Where `make image` puts what it makes.
fn images() -> PathBuf {
    std::env::var_os("SIMPLESTREAMS_IMAGES")
        .expect("SIMPLESTREAMS_IMAGES names target/image, which make image makes")
        .into()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port()
}

/// The only thing in a directory, whose name hangs on version and time.
fn only_one_in(dir: &Path) -> PathBuf {
    let found: Vec<_> =
        fs::read_dir(dir).expect("directory").map(|entry| entry.unwrap().path()).collect();
    let [one] = &found[..] else { panic!("{}: {found:?}", dir.display()) };
    one.clone()
}

/// A document, fetched by curl, which trusts `certificate` alone.
fn fetch(certificate: &Path, url: &str) -> Option<String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--tlsv1.3", "--max-time", "10", "--cacert"]).arg(certificate);
    let output = curl.arg(url).output().expect("curl");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a client exports of `image` has the fingerprint of the files in `version`.
fn exports(client: &Client, image: &str, version: &Path) {
    let out = tempfile::tempdir().expect("temporary directory");
    client.ok(["image", "export", image, &format!("{}/exported", out.path().display())]);
    let read = |dir: &Path, name: &str| fs::read(dir.join(name)).expect(name);
    let fingerprint = |dir: &Path, metadata: &str, root: &str| {
        Digest::of(&[read(dir, metadata), read(dir, root)].concat())
    };
    let expected = fingerprint(version, "lxd.tar.xz", "rootfs.squashfs");
    let exported = [("exported", "exported.root")]
        .map(|(metadata, root)| fingerprint(out.path(), metadata, root));
    assert_eq!(exported, [expected], "{:?}", client.kind);
}

#[test]
#[ignore = "make image runs it"]
fn a_container_serves_and_keeps_its_certificate() {
    let dir = Dir::new();
    let product = dir.tree().join(format!("images/busybox/1/{}/default", arch()));
    stdout_of(&mut demo_image(&product, OLDER));
    let engine = Engine::load(&images());
    let ports = [free_port(), free_port()];
    let url = format!("https://localhost:{}", ports[0]);

    // The first start, without a certificate.
    let first =
        Container::run(&engine, &dir, ports, &["--read-only", "--tmpfs=/tmp", "--cap-drop=all"]);
    until("it says that it is healthy", || first.healthy().then_some(()));
    let certificate = dir.path().join("first.crt");
    fs::write(&certificate, first.exec(&["cat", "/etc/nginx/ssl/nginx.crt"])).expect("certificate");
    let text = stdout_of(
        Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(&certificate),
    );
    assert!(text.contains("DNS:images.example.org"), "{text}");
    until("it lists the image", || {
        fetch(&certificate, &format!("{url}/streams/v1/images.json"))?.contains(OLDER).then_some(())
    });
    for kind in Kind::BOTH {
        let client = Client::new(kind, &url, &certificate);
        assert_eq!(client.images().len(), 1, "{kind:?}");
        exports(&client, &format!("{REMOTE}:busybox/1"), &product.join(OLDER));
    }
    stdout_of(&mut demo_image(&product, NEWEST));
    until("what lands in the tree is listed", || {
        fetch(&certificate, &format!("{url}/streams/v1/images.json"))?
            .contains(NEWEST)
            .then_some(())
    });
    // Nobody in it is root, and both logs are the container's.
    let users = first.users();
    assert!(users.len() > 2 && users.iter().all(|user| user == "33 33 33 33"), "{users:?}");
    let (stdout, stderr) = first.logs();
    assert!(stdout.contains("GET /streams/v1/images.json"), "{stdout}");
    assert!(stderr.contains("start worker processes"), "{stderr}");
    assert!(!stderr.contains("[alert]") && !stderr.contains("[emerg]"), "{stderr}");
    let (_, stderr) = first.stop();
    assert!(stderr.contains("gracefully shutting down"), "{stderr}");

    // The second, with what the first one left in its volumes.
    let second = Container::run(&engine, &dir, ports, &[]);
    until("the second container lists what the first one did", || {
        fetch(&certificate, &format!("{url}/streams/v1/images.json"))?
            .contains(NEWEST)
            .then_some(())
    });
    let kept = second.exec(&["cat", "/etc/nginx/ssl/nginx.crt"]);
    assert_eq!(kept, fs::read_to_string(&certificate).expect("certificate"));
    // Other programs of the image, too.
    assert!(second.exec(&["lxd-image-server", "config"]).contains("img_dir"));
    second.stop();

    // A directory for the certificate that is empty and cannot be written to.
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).expect("directory");
    let said =
        Container::refusal(&engine, &dir, ports, &format!("{}:/etc/nginx/ssl:ro", empty.display()));
    assert!(said.contains("put nginx.crt and nginx.key into a volume at /etc/nginx/ssl"), "{said}");
}

#[test]
#[ignore = "make image runs it"]
fn lxd_starts_the_image_server_from_itself() {
    serves_itself(Kind::Lxd);
}

#[test]
#[ignore = "make image runs it"]
fn incus_starts_the_image_server_from_itself() {
    serves_itself(Kind::Incus);
}

/// Our own server serves the image; a daemon copies and starts it; what runs then is an image server,
/// which serves the same image.
fn serves_itself(kind: Kind) {
    let dir = Dir::new();
    let release = only_one_in(&images().join("tree/images/lxd-image-server"));
    let version = only_one_in(&release.join(format!("{}/default", arch())));
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let (release, serial) = (name(&release), name(&version));
    let place = format!("images/lxd-image-server/{release}/{}/default/{serial}", arch());
    for file in ["lxd.tar.xz", "rootfs.squashfs"] {
        dir.add_file(&format!("{place}/{file}"), &fs::read(version.join(file)).expect(file));
    }
    let names =
        stdout_of(Command::new("unsquashfs").arg("-ls").arg(version.join("rootfs.squashfs")));
    assert!(
        names.contains("squashfs-root/etc/nginx/ssl") && !names.contains("nginx.key"),
        "a key for all"
    );

    let site = Site::serve(&dir);
    until("our server lists the image", || {
        site.document().to_string().contains(&serial).then_some(())
    });
    let daemon = Daemon::start(kind, site.client(kind));
    let image = format!("{REMOTE}:lxd-image-server/{release}");
    daemon.ok(&["image", "copy", &image, "local:", "--alias=server"]);
    daemon.ok(&["init", "server", "images1"]);
    let port = free_port();
    let listen = format!("listen=tcp:127.0.0.1:{port}");
    daemon.ok(&[
        "config",
        "device",
        "add",
        "images1",
        "web",
        "proxy",
        &listen,
        "connect=tcp:127.0.0.1:8443",
    ]);
    if !start(&daemon, "images1") {
        return;
    }

    // Its certificate is made at its first start, with its name in it.
    let certificate = dir.path().join("images1.crt");
    let pulled = format!("{}", certificate.display());
    until("it has a certificate", || {
        daemon
            .run(&["file", "pull", "images1/etc/nginx/ssl/nginx.crt", &pulled])
            .status
            .success()
            .then_some(())
    });
    let url = format!("https://localhost:{port}");
    until("its server answers", || fetch(&certificate, &format!("{url}/streams/v1/index.json")));
    // Uploads, by whatever way the administrator likes best.
    fs::set_permissions(dir.tree().join(&place), fs::Permissions::from_mode(0o755)).expect("mode");
    let product = place.rsplit_once('/').expect("a version").0;
    let from = dir.tree().join(&place);
    let to = format!("images1/var/www/simplestreams/{product}/");
    daemon.ok(&["file", "push", "-r", "-p", from.to_str().expect("UTF-8"), &to]);
    let listed = within(DEADLINE, || {
        fetch(&certificate, &format!("{url}/streams/v1/images.json"))?
            .contains(&serial)
            .then_some(())
    });
    if listed.is_none() {
        let look = "ls -lR /var/www/simplestreams; cat /var/log/nginx/error.log; ps ax; \
                    curl -sk https://localhost:8443/streams/v1/images.json";
        let inside = daemon.run(&["exec", "images1", "--", "sh", "-c", look]);
        panic!("it does not list its own image: {}", String::from_utf8_lossy(&inside.stdout));
    }
    let client = Client::new(kind, &url, &certificate);
    exports(&client, &image, &version);

    until("everything in it has started", || {
        let said = daemon.run(&["exec", "images1", "--", "systemctl", "is-system-running"]);
        let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        assert!(
            said != "degraded",
            "{}",
            daemon.ok(&["exec", "images1", "--", "systemctl", "--failed"])
        );
        (said == "running").then_some(())
    });
    daemon.ok(&["stop", "images1", "--timeout=60"]);
    daemon.ok(&["delete", "images1"]);
}
