//! SHA-256 of sixteen messages at once by AVX-512: each register holds one word of all of them.
//!
//! What `sha256rnds2` does for one message takes some twenty instructions here, but for sixteen, and two
//! of them begin in each cycle: together that is nearly twice as fast as two lanes by the SHA
//! extensions, and processors that lack those have this often enough.
//!
//! One of the four places of the core with `unsafe`: the instructions must not be met by a processor that
//! lacks them, and words come back from registers. Nothing here reads or writes through a pointer.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_ror_epi32, _mm512_set_epi32, _mm512_set_epi64,
    _mm512_set1_epi32, _mm512_set4_epi32, _mm512_shuffle_epi8, _mm512_shuffle_i32x4,
    _mm512_srli_epi32, _mm512_ternarylogic_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::array;

use super::{Block, K, State};

/// Messages at once.
pub(super) const WIDTH: usize = 16;

/// Truth tables for `_mm512_ternarylogic_epi32`; those of the functions are in FIPS 180-4, section 4.1.2.
const XOR: i32 = 0x96;
const CH: i32 = 0xca;
const MAJ: i32 = 0xe8;

/// Which of the four blocks of 128 bits of two registers `_mm512_shuffle_i32x4` takes.
const EVEN: i32 = 0b10_00_10_00;
const ODD: i32 = 0b11_01_11_01;

/// Proof that this processor has the instructions: [`detect`](Self::detect) alone makes one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        has_all.then_some(Self(()))
    }

    /// Takes as many blocks into each state as the shortest list has.
    pub(super) fn compress(self, states: &mut [State; WIDTH], blocks: &[&[Block]; WIDTH]) {
        // SAFETY: the processor must have the features that the function is compiled for. That
        // `self` exists is the proof that `detect` has found all of them, on this processor.
        unsafe { compress(states, blocks) }
    }
}

/// Round `$t` of all messages: `$s` are the words a to h, which change places instead of being moved, and
/// `$w` the last 16 words of the message schedule (FIPS 180-4, section 6.2.2). Written out for each, for
/// only then is it known which registers these are.
macro_rules! round {
    ($s:ident, $w:ident, $t:expr) => {{
        const T: usize = $t;
        const A: usize = (64 - T) % 8;
        let at = |place: usize| $s[(A + place) % 8];
        if T >= 16 {
            let sum = _mm512_add_epi32($w[T % 16], $w[(T + 9) % 16]);
            let sigmas = _mm512_add_epi32(
                xor(
                    _mm512_ror_epi32::<7>($w[(T + 1) % 16]),
                    _mm512_ror_epi32::<18>($w[(T + 1) % 16]),
                    _mm512_srli_epi32::<3>($w[(T + 1) % 16]),
                ),
                xor(
                    _mm512_ror_epi32::<17>($w[(T + 14) % 16]),
                    _mm512_ror_epi32::<19>($w[(T + 14) % 16]),
                    _mm512_srli_epi32::<10>($w[(T + 14) % 16]),
                ),
            );
            $w[T % 16] = _mm512_add_epi32(sum, sigmas);
        }
        let (a, e) = (at(0), at(4));
        let wk = _mm512_add_epi32($w[T % 16], _mm512_set1_epi32(K[T].cast_signed()));
        let sum1 =
            xor(_mm512_ror_epi32::<6>(e), _mm512_ror_epi32::<11>(e), _mm512_ror_epi32::<25>(e));
        let ch = _mm512_ternarylogic_epi32::<CH>(e, at(5), at(6));
        let t1 = _mm512_add_epi32(_mm512_add_epi32(wk, at(7)), _mm512_add_epi32(sum1, ch));
        let sum0 =
            xor(_mm512_ror_epi32::<2>(a), _mm512_ror_epi32::<13>(a), _mm512_ror_epi32::<22>(a));
        let maj = _mm512_ternarylogic_epi32::<MAJ>(a, at(1), at(2));
        // What is in the place of h is a, what is in that of d is e, from the next round on.
        let (d, h) = ((A + 3) % 8, (A + 7) % 8);
        $s[d] = _mm512_add_epi32($s[d], t1);
        $s[h] = _mm512_add_epi32(t1, _mm512_add_epi32(sum0, maj));
    }};
}

/// Eight rounds from `$t` on, after which each word is in its place again.
macro_rules! eight_rounds {
    ($s:ident, $w:ident, $t:expr) => {
        round!($s, $w, $t);
        round!($s, $w, $t + 1);
        round!($s, $w, $t + 2);
        round!($s, $w, $t + 3);
        round!($s, $w, $t + 4);
        round!($s, $w, $t + 5);
        round!($s, $w, $t + 6);
        round!($s, $w, $t + 7);
    };
}

#[target_feature(enable = "avx512f,avx512bw")]
fn compress(states: &mut [State; WIDTH], blocks: &[&[Block]; WIDTH]) {
    let common = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    let blocks = blocks.map(|blocks| &blocks[..common]);
    let mut s: [__m512i; 8] = array::from_fn(|word| words(states.map(|state| state[word])));
    for i in 0..common {
        let before = s;
        let mut w = transposed(blocks.map(|blocks| load(&blocks[i])));
        eight_rounds!(s, w, 0);
        eight_rounds!(s, w, 8);
        eight_rounds!(s, w, 16);
        eight_rounds!(s, w, 24);
        eight_rounds!(s, w, 32);
        eight_rounds!(s, w, 40);
        eight_rounds!(s, w, 48);
        eight_rounds!(s, w, 56);
        for (word, before) in s.iter_mut().zip(before) {
            *word = _mm512_add_epi32(*word, before);
        }
    }
    for (word, register) in s.into_iter().enumerate() {
        for (state, unpacked) in states.iter_mut().zip(unpack(register)) {
            state[word] = unpacked;
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<XOR>(a, b, c)
}

/// The sixteen words of a block, big-endian there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(block: &Block) -> __m512i {
    let big_endian = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    let (eighths, _) = block.as_chunks::<8>();
    let at = |i: usize| i64::from_le_bytes(eighths[i]);
    let loaded = _mm512_set_epi64(at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0));
    _mm512_shuffle_epi8(loaded, big_endian)
}

/// Register `i` of the result holds word `i` of each of `rows`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; WIDTH]) -> [__m512i; 16] {
    // Within each 128 bits: words of two rows side by side, then of four.
    let of_two: [__m512i; 16] = array::from_fn(|i| match i % 2 {
        0 => _mm512_unpacklo_epi32(rows[i], rows[i + 1]),
        _ => _mm512_unpackhi_epi32(rows[i - 1], rows[i]),
    });
    let of_four: [__m512i; 16] = array::from_fn(|i| {
        let (four, word) = (i / 4 * 4, i % 4);
        let (a, b) = (of_two[four + word / 2], of_two[four + word / 2 + 2]);
        match word % 2 {
            0 => _mm512_unpacklo_epi64(a, b),
            _ => _mm512_unpackhi_epi64(a, b),
        }
    });
    // Then what belongs together is gathered from the quarters of four registers.
    array::from_fn(|i| {
        let (quarter, word) = (i / 4, i % 4);
        let (a, b) = (of_four[word], of_four[4 + word]);
        let (c, d) = (of_four[8 + word], of_four[12 + word]);
        let (ab, cd) = match quarter % 2 {
            0 => (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<EVEN>(c, d)),
            _ => (_mm512_shuffle_i32x4::<ODD>(a, b), _mm512_shuffle_i32x4::<ODD>(c, d)),
        };
        match quarter / 2 {
            0 => _mm512_shuffle_i32x4::<EVEN>(ab, cd),
            _ => _mm512_shuffle_i32x4::<ODD>(ab, cd),
        }
    })
}

/// One word of each message in one register, the first one lowest.
#[inline]
#[target_feature(enable = "avx512f")]
fn words(of: [u32; WIDTH]) -> __m512i {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = of.map(u32::cast_signed);
    _mm512_set_epi32(p, o, n, m, l, k, j, i, h, g, f, e, d, c, b, a)
}

/// The reverse of [`words`].
#[inline]
#[target_feature(enable = "avx512f")]
fn unpack(register: __m512i) -> [u32; WIDTH] {
    // SAFETY: both are 64 bytes without padding, and any of them make a value of either. The first word is
    // the lowest, and memory is little-endian.
    unsafe { std::mem::transmute(register) }
}
