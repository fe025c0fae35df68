//! A model of what processes do to each other in the state directory, in every order there is: two
//! builders, one that tidies up, a worker that follows, and kills, failing writes and damage at any
//! moment.
//!
//! The steps are those of `state.rs` (`try_lock`), `state/sweep.rs` (`remove`), `indexer/publish.rs`
//! (`inherit`, `publish`, the snapshot's file) and `follow.rs` (`look`), one system call each. Each
//! guard of the protocol can be left out, and the model must then find what goes wrong: so it is seen
//! that it can. The code itself runs with threads and real processes in the other tests.

use std::collections::{HashSet, VecDeque};

/// Guards that the protocol has.
#[derive(Clone, Copy)]
struct Guards {
    /// A lock counts only while its file has its name.
    rechecks_name: bool,
    /// The next generation is later than what was announced, whatever is in the file.
    passes_served: bool,
    /// A file that is older than what was announced is not announced in its turn.
    compares_served: bool,
}

const ALL: Guards = Guards { rechecks_name: true, passes_served: true, compares_served: true };

/// Bounds of the search.
const GENERATIONS: u8 = 3;
const TROUBLES: u8 = 2;

type Inode = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Open,
    Lock(Inode),
    Check(Inode),
    /// With the lock.
    Inherit,
    Announce,
    Save,
    /// The one that tidies up: the files of the index, then the lock's name.
    Remove,
    Unlink,
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    step: Step,
    holds: Option<Inode>,
    /// The last generation that it knows of.
    generation: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    builders: [Process; 2],
    sweeper: Process,
    /// What has the lock's name, and the number of the next file.
    lock: Option<Inode>,
    next: Inode,
    /// What is announced: by which builder, and the generation.
    live: Option<(usize, u8)>,
    snapshot: Option<u8>,
    /// Tells one file of a generation from the next.
    file: u8,
    /// What the worker serves, had last seen announced, and the file that it had seen.
    served: u8,
    seen: Option<(usize, u8)>,
    seen_file: u8,
    troubles: u8,
    swept: bool,
}

impl State {
    fn new() -> Self {
        let process = Process { step: Step::Open, holds: None, generation: 0 };
        Self {
            builders: [process.clone(), process.clone()],
            sweeper: process,
            lock: None,
            next: 0,
            live: None,
            snapshot: None,
            file: 0,
            served: 0,
            seen: None,
            seen_file: 0,
            troubles: 0,
            swept: false,
        }
    }

    fn processes(&self) -> [&Process; 3] {
        [&self.builders[0], &self.builders[1], &self.sweeper]
    }

    fn process(&mut self, number: usize) -> &mut Process {
        match number {
            2 => &mut self.sweeper,
            builder => &mut self.builders[builder],
        }
    }

    /// Whether a builder's memory can be had: the process runs, and has announced it.
    fn is_there(&self, (builder, generation): (usize, u8)) -> bool {
        self.builders[builder].generation == generation
            && matches!(self.builders[builder].step, Step::Announce | Step::Save)
    }

    /// What a process may do next; none if it has to wait.
    fn advance(&self, number: usize, guards: Guards) -> Option<Self> {
        let mut next = self.clone();
        let after = match (self.processes()[number].step, number) {
            (Step::Open, _) => {
                if next.lock.is_none() {
                    next.lock = Some(next.next);
                    next.next += 1;
                }
                Step::Lock(next.lock?)
            }
            (Step::Lock(inode), _) => {
                if self.processes().iter().any(|other| other.holds == Some(inode)) {
                    // The builder tries again; the one that tidies up leaves it.
                    if number == 2 { Step::Ended } else { Step::Open }
                } else {
                    next.process(number).holds = Some(inode);
                    Step::Check(inode)
                }
            }
            (Step::Check(inode), _) if guards.rechecks_name && self.lock != Some(inode) => {
                next.process(number).holds = None;
                if number == 2 { Step::Ended } else { Step::Open }
            }
            (Step::Check(_), 2) => Step::Remove,
            (Step::Check(_), _) => Step::Inherit,
            (Step::Inherit, builder) => {
                let announced = self.live.map_or(0, |(_, generation)| generation);
                let mut generation = self.snapshot.unwrap_or(0);
                if let Some(saved) = self.snapshot
                    && (saved >= announced || !guards.compares_served)
                {
                    next.live = Some((builder, saved));
                }
                if guards.passes_served {
                    generation = generation.max(announced);
                }
                next.process(builder).generation = generation;
                Step::Announce
            }
            (Step::Announce, builder) => {
                let process = next.process(builder);
                process.generation += 1;
                let generation = process.generation;
                if generation > GENERATIONS {
                    return None;
                }
                next.live = Some((builder, generation));
                Step::Save
            }
            (Step::Save, builder) => {
                next.snapshot = Some(self.builders[builder].generation);
                next.file += 1;
                Step::Announce
            }
            (Step::Remove, _) => {
                (next.live, next.snapshot) = (None, None);
                // Nobody has used the index for a day: no worker serves it.
                (next.served, next.seen) = (0, None);
                next.swept = true;
                Step::Unlink
            }
            (Step::Unlink, _) => {
                next.lock = None;
                next.process(number).holds = None;
                Step::Ended
            }
            (Step::Ended, _) => return None,
        };
        next.process(number).step = after;
        Some(next)
    }

    /// The worker looks.
    fn look(&self) -> Option<Self> {
        let mut next = self.clone();
        let announced = self.live.filter(|live| Some(*live) != self.seen);
        next.seen = self.live;
        if let Some((_, generation)) = announced.filter(|live| self.is_there(*live)) {
            next.served = generation;
            next.seen_file = self.file;
        } else if self.snapshot.is_some() && self.file != self.seen_file {
            next.seen_file = self.file;
            // By a builder that runs and has told already, or by one that is gone.
            if self.served == 0 || !self.live.is_some_and(|live| self.is_there(live)) {
                next.served = self.snapshot?;
            }
        }
        (next != *self).then_some(next)
    }

    /// Killed; another one starts in its place.
    fn kill(&self, builder: usize) -> Self {
        let mut next = self.clone();
        next.builders[builder] = Process { step: Step::Open, holds: None, generation: 0 };
        next.troubles += 1;
        next
    }

    fn successors(&self, guards: Guards) -> Vec<Self> {
        let mut all: Vec<Self> = (0..3).filter_map(|number| self.advance(number, guards)).collect();
        all.extend(self.look());
        if self.troubles < TROUBLES {
            all.extend((0..2).map(|builder| self.kill(builder)));
            // The disk is full: the next generation comes without this one being saved.
            for builder in 0..2 {
                if self.builders[builder].step == Step::Save {
                    let mut next = self.clone();
                    next.builders[builder].step = Step::Announce;
                    next.troubles += 1;
                    all.push(next);
                }
            }
            // The file is damaged, or deleted by somebody.
            if self.snapshot.is_some() {
                let mut next = self.clone();
                next.snapshot = None;
                next.troubles += 1;
                all.push(next);
            }
        }
        all
    }

    /// What is wrong with this state, or with coming to it.
    fn wrong(&self, before: &Self) -> Option<&'static str> {
        let active = |process: &&Process| {
            use Step::{Announce, Inherit, Remove, Save, Unlink};
            matches!(process.step, Inherit | Announce | Save | Remove | Unlink)
        };
        if self.processes().iter().filter(|process| active(process)).count() > 1 {
            return Some("two at once change the files of an index");
        }
        (self.served < before.served && self.swept == before.swept)
            .then_some("a worker went back to an earlier generation")
    }
}

/// Goes through every state; gives their number, or the first thing that is wrong.
fn explore(guards: Guards) -> Result<usize, &'static str> {
    let mut seen = HashSet::from([State::new()]);
    let mut queue = VecDeque::from([State::new()]);
    let mut taken_over = false;
    while let Some(state) = queue.pop_front() {
        let successors = state.successors(guards);
        let is_building =
            state.builders.iter().any(|b| matches!(b.step, Step::Announce | Step::Save));
        let is_sweeping = state.sweeper.step != Step::Ended;
        let can_go_on = (0..2).any(|number| state.advance(number, guards).is_some());
        if !is_building && !is_sweeping && !can_go_on {
            return Err("nobody builds, and nobody ever will");
        }
        taken_over |= state.troubles > 0 && state.served > 1;
        for next in successors {
            if let Some(wrong) = next.wrong(&state) {
                return Err(wrong);
            }
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    assert!(taken_over, "the search comes to where another builder has published");
    Ok(seen.len())
}

#[test]
fn in_every_order_one_builds_and_no_worker_goes_back() {
    let states = explore(ALL).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(states > 10_000, "{states} states are too few to be all");
}

#[test]
fn without_its_guards_it_goes_wrong() {
    let guards = Guards { rechecks_name: false, ..ALL };
    assert_eq!(explore(guards), Err("two at once change the files of an index"));
    for guards in [Guards { passes_served: false, ..ALL }, Guards { compares_served: false, ..ALL }]
    {
        assert_eq!(explore(guards), Err("a worker went back to an earlier generation"));
    }
}
