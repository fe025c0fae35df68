//! `lxd-image-server update`: the index from scratch.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use simplestreams::{Index, IndexOptions, Snapshot};

use crate::cli::Update;
use crate::config::Config;
use crate::exit::{Exit, Stop};
use crate::progress::Shown;
use crate::streams::INDEX;
use crate::tree::Tree;
use crate::{listing, lock, logging, out, rehash, streams};

/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(100);

/// How much longer than the settle time files may be unready before it is said which.
const GRACE: Duration = Duration::from_secs(2);

/// How often hashing may be in vain, because files changed meanwhile, before what is being hashed counts
/// as being written.
const IN_VAIN: u64 = 16;

/// Longer than it takes to publish what is known.
const PUBLISHING: Duration = Duration::from_secs(60);

/// Most names of versions in one message.
const MAX_NAMED: usize = 10;

/// Makes the index, writes it, and reports what changed.
///
/// # Errors
///
/// See [`Exit`]: [`Exit::Usage`] if a state directory was named that is not there; with `--strict`, [`Exit::Problems`] if anything in the tree is wrong.
pub fn run(args: &Update, config: &Config) -> Result<()> {
    let tree = Tree::new(&args.tree, config)?;
    // Both at once: what one has read, the other finds in memory.
    let asked = rehash::ask(args.state_dir.as_deref(), &tree.settings.root)?;
    let (snapshot, left_out) = make(&tree, args.patience)?;
    if !args.no_wait {
        asked.wait();
    }
    let problems = report_problems(&snapshot);
    let counts = snapshot.counts();
    out::line(format_args!(
        "{} products, {} versions, {} problems",
        counts.products, counts.versions, problems
    ));
    if args.strict && problems > 0 {
        return Err(Stop::with(Exit::Problems, "there are problems"));
    }
    if args.strict && left_out {
        return Err(Stop::with(Exit::Problems, "what is still being written is left out"));
    }
    Ok(())
}

/// Prints what is wrong with images; says how much that is.
pub fn report_problems(snapshot: &Snapshot) -> usize {
    let problems = snapshot.problems();
    out::lines(
        problems
            .iter()
            .map(|problem| format!("problem {}", simplestreams::printable(&problem.to_string()))),
    );
    problems.len()
}

/// Hashes the whole tree, writes its index, and prints which versions came, went and changed. Says too
/// whether versions were left out because they are still being written.
///
/// # Errors
///
/// [`Exit::Locked`] if another process writes that index; a failure to write it.
pub fn make(tree: &Tree, patience: Duration) -> Result<(Arc<Snapshot>, bool)> {
    let _lock = lock::streams(&tree.streams_dir)?;
    // The report says the same.
    logging::quieten_core();
    log::info!("indexing \"{}\"", tree.img_dir().display());
    // Somebody waits for this one.
    let all = || thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let options = IndexOptions {
        threads: tree.threads.unwrap_or_else(all),
        once: true,
        ..IndexOptions::default()
    };
    let index =
        Index::open_with(tree.settings.clone(), options).context("cannot start indexing")?;
    let (snapshot, left_out) = complete(&index, tree.settings.settle, patience)?;
    // Taking apart what it knows of each version takes a while, for which nobody has to wait.
    index.abandon();
    let names: Vec<&str> = snapshot.names().filter(|name| *name != INDEX).collect();
    let changes = names.iter().flat_map(|name| {
        let now = snapshot.document(name).map_or(&b""[..], |document| document.identity.bytes);
        listing::changes(&tree.written(name), now)
    });
    let changes: Vec<String> = changes.collect();
    let written = streams::write(&tree.streams_dir, &snapshot)?;
    out::lines(changes.iter().map(|change| simplestreams::printable(change)));
    let dir = tree.streams_dir.display();
    match written {
        true => log::info!("wrote the index to \"{dir}\""),
        false => log::info!("the index in \"{dir}\" is right already"),
    }
    Ok((snapshot, left_out))
}

/// Waits until everything on disk is listed or a problem; what is still being written is waited for
/// with `patience`. Says whether anything was left out for it.
fn complete(index: &Index, settle: Duration, patience: Duration) -> Result<(Arc<Snapshot>, bool)> {
    let mut shown = Shown::new();
    let mut unready: Option<Instant> = None;
    let (mut told, mut left_out) = (false, false);
    loop {
        let progress = index.progress();
        shown.update(progress);
        if progress.is_idle() {
            break;
        }
        // Who replaces a file again and again has it hashed again and again.
        let again_and_again = progress.hashed_in_vain > IN_VAIN;
        if progress.looks > 0 && (progress.hashing == 0 || again_and_again) {
            let since = unready.get_or_insert_with(Instant::now).elapsed();
            if since > settle + GRACE && !told {
                told = true;
                log::info!("waiting for files that are being written: {}", names(index));
            }
            if since > patience {
                match names(index) {
                    names if names.is_empty() => {
                        log::warn!("leaving out versions that change while they are hashed");
                    }
                    names => log::warn!("leaving out what is still being written: {names}"),
                }
                left_out = true;
                if !index.publish_now(PUBLISHING) {
                    anyhow::bail!(
                        "what is complete could not be published, the index stays as it is"
                    );
                }
                break;
            }
        } else {
            unready = None;
        }
        index.wait_idle(TICK);
    }
    let snapshot = index.snapshot();
    Ok((snapshot.context("nothing is complete yet, the index stays as it is")?, left_out))
}

fn names(index: &Index) -> String {
    let names = index.waiting();
    let more = names.len().saturating_sub(MAX_NAMED);
    let mut text = names[..names.len() - more].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
