//! Variables: `$simplestreams_generation` and `$simplestreams_age`.
//!
//! Both are of the generation that the request was answered from; before it is answered, of the one
//! that its location would answer from.

use std::ffi::CStr;
use std::sync::Arc;

use simplestreams::Snapshot;

use crate::conf::LocConf;
use crate::handler::Answer;
use crate::stats;

/// One of the variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variable {
    Generation,
    Age,
}

impl Variable {
    pub(crate) const ALL: [(Self, &'static CStr); 2] =
        [(Self::Generation, c"simplestreams_generation"), (Self::Age, c"simplestreams_age")];

    /// Its value; none where there is no generation.
    pub(crate) fn value(self, answer: Option<&Answer>, conf: &LocConf) -> Option<String> {
        let current = || conf.served()?.cell.load_full().filter(|current| current.has_documents());
        let snapshot: Arc<Snapshot> = match answer {
            Some(answer) => answer.snapshot.clone()?,
            None => current()?,
        };
        Some(match self {
            Self::Generation => snapshot.generation().to_string(),
            // Seconds with three decimals, as of `$request_time`.
            Self::Age => {
                let age = stats::now().saturating_sub(snapshot.published());
                format!("{}.{:03}", age / 1000, age % 1000)
            }
        })
    }
}
