//! The handler of `simplestreams_status`: gathers what the processes told, in the form of
//! [`simplestreams::status`].

use nginx_sys::{NGINX_VER, NGX_HTTP_NOT_ALLOWED, ngx_int_t};
use simplestreams::status::{IndexStatus, Status, Worker};

use crate::conf::MainConf;
use crate::ffi::{self, Body, Request};
use crate::stats;

/// In which form a location tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Prometheus,
}

/// Answers a request in a location with `simplestreams_status`.
pub(crate) fn handle(request: &Request<'_>, main: &MainConf, format: Format) -> ngx_int_t {
    answer(request, main, format).unwrap_or_else(|status| status)
}

fn answer(
    request: &Request<'_>,
    main: &MainConf,
    format: Format,
) -> Result<ngx_int_t, ffi::Status> {
    if !request.is_get_or_head() {
        request.push_header(c"Allow", "GET, HEAD")?;
        return Err(NGX_HTTP_NOT_ALLOWED as ffi::Status);
    }
    request.discard_body()?;
    let status = gather(main);
    let (bytes, content_type) = match format {
        Format::Json => (status.to_json(), c"application/json"),
        Format::Prometheus => (status.to_prometheus(), c"text/plain; version=0.0.4; charset=utf-8"),
    };
    request.push_header(c"Cache-Control", "no-store")?;
    let bytes = request.keep(bytes)?;
    request.send(&Body {
        bytes,
        file: None,
        etag: None,
        last_modified: None,
        content_type,
        content_encoding: None,
    })
}

fn gather(main: &MainConf) -> Status<'_> {
    let server = stats::server();
    let stats: Vec<_> = main.indexes().iter().map(|index| index.stats.get().copied()).collect();
    let indexes = main.indexes().iter().zip(&stats).map(|(index, stats)| IndexStatus {
        settings: &index.settings,
        snapshot: index.cell.load_full(),
        builder: stats.and_then(|stats| stats.builder()),
        traffic: stats.map(|stats| stats.traffic(&index.documents)).unwrap_or_default(),
    });
    let generation =
        |number| move |stats: &Option<stats::IndexStats>| stats.map_or(0, |s| s.served(number));
    let workers = server.into_iter().flat_map(stats::ServerShared::workers);
    let workers = workers.map(|(number, pid, seen)| Worker {
        number,
        pid,
        seen,
        generations: stats.iter().map(generation(number)).collect(),
    });
    Status {
        server: NGINX_VER.to_str().unwrap_or_default(),
        now: stats::now(),
        last_error: server.and_then(stats::ServerShared::last_failure),
        indexes: indexes.collect(),
        workers: workers.collect(),
    }
}
