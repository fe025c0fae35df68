//! From the core's log records to nginx's error log.
//!
//! nginx's log belongs to its main thread: the line's time, and the log itself after a reload. So
//! records are queued, whichever thread they come from, and the main thread writes them: in workers
//! by a timer, in the helper process whenever nginx calls it (see [`crate::runtime`]).

use std::collections::VecDeque;
use std::sync::{Mutex, Once, PoisonError};

use log::{Level, LevelFilter, Metadata, Record};
use simplestreams::{Problem, printable};

use crate::ffi;

/// How many records wait at most. A burst beyond it is counted, not kept: a tree with a hundred
/// thousand problems must not fill the memory of a worker.
const CAPACITY: usize = 1024;

struct Queue {
    records: VecDeque<(Level, String)>,
    dropped: u64,
    /// When the last error was that is no problem of a tree, in milliseconds since the epoch, and
    /// what it said.
    failure: Option<(u64, String)>,
}

static QUEUE: Mutex<Queue> =
    Mutex::new(Queue { records: VecDeque::new(), dropped: 0, failure: None });

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = printable(&record.args().to_string());
        let mut queue = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
        if record.level() == Level::Error && record.target() != Problem::LOG_TARGET {
            queue.failure = Some((crate::stats::now(), text.clone()));
        }
        if queue.records.len() < CAPACITY {
            queue.records.push_back((record.level(), text));
        } else {
            queue.dropped += 1;
        }
    }

    fn flush(&self) {}
}

/// Takes the records of the `log` crate, and panics of every thread, from now on.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only if there is a logger already, and this is the only place that sets one.
        if log::set_logger(&Logger).is_ok() {
            log::set_max_level(LevelFilter::Info);
        }
        // Only this library's panics come here: another module has a standard library of its own.
        std::panic::set_hook(Box::new(|info| log::error!("{info}")));
    });
}

/// The last error since the last call that is no problem of a tree, and when it was, in milliseconds
/// since the epoch.
pub(crate) fn take_failure() -> Option<(u64, String)> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner).failure.take()
}

/// Writes what is queued. Main thread only.
pub(crate) fn drain() {
    let level = ffi::error_log_level();
    log::set_max_level(level);
    let (records, dropped) = {
        let mut queue = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut queue.records), std::mem::take(&mut queue.dropped))
    };
    for (level, text) in records {
        ffi::write_error_log(level, &text);
    }
    if dropped > 0 {
        let text = format!("{dropped} more messages were dropped, they came too fast");
        ffi::write_error_log(Level::Warn, &text);
    }
}
