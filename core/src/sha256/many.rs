//! Many lanes at once, each with blocks of its own.
//!
//! Where a kernel takes sixteen messages in less time than eight pairs of lanes take, lanes of different files
//! share it: those that are done make room for others, until too few are left for it to pay.

use std::cmp::Reverse;

#[cfg(target_arch = "x86_64")]
use super::avx512::{Avx512, WIDTH};
use super::{Block, Kernel, Lane, State};
use crate::Digest;

/// What there is for many lanes at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wide {
    #[cfg(target_arch = "x86_64")]
    avx512: Option<Avx512>,
}

/// A lane's state, and the blocks that it has yet to take.
struct Work<'a> {
    state: &'a mut State,
    blocks: &'a [Block],
}

/// Feeds each lane bytes of its own.
pub fn update_each<'a>(lanes: impl IntoIterator<Item = (&'a mut Lane, &'a [u8])>) {
    update_each_with(Kernel::best(), Wide::best(), lanes);
}

/// Whether many lanes at once take less time than one after the other.
pub fn has_many() -> bool {
    Wide::best().is_there()
}

/// The hash of what each lane was fed.
pub fn finish_each(lanes: Vec<Lane>) -> Vec<Digest> {
    finish_each_with(Kernel::best(), Wide::best(), lanes)
}

pub(super) fn update_each_with<'a>(
    kernel: Kernel,
    wide: Wide,
    lanes: impl IntoIterator<Item = (&'a mut Lane, &'a [u8])>,
) {
    let work = lanes.into_iter().map(|(lane, data)| {
        let blocks = lane.take(data, kernel);
        Work { state: &mut lane.state, blocks }
    });
    compress_each(kernel, wide, work.collect());
}

pub(super) fn finish_each_with(kernel: Kernel, wide: Wide, mut lanes: Vec<Lane>) -> Vec<Digest> {
    let ends: Vec<_> = lanes.iter().map(Lane::end).collect();
    let work = lanes
        .iter_mut()
        .zip(&ends)
        .map(|(lane, (blocks, used))| Work { state: &mut lane.state, blocks: &blocks[..*used] });
    compress_each(kernel, wide, work.collect());
    lanes.iter().map(Lane::digest).collect()
}

fn compress_each(kernel: Kernel, wide: Wide, mut work: Vec<Work<'_>>) {
    // The longest first, so that they do not end alone; equal ones stay side by side.
    work.sort_by_key(|work| Reverse(work.blocks.len()));
    wide.compress(kernel, &mut work);
    work.sort_by_key(|work| Reverse(work.blocks.len()));
    for pair in work.chunks_mut(2) {
        match pair {
            [a, b] => {
                let common = b.blocks.len();
                kernel.compress([&mut *a.state, &mut *b.state], [a.blocks, b.blocks]);
                kernel.compress([&mut *a.state], [&a.blocks[common..]]);
            }
            rest => rest.iter_mut().for_each(|a| kernel.compress([&mut *a.state], [a.blocks])),
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Wide {
    /// The best for this processor.
    pub(super) fn best() -> Self {
        // See `Kernel::best`.
        Self { avx512: if cfg!(debug_assertions) { None } else { Avx512::detect() } }
    }

    /// All that this processor can run, and nothing.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self { avx512: None }];
        all.extend(Avx512::detect().map(|avx512| Self { avx512: Some(avx512) }));
        all
    }

    fn is_there(self) -> bool {
        self.avx512.is_some()
    }

    /// Takes blocks as long as there are enough lanes for it to be faster than `kernel`.
    fn compress(self, kernel: Kernel, work: &mut [Work<'_>]) {
        let Some(avx512) = self.avx512 else {
            return;
        };
        // On an Intel Xeon (Emerald Rapids) sixteen take as long as nine by the SHA extensions, in pairs.
        // Others were not measured, and some have faster ones: with thirteen, little is lost there.
        // Without the extensions, three lanes one after the other take longer.
        let worth = match kernel {
            Kernel::ShaNi(_) => 13,
            Kernel::Sha2 => 3,
        };
        let mut waiting = work.iter_mut().filter(|work| !work.blocks.is_empty());
        let mut active: Vec<&mut Work<'_>> = waiting.by_ref().take(WIDTH).collect();
        while active.len() >= worth {
            let common = active.iter().map(|work| work.blocks.len()).min().unwrap_or(0);
            // Places that nobody has take what the first one takes, and nobody asks what they make of it.
            let lists =
                std::array::from_fn(|i| &active.get(i).unwrap_or(&active[0]).blocks[..common]);
            let mut states: [State; WIDTH] =
                std::array::from_fn(|i| active.get(i).map_or([0; 8], |work| *work.state));
            avx512.compress(&mut states, &lists);
            for (work, state) in active.iter_mut().zip(states) {
                *work.state = state;
                work.blocks = &work.blocks[common..];
            }
            active.retain(|work| !work.blocks.is_empty());
            let room = WIDTH - active.len();
            active.extend(waiting.by_ref().take(room));
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Wide {
    /// Nothing is known for this architecture.
    pub(super) fn best() -> Self {
        Self {}
    }

    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        vec![Self {}]
    }

    fn is_there(self) -> bool {
        false
    }

    fn compress(self, _: Kernel, _: &mut [Work<'_>]) {}
}
