//! How fast this processor hashes, lane by lane: `cargo run --release --example sha256`.
//!
//! A line each for the crate `sha2`, for one, two and three lanes of this library over the same
//! bytes, and for eight files of 64 KiB with two lanes each. `openssl speed -evp sha256 -bytes 16384` says what one lane of OpenSSL does.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sha2::Digest as _;
use simplestreams::sha256::{self, Lane};

/// As much as is read from a file at once.
const BYTES: usize = 512 << 10;

/// How long each is measured.
const TIME: Duration = Duration::from_secs(1);

fn main() {
    let data: Vec<u8> = (0..BYTES).map(|i| (i >> 3) as u8).collect();
    let mut hasher = sha2::Sha256::new();
    report("sha2", 1, || hasher.update(black_box(&data)));
    black_box(hasher.finalize());
    for number in 1..=3 {
        // Behind metadata of any length, so that no two lanes begin a block at the same byte.
        let mut lanes = vec![Lane::default(); number];
        for (n, lane) in lanes.iter_mut().enumerate() {
            sha256::update(std::slice::from_mut(lane), &vec![b'm'; 301 * n]);
        }
        report("simplestreams", number, || sha256::update(&mut lanes, black_box(&data)));
        black_box(lanes);
    }
    let files: Vec<&[u8]> = data.chunks(64 << 10).collect();
    let mut lanes = vec![[Lane::default(), Lane::default()]; files.len()];
    report("each its own", 2, || {
        let feeds = lanes.iter_mut().zip(black_box(&files));
        let feeds = feeds.flat_map(|(lanes, file)| lanes.iter_mut().map(move |lane| (lane, *file)));
        sha256::update_each(feeds);
    });
    black_box(lanes);
}

/// Prints the best of what was measured: other work on the machine makes it slower, never faster.
fn report(name: &str, lanes: usize, mut hash: impl FnMut()) {
    let (start, mut best) = (Instant::now(), Duration::MAX);
    while start.elapsed() < TIME {
        let before = Instant::now();
        hash();
        best = best.min(before.elapsed());
    }
    let speed = BYTES as f64 / best.as_secs_f64() / 1e9;
    let all = speed * lanes as f64;
    println!("{name}: {lanes} lanes, {speed:.2} GB/s of each, {all:.2} GB/s of all");
}
