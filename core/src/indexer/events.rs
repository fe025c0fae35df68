//! From the watcher's events to where a look is due, and to what is known of writers.

use std::time::{Instant, SystemTime};

use super::{Indexer, REQUIREMENTS};
use crate::kind::Kind;
use crate::quiet::Writers;
use crate::tree::join;
use crate::watch::{RawEvent, Touch, What};

impl Indexer {
    pub(super) fn seen(&mut self, event: &RawEvent) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for touch in watcher.translate(event) {
            match touch {
                Touch::Entry { directory, name, what } => self.touched(&directory, &name, what),
                Touch::Gone { directory } => {
                    self.anchors.doubt();
                    if directory.is_empty() {
                        self.next_rescan = Some(Instant::now());
                    } else {
                        self.dirty.insert(directory);
                    }
                }
                Touch::Overflow => {
                    self.tally.overflows += 1;
                    log::warn!(
                        "events of \"{}\" were lost (fs.inotify.max_queued_events), looking at \
                         everything",
                        self.settings.root.display()
                    );
                    self.writers = Writers::default();
                    self.next_rescan = Some(Instant::now());
                }
            }
        }
    }

    fn touched(&mut self, directory: &str, name: &[u8], what: What) {
        if name.starts_with(b".") && name != REQUIREMENTS.as_bytes() {
            return;
        }
        let Ok(name) = str::from_utf8(name) else {
            if !directory.is_empty() {
                self.dirty.insert(directory.to_owned());
            }
            return;
        };
        let path = join(directory, name);
        let matters = Kind::of(name) != Kind::Other;
        // A symbolic link is made at once, and nobody will ever close it.
        let is_link = || {
            let meta = std::fs::symlink_metadata(self.tree.absolute(&path));
            meta.is_ok_and(|meta| meta.is_symlink())
        };
        let what = match what {
            What::Written if matters && is_link() => What::MovedIn,
            what => what,
        };
        if matters || matches!(what, What::MovedIn | What::Left) {
            self.writers.saw(&path, what, Instant::now(), SystemTime::now());
        }
        if self.versions.contains_key(directory) {
            if !matters {
                return;
            }
            if what == What::Written
                && let Some(Some(stamp)) = self.update(directory, |version| version.written(name))
            {
                self.pool.cache().forget(&stamp);
            }
            self.dirty.insert(directory.to_owned());
        } else if !directory.is_empty()
            || name == REQUIREMENTS
            || self.settings.streams.iter().any(|stream| stream == name)
        {
            self.dirty.insert(path);
        }
    }
}
