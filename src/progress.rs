//! Shows how far an index is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use simplestreams::Progress;

use crate::logging::BARS;

/// How often a line is written where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// How the bar looks until it is known how much there is to do; and then.
const LOOKING: &str = "{spinner} looking at files";
const HASHING: &str = "{spinner} hashing {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

fn set_style(bar: &ProgressBar, form: &str) {
    // The forms are right, and a wrong one would leave indicatif's own.
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
}

/// See the module.
pub struct Shown {
    bar: Option<ProgressBar>,
    next: Instant,
    /// Whether there was anything to hash yet.
    hashes: bool,
    amount: Amount,
}

/// Bytes: what there is to do counts what is half done as not done at all, and what is done only by
/// what is left.
#[derive(Debug, Default)]
struct Amount {
    left: u64,
    finished: u64,
}

impl Amount {
    /// How much is done, and how much there is altogether.
    fn of(&mut self, progress: Progress) -> (u64, u64) {
        self.finished += self.left.saturating_sub(progress.bytes_to_hash);
        self.left = progress.bytes_to_hash;
        let total = self.finished + self.left;
        (progress.bytes_hashed.max(self.finished).min(total), total)
    }
}

impl Shown {
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = BARS.add(ProgressBar::new(0));
            set_style(&bar, LOOKING);
            bar
        });
        Self { bar, next: Instant::now() + EVERY, hashes: false, amount: Amount::default() }
    }

    pub fn update(&mut self, progress: Progress) {
        let (done, total) = self.amount.of(progress);
        if let Some(bar) = &self.bar {
            if !self.hashes && total > 0 {
                self.hashes = true;
                set_style(bar, HASHING);
                // The time that it took to look is none that it hashed.
                bar.reset();
            }
            bar.set_length(total);
            bar.set_position(done);
            bar.tick();
        } else if Instant::now() >= self.next {
            self.next = Instant::now() + EVERY;
            let (done, total) = (HumanBytes(done), HumanBytes(total));
            log::info!("hashed {done} of {total}, {} versions to go", progress.hashing);
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version counts as a whole until it is done, while what is read of it counts already.
    #[test]
    fn what_is_done_and_what_there_is() {
        let mut amount = Amount::default();
        let mut at = |bytes_hashed, bytes_to_hash| {
            amount.of(Progress { bytes_hashed, bytes_to_hash, ..Progress::default() })
        };
        assert_eq!(at(0, 0), (0, 0));
        assert_eq!(at(0, 100), (0, 100));
        assert_eq!(at(40, 100), (40, 100));
        assert_eq!(at(60, 40), (60, 100), "the first, of 60 bytes, is done");
        assert_eq!(at(99, 40), (99, 100));
        assert_eq!(at(99, 50), (99, 110), "one more comes");
        assert_eq!(at(110, 0), (110, 110));
    }
}
