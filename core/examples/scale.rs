//! Times the index of a large tree of small versions; each figure is a line, `name value`.
//!
//! ```text
//! scale tree ROOT PRODUCTS VERSIONS BYTES    make a tree; roots of BYTES bytes
//! scale build ROOT STATE CHANGES [THREADS]   build, follow, and change it CHANGES times
//! scale all PRODUCTS VERSIONS BYTES CHANGES [THREADS]
//!                                            all of it, cold and warm, in a temporary directory
//! ```
//!
//! Built for release: `cargo run --release -p simplestreams --example scale -- all 40000 1 1024 100`.
//! With an empty STATE the build is a cold one, with that of an earlier run a warm one.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use simplestreams::{Builder, BuilderOptions, Followed, Follower, Prepare, Settings, SnapshotCell};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// After this long, what should have happened did not.
const DEADLINE: Duration = Duration::from_secs(600);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["tree", root, products, versions, bytes] => {
            tree(Path::new(root), products.parse()?, versions.parse()?, bytes.parse()?)
        }
        ["build", root, state, changes] => build(root, Path::new(state), changes.parse()?, 1),
        ["build", root, state, changes, threads] => {
            build(root, Path::new(state), changes.parse()?, threads.parse()?)
        }
        ["all", products, versions, bytes, changes] => all(products, versions, bytes, changes, "1"),
        ["all", products, versions, bytes, changes, threads] => {
            all(products, versions, bytes, changes, threads)
        }
        _ => Err("usage: scale tree|build|all ARGUMENTS, see the head of the example".into()),
    }
}

/// Each step in a process of its own, so that each has a peak of its own.
fn all(products: &str, versions: &str, bytes: &str, changes: &str, threads: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (root, state) = (dir.path().join("root"), dir.path().join("state"));
    fs::create_dir(&state)?;
    tree(&root, products.parse()?, versions.parse()?, bytes.parse()?)?;
    for (run, changes) in [("cold", changes), ("warm", "0")] {
        println!("run {run}");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("build").args([&root, &state]).args([changes, threads]);
        if !command.status()?.success() {
            return Err("the build failed".into());
        }
    }
    Ok(())
}

/// A tree of `products` with `versions` each. No two files are equal.
fn tree(root: &Path, products: u32, versions: u32, bytes: usize) -> Result<()> {
    for product in 0..products {
        for version in 0..versions {
            let (os, release) = (product / 1000, product % 1000);
            let day = 20_240_101 + version % 28 + version / 28 * 100;
            let path = format!("images/os{os:03}/r{release:03}/amd64/default/{day}_00:00");
            image(&root.join(path), u64::from(product) << 32 | u64::from(version), bytes)?;
        }
    }
    Ok(())
}

fn image(directory: &Path, seed: u64, bytes: usize) -> Result<()> {
    fs::create_dir_all(directory)?;
    // SplitMix64: noise that is never twice the same.
    let mut state = seed;
    let mut noise = |length: usize| {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut value = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend((value ^ (value >> 31)).to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    };
    fs::write(directory.join("lxd.tar.xz"), noise(512))?;
    fs::write(directory.join("rootfs.tar.xz"), noise(bytes))?;
    Ok(())
}

fn build(root: &str, state: &Path, changes: u32, threads: usize) -> Result<()> {
    // Files are not trusted before they have been left alone for a moment, which is not what is
    // measured here.
    let settings = Settings { settle: Duration::ZERO, ..Settings::new(root) };
    let id = settings.id();
    let start = Instant::now();
    let cell = Arc::<SnapshotCell>::default();
    let follower =
        Follower::spawn(state, vec![Followed { id: id.clone(), cell: Arc::clone(&cell) }])?;
    if cell.load().is_some() {
        line("first_answer_ms", millis(start.elapsed()));
    }
    let builder = Builder::spawn(BuilderOptions {
        state_dir: state.to_owned(),
        indexes: vec![settings],
        threads: NonZeroUsize::new(threads).ok_or("no thread")?,
        prepare: Prepare::default(),
    })?;
    let shown = || cell.load().as_ref().map_or(0, |snapshot| snapshot.generation());
    until("an index", || {
        let progress = builder.progress()[0];
        progress.is_idle() && shown() == progress.generation
    })?;
    line("idle_s", start.elapsed().as_secs_f64());
    line("cpu_s", cpu().as_secs_f64());
    line("bytes_hashed", builder.progress()[0].bytes_hashed as f64);
    let listed = || cell.load().as_ref().map_or(0, |snapshot| snapshot.counts().versions);
    line("versions", listed() as f64);
    line("generation", shown() as f64);
    if let Some(snapshot) = cell.load_full() {
        let images = snapshot.document("images.json").ok_or("no images.json")?;
        line("images_json_bytes", images.identity.bytes.len() as f64);
        line("images_json_gzip_bytes", images.gzip.bytes.len() as f64);
    }
    memory("start")?;
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    let before_cpu = cpu();
    for change in 0..changes {
        let before = listed();
        let version = Path::new(root)
            .join(format!("images/os000/r{:03}/amd64/default/20250101_{change:04}", change % 7));
        image(&version, u64::MAX - u64::from(change), 1024)?;
        let at = Instant::now();
        until("a new version", || listed() > before)?;
        added.push(at.elapsed());
        let at = Instant::now();
        fs::remove_dir_all(version)?;
        until("a version removed", || listed() == before)?;
        removed.push(at.elapsed());
    }
    if changes > 0 {
        for (what, mut times) in [("added", added), ("removed", removed)] {
            times.sort_unstable();
            let of = |percent: usize| millis(times[(times.len() - 1) * percent / 100]);
            line(&format!("{what}_p50_ms"), of(50));
            line(&format!("{what}_p99_ms"), of(99));
            line(&format!("{what}_max_ms"), of(100));
        }
        line("cpu_per_change_ms", millis(cpu() - before_cpu) / f64::from(changes) / 2.0);
        memory("changed")?;
    }
    drop((builder, follower));
    Ok(())
}

fn until(what: &str, done: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let start = Instant::now();
    while !done() {
        if Instant::now() > deadline {
            return Err(format!("{what} did not show").into());
        }
        // More seldom after a while: looking costs time that is measured.
        let pause = Duration::from_micros(200).max(start.elapsed() / 50);
        std::thread::park_timeout(pause.min(Duration::from_millis(20)));
    }
    Ok(())
}

fn line(name: &str, value: f64) {
    println!("{name} {value:.3}");
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Time of all processors, in this process so far.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// What the kernel says of this process's memory, in MiB: its peak, what is its own, and what it
/// shares with others (the mapped generation).
fn memory(when: &str) -> Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    for (name, key) in [("peak", "VmHWM:"), ("own", "RssAnon:"), ("shared", "RssShmem:")] {
        let line_of = status.lines().find_map(|line| line.strip_prefix(key));
        let kib: f64 = line_of.unwrap_or("0").trim().trim_end_matches(" kB").parse()?;
        line(&format!("memory_{when}_{name}_mib"), kib / 1024.0);
    }
    Ok(())
}
