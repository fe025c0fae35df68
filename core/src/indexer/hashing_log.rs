//! Tells the log how far hashing is, when that takes long: a cold tree may keep the disk busy for
//! hours.
//!
//! Nothing is said of what is done within [`EVERY`]; then one line each [`EVERY`], and one at the
//! end.

use std::fmt;
use std::ops::{AddAssign, SubAssign};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Indexer;
use crate::entry::Plan;

/// From the beginning of hashing to the first line, and from line to line.
const EVERY: Duration = Duration::from_secs(10);

const MIB: u64 = 1 << 20;

/// Something to hash, or that was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) versions: u64,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Amount {
    /// One version.
    pub(super) fn of(plan: &Plan) -> Self {
        let mut amount = Self { versions: 1, ..Self::default() };
        for file in plan.files() {
            amount += Self { versions: 0, files: 1, bytes: file.stamp.size };
        }
        amount
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.versions += other.versions;
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

impl SubAssign for Amount {
    fn sub_assign(&mut self, other: Self) {
        self.versions -= other.versions;
        self.files -= other.files;
        self.bytes -= other.bytes;
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct HashingLog {
    run: Option<Run>,
}

/// From the first version that is hashed to the moment when none is.
#[derive(Debug)]
struct Run {
    since: Instant,
    next: Instant,
    told: bool,
    /// Bytes that had been read before.
    before: u64,
    done: Amount,
}

/// A line for the log, but for the name of the tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Hashing goes on.
    Going { done: Amount, all: Amount, left: Option<Duration> },
    /// Everything is hashed.
    Over { done: Amount, took: Duration },
}

impl HashingLog {
    /// A version is handed in. `read`: as for [`line`](Self::line).
    pub(super) fn begin(&mut self, read: u64, now: Instant) {
        self.run.get_or_insert_with(|| Run {
            since: now,
            next: now + EVERY,
            told: false,
            before: read,
            done: Amount::default(),
        });
    }

    /// A version was hashed, or found to be broken or changed.
    pub(super) fn done(&mut self, amount: Amount) {
        if let Some(run) = &mut self.run {
            run.done += amount;
        }
    }

    /// When to ask for a [`line`](Self::line) at the latest.
    pub(super) fn next(&self) -> Option<Instant> {
        self.run.as_ref().map(|run| run.next)
    }

    /// What there is to say while something is being hashed, or nothing. `read`: the bytes that
    /// have ever been read for hashing. `left`: what is being hashed and what waits for it.
    pub(super) fn line(
        &mut self,
        is_hashing: bool,
        read: u64,
        left: Amount,
        now: Instant,
    ) -> Option<Line> {
        if !is_hashing {
            let run = self.run.take().filter(|run| run.told)?;
            let done = Amount { bytes: read.saturating_sub(run.before), ..run.done };
            return Some(Line::Over { done, took: now - run.since });
        }
        let run = self.run.as_mut()?;
        if now < run.next {
            return None;
        }
        run.next = now + EVERY;
        run.told = true;
        let (read, unread) = run.share(read, left);
        let mut all = run.done;
        all += left;
        all.bytes = read + unread;
        let done = Amount { bytes: read, ..run.done };
        Some(Line::Going { done, all, left: run.time_left(read, unread, now) })
    }

    /// Seconds until what is `left` is hashed; `read` as for [`line`](Self::line). None if nothing
    /// is being hashed, or nothing was read yet.
    pub(super) fn seconds_left(&self, read: u64, left: Amount, now: Instant) -> Option<u64> {
        let run = self.run.as_ref()?;
        let (read, unread) = run.share(read, left);
        run.time_left(read, unread, now).map(|left| left.as_secs())
    }
}

impl Run {
    /// Bytes that this run has read, and those that it has not.
    fn share(&self, read: u64, left: Amount) -> (u64, u64) {
        let read = read.saturating_sub(self.before);
        // Of what is left, the part that was read already.
        let under_way = read.saturating_sub(self.done.bytes);
        (read, left.bytes.saturating_sub(under_way))
    }

    fn time_left(&self, read: u64, unread: u64, now: Instant) -> Option<Duration> {
        let took = now - self.since;
        (read > 0).then(|| {
            let seconds = u128::from(unread) * took.as_millis() / u128::from(read) / 1000;
            Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX))
        })
    }
}

impl Indexer {
    /// Tells the log how far hashing is, where that takes long.
    pub(super) fn log_hashing(&mut self, now: Instant) {
        let left = self.tally.hashing;
        let read = self.gauges.bytes_hashed.load(Ordering::Relaxed);
        if let Some(line) = self.hashing_log.line(left.versions > 0, read, left, now) {
            log::info!("\"{}\": {line}", self.settings.root.display());
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Going { done, all, left } => {
                write!(
                    f,
                    "{} of {} versions are hashed, {} of {} files, {} of {} MiB ({}%)",
                    done.versions,
                    all.versions,
                    done.files,
                    all.files,
                    done.bytes / MIB,
                    all.bytes / MIB,
                    u128::from(done.bytes) * 100 / u128::from(all.bytes.max(1)),
                )?;
                match left {
                    Some(left) => write!(f, ", about {} s left", left.as_secs()),
                    None => Ok(()),
                }
            }
            Self::Over { done, took } => write!(
                f,
                "{} versions are hashed, {} files, {} MiB in {} s",
                done.versions,
                done.files,
                done.bytes / MIB,
                took.as_secs()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(versions: u64, mib: u64) -> Amount {
        Amount { versions, files: 2 * versions, bytes: mib * MIB }
    }

    #[test]
    fn what_is_done_soon_is_not_worth_a_line() {
        let (mut log, start) = (HashingLog::default(), Instant::now());
        assert_eq!(log.next(), None);
        log.begin(0, start);
        assert_eq!(log.line(true, 0, amount(1, 1), start), None);
        assert_eq!(log.next(), Some(start + EVERY));
        log.done(amount(1, 1));
        let end = start + EVERY - Duration::from_millis(1);
        assert_eq!(log.line(false, MIB, Amount::default(), end), None);
        assert_eq!(log.next(), None);
    }

    #[test]
    fn a_cold_tree_is_told_of_until_its_end() {
        let (mut log, start) = (HashingLog::default(), Instant::now());
        let line = |log: &mut HashingLog, is_hashing, read: u64, left, seconds| {
            let now = start + Duration::from_secs(seconds);
            log.line(is_hashing, (7 + read) * MIB, left, now).map(|line| line.to_string())
        };
        log.begin(7 * MIB, start);
        assert_eq!(line(&mut log, true, 0, amount(10, 1000), 0), None);
        log.begin(8 * MIB, start + EVERY);
        log.done(amount(2, 200));
        // 50 MiB of the next version are read as well.
        assert_eq!(
            line(&mut log, true, 250, amount(8, 800), 10).as_deref(),
            Some(
                "2 of 10 versions are hashed, 4 of 20 files, 250 of 1000 MiB (25%), about 30 s left"
            )
        );
        assert_eq!(line(&mut log, true, 260, amount(8, 800), 19), None, "too soon");
        // Something else keeps the disk busy.
        assert_eq!(
            line(&mut log, true, 250, amount(8, 800), 20).as_deref(),
            Some(
                "2 of 10 versions are hashed, 4 of 20 files, 250 of 1000 MiB (25%), about 60 s left"
            )
        );
        log.done(amount(8, 800));
        assert_eq!(
            line(&mut log, false, 1000, Amount::default(), 44).as_deref(),
            Some("10 versions are hashed, 20 files, 1000 MiB in 44 s")
        );
        assert_eq!(line(&mut log, false, 1000, Amount::default(), 60), None);
    }

    #[test]
    fn a_disk_that_gives_nothing_gives_no_estimate() {
        let (mut log, start) = (HashingLog::default(), Instant::now());
        log.begin(0, start);
        let line = log.line(true, 0, amount(1, 1), start + EVERY).map(|line| line.to_string());
        assert_eq!(
            line.as_deref(),
            Some("0 of 1 versions are hashed, 0 of 2 files, 0 of 1 MiB (0%)")
        );
    }
}
