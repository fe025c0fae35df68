//! What a request gets: status, header and body, against a generation whose content is known.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use simplestreams::{Settings, Snapshot, snapshot};

use crate::harness::{Answer, Ask, DEADLINE, Dir, Nginx};

const INDEX: &str = "{\"datatype\":\"index\"}\n";
const GZIP: (&str, &str) = ("Accept-Encoding", "gzip");

/// Large enough to be worth compressing, and not the same from one end to the other.
fn images() -> String {
    (0..2000).map(|i| format!("{{\"product {i}\": {}}}\n", i * i)).collect()
}

/// A directory with one generation, which stays: no builder can publish another.
fn published() -> Dir {
    let dir = Dir::new();
    let settings = Settings::new(dir.tree());
    dir.publish(&settings, &[("index.json", INDEX), ("images.json", &images())]);
    dir.hold_back(&settings);
    dir.add_file("images/readme.txt", b"a file of the tree");
    dir
}

const PLAIN: &str = "
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    server {
        listen 127.0.0.1:@PORT@;
        root @TREE@;
        location / {
            simplestreams on;
        }
    }
}";

fn gunzip(bytes: &[u8]) -> String {
    let mut out = String::new();
    flate2::read::GzDecoder::new(bytes).read_to_string(&mut out).expect("gzip");
    out
}

#[test]
fn a_document_is_described_in_full() {
    let dir = published();
    let nginx = dir.start(PLAIN);
    let answer = Ask::get("/streams/v1/images.json").of(&nginx);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), images());
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!(answer.header("Content-Length"), Some(images().len().to_string().as_str()));
    assert_eq!(answer.header("Content-Encoding"), None);
    assert_eq!(answer.header("Vary"), Some("Accept-Encoding"));
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("*"));
    assert_eq!(answer.header("Accept-Ranges"), Some("bytes"));
    let path = snapshot::path(&dir.state(), &Settings::new(dir.tree()).id());
    let snapshot = Snapshot::open(&path).expect("own snapshot");
    let document = snapshot.document("images.json").expect("own document");
    assert_eq!(answer.header("ETag"), Some(document.identity.etag));
    assert!(document.identity.etag.starts_with('"'), "a strong one: {}", document.identity.etag);
    let date = answer.header("Last-Modified").expect("Last-Modified");
    assert!(date.ends_with(" GMT"), "{date}");

    let head = Ask::new("HEAD", "/streams/v1/images.json", "1.1").of(&nginx);
    assert_eq!(head.status, 200);
    for name in ["Content-Type", "Content-Length", "ETag", "Last-Modified", "Vary"] {
        assert_eq!(head.header(name), answer.header(name), "{name}");
    }
}

#[test]
fn which_uris_are_ours() {
    let dir = published();
    let nginx = dir.start(PLAIN);
    let rows = [
        // path, status, body if it is known
        ("/streams/v1/", 200, Some(INDEX)),
        ("/streams/v1/index.json", 200, Some(INDEX)),
        ("/streams/v1/index.json?cache=no", 200, Some(INDEX)),
        ("/streams//v1/./index.json", 200, Some(INDEX)),
        ("/streams/v1/%69ndex.json", 200, Some(INDEX)),
        ("/streams/v1/other.json", 404, None),
        ("/streams/v1/index.json/", 404, None),
        ("/streams/v1/index", 404, None),
        ("/streams/v1/%ff%fe", 404, None),
        ("/streams/v1/a%00b", 400, None),
        ("/streams/v2/index.json", 404, None),
        ("/images/readme.txt", 200, Some("a file of the tree")),
        ("/images/other.txt", 404, None),
        ("/images/", 403, None),
    ];
    for (path, status, body) in rows {
        let answer = Ask::get(path).of(&nginx);
        assert_eq!(answer.status, status, "{path}");
        if let Some(body) = body {
            assert_eq!(answer.text(), body, "{path}");
        }
    }
    let file = Ask::get("/images/readme.txt").of(&nginx);
    assert_eq!(file.header("Access-Control-Allow-Origin"), None, "a file is nginx's alone");
}

#[test]
fn what_is_on_disk_does_not_hide_the_index() {
    let dir = published();
    dir.add_file("streams/v1/index.json", b"left by another tool");
    dir.add_file("streams/v1/other.json", b"left by another tool");
    let nginx = dir.start(PLAIN);
    assert_eq!(Ask::get("/streams/v1/index.json").of(&nginx).text(), INDEX);
    assert_eq!(Ask::get("/streams/v1/other.json").of(&nginx).status, 404);
}

#[test]
fn other_methods_are_refused() {
    let dir = published();
    let nginx = dir.start(PLAIN);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        for path in ["/streams/v1/index.json", "/streams/v1/other.json"] {
            let answer = Ask::new(method, path, "1.1").body("a body").of(&nginx);
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("Allow"), Some("GET, HEAD"), "{method} {path}");
            assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("*"));
        }
    }
}

/// A body that nobody wants must not be taken for the next request.
#[test]
fn the_bodies_of_requests_are_read_and_forgotten() {
    let dir = published();
    let nginx = dir.start(PLAIN);
    let mut stream = TcpStream::connect(("127.0.0.1", nginx.port())).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    let body = "GET /streams/v1/other.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    for method in ["GET", "POST", "GET"] {
        let length = body.len();
        let head = format!(
            "{method} /streams/v1/index.json HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("head");
        stream.write_all(body.as_bytes()).expect("body");
    }
    stream.write_all(&Ask::get("/images/readme.txt").bytes()).expect("last");
    let mut all = String::new();
    stream.read_to_string(&mut all).expect("answers");
    let statuses: Vec<&str> = all
        .lines()
        .filter_map(|line| Some(line[line.find("HTTP/1.1 ")?..].trim_start_matches("HTTP/1.1 ")))
        .map(|status| &status[..3])
        .collect();
    assert_eq!(statuses, ["200", "405", "200", "200"], "{all}");
}

#[test]
fn conditions_are_answered_by_304() {
    let dir = published();
    let nginx = dir.start(PLAIN);
    let path = "/streams/v1/images.json";
    for coding in ["identity", "gzip"] {
        let ask = || Ask::get(path).header("Accept-Encoding", coding);
        let full = ask().of(&nginx);
        let etag = full.header("ETag").expect("ETag").to_owned();
        let time = full.header("Last-Modified").expect("Last-Modified").to_owned();
        let weak = format!("W/{etag}");
        let several = format!("\"other\", {etag}");
        let rows: [(&[(&str, &str)], u16); 10] = [
            (&[("If-None-Match", &etag)], 304),
            (&[("If-None-Match", &weak)], 304),
            (&[("If-None-Match", &several)], 304),
            (&[("If-None-Match", "*")], 304),
            (&[("If-None-Match", "\"other\"")], 200),
            (&[("If-Modified-Since", &time)], 304),
            (&[("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT")], 200),
            (&[("If-None-Match", &etag), ("If-Modified-Since", &time)], 304),
            (&[("If-Match", &etag)], 200),
            (&[("If-Match", "\"other\"")], 412),
        ];
        for (headers, status) in rows {
            let ask = headers.iter().fold(ask(), |ask, (name, value)| ask.header(name, value));
            let answer = ask.of(&nginx);
            assert_eq!(answer.status, status, "{coding} {headers:?}");
            if status == 304 {
                assert_eq!(answer.header("ETag"), Some(etag.as_str()), "{coding} {headers:?}");
                assert_eq!(answer.header("Vary"), Some("Accept-Encoding"));
                assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("*"));
            }
        }
    }
}

#[test]
fn ranges_are_of_the_variant_that_is_sent() {
    let dir = published();
    let nginx = dir.start(PLAIN);
    let path = "/streams/v1/images.json";
    for coding in ["identity", "gzip"] {
        let ask =
            |range: &str| Ask::get(path).header("Accept-Encoding", coding).header("Range", range);
        let full = Ask::get(path).header("Accept-Encoding", coding).of(&nginx);
        let (etag, length) = (full.header("ETag").expect("ETag"), full.body.len());

        let part = ask("bytes=10-19").of(&nginx);
        assert_eq!((part.status, &part.body[..]), (206, &full.body[10..20]), "{coding}");
        let range = format!("bytes 10-19/{length}");
        assert_eq!(part.header("Content-Range"), Some(range.as_str()));
        assert_eq!(part.header("ETag"), Some(etag));
        assert_eq!(part.header("Content-Encoding"), full.header("Content-Encoding"));

        let tail = ask("bytes=-7").of(&nginx);
        assert_eq!((tail.status, &tail.body[..]), (206, &full.body[length - 7..]), "{coding}");

        let several = ask("bytes=0-4,100-109").of(&nginx);
        assert_eq!(several.status, 206, "{coding}");
        let kind = several.header("Content-Type").expect("Content-Type");
        assert!(kind.starts_with("multipart/byteranges; boundary="), "{kind}");
        for piece in [&full.body[..5], &full.body[100..110]] {
            assert!(several.body.windows(piece.len()).any(|w| w == piece), "{coding}");
        }

        let beyond = ask(&format!("bytes={length}-")).of(&nginx);
        assert_eq!(beyond.status, 416, "{coding}");
        assert_eq!(beyond.header("Content-Range"), Some(format!("bytes */{length}").as_str()));

        let same = ask("bytes=0-0").header("If-Range", etag).of(&nginx);
        assert_eq!((same.status, same.body.len()), (206, 1), "{coding}");
        let other = ask("bytes=0-0").header("If-Range", "\"other\"").of(&nginx);
        assert_eq!((other.status, &other.body), (200, &full.body), "{coding}");
    }
    // What one variant's tag allows is not a range of the other.
    let gzip = Ask::get(path).header(GZIP.0, GZIP.1).of(&nginx);
    let mixed = Ask::get(path)
        .header("Range", "bytes=0-0")
        .header("If-Range", gzip.header("ETag").expect("ETag"))
        .of(&nginx);
    assert_eq!((mixed.status, mixed.text()), (200, images()));
}

#[test]
fn gzip_goes_to_those_who_take_it() {
    let dir = published();
    let nginx = dir.start(PLAIN);
    let rows = [
        // Accept-Encoding, compressed
        (None, false),
        (Some("gzip"), true),
        (Some("gzip, deflate, br"), true),
        (Some("br;q=1.0, gzip;q=0.5"), true),
        (Some("deflate, GZIP"), true),
        (Some("gzip;q=0"), false),
        (Some("gzip;q=0.000"), false),
        (Some("identity"), false),
        // nginx does not take these for gzip, and the answer is right all the same.
        (Some("*"), false),
        (Some("x-gzip"), false),
        (Some(""), false),
    ];
    let identity = Ask::get("/streams/v1/images.json").of(&nginx);
    for (accept, compressed) in rows {
        let ask = Ask::get("/streams/v1/images.json");
        let ask = accept.into_iter().fold(ask, |ask, value| ask.header("Accept-Encoding", value));
        let answer = ask.of(&nginx);
        assert_eq!(answer.status, 200, "{accept:?}");
        assert_eq!(answer.header("Vary"), Some("Accept-Encoding"), "{accept:?}");
        assert_eq!(answer.header("Content-Type"), Some("application/json"), "{accept:?}");
        if compressed {
            assert_eq!(answer.header("Content-Encoding"), Some("gzip"), "{accept:?}");
            assert_eq!(gunzip(&answer.body), images(), "{accept:?}");
            assert_ne!(answer.header("ETag"), identity.header("ETag"), "{accept:?}");
            assert!(answer.body.len() < identity.body.len() / 2, "{accept:?}");
        } else {
            assert_eq!(answer.header("Content-Encoding"), None, "{accept:?}");
            assert_eq!(answer.text(), images(), "{accept:?}");
        }
    }
    let via = Ask::get("/streams/v1/images.json").header(GZIP.0, GZIP.1).header("Via", "1.1 proxy");
    assert_eq!(via.of(&nginx).text(), images(), "as gzip_proxied says, which is off");
}

/// nginx's own gzip and Vary: switched on or off, the line is there once and the bytes are ours.
#[test]
fn nginx_s_gzip_changes_nothing() {
    const CONF: &str = "
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    gzip on;
    gzip_types application/json;
    gzip_min_length 1;
    gzip_vary @VARY@;
    gunzip on;
    charset utf-8;
    server {
        listen 127.0.0.1:@PORT@;
        simplestreams @TREE@;
    }
}";
    for vary in ["on", "off"] {
        let dir = published();
        let nginx = dir.start(&CONF.replace("@VARY@", vary));
        for path in ["/streams/v1/images.json", "/streams/v1/index.json"] {
            let full = Ask::get(path).header(GZIP.0, GZIP.1).of(&nginx);
            assert_eq!(full.header("Content-Encoding"), Some("gzip"), "{vary} {path}");
            let etag = full.header("ETag").expect("ETag");
            assert!(etag.starts_with('"'), "nginx has not compressed it again: {etag}");
            assert_eq!(full.header("Content-Type"), Some("application/json"));
            let rows: [&[(&str, &str)]; 6] = [
                &[],
                &[GZIP],
                &[("Accept-Encoding", "br")],
                &[GZIP, ("Via", "1.1 proxy")],
                &[GZIP, ("If-None-Match", etag)],
                &[GZIP, ("Range", "bytes=0-3")],
            ];
            for headers in rows {
                for method in ["GET", "HEAD"] {
                    let ask = Ask::new(method, path, "1.1");
                    let ask =
                        headers.iter().fold(ask, |ask, (name, value)| ask.header(name, value));
                    let answer = ask.of(&nginx);
                    let vary_line = answer.header("Vary");
                    assert_eq!(vary_line, Some("Accept-Encoding"), "{vary} {method} {headers:?}");
                }
            }
        }
    }
}

#[test]
fn http_1_0_gets_the_document_as_it_is() {
    let dir = published();
    let nginx = dir.start(PLAIN);
    let answer =
        Ask::new("GET", "/streams/v1/images.json", "1.0").header(GZIP.0, GZIP.1).of(&nginx);
    assert_eq!((answer.status, answer.header("Content-Encoding")), (200, None));
    assert_eq!(answer.text(), images());
}

#[test]
fn etag_off_is_obeyed() {
    const CONF: &str = "
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    etag off;
    server {
        listen 127.0.0.1:@PORT@;
        simplestreams @TREE@;
    }
}";
    let dir = published();
    let nginx = dir.start(CONF);
    let answer = Ask::get("/streams/v1/images.json").of(&nginx);
    assert_eq!((answer.status, answer.header("ETag")), (200, None));
    assert_eq!(answer.text(), images());
}

/// A subrequest's answer is a part of another's: never compressed, never the last buffer.
#[test]
fn a_subrequest_is_answered_as_it_is() {
    const CONF: &str = "
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    server {
        listen 127.0.0.1:@PORT@;
        root @TREE@;
        location / {
            simplestreams on;
        }
        location = /page {
            ssi on;
            default_type text/html;
            alias @TREE@/page;
        }
        location = /mirrored {
            mirror /streams/v1/images.json;
            return 204;
        }
        location = /added {
            add_before_body /streams/v1/index.json;
            add_after_body /streams/v1/images.json;
            default_type text/html;
            alias @TREE@/images/readme.txt;
        }
        location = /moved {
            rewrite ^ /streams/v1/index.json last;
        }
    }
}";
    let dir = published();
    dir.add_file(
        "page",
        b"<i><!--#include virtual=\"/streams/v1/images.json\" --></i>\
          <b><!--#include virtual=\"/streams/v1/other.json\" --></b>",
    );
    let nginx = dir.start(CONF);
    // In chunks, which a last buffer in the middle would end too early.
    let ask = |path: &str| Ask::get(path).header(GZIP.0, GZIP.1).of(&nginx);
    let page = ask("/page");
    assert_eq!(page.status, 200);
    assert!(page.text().starts_with(&format!("<i>{}</i><b>", images())), "{}", page.text());
    assert!(page.text().contains("404 Not Found"), "{}", page.text());
    assert_eq!(ask("/added").text(), format!("{INDEX}a file of the tree{}", images()));
    assert_eq!(ask("/mirrored").status, 204);
    assert_eq!(gunzip(&ask("/moved").body), INDEX, "a request that was moved is no subrequest");
}

#[test]
fn before_the_first_generation_the_answer_is_503() {
    let dir = Dir::new();
    dir.hold_back(&Settings::new(dir.tree()));
    let nginx = dir.start(PLAIN);
    for path in ["/streams/v1/index.json", "/streams/v1/images.json", "/streams/v1/other.json"] {
        let answer = Ask::get(path).of(&nginx);
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(answer.header("Retry-After"), Some("5"), "{path}");
        assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("*"), "{path}");
    }
    assert_eq!(Ask::new("POST", "/streams/v1/index.json", "1.1").of(&nginx).status, 405);
}

/// An `error_page` replaces the header lines of the answer that it replaces, and no others; when to ask
/// again is said beside a page too.
#[test]
fn error_pages_of_other_errors_change_nothing() {
    let dir = Dir::new();
    dir.hold_back(&Settings::new(dir.tree()));
    let page = "error_page 503 /page.html; location = /page.html { return 200 page; } location / {";
    let nginx = dir.start(&PLAIN.replace("location / {", page));
    let answer = Ask::get("/streams/v1/index.json").of(&nginx);
    assert_eq!((answer.status, answer.text()), (503, "page".to_owned()));
    assert_eq!(answer.header("Retry-After"), Some("5"));
    assert_eq!(answer.header("Access-Control-Allow-Origin"), None);
    let answer = Ask::new("POST", "/streams/v1/index.json", "1.1").of(&nginx);
    assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD")));
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("*"));
}

const REUSEPORT: &str = "
@GLOBALS@
worker_processes 4;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    add_header X-Worker $pid always;
    server {
        listen 127.0.0.1:@PORT@ reuseport;
        simplestreams @TREE@;
    }
}";

#[test]
fn every_worker_gives_the_same_tags_and_times() {
    let dir = published();
    let nginx = dir.start(REUSEPORT);
    let first = Ask::get("/streams/v1/images.json").of(&nginx);
    let same = |answer: &Answer| {
        ["ETag", "Last-Modified"].iter().all(|name| answer.header(name) == first.header(name))
    };
    let mut asked = BTreeSet::new();
    while asked.len() < 4 {
        let answer = Ask::get("/streams/v1/images.json").of(&nginx);
        assert!(same(&answer), "{answer:?} {first:?}");
        asked.insert(answer.worker());
    }
}

/// A body larger than any socket buffer, read slowly while its generation is replaced: the request
/// keeps what it began with.
#[test]
fn a_generation_stays_until_its_last_reader_is_done() {
    let dir = Dir::new();
    let settings = Settings::new(dir.tree());
    let large = |mark: &str| mark.repeat(48 * 1024 * 1024 / mark.len());
    dir.publish(&settings, &[("images.json", &large("old generation\n"))]);
    dir.hold_back(&settings);
    let nginx = dir.start(REUSEPORT);
    let mut stream = TcpStream::connect(("127.0.0.1", nginx.port())).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    stream.write_all(&Ask::get("/streams/v1/images.json").bytes()).expect("request");
    let mut begun = vec![0; 4096];
    stream.read_exact(&mut begun).expect("begin");

    dir.publish(&settings, &[("images.json", &large("new generation\n"))]);
    seen_by_all(&nginx, "new generation");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("rest");
    begun.extend(rest);
    let text = String::from_utf8(begun).expect("text");
    let body = text.split_once("\r\n\r\n").expect("header").1;
    assert!(body == large("old generation\n"), "mixed, or {} bytes", body.len());
}

fn seen_by_all(nginx: &Nginx<'_>, mark: &str) {
    nginx.at_every_worker("/streams/v1/images.json", |answer| answer.text().starts_with(mark));
}

#[test]
fn a_damaged_snapshot_leaves_the_one_before_in_service() {
    let dir = published();
    let nginx = dir.start(REUSEPORT);
    seen_by_all(&nginx, "{\"product 0\"");
    let path = snapshot::path(&dir.state(), &Settings::new(dir.tree()).id());
    let mut bytes = std::fs::read(&path).expect("snapshot");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let beside = dir.state().join("damaged");
    std::fs::write(&beside, &bytes).expect("damaged");
    std::fs::rename(&beside, &path).expect("rename");
    crate::harness::until("four workers report it", || {
        (nginx.error_log().matches("its checksum does not match").count() >= 4).then_some(())
    });
    seen_by_all(&nginx, "{\"product 0\"");
}
