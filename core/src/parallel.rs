//! The same work for many things, or work that is needed later, on threads that end with it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

/// Most threads for one call: it lasts a moment, and what it waits for is the kernel.
const MAX_THREADS: usize = 4;

/// What `work` makes of each of the `items`, in their order. As [`each`].
///
/// # Panics
///
/// When `work` does.
pub fn map<T: Sync, R: Send>(
    items: &[T],
    share: NonZeroUsize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let mut all = Vec::with_capacity(items.len());
    each(items, share, items.len(), work, |results| all.extend(results));
    all
}

/// Hands what `work` makes of each of the `items`, in their order, to `take`, a share at a time. Threads,
/// as many as there are processors but for a few at most, work on shares of so many items in turns, and
/// on `ahead` items more than were taken at most. The caller's is one of them, which is the one that
/// takes, and does it all where no other can be had. They inherit its signal mask.
///
/// # Panics
///
/// When `work` or `take` does.
pub fn each<T: Sync, R: Send>(
    items: &[T],
    share: NonZeroUsize,
    ahead: usize,
    work: impl Fn(&T) -> R + Sync,
    mut take: impl FnMut(Vec<R>),
) {
    let count = items.len().div_ceil(share.get());
    let shares = Shares {
        state: Mutex::new(State { count, begun: 0, taken: 0, done: BTreeMap::new(), over: false }),
        changed: Condvar::new(),
        ahead: ahead.div_ceil(share.get()).max(1),
    };
    let carry_out = |number: usize| {
        let items = items.chunks(share.get()).nth(number).unwrap_or_default();
        let results = items.iter().map(&work).collect();
        shares.state().done.insert(number, results);
        shares.changed.notify_all();
    };
    let help = || {
        let _end = EndIfPanicking(&shares);
        while let Some(number) = shares.begin() {
            carry_out(number);
        }
    };
    thread::scope(|scope| {
        let spawn = |number| {
            let thread = thread::Builder::new().name(format!("ss-help{number}"));
            thread.spawn_scoped(scope, help).ok()
        };
        let helpers: Vec<_> = (1..threads().min(count)).map_while(spawn).collect();
        let end = EndIfPanicking(&shares);
        while let Some(next) = shares.take_or_begin() {
            match next {
                Next::Take(results) => take(results),
                Next::Begin(number) => carry_out(number),
            }
        }
        drop(end);
        for helper in helpers {
            helper.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
}

/// Hands what `make` makes to `take`, in its order, until one of both says that it is enough; `make` is
/// told so. Another thread makes it, up to `most` things ahead, where one can be had: it inherits the
/// caller's signal mask.
///
/// # Panics
///
/// When `make` or `take` does.
pub fn ahead<T: Send>(
    most: usize,
    make: impl Fn(&mut dyn FnMut(T) -> bool) + Sync,
    mut take: impl FnMut(T) -> bool,
) {
    let is_made = threads() > 1
        && thread::scope(|scope| {
            let (sender, made) = sync_channel(most);
            let make = &make;
            let thread = thread::Builder::new().name("ss-render".into());
            let maker =
                thread.spawn_scoped(scope, move || make(&mut |thing| sender.send(thing).is_ok()));
            let Ok(maker) = maker else {
                return false;
            };
            // Dropped at the end, so that it does not wait for room any more.
            made.into_iter().all(&mut take);
            maker.join().unwrap_or_else(|panic| resume_unwind(panic));
            true
        });
    if !is_made {
        make(&mut take);
    }
}

/// Which share of the items comes next.
struct Shares<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
    /// Shares that may be begun before the first of them is taken.
    ahead: usize,
}

struct State<R> {
    count: usize,
    begun: usize,
    taken: usize,
    /// Not taken yet.
    done: BTreeMap<usize, Vec<R>>,
    /// A thread panicked.
    over: bool,
}

/// What the caller's thread does next.
enum Next<R> {
    Take(Vec<R>),
    Begin(usize),
}

impl<R> Shares<R> {
    fn state(&self) -> MutexGuard<'_, State<R>> {
        // Each change is a single one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next share for a helper, once there is room for what comes of it.
    fn begin(&self) -> Option<usize> {
        let mut state = self.state();
        loop {
            if state.over || state.begun == state.count {
                return None;
            }
            if let Some(number) = state.begin(self.ahead) {
                return Some(number);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_or_begin(&self) -> Option<Next<R>> {
        let mut state = self.state();
        loop {
            if state.over || state.taken == state.count {
                return None;
            }
            let next = state.taken;
            if let Some(results) = state.done.remove(&next) {
                state.taken += 1;
                self.changed.notify_all();
                return Some(Next::Take(results));
            }
            if let Some(number) = state.begin(self.ahead) {
                return Some(Next::Begin(number));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<R> State<R> {
    fn begin(&mut self, ahead: usize) -> Option<usize> {
        let may = self.begun < self.count && self.begun < self.taken + ahead;
        may.then(|| {
            self.begun += 1;
            self.begun - 1
        })
    }
}

/// Nobody waits for a thread that panicked.
struct EndIfPanicking<'a, R>(&'a Shares<R>);

impl<R> Drop for EndIfPanicking<'_, R> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.state().over = true;
            self.0.changed.notify_all();
        }
    }
}

/// What comes of work that another thread has begun.
pub struct Later<T> {
    value: Arc<OnceLock<T>>,
    work: Arc<dyn Fn() -> T + Send + Sync>,
}

impl<T: Send + Sync + 'static> Later<T> {
    /// Begins `work` in a thread called `name`. Where none can be had, it is done when it is needed.
    pub fn begin(name: &str, work: impl Fn() -> T + Send + Sync + 'static) -> Self {
        let later = Self { value: Arc::default(), work: Arc::new(work) };
        let (value, work) = (Arc::clone(&later.value), Arc::clone(&later.work));
        let begun = thread::Builder::new().name(name.to_owned()).spawn(move || {
            value.get_or_init(&*work);
        });
        if let Err(err) = begun {
            log::debug!("no thread for {name} ({err})");
        }
        later
    }

    /// Waits for it.
    ///
    /// # Panics
    ///
    /// When the work does.
    pub fn get(&self) -> &T {
        self.value.get_or_init(&*self.work)
    }
}

impl<T> std::fmt::Debug for Later<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Later")
    }
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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
    fn no_more_is_ahead_than_may_be() {
        let items: Vec<usize> = (0..500).collect();
        let (begun, mut taken) = (AtomicUsize::new(0), 0);
        let share = NonZeroUsize::new(2).unwrap();
        let work = |item: &usize| {
            begun.fetch_add(1, Ordering::Relaxed);
            *item
        };
        each(&items, share, 10, work, |results| {
            for result in results {
                assert_eq!(result, taken);
                taken += 1;
            }
            assert!(begun.load(Ordering::Relaxed) <= taken + 10);
        });
        assert_eq!(taken, 500);
    }

    #[test]
    fn what_is_made_ahead_comes_in_its_order() {
        for (count, enough) in [(0, 10), (1000, 2000), (1000, 5)] {
            let (mut taken, is_told) = (Vec::new(), AtomicUsize::new(0));
            let make = |hand_on: &mut dyn FnMut(usize) -> bool| {
                if !(0..count).all(hand_on) {
                    is_told.fetch_add(1, Ordering::Relaxed);
                }
            };
            ahead(3, make, |number| {
                taken.push(number);
                taken.len() < enough
            });
            assert_eq!(taken, (0..count.min(enough)).collect::<Vec<_>>());
            assert_eq!(is_told.into_inner() == 1, enough < count, "told that it is enough");
        }
    }

    #[test]
    #[should_panic(expected = "in the middle")]
    fn a_panic_of_who_makes_is_the_callers() {
        let make = |hand_on: &mut dyn FnMut(usize) -> bool| {
            hand_on(1);
            panic!("in the middle");
        };
        ahead(3, make, |_| true);
    }

    #[test]
    #[should_panic(expected = "item 99")]
    fn a_panic_of_any_thread_is_the_callers() {
        let items: Vec<usize> = (0..100).collect();
        map(&items, NonZeroUsize::MIN, |item| assert_ne!(*item, 99, "item 99"));
    }

    #[test]
    #[should_panic(expected = "taken")]
    fn a_panic_of_who_takes_leaves_nobody_waiting() {
        let items: Vec<usize> = (0..100).collect();
        each(&items, NonZeroUsize::MIN, 2, |item| *item, |_| panic!("taken"));
    }
}
