//! SHA-256 of several messages that share their bytes, in one pass over them.
//!
//! A root is hashed twice: alone, and behind the metadata. Each is a [`Lane`], and [`update`] feeds
//! all lanes the same bytes. One lane is a chain of instructions each of which waits for the one
//! before; processors with SHA instructions have room for a second chain in the same time, so two
//! lanes that take turns cost little more than one. Lanes of many files, each with bytes of its own,
//! are taken further by [`update_each`], sixteen at once where the processor can. Crates that hash
//! several messages at once want whole messages of equal length, from the start; lanes go on from
//! different states and are at different places in their blocks, hence this module. What is done with
//! one block is in `sha256/shani.rs` and `sha256/avx512.rs` and, for all other processors, in the
//! crate `sha2`.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod many;
#[cfg(target_arch = "x86_64")]
mod shani;

use crate::Digest;
pub use many::{finish_each, has_many, update_each};

/// Bytes that the compression function takes at once (FIPS 180-4, section 5.2.1).
const BLOCK: usize = 64;

/// The length of the message in bits ends the last block (FIPS 180-4, section 5.1.1).
const LENGTH: usize = 8;

/// The initial state (FIPS 180-4, section 5.3.3).
const INITIAL: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The round constants (FIPS 180-4, section 4.2.2).
#[rustfmt::skip]
#[cfg(target_arch = "x86_64")]
const K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

type State = [u32; 8];
type Block = [u8; BLOCK];

/// One message on its way to its hash. A clone goes on by itself: that is how a message becomes the
/// beginning of another.
#[derive(Clone, Debug)]
pub struct Lane {
    state: State,
    /// The beginning of the next block: the last `length % 64` bytes.
    begun: Block,
    /// Bytes so far.
    length: u64,
}

impl Default for Lane {
    fn default() -> Self {
        Self { state: INITIAL, begun: [0; BLOCK], length: 0 }
    }
}

impl Lane {
    /// The hash of what was fed.
    pub fn finish(self) -> Digest {
        self.finish_with(Kernel::best())
    }

    fn finish_with(mut self, kernel: Kernel) -> Digest {
        let (blocks, used) = self.end();
        kernel.compress([&mut self.state], [&blocks[..used]]);
        self.digest()
    }

    /// What ends the message: so many blocks of these.
    fn end(&self) -> ([Block; 2], usize) {
        let bits = self.length.wrapping_mul(8);
        let filled = self.filled();
        // A one bit, zeros, and the length, which may need a block of their own.
        let mut end = [[0; BLOCK]; 2];
        end[0][..filled].copy_from_slice(&self.begun[..filled]);
        end[0][filled] = 0x80;
        let blocks = if filled + 1 + LENGTH <= BLOCK { 1 } else { 2 };
        end[blocks - 1][BLOCK - LENGTH..].copy_from_slice(&bits.to_be_bytes());
        (end, blocks)
    }

    /// The hash, after the [`end`](Self::end).
    fn digest(&self) -> Digest {
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        Digest::from_bytes(digest)
    }

    fn filled(&self) -> usize {
        (self.length % BLOCK as u64) as usize
    }

    /// Counts `data` as fed, and keeps what does not make a block yet; the blocks that are left have to be
    /// taken into the state.
    fn take<'a>(&mut self, data: &'a [u8], kernel: Kernel) -> &'a [Block] {
        let (blocks, rest) = self.complete_block(data, kernel).as_chunks();
        // Not into a block that `complete_block` could not fill: then nothing is left here.
        if !rest.is_empty() {
            self.begun[..rest.len()].copy_from_slice(rest);
        }
        self.length += (blocks.len() * BLOCK + rest.len()) as u64;
        blocks
    }

    /// Completes the block that was begun; what of `data` is left begins with a new one.
    fn complete_block<'a>(&mut self, data: &'a [u8], kernel: Kernel) -> &'a [u8] {
        let filled = self.filled();
        if filled == 0 {
            return data;
        }
        let (head, rest) = data.split_at(data.len().min(BLOCK - filled));
        self.begun[filled..filled + head.len()].copy_from_slice(head);
        self.length += head.len() as u64;
        if self.filled() == 0 {
            kernel.compress([&mut self.state], [&[self.begun]]);
        }
        rest
    }
}

/// Feeds `data` to every lane.
pub fn update(lanes: &mut [Lane], data: &[u8]) {
    update_with(Kernel::best(), lanes, data);
}

fn update_with(kernel: Kernel, lanes: &mut [Lane], data: &[u8]) {
    match lanes {
        [] => {}
        [a] => feed(kernel, [a], data),
        [a, b] => feed(kernel, [a, b], data),
        [a, b, c] => feed(kernel, [a, b, c], data),
        [a, b, rest @ ..] => {
            feed(kernel, [a, b], data);
            update_with(kernel, rest, data);
        }
    }
}

fn feed<const N: usize>(kernel: Kernel, mut lanes: [&mut Lane; N], data: &[u8]) {
    let blocks = lanes.each_mut().map(|lane| lane.take(data, kernel));
    // Lanes begin within 63 bytes of each other, so one may have a block more.
    let common = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    kernel.compress(lanes.each_mut().map(|lane| &mut lane.state), blocks.map(|b| &b[..common]));
    for (lane, blocks) in lanes.into_iter().zip(blocks) {
        kernel.compress([&mut lane.state], [&blocks[common..]]);
    }
}

/// What compresses blocks into states.
#[derive(Clone, Copy, Debug)]
enum Kernel {
    /// The crate `sha2`, lane by lane, by whatever this processor has.
    Sha2,
    #[cfg(target_arch = "x86_64")]
    ShaNi(shani::ShaNi),
}

impl Kernel {
    fn best() -> Self {
        // Where this crate is not optimized, each instruction of its own is a call; `sha2` always is.
        #[cfg(target_arch = "x86_64")]
        if !cfg!(debug_assertions)
            && let Some(shani) = shani::ShaNi::detect()
        {
            return Self::ShaNi(shani);
        }
        Self::Sha2
    }

    /// Takes as many blocks into each state as the shortest list has.
    fn compress<const N: usize>(self, states: [&mut State; N], blocks: [&[Block]; N]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::ShaNi(shani) => shani.compress(states, blocks),
            Self::Sha2 => {
                let common = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
                for (state, blocks) in states.into_iter().zip(blocks) {
                    sha2::block_api::compress256(state, &blocks[..common]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
