//! Documents that are large enough are sent from the builder's memory file, by `sendfile(2)` where
//! nginx can, and are the same bytes wherever it cannot.

use std::fs;
use std::process::Command;

use crate::harness::{Answer, Ask, Dir, Nginx, metadata, until};

const IMAGES: &str = "/streams/v1/images.json";
const VERSIONS: usize = 150;

/// One server for each way to send, told apart by their names.
const CONF: &str = "
@GLOBALS@
worker_processes 1;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    simplestreams_settle 200ms;
    sendfile on;
    gzip_vary off;
    server {
        listen 127.0.0.1:@PORT@;
        server_name plain;
        error_log @DIR@/plain.log debug;
        simplestreams @TREE@;
    }
    server {
        listen 127.0.0.1:@PORT@;
        server_name off;
        error_log @DIR@/off.log debug;
        sendfile off;
        simplestreams @TREE@;
    }
    server {
        listen 127.0.0.1:@PORT@;
        server_name threads;
        aio threads;
        sendfile_max_chunk 16k;
        tcp_nopush on;
        simplestreams @TREE@;
    }
    server {
        listen 127.0.0.1:@PORT@;
        server_name direct;
        directio 4k;
        output_buffers 1 8k;
        limit_rate 4m;
        simplestreams @TREE@;
    }
    server {
        listen 127.0.0.1:@PORT@;
        server_name changed;
        sub_filter_types application/json;
        sub_filter_once off;
        sub_filter 'busybox' 'BUSYBOX';
        simplestreams @TREE@;
    }
    server {
        listen 127.0.0.1:@PORT@;
        server_name page;
        simplestreams @TREE@;
        location = /page {
            ssi on;
            default_type text/html;
            alias @DIR@/page;
        }
    }
}";

/// Versions that are listed; their roots need no content but must differ.
fn fill(dir: &Dir) {
    for number in 0..VERSIONS {
        let version = format!("images/busybox/{number}/amd64/default/20260101_0000");
        dir.add_file(&format!("{version}/lxd.tar.xz"), metadata());
        dir.add_file(&format!("{version}/rootfs.squashfs"), format!("root {number}").as_bytes());
    }
}

/// The whole document, once it is there.
fn whole(nginx: &Nginx<'_>, host: &str) -> Answer {
    until("all versions are listed", || {
        let answer = Ask::get(IMAGES).host(host).of(nginx);
        (answer.status == 200 && answer.versions().len() == VERSIONS).then_some(answer)
    })
}

#[test]
fn the_bytes_are_the_same_however_they_are_sent() {
    let dir = Dir::new();
    fill(&dir);
    fs::write(dir.path().join("page"), format!("<i><!--#include virtual=\"{IMAGES}\" --></i>"))
        .expect("page");
    let nginx = dir.start(CONF);
    let full = whole(&nginx, "off");
    let length = full.body.len();
    assert!(length > 100_000, "large enough for sendfile: {length}");

    for host in ["plain", "threads", "direct"] {
        let same = Ask::get(IMAGES).host(host).of(&nginx);
        assert_eq!((same.status, &same.body), (200, &full.body), "{host}");
        let head = Ask::new("HEAD", IMAGES, "1.1").host(host).of(&nginx);
        assert_eq!(head.header("Content-Length"), Some(length.to_string().as_str()), "{host}");
        for (range, part) in [
            ("bytes=40000-90000", &full.body[40_000..=90_000]),
            ("bytes=-70000", &full.body[length - 70_000..]),
            ("bytes=99000-", &full.body[99_000..]),
        ] {
            let answer = Ask::get(IMAGES).host(host).header("Range", range).of(&nginx);
            assert_eq!((answer.status, &answer.body[..]), (206, part), "{host} {range}");
        }
        let several = Ask::get(IMAGES).host(host).header("Range", "bytes=0-39999,60000-99999");
        let several = several.of(&nginx);
        assert_eq!(several.status, 206, "{host}");
        for piece in [&full.body[..40_000], &full.body[60_000..100_000]] {
            assert!(several.body.windows(piece.len()).any(|w| w == piece), "{host}");
        }
    }
    let changed = Ask::get(IMAGES).host("changed").of(&nginx);
    assert_eq!(changed.text(), full.text().replace("busybox", "BUSYBOX"), "a filter's own bytes");
    let page = Ask::get("/page").host("page").of(&nginx);
    assert_eq!(page.text(), format!("<i>{}</i>", full.text()), "a subrequest");

    // How it was sent is in nginx's own debugging log alone.
    let log = |name: &str| fs::read_to_string(dir.path().join(name)).expect("log");
    assert!(log("plain.log").contains("sendfile: @"), "not by sendfile");
    assert!(!log("off.log").contains("sendfile: @"), "by sendfile, which is off");
}

/// The memory file is open, and mapped, as long as somebody is sent from it.
#[test]
fn a_reader_keeps_the_generation_that_it_began_with() {
    use std::io::{Read as _, Write as _};

    let dir = Dir::new();
    fill(&dir);
    let nginx = dir.start(CONF);
    let full = whole(&nginx, "plain");
    let mut slow = std::net::TcpStream::connect(("127.0.0.1", nginx.port())).expect("connect");
    // Four megabytes a second, after the first: far from done when the next generation is there.
    let ask = Ask::get(IMAGES).host("threads").bytes();
    let many = 40;
    let kept = String::from_utf8(ask).expect("text").replace("Connection: close\r\n", "");
    slow.write_all(kept.repeat(many).as_bytes()).expect("requests");
    let mut begun = vec![0; 1000];
    slow.read_exact(&mut begun).expect("begin");

    let gone = dir.tree().join("images/busybox/0");
    fs::remove_dir_all(gone).expect("remove");
    until("the next generation", || {
        let answer = Ask::get(IMAGES).host("plain").of(&nginx);
        (answer.versions().len() == VERSIONS - 1).then_some(())
    });
    let mut rest = vec![0; full.body.len()];
    slow.read_exact(&mut rest).expect("rest");
    begun.extend(rest);
    let head = begun.windows(4).position(|w| w == b"\r\n\r\n").expect("header") + 4;
    assert!(begun[head..].starts_with(&full.body), "the old generation, to its end");
}

#[test]
fn over_tls_and_http_2_it_is_sent_from_memory() {
    const TLS: &str = "
@GLOBALS@
worker_processes 1;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    simplestreams_settle 200ms;
    sendfile on;
    server {
        listen 127.0.0.1:@PORT@ ssl http2;
        ssl_certificate @DIR@/crt;
        ssl_certificate_key @DIR@/key;
        ssl_protocols TLSv1.3;
        simplestreams @TREE@;
    }
}";
    let dir = Dir::new();
    fill(&dir);
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
    openssl.args(["-subj", "/CN=localhost", "-keyout"]).arg(dir.path().join("key"));
    let made = openssl.arg("-out").arg(dir.path().join("crt")).output().expect("openssl");
    assert!(made.status.success(), "{made:?}");
    let nginx = dir.start(TLS);
    let url = format!("https://127.0.0.1:{}{IMAGES}", nginx.port());
    let fetch = |options: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--insecure", "--max-time", "30"]).args(options);
        curl.arg(&url).output().expect("curl").stdout
    };
    let full = until("all versions are listed", || {
        let body = fetch(&["--http1.1"]);
        let listed = String::from_utf8_lossy(&body).matches("\"release_title\"").count();
        (listed == VERSIONS).then_some(body)
    });
    for version in ["--http1.1", "--http2"] {
        let said = fetch(&[version, "--output", "/dev/null", "--write-out", "%{http_version}"]);
        assert_eq!(said, version.trim_start_matches("--http").as_bytes(), "{version}");
        assert_eq!(fetch(&[version]), full, "{version}");
        let part = fetch(&[version, "--range", "40000-90000"]);
        assert_eq!(part, full[40_000..=90_000], "{version}");
        let unpacked = fetch(&[version, "--compressed"]);
        assert_eq!(unpacked, full, "{version}");
    }
}
