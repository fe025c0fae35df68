//! Accept-Encoding, in any form: nginx's own parser decides, so the answer must be compressed exactly
//! when nginx would send its own precompressed file, and be the document in either case.

use std::fs;
use std::io::{Read as _, Write as _};

use simplestreams::Settings;

use crate::harness::{Ask, Dir};

const ROUNDS: usize = 1500;

const CONF: &str = "
@GLOBALS@
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
        location /static/ {
            gzip_static on;
        }
    }
}";

const DOCUMENT: &str = "{\"a document\": \"that is long enough to be worth it\"}\n";

/// What such lines are made of, and what they should not be made of.
const PIECES: [&str; 38] = [
    "gzip", "GZip", "gzi", "gzipx", "xgzip", "x-gzip", "deflate", "br", "zstd", "identity", "*",
    ",", ", ", " ,", ",,", ";", "; ", " ;", "q=", "Q=", "q =", "0", "1", "0.", "0.0", "0.000",
    "0.0001", "0.5", "1.0", "1.000", "1.1", "2", "-1", " ", "\t", "\"", "=", "\u{fc}",
];

#[test]
fn whatever_clients_say_they_accept() {
    let dir = Dir::new();
    let settings = Settings::new(dir.tree());
    dir.publish(&settings, &[("index.json", "{}"), ("images.json", DOCUMENT)]);
    dir.hold_back(&settings);
    fs::create_dir_all(dir.tree().join("static")).expect("directory");
    dir.add_file("static/images.json", DOCUMENT.as_bytes());
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(DOCUMENT.as_bytes()).expect("memory");
    dir.add_file("static/images.json.gz", &encoder.finish().expect("memory"));
    let nginx = dir.start(CONF);

    // The same for everybody.
    let mut random = fastrand::Rng::with_seed(20260101);
    let mut seen = [0, 0];
    for round in 0..ROUNDS {
        let mut line: String =
            (0..random.usize(1..9)).map(|_| PIECES[random.usize(..PIECES.len())]).collect();
        match round % 3 {
            0 => {}
            // With a good beginning or end, and with a quality that may be one.
            1 if random.bool() => line = format!("gzip,{line}"),
            1 => line = format!("{line}, gzip"),
            _ => line = format!("gzip;q={line}"),
        }
        let answers = ["/streams/v1/images.json", "/static/images.json"].map(|path| {
            let ask = Ask::get(path).header("Accept-Encoding", &line);
            let answer = ask.of(&nginx);
            assert_eq!(answer.status, 200, "{path}: {line:?}");
            let coding = answer.header("Content-Encoding").map(str::to_owned);
            let text = match coding.as_deref() {
                None => answer.text(),
                Some("gzip") => {
                    let mut text = String::new();
                    let mut decoder = flate2::read::GzDecoder::new(&answer.body[..]);
                    decoder.read_to_string(&mut text).expect("gzip");
                    text
                }
                Some(other) => panic!("{path}: {line:?}: {other}"),
            };
            assert_eq!(text, DOCUMENT, "{path}: {line:?}");
            coding
        });
        assert_eq!(answers[0], answers[1], "ours and nginx's own: {line:?}");
        seen[usize::from(answers[0].is_some())] += 1;
    }
    assert!(seen.iter().all(|count| *count > ROUNDS / 20), "both kinds of answers: {seen:?}");
    nginx.finish();
}
