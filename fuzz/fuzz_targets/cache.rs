//! See `simplestreams::fuzzing`.
#![no_main]

use std::panic::{self, AssertUnwindSafe, catch_unwind};

libfuzzer_sys::fuzz_target!(
    init: {
        // redb panics over some damaged files, which the cache catches. Only what gets past that
        // is a finding; libFuzzer's own hook would abort at once.
        panic::set_hook(Box::new(|_| {}));
    },
    |data: &[u8]| {
        if let Err(why) = catch_unwind(AssertUnwindSafe(|| simplestreams::fuzzing::cache(data))) {
            let text = why.downcast_ref::<String>();
            eprintln!("panicked: {}", text.map_or("(no text)", String::as_str));
            std::process::abort();
        }
    }
);
