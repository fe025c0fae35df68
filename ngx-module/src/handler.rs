//! The content handler: a document of the current generation, as it is or gzipped.
//!
//! Only values and order are decided here; conditional requests, ranges and HEAD are left to nginx's
//! filters, which need an entity tag, a time and a length to do them. The body is never copied: the
//! buffer points into the snapshot, and a large one also into the memory file that the snapshot is
//! mapped from. The request's pool holds the snapshot until the last byte is sent.

use std::cell::Cell;
use std::ffi::CStr;
use std::sync::Arc;

use nginx_sys::{
    NGX_DECLINED, NGX_HTTP_NOT_ALLOWED, NGX_HTTP_NOT_FOUND, NGX_HTTP_SERVICE_UNAVAILABLE, ngx_int_t,
};

use simplestreams::Snapshot;

use crate::conf::LocConf;
use crate::ffi::{Body, Outcome, Request, Status};
use crate::stats::{DocumentCounters, Sent};

/// Seconds after which a client may ask again where there is no generation yet. A cold tree becomes
/// useful early (its newest versions are hashed first), so this is short.
const RETRY_SECONDS: &str = "5";

const RETRY_AFTER: &CStr = c"Retry-After";

/// The Incus web UI reads the index from a page of another origin, errors included.
const ALLOW_ORIGIN: &CStr = c"Access-Control-Allow-Origin";

/// Length in bytes from which a body is offered to `sendfile(2)`, which saves copying it but takes a
/// system call more than sending it together with the header.
const SENDFILE_FROM: usize = 32 * 1024;

/// What a request is answered with, kept until its last byte is sent.
pub(crate) struct Answer {
    /// None while there is no generation.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    counters: Option<&'static DocumentCounters>,
    sent: Cell<Sent>,
}

impl Answer {
    fn done(&self, outcome: Outcome) {
        if let Some(counters) = self.counters {
            counters.count(self.sent.get(), outcome);
        }
    }
}

/// Answers a request in the location that `conf` belongs to.
pub(crate) fn handle(request: &Request<'_>, conf: &LocConf) -> ngx_int_t {
    answer(request, conf).unwrap_or_else(|status| status)
}

/// The status of an error. Its header lines are left out where an `error_page` answers instead: nginx
/// would send them beside those of that answer. When to ask again holds there too.
fn refuse(
    request: &Request<'_>,
    status: Status,
    header: Option<(&'static CStr, &'static str)>,
) -> Status {
    let replaced = request.has_error_page(status);
    let origin = Some((ALLOW_ORIGIN, "*")).filter(|_| !replaced);
    let header = header.filter(|(name, _)| !replaced || *name == RETRY_AFTER);
    for (name, value) in [origin, header].into_iter().flatten() {
        if let Err(status) = request.push_header(name, value) {
            return status;
        }
    }
    status
}

fn answer(request: &Request<'_>, conf: &LocConf) -> Result<ngx_int_t, Status> {
    const DECLINED: Status = NGX_DECLINED as Status;
    let served = conf.served().ok_or(DECLINED)?;
    let name = served.document(request.uri()).ok_or(DECLINED)?;

    let answer = Answer {
        snapshot: served.cell.load_full().filter(|snapshot| snapshot.has_documents()),
        counters: served.counters(name),
        sent: Cell::new(Sent::Error),
    };
    let answer = request.keep_then(answer, Answer::done)?;
    request.set_answer(answer);
    if !request.is_get_or_head() {
        let allow = Some((c"Allow", "GET, HEAD"));
        return Err(refuse(request, NGX_HTTP_NOT_ALLOWED as Status, allow));
    }
    request.discard_body()?;

    let Some(snapshot) = &answer.snapshot else {
        let retry = Some((RETRY_AFTER, RETRY_SECONDS));
        return Err(refuse(request, NGX_HTTP_SERVICE_UNAVAILABLE as Status, retry));
    };
    let document = std::str::from_utf8(name)
        .ok()
        .and_then(|name| snapshot.document(name))
        .ok_or_else(|| refuse(request, NGX_HTTP_NOT_FOUND as Status, None))?;

    request.push_header(ALLOW_ORIGIN, "*")?;
    request.vary_by_encoding()?;
    let gzip = request.accepts_gzip();
    answer.sent.set(if gzip { Sent::Gzip } else { Sent::Identity });
    let variant = if gzip { document.gzip } else { document.identity };
    request.send(&Body {
        bytes: variant.bytes,
        file: (variant.bytes.len() >= SENDFILE_FROM)
            .then(|| snapshot.file_of(variant.bytes))
            .flatten(),
        etag: Some(variant.etag),
        last_modified: Some(document.last_modified),
        content_type: c"application/json",
        content_encoding: gzip.then_some(c"gzip"),
    })
}
