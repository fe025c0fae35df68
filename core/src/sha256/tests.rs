use std::collections::BTreeSet;

use proptest::prelude::*;
use sha2::Digest as _;

use super::many::{Wide, finish_each_with, update_each_with};
use super::*;

/// Every kernel that this processor can run.
fn kernels() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::Sha2];
    #[cfg(target_arch = "x86_64")]
    kernels.extend(shani::ShaNi::detect().map(Kernel::ShaNi));
    kernels
}

/// The same, with all that there is for many lanes.
fn all() -> impl Iterator<Item = (Kernel, Wide)> {
    let with = |kernel| Wide::all().into_iter().map(move |wide| (kernel, wide));
    kernels().into_iter().flat_map(with)
}

fn sha2_of(parts: &[&[u8]]) -> Digest {
    let mut hasher = sha2::Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    Digest::from_bytes(hasher.finalize().into())
}

fn fed(kernel: Kernel, prefix: &[u8]) -> Lane {
    let mut lane = [Lane::default()];
    update_with(kernel, &mut lane, prefix);
    let [lane] = lane;
    lane
}

/// Bytes in which no block is like another.
fn noise(length: usize) -> Vec<u8> {
    let mut word = 0x9e37_79b9_u32;
    let mut next = || {
        word ^= word << 13;
        word ^= word >> 17;
        word ^= word << 5;
        (word >> 11) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Messages and their hashes.
fn vectors() -> [(&'static [u8], &'static str); 4] {
    let two_blocks: &[u8] = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    let four_blocks: &[u8] = b"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn\
        hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu";
    [
        (&b""[..], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (two_blocks, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"),
        (four_blocks, "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"),
    ]
}

/// The messages of FIPS 180-2 (appendix B), whose results NIST publishes with FIPS 180-4, the empty
/// one, and one of four blocks; each by every kernel, in every number of lanes, in pieces of every
/// size.
#[test]
fn the_vectors_of_fips_180_4() {
    for kernel in kernels() {
        for (message, expected) in vectors() {
            for number in 1..=5 {
                for piece in 1..=message.len().max(1) {
                    let mut lanes = vec![Lane::default(); number];
                    for bytes in message.chunks(piece) {
                        update_with(kernel, &mut lanes, bytes);
                    }
                    for lane in lanes {
                        let digest = lane.finish_with(kernel).to_string();
                        assert_eq!(digest, expected, "{kernel:?}, {number} lanes of {piece}");
                    }
                }
            }
        }
    }
}

/// Lanes of many files: as many as fit together, fewer, and more, each with another message.
#[test]
fn the_vectors_in_many_lanes() {
    let messages = vectors();
    for (kernel, wide) in all() {
        for number in 0..=40 {
            let of = |i: usize| messages[i * 7 % messages.len()];
            let mut lanes = vec![Lane::default(); number];
            let feeds = lanes.iter_mut().enumerate().map(|(i, lane)| (lane, of(i).0));
            update_each_with(kernel, wide, feeds);
            for (i, digest) in finish_each_with(kernel, wide, lanes).into_iter().enumerate() {
                let (message, expected) = of(i);
                assert_eq!(
                    digest.to_string(),
                    expected,
                    "{kernel:?}, {wide:?}, {message:?}, {i} of {number}"
                );
            }
        }
    }
}

/// A million times `a`, in pieces that cross every block border.
#[test]
fn a_million_times_a() {
    let expected = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
    let million = vec![b'a'; 1_000_000];
    for kernel in kernels() {
        for piece in [1009, 4096, 65_537, 1_000_000] {
            let mut lanes = vec![Lane::default(); 3];
            for bytes in million.chunks(piece) {
                update_with(kernel, &mut lanes, bytes);
            }
            for lane in lanes {
                assert_eq!(lane.finish_with(kernel).to_string(), expected, "{kernel:?} {piece}");
            }
        }
    }
}

/// The second lane begins at every place in a block, and the message ends at every place: around
/// each border, the padding needs one block or two.
#[test]
fn lanes_at_every_distance_end_at_every_place() {
    let data = noise(3 * BLOCK + 1);
    for kernel in kernels() {
        for distance in 0..=2 * BLOCK {
            let prefix = &noise(2 * BLOCK)[..distance];
            for length in 0..data.len() {
                let root = &data[..length];
                let mut lanes = [Lane::default(), fed(kernel, prefix)];
                update_with(kernel, &mut lanes, root);
                let digests = lanes.map(|lane| lane.finish_with(kernel));
                let expected = [sha2_of(&[root]), sha2_of(&[prefix, root])];
                assert_eq!(digests, expected, "{kernel:?}, {distance} before {length}");
            }
        }
    }
}

#[test]
fn pieces_of_every_size_make_the_same_message() {
    let (data, lxd, incus) = (noise(5 * BLOCK + 21), &noise(77)[..], &noise(3 * BLOCK + 5)[..]);
    let expected = [&b""[..], lxd, incus].map(|prefix| sha2_of(&[prefix, &data]));
    for kernel in kernels() {
        for piece in 1..=data.len() {
            let mut lanes = [Lane::default(), fed(kernel, lxd), fed(kernel, incus)];
            for bytes in data.chunks(piece) {
                update_with(kernel, &mut lanes, bytes);
            }
            assert_eq!(lanes.map(|lane| lane.finish_with(kernel)), expected, "{kernel:?} {piece}");
        }
    }
}

/// Otherwise the tests above would have compared a kernel with itself.
#[test]
fn what_is_fed_matters() {
    let data = noise(300);
    let digests: BTreeSet<Digest> = (0..data.len())
        .map(|flipped| {
            let mut data = data.clone();
            data[flipped] ^= 1;
            let mut lanes = [Lane::default(), Lane::default()];
            update(&mut lanes, &data);
            lanes.map(Lane::finish)[1]
        })
        .collect();
    assert_eq!(digests.len(), data.len());
}

proptest! {
    #[test]
    fn any_lanes_fed_any_pieces(
        prefixes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6),
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..700), 0..8),
    ) {
        let message = pieces.concat();
        for kernel in kernels() {
            let mut lanes: Vec<Lane> = prefixes.iter().map(|p| fed(kernel, p)).collect();
            for piece in &pieces {
                update_with(kernel, &mut lanes, piece);
            }
            for (lane, prefix) in lanes.into_iter().zip(&prefixes) {
                prop_assert_eq!(lane.finish_with(kernel), sha2_of(&[prefix, &message]));
            }
        }
    }

    #[test]
    fn any_lanes_each_fed_its_own(
        messages in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..700), 0..700_usize), 0..40),
    ) {
        for (kernel, wide) in all() {
            let mut lanes = vec![Lane::default(); messages.len()];
            // Each is cut elsewhere.
            let halves = |(message, at): &'_ (Vec<u8>, usize)| message.len().min(*at);
            let heads = messages.iter().map(|message| &message.0[..halves(message)]);
            update_each_with(kernel, wide, lanes.iter_mut().zip(heads));
            let tails = messages.iter().map(|message| &message.0[halves(message)..]);
            update_each_with(kernel, wide, lanes.iter_mut().zip(tails));
            let expected: Vec<Digest> = messages.iter().map(|(m, _)| sha2_of(&[m])).collect();
            prop_assert_eq!(finish_each_with(kernel, wide, lanes), expected);
        }
    }
}
