//! Shows how far an index is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use simplestreams::Progress;

use crate::logging::BARS;

/// How often a line is written where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// See the module.
pub struct Shown {
    bar: Option<ProgressBar>,
    next: Instant,
}

impl Shown {
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let form = "{spinner} hashing {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template(form) {
                bar.set_style(style);
            }
            BARS.add(bar)
        });
        Self { bar, next: Instant::now() + EVERY }
    }

    pub fn update(&mut self, progress: Progress) {
        let total = progress.bytes_hashed + progress.bytes_to_hash;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(progress.bytes_hashed);
            bar.tick();
        } else if Instant::now() >= self.next {
            self.next = Instant::now() + EVERY;
            let (done, total) = (HumanBytes(progress.bytes_hashed), HumanBytes(total));
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
