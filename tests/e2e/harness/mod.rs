//! A real nginx with its own prefix, ports and tree, for the length of one test.
//!
//! ```text
//! let dir = Dir::new();
//! dir.add_image("images/busybox/1.36/amd64/default/20260101_0000", "one");
//! let nginx = dir.start("… the whole configuration …");
//! nginx.at_every_worker("/streams/v1/images.json", |answer| …);
//! ```
//!
//! When a test fails, configuration, error log and tree are printed. When it succeeds, nginx is told
//! to quit, and the test fails all the same if the error log has a line that no healthy server
//! writes. Nothing sleeps for a fixed time: everything that takes a while is polled, up to a
//! deadline.

mod dir;
mod http;
mod images;
mod nginx;
mod process;

use std::time::{Duration, Instant};

pub(crate) use dir::Dir;
pub(crate) use http::{Answer, Ask};
pub(crate) use images::{metadata, squashfs};
pub(crate) use nginx::{Nginx, module};
pub(crate) use process::{Process, signal};

/// Longer than anything takes on a loaded machine with two cores.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// How long to wait between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks again and again until there is something, and panics with `what` at the deadline.
#[track_caller]
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(DEADLINE, look).unwrap_or_else(|| panic!("waited {DEADLINE:?} in vain: {what}"))
}

/// Looks again and again until there is something; none if there is nothing for this long.
pub(crate) fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(seen) = look() {
            return Some(seen);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::park_timeout(PAUSE);
    }
}
