//! The complete site of `nginx-conf/site.conf` over a tree with the demonstration image in two
//! versions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use simplestreams::Digest;

use super::client::{Client, Kind, stdout_of};
use crate::harness::{Dir, Nginx, until};

/// What nginx has around a site on Debian.
const AROUND: &str = "
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    log_format asked '$scheme $status $request_uri';
    @SITE@
}
";

/// The demonstration's versions.
pub(crate) const OLDER: &str = "20250101_12:00";
pub(crate) const NEWEST: &str = "20250201_12:00";

pub(crate) struct Site<'d> {
    nginx: Nginx<'d>,
    dir: &'d Dir,
    metadata: &'static str,
    release: String,
    arch: String,
}

/// A request as the access log has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) scheme: String,
    pub(crate) status: u16,
    pub(crate) uri: String,
}

/// What curl got.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The command that makes a version `serial` of the demonstration image below `product`.
pub(crate) fn demo_image(product: &Path, serial: &str) -> Command {
    let mut command = Command::new(repository().join("packaging/demo-image.sh"));
    command.arg(product).arg(serial);
    command
}

/// A version of the demonstration image in memory.
struct Version {
    name: &'static str,
    metadata: Vec<u8>,
    root: Vec<u8>,
}

/// Both versions, made once.
fn demo_versions() -> &'static [Version; 2] {
    static VERSIONS: OnceLock<[Version; 2]> = OnceLock::new();
    VERSIONS.get_or_init(|| {
        let dir = tempfile::tempdir().expect("temporary directory");
        [OLDER, NEWEST].map(|name| {
            stdout_of(&mut demo_image(dir.path(), name));
            let read = |file| fs::read(dir.path().join(name).join(file)).expect(file);
            Version { name, metadata: read("lxd.tar.xz"), root: read("rootfs.squashfs") }
        })
    })
}

impl<'d> Site<'d> {
    /// Makes the tree in `dir`, with `metadata` as the name of the only metadata file, starts nginx, and
    /// waits until both versions are listed.
    #[track_caller]
    pub(crate) fn start(dir: &'d Dir, metadata: &'static str) -> Self {
        let product = dir.tree().join(product(&release(), &arch()));
        for version in demo_versions() {
            let place = product.join(version.name);
            fs::create_dir_all(&place).expect("version");
            fs::write(place.join(metadata), &version.metadata).expect("metadata");
            fs::write(place.join("rootfs.squashfs"), &version.root).expect("root");
        }
        let site = Self { metadata, ..Self::serve(dir) };
        until("both versions are listed", || site.lists_both().then_some(()));
        site
    }

    /// Starts nginx over whatever is in the tree of `dir`.
    #[track_caller]
    pub(crate) fn serve(dir: &'d Dir) -> Self {
        make_certificate(dir.path());
        let nginx = dir.start(&AROUND.replace("@SITE@", &adapted_site()));
        Self { nginx, dir, metadata: "lxd.tar.xz", release: release(), arch: arch() }
    }

    /// A client of `kind` that knows and trusts this server.
    pub(crate) fn client(&self, kind: Kind) -> Client {
        Client::new(kind, &self.url(), &self.certificate())
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.nginx.port())
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.path().join("server.crt")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.tree()
    }

    /// The image's release: busybox's version.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// The image's architecture, as Debian names it.
    pub(crate) fn arch(&self) -> &str {
        &self.arch
    }

    /// The product's directory, below the root.
    pub(crate) fn product(&self) -> String {
        product(&self.release, &self.arch)
    }

    /// sha256(metadata ‖ root) of a version, from its files on disk.
    pub(crate) fn fingerprint(&self, version: &str) -> Digest {
        let version = self.root().join(self.product()).join(version);
        let mut bytes = fs::read(version.join(self.metadata)).expect("metadata");
        bytes.extend(fs::read(version.join("rootfs.squashfs")).expect("root"));
        Digest::of(&bytes)
    }

    fn lists_both(&self) -> bool {
        let name = format!("busybox:{}:{}:default", self.release, self.arch);
        let versions = &self.document()["products"][name]["versions"];
        [OLDER, NEWEST].iter().all(|version| versions[version].is_object())
    }

    /// What is served as `images.json`; null until there is one.
    pub(crate) fn document(&self) -> Value {
        let got = Command::new("curl")
            .args(["-sS", "--fail", "--cacert"])
            .arg(self.certificate())
            .arg(format!("{}/streams/v1/images.json", self.url()))
            .output()
            .expect("curl");
        serde_json::from_slice(&got.stdout).unwrap_or_default()
    }

    /// Asks by curl, with the path sent as it is: `scheme` is `https` or `http` on the port of
    /// TLS, or `port 80` for the second server.
    pub(crate) fn curl(&self, scheme: &str, path: &str, args: &[&str]) -> Answer {
        let mut command = Command::new("curl");
        command.args(["-sS", "--path-as-is", "-D", "-", "-o", "/dev/null", "--cacert"]);
        command.arg(self.certificate()).args(args);
        if scheme == "port 80" {
            command.arg("--unix-socket").arg(self.dir.path().join("port-80"));
            command.arg(format!("http://localhost{path}"));
        } else {
            command.arg(format!("{scheme}://localhost:{}{path}", self.nginx.port()));
        }
        let head = stdout_of(&mut command);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Answer { status: status.unwrap_or_else(|| panic!("no status in {head:?}")), head }
    }

    fn access_log(&self) -> PathBuf {
        self.dir.path().join("access.log")
    }

    /// Empties the access log.
    pub(crate) fn forget_requests(&self) {
        fs::write(self.access_log(), "").expect("access log");
    }

    /// Every request since the log was emptied, up to the answer that has all of `last`, which
    /// is waited for: nginx writes the line after the client has the last byte.
    pub(crate) fn requests_until(&self, last: &str) -> Vec<Asked> {
        until("the last request is logged", || {
            let requests = self.requests();
            let done = |asked: &Asked| asked.status == 200 && asked.uri.ends_with(last);
            requests.iter().any(done).then_some(requests)
        })
    }

    fn requests(&self) -> Vec<Asked> {
        let log = fs::read_to_string(self.access_log()).expect("access log");
        log.lines()
            .filter_map(|line| {
                let mut words = line.splitn(3, ' ');
                let mut word = || words.next().map(str::to_owned);
                let (scheme, status, uri) = (word()?, word()?, word()?);
                Some(Asked { scheme, status: status.parse().expect("a status"), uri })
            })
            .collect()
    }
}

/// Version of busybox, of which the image is made.
fn release() -> String {
    let help = stdout_of(Command::new("busybox").arg("--help"));
    let version = help.strip_prefix("BusyBox v").expect("busybox says its version");
    version.splitn(3, ['.', ' ']).take(2).collect::<Vec<_>>().join(".")
}

/// Architecture of this machine, as Debian names it.
pub(crate) fn arch() -> String {
    stdout_of(Command::new("dpkg").arg("--print-architecture")).trim().to_owned()
}

fn product(release: &str, arch: &str) -> String {
    format!("images/busybox/{release}/{arch}/default")
}

/// As `make run` makes it: signed by itself, with the host's names in it.
fn make_certificate(dir: &Path) {
    stdout_of(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(dir.join("server.key"))
            .arg("-out")
            .arg(dir.join("server.crt")),
    );
}

/// The site as an administrator adapts it, each name and place in it replaced. The second server's
/// port 80 becomes a socket in the file system.
fn adapted_site() -> String {
    let mut site = fs::read_to_string(repository().join("nginx-conf/site.conf")).expect("site");
    for (from, to) in [
        ("listen 443 ssl http2;", "listen 127.0.0.1:@PORT@ ssl http2;"),
        ("listen [::]:443 ssl http2;", ""),
        ("listen 80;", "listen unix:@DIR@/port-80;"),
        ("listen [::]:80;", ""),
        (
            "server_name images.example.org;",
            "server_name localhost;\n    access_log @DIR@/access.log asked;",
        ),
        ("/etc/ssl/certs/images.example.org.pem", "@DIR@/server.crt"),
        ("/etc/ssl/private/images.example.org.key", "@DIR@/server.key"),
        ("/var/www/simplestreams;", "@TREE@;"),
    ] {
        assert!(site.contains(from), "nginx-conf/site.conf has no {from:?} any more");
        site = site.replace(from, to);
    }
    site
}
