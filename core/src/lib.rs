//! Turns a directory tree of LXD and Incus images into a live simplestreams index.
//!
//! The flow has one direction:
//!
//! ```text
//! disk ──scan──▶ entries ──hash──▶ catalog ──render──▶ documents ──publish──▶ snapshot
//!   ▲                                                                            │
//!   └── watch: events only say "look again"                                      ▼
//!                                                       Arc<Snapshot>, swapped in for readers
//! ```
//!
//! [`Index`] does all of it in one process: ten lines of a program index a tree, watch it, and
//! read the documents. [`Builder`] and [`Follower`] are the same with a state directory between
//! them: one process builds, any number of others serve, and what was published last survives a
//! restart.
//!
//! What is wrong with a tree is never an error here but a [`Problem`]: the image it is about is
//! left out, everything else is listed.
//!
//! ```
//! # use std::time::Duration;
//! let root = std::env::temp_dir().join(format!("simplestreams-{}", std::process::id()));
//! std::fs::create_dir_all(root.join("images"))?;
//! let index = simplestreams::Index::open(simplestreams::Settings::new(&root))?;
//! let snapshot = index.wait_newer(0, Duration::from_secs(10)).expect("the first generation");
//! assert_eq!(snapshot.counts().products, 0);
//! assert_eq!(snapshot.problems().len(), 1, "the stream is empty, and says so");
//! # drop(index);
//! # std::fs::remove_dir_all(&root)?;
//! # Ok::<(), std::io::Error>(())
//! ```
#![deny(missing_docs, unsafe_code)]

// The flow, in its order.
mod arch;
mod cache;
mod catalog;
mod entry;
mod fields;
mod hash;
mod kind;
mod name;
mod overrides;
mod parallel;
mod render;
mod scan;
pub mod sha256;
mod sums;
mod tree;
mod unified;
mod version;
mod whole;

// What moves it.
mod indexer;
mod pool;
mod quiet;
mod recall;
mod watch;

// What proves it.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

// Doors.
mod builder;
mod digest;
mod follow;
mod index;
mod live;
mod memory;
mod problem;
mod progress;
mod settings;
pub mod snapshot;
pub mod state;
pub mod status;

pub use builder::{Builder, BuilderOptions};
pub use digest::{Digest, ParseDigestError};
pub use follow::{Followed, Follower, SnapshotCell};
pub use index::{Index, IndexOptions, default_threads};
pub use pool::Prepare;
pub use problem::{Problem, Report, printable};
pub use progress::Progress;
pub use settings::{Aliases, Settings, check_stream_name};
pub use snapshot::{Document, Snapshot, SnapshotError, Variant};
