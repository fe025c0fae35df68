//! Small versions, several at once.
//!
//! Hashing is the main cost of a tree that is new, and a processor may take sixteen lanes further in less time
//! than eight pairs of them one after the other (see [`sha256::update_each`]). Small versions have two lanes
//! each, and as many of them are read, as fit, before all are hashed.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::findings::Reading;
use super::{Buffer, Failure, Findings, Order, Outcome, ROUNDS, Version, failure, hash, take_in};
use crate::entry::Plan;
use crate::sha256;
use crate::tree::join;

/// Versions at once, where it pays: lanes of different length make room for each other.
pub(super) const MOST: usize = 16;

/// Of less than so many versions there are too few lanes for it to pay (see `sha256/many.rs`).
pub const LEAST: usize = 7;

/// Their files together, in bytes: what was read should be in the processor's cache still when it is hashed.
pub const MOST_BYTES: u64 = 1 << 20;

/// Files of one of them: others should not wait for a thousand.
const MOST_FILES: usize = 8;

/// How many versions should be hashed at once on this processor.
pub fn most() -> usize {
    if sha256::has_many() { MOST } else { 1 }
}

/// Whether a version can be hashed together with others: they all are done when the last one is, so that what
/// takes longer than to read and hash some bytes is done by itself. So is a file that has several names, of which
/// another may be here too: one after the other, the cache knows it the second time.
pub fn is_small(plan: &Plan) -> bool {
    plan.bytes() <= MOST_BYTES / LEAST as u64
        && plan.unified.is_empty()
        && plan.sums.is_none()
        && plan.files().count() <= MOST_FILES
        && plan.files().all(|file| file.links <= 1)
}

/// A version on its way.
enum State<'a> {
    /// Its files are being read.
    Reads(Version<'a>, Findings),
    Done(Outcome),
}

impl State<'_> {
    fn fail(&mut self, failure: Failure) {
        *self = Self::Done(Err(failure).into());
    }
}

/// Hashes versions of one tree that [are small](is_small), as [`hash`] does each. Should that panic, each is
/// hashed by itself, and whichever it was fails alone.
pub fn hash_together(orders: &[Order<'_>], buffer: &mut Buffer) -> Vec<Outcome> {
    let together = || all_at_once(orders, &mut *buffer);
    catch_unwind(AssertUnwindSafe(together))
        .unwrap_or_else(|_| orders.iter().map(|order| hash(*order, buffer)).collect())
}

fn all_at_once(orders: &[Order<'_>], buffer: &mut Buffer) -> Vec<Outcome> {
    let mut states: Vec<_> = begin(orders);
    for round in ROUNDS {
        buffer.clear();
        let mut readings = Vec::new();
        for (number, state) in states.iter_mut().enumerate() {
            let State::Reads(version, findings) = &*state else {
                continue;
            };
            let taken_in: Result<Vec<_>, Failure> = round(findings, version.plan)
                .into_iter()
                .map(|reading| {
                    let path = join(version.path, &reading.file.name);
                    let content = take_in(version, &path, reading.file, buffer)?;
                    Ok((number, reading, content))
                })
                .collect();
            match taken_in {
                Ok(taken_in) => readings.extend(taken_in),
                Err(failure) => state.fail(failure),
            }
        }
        feed(&mut readings, buffer);
        let lanes = readings.iter().flat_map(|(_, reading, _)| reading.lanes.iter().cloned());
        let mut digests = sha256::finish_each(lanes.collect()).into_iter();
        for (number, mut reading, _) in readings {
            let lanes = std::mem::take(&mut reading.lanes);
            let digests = digests.by_ref().take(lanes.len()).collect();
            let state = &mut states[number];
            let State::Reads(version, findings) = state else {
                continue;
            };
            let path = join(version.path, &reading.file.name);
            match version.stands(&path, reading.file) {
                Ok(()) => findings.add(version, &reading, lanes, digests),
                Err(failure) => state.fail(failure),
            }
        }
    }
    states.into_iter().map(end).collect()
}

fn begin<'a>(orders: &[Order<'a>]) -> Vec<State<'a>> {
    // One for all, for each is a descriptor.
    let anchor = orders.first().map(|order| order.tree.anchor());
    let begun = orders.iter().map(|order| {
        let version = match &anchor {
            Some(Ok(anchor)) => Version::begin(*order, anchor.clone())?,
            Some(Err(err)) => return Err(failure(order.path, err)),
            None => return Err(Failure::Stopped),
        };
        if !(order.context.go_on)() {
            return Err(Failure::Stopped);
        }
        Ok(match version.known() {
            Some(hashes) => State::Done(version.keep_promise(hashes).into()),
            None => State::Reads(version, Findings::default()),
        })
    });
    begun.map(|state| state.unwrap_or_else(|failure| State::Done(Err(failure).into()))).collect()
}

fn end(state: State<'_>) -> Outcome {
    match state {
        State::Reads(version, findings) => version.keep_promise(findings.hashes).into(),
        State::Done(outcome) => outcome,
    }
}

/// Feeds each content to all lanes of its reading.
fn feed(readings: &mut [(usize, Reading<'_>, Range<usize>)], buffer: &Buffer) {
    sha256::update_each(readings.iter_mut().flat_map(|(_, reading, content)| {
        let content = buffer.get(content);
        reading.lanes.iter_mut().map(move |lane| (lane, content))
    }));
}
