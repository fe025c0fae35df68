//! SHA-256 by the SHA extensions of x86-64, several lanes taking turns.
//!
//! `sha256rnds2` does two rounds and has its result after four cycles, but a new one can begin
//! after two: a second lane fits in between. With a third the instruction is busy all the time, so
//! that it costs half as much again as two, which still is less than two and then one.
//!
//! One of the four places of the core with `unsafe`: the instructions must not be met by a processor
//! that lacks them. Nothing here reads or writes through a pointer.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
    _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
    _mm_shuffle_epi8, _mm_shuffle_epi32,
};

use super::{Block, K, State};

/// Proof that this processor has the instructions: [`detect`](Self::detect) alone makes one.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShaNi(());

impl ShaNi {
    pub(super) fn detect() -> Option<Self> {
        // SSSE3 and SSE4.1 come with every such processor, but an emulator may leave them out.
        let has_all = is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("sse4.1")
            && is_x86_feature_detected!("ssse3");
        has_all.then_some(Self(()))
    }

    /// Takes as many blocks into each state as the shortest list has.
    pub(super) fn compress<const N: usize>(self, states: [&mut State; N], blocks: [&[Block]; N]) {
        // SAFETY: the processor must have the features that the function is compiled for. That
        // `self` exists is the proof that `detect` has found all of them, on this processor.
        unsafe { compress(states, blocks) }
    }
}

/// What one lane needs in registers.
#[derive(Clone, Copy)]
struct Work {
    /// State words a, b, e, f, as the instructions want them.
    abef: __m128i,
    /// State words c, d, g, h.
    cdgh: __m128i,
    /// The last 16 words of the message schedule, four to a register.
    w: [__m128i; 4],
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn compress<const N: usize>(states: [&mut State; N], blocks: [&[Block]; N]) {
    let zero = _mm_setzero_si128();
    let mut lanes = [Work { abef: zero, cdgh: zero, w: [zero; 4] }; N];
    for (lane, [a, b, c, d, e, f, g, h]) in lanes.iter_mut().zip(states.each_ref()) {
        lane.abef = words(*a, *b, *e, *f);
        lane.cdgh = words(*c, *d, *g, *h);
    }
    let common = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    for i in 0..common {
        let before = lanes;
        for (lane, blocks) in lanes.iter_mut().zip(blocks) {
            lane.w = load(&blocks[i]);
        }
        // Written out, for only then is `4 * ROUND` known where registers are chosen.
        rounds::<0, N>(&mut lanes);
        rounds::<1, N>(&mut lanes);
        rounds::<2, N>(&mut lanes);
        rounds::<3, N>(&mut lanes);
        rounds::<4, N>(&mut lanes);
        rounds::<5, N>(&mut lanes);
        rounds::<6, N>(&mut lanes);
        rounds::<7, N>(&mut lanes);
        rounds::<8, N>(&mut lanes);
        rounds::<9, N>(&mut lanes);
        rounds::<10, N>(&mut lanes);
        rounds::<11, N>(&mut lanes);
        rounds::<12, N>(&mut lanes);
        rounds::<13, N>(&mut lanes);
        rounds::<14, N>(&mut lanes);
        rounds::<15, N>(&mut lanes);
        for (lane, before) in lanes.iter_mut().zip(before) {
            lane.abef = _mm_add_epi32(lane.abef, before.abef);
            lane.cdgh = _mm_add_epi32(lane.cdgh, before.cdgh);
        }
    }
    for (state, lane) in states.into_iter().zip(lanes) {
        let [a, b, e, f] = unpack(lane.abef);
        let [c, d, g, h] = unpack(lane.cdgh);
        *state = [a, b, c, d, e, f, g, h];
    }
}

/// Rounds `4 * ROUND` to `4 * ROUND + 3` of every lane, instruction by instruction in turn.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn rounds<const ROUND: usize, const N: usize>(lanes: &mut [Work; N]) {
    let k = words(K[4 * ROUND + 3], K[4 * ROUND + 2], K[4 * ROUND + 1], K[4 * ROUND]);
    let mut wk = [k; N];
    for (lane, wk) in lanes.iter_mut().zip(&mut wk) {
        if ROUND >= 4 {
            let [w0, w1, w2, w3] = std::array::from_fn(|i| lane.w[(ROUND + i) % 4]);
            let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
            lane.w[ROUND % 4] = _mm_sha256msg2_epu32(sum, w3);
        }
        *wk = _mm_add_epi32(lane.w[ROUND % 4], k);
    }
    for (lane, wk) in lanes.iter_mut().zip(&mut wk) {
        lane.cdgh = _mm_sha256rnds2_epu32(lane.cdgh, lane.abef, *wk);
        *wk = _mm_shuffle_epi32(*wk, 0x0e);
    }
    for (lane, wk) in lanes.iter_mut().zip(wk) {
        lane.abef = _mm_sha256rnds2_epu32(lane.abef, lane.cdgh, wk);
    }
}

/// The sixteen words of a block, big-endian there.
#[inline]
#[target_feature(enable = "sse2,ssse3")]
fn load(block: &Block) -> [__m128i; 4] {
    let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let (halves, _) = block.as_chunks::<8>();
    let half = |i: usize| i64::from_le_bytes(halves[i]);
    std::array::from_fn(|i| {
        _mm_shuffle_epi8(_mm_set_epi64x(half(2 * i + 1), half(2 * i)), big_endian)
    })
}

/// Four words in one register, the highest first.
#[inline]
#[target_feature(enable = "sse2")]
fn words(a: u32, b: u32, c: u32, d: u32) -> __m128i {
    let [a, b, c, d] = [a, b, c, d].map(u32::cast_signed);
    _mm_set_epi32(a, b, c, d)
}

/// The reverse of [`words`].
#[inline]
#[target_feature(enable = "sse4.1")]
fn unpack(register: __m128i) -> [u32; 4] {
    [
        _mm_extract_epi32(register, 3),
        _mm_extract_epi32(register, 2),
        _mm_extract_epi32(register, 1),
        _mm_extract_epi32(register, 0),
    ]
    .map(i32::cast_unsigned)
}
