//! One file of several chunks on its way through its lanes, by one thread or by several.
//!
//! The thread whose job the file is works until it is done. Threads that have nothing else to do
//! may help, and leave when they have. All of them take steps: to read the next chunk, or to feed
//! one to lanes. A thread alone takes all lanes through each chunk at once, which costs the least;
//! with helpers each takes its part of the lanes, and reads ahead when it has fed them.
//!
//! A thread that the machine has more time for may relieve them all for a while: they end the steps
//! that they are at, and it goes on alone.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::source::{CHUNK, Source};
use crate::sha256::{self, Lane};

/// Chunks in memory at most, for one file.
const CHUNKS: usize = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Crew {
    /// Bytes of the file.
    size: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// `None` while a thread reads.
    source: Option<Source>,
    /// Bytes to be read.
    size: u64,
    /// Bytes read.
    length: u64,
    at_end: bool,
    /// The chunks that some lane has yet to be fed, in their order.
    chunks: VecDeque<Arc<Vec<u8>>>,
    /// Number of the first of `chunks`, counted from the beginning of the file.
    first: u64,
    spare: Vec<Vec<u8>>,
    buffers: usize,
    lanes: Vec<Place>,
    helpers: usize,
    /// One thread does all of it just now.
    relieved: bool,
    failure: Option<io::Error>,
    /// The owner is gone.
    over: bool,
}

#[derive(Debug)]
struct Place {
    /// `None` while a thread feeds it.
    lane: Option<Lane>,
    /// Chunks it was fed.
    fed: u64,
}

/// For whom a thread takes steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Owner,
    Helper,
    Relief,
}

/// What one thread does without the lock.
enum Step {
    Read(Source, Vec<u8>),
    Feed(Vec<usize>, Vec<Lane>, Arc<Vec<u8>>),
}

impl Crew {
    /// For a file of `size` bytes.
    pub(super) fn new(source: Source, size: u64, lanes: Vec<Lane>) -> Self {
        let lanes = lanes.into_iter().map(|lane| Place { lane: Some(lane), fed: 0 }).collect();
        let state = State {
            source: Some(source),
            size,
            length: 0,
            at_end: false,
            chunks: VecDeque::new(),
            first: 0,
            spare: Vec::new(),
            buffers: 0,
            lanes,
            helpers: 0,
            relieved: false,
            failure: None,
            over: false,
        };
        Self { size, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that have not been read yet.
    pub(crate) fn left(&self) -> u64 {
        let state = self.state();
        state.size.saturating_sub(state.length)
    }

    /// Whether nobody helps.
    pub(crate) fn is_alone(&self) -> bool {
        self.state().helpers == 0
    }

    /// Makes the calling thread a helper, where one is of use.
    pub(crate) fn join(&self) -> bool {
        let mut state = self.state();
        // One reads, the others feed.
        let useful = state.lanes.len();
        let joins = !state.over && !state.relieved && !state.is_done() && state.helpers < useful;
        state.helpers += usize::from(joins);
        joins
    }

    /// Makes the calling thread the only one that takes steps, if it is not done yet. Waits for nobody.
    pub(crate) fn take_over(&self) -> bool {
        let Ok(mut state) = self.state.try_lock() else {
            return false;
        };
        let takes_over = !state.over && !state.relieved && !state.is_done();
        state.relieved |= takes_over;
        takes_over
    }

    /// Works alone, after [`take_over`](Self::take_over), until the file is done or `go_on` says no.
    pub(crate) fn relieve(&self, mut go_on: impl FnMut() -> bool) {
        let _hand_back = OnDrop(|| {
            self.state().relieved = false;
            self.changed.notify_all();
        });
        while go_on()
            && let Some(step) = self.next(Role::Relief)
        {
            self.carry_out(step);
        }
    }

    /// Helps, after [`join`](Self::join), until the file is done or `go_on` says no.
    pub(crate) fn help(&self, go_on: impl Fn() -> bool) {
        let _leave = OnDrop(|| self.state().helpers -= 1);
        while go_on()
            && let Some(step) = self.next(Role::Helper)
        {
            self.carry_out(step);
        }
    }

    /// Works until the file is done: its length in bytes and its lanes, or `None` once `go_on`,
    /// asked between chunks, has said no. `count` is told how many bytes were read.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub(super) fn work(
        &self,
        go_on: &dyn Fn(&Self) -> bool,
        count: &dyn Fn(u64),
    ) -> io::Result<Option<(u64, Vec<Lane>)>> {
        let _leave = OnDrop(|| {
            self.state().over = true;
            self.changed.notify_all();
        });
        let mut counted = 0;
        let mut tell = || {
            let length = self.state().length;
            count(length - counted);
            counted = length;
        };
        while go_on(self) {
            let step = self.next(Role::Owner);
            tell();
            if let Some(step) = step {
                self.carry_out(step);
                continue;
            }
            let mut state = self.state();
            if let Some(err) = state.failure.take() {
                // A helper may be at work on a lane still.
                return Err(err);
            }
            let lanes = state.lanes.drain(..).filter_map(|place| place.lane).collect();
            return Ok(Some((state.length, lanes)));
        }
        Ok(None)
    }

    /// The next step, waiting for one; `None` when there will be none.
    fn next(&self, role: Role) -> Option<Step> {
        let mut state = self.state();
        loop {
            if state.over || state.failure.is_some() || state.is_done() {
                return None;
            }
            let stands_back = state.relieved && role != Role::Relief;
            if stands_back && role == Role::Helper {
                return None;
            }
            if !stands_back && let Some(step) = state.step() {
                return Some(step);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn carry_out(&self, step: Step) {
        // The others would wait for ever for what a thread that panics has taken along.
        let panicking = OnDrop(|| {
            if std::thread::panicking() {
                let failed = io::Error::other("a thread that was hashing it failed");
                self.state().failure = Some(failed);
                self.changed.notify_all();
            }
        });
        match step {
            Step::Read(mut source, mut buffer) => {
                buffer.resize(CHUNK, 0);
                let read = source.read(&mut buffer);
                self.state().have_read(source, buffer, read);
            }
            Step::Feed(places, mut lanes, chunk) => {
                sha256::update(&mut lanes, &chunk);
                drop(chunk);
                self.state().have_fed(&places, lanes);
            }
        }
        self.changed.notify_all();
        drop(panicking);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic may leave half done, `carry_out` makes a failure.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether every lane has been fed everything.
    fn is_done(&self) -> bool {
        self.at_end && self.lanes.iter().all(|p| p.lane.is_some() && p.fed == self.read_chunks())
    }

    fn read_chunks(&self) -> u64 {
        self.first + self.chunks.len() as u64
    }

    /// Helpers that take steps.
    fn company(&self) -> usize {
        if self.relieved { 0 } else { self.helpers }
    }

    fn step(&mut self) -> Option<Step> {
        // Threads that fed the last chunk at the same time would wait together for the next.
        if self.company() > 0 && self.chunks.len() < CHUNKS / 2 {
            self.read().or_else(|| self.feed())
        } else {
            self.feed().or_else(|| self.read())
        }
    }

    /// Feeds those idle lanes that are furthest behind.
    fn feed(&mut self) -> Option<Step> {
        let end = self.read_chunks();
        let idle = |place: &&Place| place.lane.is_some() && place.fed < end;
        let number = self.lanes.iter().filter(idle).map(|place| place.fed).min()?;
        let chunk = Arc::clone(self.chunks.get((number - self.first) as usize)?);
        let at_once = self.lanes.len().div_ceil(self.company() + 1);
        let (mut places, mut lanes) = (Vec::new(), Vec::new());
        for (index, place) in self.lanes.iter_mut().enumerate() {
            if place.fed == number
                && lanes.len() < at_once
                && let Some(lane) = place.lane.take()
            {
                places.push(index);
                lanes.push(lane);
            }
        }
        Some(Step::Feed(places, lanes, chunk))
    }

    fn have_fed(&mut self, places: &[usize], lanes: Vec<Lane>) {
        for (&index, lane) in places.iter().zip(lanes) {
            let place = &mut self.lanes[index];
            place.lane = Some(lane);
            place.fed += 1;
        }
        let behind = self.lanes.iter().map(|place| place.fed).min().unwrap_or(self.first);
        while self.first < behind
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.first += 1;
            // Whoever fed it has let go of it before saying so.
            self.spare.extend(Arc::into_inner(chunk));
        }
    }

    fn read(&mut self) -> Option<Step> {
        if self.at_end || (self.spare.is_empty() && self.buffers == CHUNKS) {
            return None;
        }
        let source = self.source.take()?;
        let buffer = self.spare.pop().unwrap_or_else(|| {
            self.buffers += 1;
            Vec::new()
        });
        Some(Step::Read(source, buffer))
    }

    fn have_read(&mut self, source: Source, mut buffer: Vec<u8>, read: io::Result<usize>) {
        self.source = Some(source);
        match read {
            Ok(length) => {
                self.length += length as u64;
                // One that grew is not what was to be hashed, which the length says.
                self.at_end = length < CHUNK || self.length > self.size;
                buffer.truncate(length);
                self.chunks.push_back(Arc::new(buffer));
            }
            Err(err) => self.failure = Some(err),
        }
    }
}

/// Does something at the end, also at that of a panic.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests;
