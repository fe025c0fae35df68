//! Files of overrides on their way from disk to [`crate::fields`]: read once they are quiet, forgotten
//! when they are gone.

use std::time::{Instant, SystemTime};

use super::{Indexer, RETRY};
use crate::quiet::Quiet;
use crate::scan::FoundFile;
use crate::{fields, hash, overrides, tree};

impl Indexer {
    pub(super) fn look_at_override(&mut self, path: &str) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        match self.tree.entry(path) {
            Ok(tree::Entry::File { stamp, links }) => {
                self.take_override(path, &FoundFile::new(name.to_owned(), stamp, links));
            }
            _ if self.forget_override(path) => self.publisher.touch(),
            // Something that is no file has the name of one.
            Ok(_) if !parent.is_empty() => self.walk(parent, false),
            _ => {}
        }
    }

    pub(super) fn forget_override(&mut self, path: &str) -> bool {
        let known = self.overrides.remove(path);
        if known {
            self.overridden.insert(directory(path));
            self.pool.cache().forget_text(&self.tree.absolute(path).to_string_lossy());
        }
        known
    }

    /// Reads a file of overrides, once it is quiet.
    pub(super) fn take_override(&mut self, path: &str, file: &FoundFile) {
        let Some(format) = fields::format(&file.name) else {
            return;
        };
        if self.overrides.is_current(path, &file.stamp) {
            return;
        }
        let now = (Instant::now(), SystemTime::now());
        if let Quiet::At(when) = self.writers.quiet(path, file, now.0, now, self.settings.settle) {
            self.deadlines.add(when, path);
            return;
        }
        match hash::small_file(&self.tree, path, &file.stamp, overrides::MAX_BYTES) {
            Ok(Some(content)) => {
                let cache = self.pool.cache();
                let absolute = self.tree.absolute(path).to_string_lossy().into_owned();
                let text = content.as_deref().map_err(Clone::clone);
                let remembered = || cache.text(&absolute);
                if self.overrides.insert(path, format, file.stamp, text, remembered)
                    && let Ok(content) = content
                {
                    cache.put_text(absolute, content);
                }
                self.overridden.insert(directory(path));
                self.publisher.touch();
            }
            // Changed meanwhile: look again, whether or not an event says so.
            _ => self.deadlines.add(now.0 + RETRY, path),
        }
    }
}

/// The directory in which the file at `path` is.
fn directory(path: &str) -> String {
    path.rsplit_once('/').map_or("", |(directory, _)| directory).to_owned()
}
