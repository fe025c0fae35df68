//! Small versions, several at once.
//!
//! Hashing is the main cost of a tree that is new, and a processor may take sixteen lanes further in little
//! more time than one (see [`sha256::update_each`]): small versions have two each, so that eight of them
//! are read before all are hashed.

use std::ops::Range;

use super::findings::Reading;
use super::{Buffer, CHUNK, Failure, Findings, Order, Outcome, ROUNDS, Version, take_in};
use crate::entry::Plan;
use crate::sha256;
use crate::tree::join;

/// Versions at once: lanes of different length make room for each other.
pub const MOST: usize = 16;

/// Their files together, in bytes: what was read should be in the processor's cache still when it is hashed.
pub const MOST_BYTES: u64 = 1 << 20;

/// Whether a version can be hashed together with others.
pub fn is_small(plan: &Plan) -> bool {
    plan.bytes() <= MOST_BYTES && plan.files().all(|file| file.stamp.size <= CHUNK as u64)
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

/// Hashes versions that [are small](is_small), as [`hash`](super::hash) does each.
pub fn hash_together(orders: &[Order<'_>], buffer: &mut Buffer) -> Vec<Outcome> {
    let mut states: Vec<_> = orders.iter().map(|order| begin(*order)).collect();
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

fn begin(order: Order<'_>) -> State<'_> {
    match Version::open(order) {
        Ok(version) => match version.known() {
            Some(hashes) => State::Done(version.keep_promise(hashes).into()),
            None => State::Reads(version, Findings::default()),
        },
        Err(failure) => State::Done(Err(failure).into()),
    }
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
