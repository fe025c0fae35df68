//! When to look again, and where.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// One time for each path, the first: whoever looks then finds out whether there is a later one. A file
/// that is written to for hours asks with every write.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Instant, String)>,
    by_path: HashMap<String, Instant>,
}

impl Deadlines {
    /// A look at `path` is due at `when`.
    pub(super) fn add(&mut self, when: Instant, path: &str) {
        match self.by_path.get(path) {
            Some(before) if *before <= when => return,
            Some(&before) => drop(self.by_time.remove(&(before, path.to_owned()))),
            None => {}
        }
        self.by_time.insert((when, path.to_owned()));
        self.by_path.insert(path.to_owned(), when);
    }

    /// The next time.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(when, _)| *when)
    }

    /// A path at which a look is due by `now`.
    pub(super) fn take(&mut self, now: Instant) -> Option<String> {
        self.next().filter(|when| *when <= now)?;
        let (_, path) = self.by_time.pop_first()?;
        self.by_path.remove(&path);
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_path_has_its_first_time() {
        let mut deadlines = Deadlines::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (when, path) in [(5, "a"), (6, "a"), (3, "b"), (4, "a"), (4, "c")] {
            deadlines.add(at(when), path);
        }
        assert_eq!(deadlines.next(), Some(at(3)));
        assert_eq!(deadlines.take(at(2)), None);
        let due: Vec<String> = std::iter::from_fn(|| deadlines.take(at(9))).collect();
        assert_eq!(due, ["b", "a", "c"]);
        assert!(deadlines.by_path.is_empty() && deadlines.next().is_none());
        deadlines.add(at(7), "a");
        assert_eq!(deadlines.next(), Some(at(7)), "a time that has passed holds nothing up");
    }
}
