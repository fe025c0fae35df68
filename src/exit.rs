//! How the program ends: the exit codes that `--help` documents, carried through errors.

use std::fmt;

/// An exit code other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Something could not be done.
    Failed = 1,
    /// Wrong usage or configuration, or a directory that must exist does not.
    Usage = 2,
    /// Done, but with `--strict` there are problems, of images or of mirrors.
    Problems = 3,
    /// Another instance holds the lock.
    Locked = 4,
    /// No watch is running.
    NotRunning = 5,
}

/// An error that knows its exit code.
#[derive(Debug)]
pub struct Stop {
    exit: Exit,
    message: String,
}

impl Stop {
    /// Ends the program with `exit`, and says why.
    pub fn with(exit: Exit, message: impl Into<String>) -> anyhow::Error {
        Self { exit, message: message.into() }.into()
    }

    /// Wrong usage or configuration.
    pub fn usage(message: impl Into<String>) -> anyhow::Error {
        Self::with(Exit::Usage, message)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Stop {}

/// The exit code of an error: its own, or that of a failure.
pub fn code_of(err: &anyhow::Error) -> Exit {
    err.downcast_ref::<Stop>().map_or(Exit::Failed, |stop| stop.exit)
}
