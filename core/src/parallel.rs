//! The same work for many things, on threads that end with it.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Most threads for one call: it lasts a moment, and what it waits for is the kernel.
const MAX_THREADS: usize = 4;

/// What `work` makes of each of the `items`, in their order. Threads, as many as there are
/// processors but for a few at most, take shares of so many items in turns; the caller's is one of
/// them, and does it all where no other can be had. They inherit its signal mask.
///
/// # Panics
///
/// When `work` does.
pub fn map<T: Sync, R: Send>(
    items: &[T],
    share: NonZeroUsize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let shares = items.len().div_ceil(share.get());
    let next = AtomicUsize::new(0);
    let take_turns = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(items) = items.chunks(share.get()).nth(number) else {
                return done;
            };
            done.push((number, items.iter().map(&work).collect::<Vec<R>>()));
        }
    };
    let mut done = thread::scope(|scope| {
        let help = |number| {
            let thread = thread::Builder::new().name(format!("ss-help{number}"));
            thread.spawn_scoped(scope, take_turns).ok()
        };
        let helpers: Vec<_> = (1..threads().min(shares)).map_while(help).collect();
        let own = take_turns();
        let theirs = helpers
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        theirs.fold(own, |mut all, of| {
            all.extend(of);
            all
        })
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().flat_map(|(_, results)| results).collect()
}

fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| {
        thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_THREADS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        for length in [0, 1, 2, 7, 1000] {
            let items: Vec<usize> = (0..length).collect();
            for share in [1, 3, 64, 2000] {
                let share = NonZeroUsize::new(share).unwrap();
                let doubled: Vec<usize> = items.iter().map(|item| item * 2).collect();
                assert_eq!(map(&items, share, |item| item * 2), doubled, "{length} by {share}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "item 99")]
    fn a_panic_of_any_thread_is_the_callers() {
        let items: Vec<usize> = (0..100).collect();
        map(&items, NonZeroUsize::MIN, |item| assert_ne!(*item, 99, "item 99"));
    }
}
