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
#![deny(missing_docs, unsafe_code)]

mod builder;
mod digest;
mod follow;
mod problem;
mod settings;
pub mod snapshot;

pub use builder::{Builder, BuilderOptions};
pub use digest::{Digest, ParseDigestError};
pub use follow::{Followed, Follower, SnapshotCell};
pub use problem::Problem;
pub use settings::{Aliases, Settings, check_stream_name};
pub use snapshot::{Document, Snapshot, SnapshotError, Variant};
