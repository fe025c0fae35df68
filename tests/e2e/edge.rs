//! `nginx-conf/edge.conf`: an nginx that caches, in front of the origin that has the module.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{Answer, Ask, Dir, Nginx, metadata, squashfs, until};

const NAME: &str = "images.example.org";
const PRODUCT: &str = "images/busybox/1.36/amd64/default";
const INDEX: &str = "/streams/v1/images.json";

/// Three slices, the last one not full.
const ROOT_LENGTH: usize = 9 * 1024 * 1024 + 12_345;

const ORIGIN: &str = "
@GLOBALS@
events {}
http {
    @HTTP_GLOBALS@
    simplestreams_settle 300ms;
    log_format asked '$status $request_uri $http_range';
    server {
        listen 127.0.0.1:@PORT@ ssl;
        server_name images.example.org;
        ssl_certificate @DIR@/crt;
        ssl_certificate_key @DIR@/key;
        ssl_protocols TLSv1.3;
        access_log @DIR@/access.log asked;
        root @TREE@;
        location /streams/v1/ { simplestreams on; }
    }
}
";

const AROUND_EDGE: &str = "
@GLOBALS@
worker_processes 2;
events {}
http {
    @HTTP_GLOBALS@
    @EDGE@
}
";

/// The configuration file with its names, places and address replaced, and plain HTTP to the clients.
fn edge_conf(origin: &Nginx<'_>, certificate: &Path) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("nginx-conf/edge.conf");
    let mut conf = fs::read_to_string(path).expect("edge.conf");
    let replacements = [
        ("https://images.example.org", format!("https://127.0.0.1:{}", origin.port())),
        ("listen 443 ssl;", "listen 127.0.0.1:@PORT@;".to_owned()),
        ("listen [::]:443 ssl;", String::new()),
        ("ssl_certificate     /etc/ssl/certs/edge.example.org.pem;", String::new()),
        ("ssl_certificate_key /etc/ssl/private/edge.example.org.key;", String::new()),
        ("/etc/ssl/certs/ca-certificates.crt", certificate.display().to_string()),
        ("/var/cache/nginx", "@DIR@/cache".to_owned()),
    ];
    for (from, to) in replacements {
        assert!(conf.contains(from), "edge.conf has no \"{from}\" any more");
        conf = conf.replace(from, &to);
    }
    AROUND_EDGE.replace("@EDGE@", &conf)
}

fn make_certificate(dir: &Dir) {
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]);
    openssl.args(["-days", "2", "-subj", &format!("/CN={NAME}")]);
    openssl.args(["-addext", &format!("subjectAltName=DNS:{NAME}")]);
    openssl.arg("-keyout").arg(dir.path().join("key")).arg("-out").arg(dir.path().join("crt"));
    let output = openssl.output().expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn add_version(dir: &Dir, version: &str) -> Vec<u8> {
    // A root file system may be padded.
    let mut root = squashfs(version).to_vec();
    root.extend((root.len()..ROOT_LENGTH).map(|n| (n / 4096) as u8));
    dir.add_file(&format!("{PRODUCT}/{version}/rootfs.squashfs"), &root);
    dir.add_file(&format!("{PRODUCT}/{version}/lxd.tar.xz"), metadata());
    root
}

fn cache(answer: &Answer) -> Option<&str> {
    answer.header("X-Cache-Status")
}

/// How often the origin was asked for what, as `status uri range`.
fn asked(origin: &Dir) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for line in fs::read_to_string(origin.path().join("access.log")).expect("access.log").lines() {
        *out.entry(line.to_owned()).or_default() += 1;
    }
    out
}

#[track_caller]
fn until_listed(edge: &Nginx<'_>, versions: &[&str]) -> Answer {
    let wanted: Vec<String> =
        versions.iter().map(|v| format!("busybox:1.36:amd64:default {v}")).collect();
    until("the edge lists them", || {
        let answer = Ask::get(INDEX).of(edge);
        (answer.status == 200 && answer.versions() == wanted).then_some(answer)
    })
}

#[test]
fn an_edge_revalidates_the_index_fetches_each_slice_once_and_survives_its_origin() {
    let (dir, edge_dir) = (Dir::new(), Dir::new());
    make_certificate(&dir);
    let root = add_version(&dir, "20260101_0000");
    let origin = dir.start(ORIGIN);
    fs::create_dir(edge_dir.path().join("cache")).expect("cache");
    let mut edge = edge_dir.start(&edge_conf(&origin, &dir.path().join("crt")));
    let first = until_listed(&edge, &["20260101_0000"]);
    let etag = first.header("ETag").expect("ETag").to_owned();

    // What did not change comes from the cache, after the origin answered 304.
    let again = until("the index is revalidated", || {
        let answer = Ask::get(INDEX).of(&edge);
        (cache(&answer) == Some("REVALIDATED")).then_some(answer)
    });
    assert_eq!((again.header("ETag"), &again.body), (Some(etag.as_str()), &first.body));
    assert!(asked(&dir).contains_key(&format!("304 {INDEX} -")), "{:#?}", asked(&dir));
    let not_modified = Ask::get(INDEX).header("If-None-Match", &etag).of(&edge);
    assert_eq!(not_modified.status, 304);

    // A compressed variant is cached beside the plain one.
    let gzip = Ask::get(INDEX).header("Accept-Encoding", "gzip").of(&edge);
    assert_eq!(gzip.header("Content-Encoding"), Some("gzip"));
    assert_eq!(Ask::get(INDEX).of(&edge).body, first.body);

    // Many clients at once, and the origin sends each slice once.
    let file = format!("/{PRODUCT}/20260101_0000/rootfs.squashfs");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let answer = Ask::get(&file).of(&edge);
                assert_eq!(answer.status, 200);
                assert!(answer.body == root, "the edge changed the file");
            });
        }
    });
    let slices: BTreeMap<String, usize> =
        asked(&dir).into_iter().filter(|(line, _)| line.contains(&file)).collect();
    let once = [0, 4, 8].map(|from: usize| {
        let (from, to) = (from << 20, ((from + 4) << 20) - 1);
        (format!("206 {file} bytes={from}-{to}"), 1)
    });
    assert_eq!(slices, BTreeMap::from(once));
    let part = Ask::get(&file).header("Range", "bytes=5000000-5000009").of(&edge);
    assert_eq!((part.status, &part.body[..]), (206, &root[5_000_000..5_000_010]));

    // What is new shows.
    add_version(&dir, "20260102_0000");
    let newest = until_listed(&edge, &["20260101_0000", "20260102_0000"]);

    // Uploads in progress are no more served than by the origin.
    assert_eq!(Ask::get("/images/.upload/rootfs.squashfs").of(&edge).status, 404);

    origin.stop();
    edge.allow("connect() failed");
    let stale = until("the index is stale", || {
        let answer = Ask::get(INDEX).of(&edge);
        assert_eq!(answer.status, 200, "{}", answer.text());
        matches!(cache(&answer), Some("STALE" | "UPDATING")).then_some(answer)
    });
    assert_eq!(stale.body, newest.body);
    let kept = Ask::get(&file).of(&edge);
    assert_eq!((kept.status, cache(&kept)), (200, Some("HIT")));
    assert!(kept.body == root, "the edge changed the file");
}
