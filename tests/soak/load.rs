//! Load by wrk: as many requests as there is room for beside everything else.

use std::process::Command;
use std::time::Duration;

use crate::Run;
use crate::tally::Count;

/// Asks for the list of images over and over. Every answer must be a good one; connections may be
/// lost, since a worker that leaves closes those at rest, perhaps when a request is on its way.
pub(crate) fn work(run: &Run<'_>, length: Duration) {
    let url = format!("http://127.0.0.1:{}/streams/v1/images.json", run.nginx.port());
    let length = format!("{}s", length.as_secs().max(1));
    let output = Command::new("wrk")
        .args(["-t1", "-c8", "-d", &length, "-H", "Accept-Encoding: gzip", &url])
        .output()
        .unwrap_or_else(|err| panic!("wrk: {err}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let requests = text.lines().find_map(|line| line.split_once(" requests in"));
    let requests = requests.and_then(|(number, _)| number.trim().parse().ok()).unwrap_or(0);
    run.tally.add(Count::Load, requests);
    let errors = text.lines().find_map(|line| line.trim().strip_prefix("Socket errors: "));
    let errors = errors.into_iter().flat_map(|line| line.split(", "));
    let errors = errors.filter_map(|of| of.split_once(' ')?.1.parse::<u64>().ok()).sum();
    run.tally.add(Count::LoadErrors, errors);
    if !output.status.success() || requests == 0 || text.contains("Non-2xx") {
        run.tally.fail(format!("wrk got answers other than 200, or none: {output:?}"));
    }
}
