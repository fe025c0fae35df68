//! Standard output: what a command was asked for, line by line.
//!
//! A reader that has seen enough (`| head`) is no error, and ends nothing that is being done; anything
//! else that goes wrong makes the command fail at its end, when its work is done.

use std::fmt::Display;
use std::io::{self, BufWriter, Write as _};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes a line.
pub fn line(text: impl Display) {
    let mut failure = FAILURE.lock().unwrap_or_else(PoisonError::into_inner);
    if failure.is_none() {
        // At once: `println!` would panic where this fails.
        *failure = io::stdout().write_all(format!("{text}\n").as_bytes()).err();
    }
}

/// Writes many lines, in few pieces.
pub fn lines(texts: impl IntoIterator<Item = impl Display>) {
    let mut failure = FAILURE.lock().unwrap_or_else(PoisonError::into_inner);
    if failure.is_none() {
        let mut out = BufWriter::new(io::stdout().lock());
        let mut texts = texts.into_iter();
        let written = texts.try_for_each(|text| writeln!(out, "{text}"));
        *failure = written.and_then(|()| out.flush()).err();
    }
}

/// Whether all was written that anybody wanted.
///
/// # Errors
///
/// What went wrong.
pub fn finish() -> Result<()> {
    let failure = FAILURE.lock().unwrap_or_else(PoisonError::into_inner).take();
    match failure.or(io::stdout().flush().err()) {
        Some(err) if err.kind() != io::ErrorKind::BrokenPipe => {
            Err(err).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
