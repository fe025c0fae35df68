//! A raw deflate stream whose search for matches is tuned.
//!
//! One of the four places of the core with `unsafe`: `zlib-rs` has the tuning behind its C interface
//! alone, the crate `libz-rs-sys`. Of that interface nothing is exported, so that nginx keeps its zlib.
//! A panic in it, which would be a fault of that crate, ends the process that builds, which nginx starts again;
//! workers compress nothing.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::mem::size_of;
use std::ptr;

use libz_rs_sys::{
    Z_BUF_ERROR, Z_DEFLATED, Z_FILTERED, Z_FINISH, Z_OK, Z_STREAM_END, Z_SYNC_FLUSH, deflate,
    deflateEnd, deflateInit2_, deflateSetDictionary, deflateTune, uInt, z_stream, zlibVersion,
};

/// Half of a document are hexadecimal digits without a pattern. A match of three to five of them costs
/// more than the digits by themselves, at four bits each; "filtered" leaves such matches out, which makes
/// the documents a ninth smaller than `gzip -9` does. Levels above 7 take a third longer and win half a
/// percent; those below lose a tenth, for they do not know "filtered".
const LEVEL: c_int = 7;

/// No header, and as far back as deflate refers: 32 KiB.
const WINDOW_BITS: c_int = -15;

const MEMORY_LEVEL: c_int = 9;

/// How hard matches are searched for. What the level has by itself, chains of 256 and matches up to 128,
/// takes 1.6 times as long, and makes documents a thousandth smaller.
const GOOD_LENGTH: c_int = 8;
const MAX_LAZY: c_int = 32;
const NICE_LENGTH: c_int = 32;
const MAX_CHAIN: c_int = 32;

/// See the module.
pub(super) struct Deflate {
    /// In one place: its state may refer to it.
    stream: Box<z_stream>,
}

impl Deflate {
    /// A stream behind `dictionary`, of which the last 32 KiB count.
    pub(super) fn new(dictionary: &[u8]) -> Self {
        let mut stream = Box::new(z_stream::default());
        let size = size_of::<z_stream>() as c_int;
        // SAFETY: the stream is one that was never begun, with no functions and no pointers in it, which
        // stands for the allocator of Rust; version and size are those that the crate was built with.
        let begun = unsafe {
            deflateInit2_(
                &raw mut *stream,
                LEVEL,
                Z_DEFLATED,
                WINDOW_BITS,
                MEMORY_LEVEL,
                Z_FILTERED,
                zlibVersion(),
                size,
            )
        };
        // Fails without memory, which ends a Rust program elsewhere too, and for settings that are wrong.
        assert_eq!(begun, Z_OK, "deflate cannot begin");
        let mut this = Self { stream };
        // SAFETY: the stream was begun, and has not moved since.
        let tuned = unsafe {
            deflateTune(&raw mut *this.stream, GOOD_LENGTH, MAX_LAZY, NICE_LENGTH, MAX_CHAIN)
        };
        assert_eq!(tuned, Z_OK, "deflate cannot be tuned");
        if !dictionary.is_empty() {
            let length = length_of(dictionary);
            // SAFETY: as above; and so many bytes can be read at the dictionary, which is copied.
            let set =
                unsafe { deflateSetDictionary(&raw mut *this.stream, dictionary.as_ptr(), length) };
            assert_eq!(set, Z_OK, "nothing was compressed yet");
        }
        this
    }

    /// Compresses all of `text`; if it is the `last` the stream ends with it, otherwise what follows
    /// begins with a byte.
    pub(super) fn compress(mut self, text: &[u8], last: bool) -> Vec<u8> {
        let flush = if last { Z_FINISH } else { Z_SYNC_FLUSH };
        let mut out = vec![0; text.len() / 4 + 1024];
        let mut length = 0;
        self.stream.next_in = text.as_ptr();
        self.stream.avail_in = length_of(text);
        loop {
            let room = &mut out[length..];
            self.stream.next_out = room.as_mut_ptr();
            self.stream.avail_out = length_of(room);
            // SAFETY: the stream was begun, has not moved and has not ended; what is left of `text` and
            // of `out` is where its pointers lead, and nothing else is done with it until this returns.
            let status = unsafe { deflate(&raw mut *self.stream, flush) };
            // That there is no room, or nothing to do, is no failure.
            let is_fine = matches!(status, Z_OK | Z_STREAM_END | Z_BUF_ERROR);
            assert!(is_fine, "deflate takes every byte, but said {status}");
            length = out.len() - self.stream.avail_out as usize;
            // It is flushed when it leaves room in the output.
            let is_flushed = self.stream.avail_in == 0 && length < out.len();
            if status == Z_STREAM_END || !last && is_flushed {
                break;
            }
            out.resize(out.len() * 2, 0);
        }
        out.truncate(length);
        out
    }
}

/// As the interface has lengths. A chunk has half a megabyte, and the longest piece a few.
fn length_of(bytes: &[u8]) -> uInt {
    uInt::try_from(bytes.len()).expect("a chunk has less than four gigabytes")
}

impl Drop for Deflate {
    fn drop(&mut self) {
        // It must not refer to what may be gone.
        self.stream.next_in = ptr::null();
        self.stream.next_out = ptr::null_mut();
        // SAFETY: the stream was begun, has not moved, and is not used after this.
        unsafe { deflateEnd(&raw mut *self.stream) };
    }
}
