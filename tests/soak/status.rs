//! What the server says of itself, against what is known.

use serde_json::Value;

use crate::Run;
use crate::clients;
use crate::harness::Ask;
use crate::tally::Count;

/// Connections of wrk: so many requests of each phase may be answered without its having counted them.
const UNCOUNTED: u64 = 8;

/// Looks at it over and over.
pub(crate) fn work(run: &Run<'_>) {
    let mut before = 0;
    while run.goes_on() {
        let Some(status) = look(run) else {
            continue;
        };
        let (index, requests) = (&status["indexes"][0], requests(&status));
        let state = index["state"].as_str().unwrap_or_default();
        if !["current", "hashing", "waiting", "unattended"].contains(&state) {
            run.tally.fail(format!("state {state:?}: {status}"));
        }
        if index["generation"]["versions"].as_u64().is_none_or(|versions| versions == 0) {
            run.tally.fail(format!("nothing is listed: {status}"));
        }
        if requests < before {
            run.tally.fail(format!("{before} requests, and then {requests}: {status}"));
        }
        before = requests;
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}

/// When all is quiet, the numbers are those of the tree and of what was asked.
pub(crate) fn settled(run: &Run<'_>) {
    let mut last = Value::Null;
    let right = crate::harness::within(crate::harness::DEADLINE, || {
        last = look(run)?;
        let index = &last["indexes"][0];
        let workers = last["workers"].as_array().map_or(0, |workers| {
            workers.iter().filter(|worker| worker["up"] == Value::Bool(true)).count()
        });
        let right = index["state"] == "current"
            && index["generation"]["versions"] == run.ledger.len()
            && index["builder"]["generation"] == index["generation"]["number"]
            && index["builder"]["event_overflows"] == 0
            && index["problem_count"] == 0
            && index["problems"].as_array().is_some_and(Vec::is_empty)
            && workers == 4;
        right.then_some(())
    });
    if right.is_none() && !run.tally.has_failed() {
        run.tally.fail(format!("not the status of a quiet server: {last}"));
    }
    let known = run.tally.sum(Count::Asked) + run.tally.sum(Count::Load);
    let lost = run.tally.sum(Count::Cut) + run.tally.sum(Count::LoadErrors);
    let counted = requests(&last);
    let most = known + lost + UNCOUNTED * run.tally.phases() + 1;
    if !run.tally.has_failed() && !(known - lost.min(known)..=most).contains(&counted) {
        run.tally.fail(format!("{counted} requests counted, {known} known, {lost} lost: {last}"));
    }
}

pub(crate) fn look(run: &Run<'_>) -> Option<Value> {
    let answer = clients::get(run, &Ask::get("/status"), "/status")?;
    run.tally.add(Count::Statuses, 1);
    if answer.status != 200 {
        run.tally.fail(format!("/status: {}", answer.status));
        return None;
    }
    Some(answer.json())
}

/// Good answers to requests for the list of images.
fn requests(status: &Value) -> u64 {
    let rows = status["indexes"][0]["requests"].as_array();
    let rows = rows.into_iter().flatten();
    let rows = rows.filter(|row| row["document"] == "images.json" && row["status"] == 200);
    rows.filter_map(|row| row["requests"].as_u64()).sum()
}
