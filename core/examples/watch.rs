//! Indexes a tree, watches it, and prints what is listed: `cargo run --example watch ROOT`.

use std::io::{Write as _, stdout};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::env::args_os().nth(1).ok_or("usage: watch ROOT")?;
    let index = simplestreams::Index::open(simplestreams::Settings::new(root))?;
    let (mut seen, mut out) = (0, stdout());
    while let Some(snapshot) = index.wait_newer(seen, Duration::from_secs(3600)) {
        seen = snapshot.generation();
        writeln!(out, "generation {seen}: {:?}", snapshot.counts())?;
        let document = snapshot.document("images.json").map(|images| images.identity.bytes);
        writeln!(out, "{}", String::from_utf8_lossy(document.unwrap_or(b"(no root)")))?;
        for problem in snapshot.problems() {
            writeln!(out, "problem: {problem}")?;
        }
    }
    Ok(())
}
