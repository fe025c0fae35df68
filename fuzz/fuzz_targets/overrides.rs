//! See `simplestreams::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| simplestreams::fuzzing::overrides(data));
