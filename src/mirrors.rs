//! `lxd-image-server mirrors`: how far each mirror is, and with `--strict` whether all is well.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::cli;
use crate::config::Config;
use crate::exit::{Exit, Stop};
use crate::mirror::board::{self, Entry, State};
use crate::out;
use simplestreams::printable;

/// Prints what the watch wrote down, with the mirrors that it has not heard of yet.
///
/// # Errors
///
/// When that cannot be read; with `--strict`, [`Exit::Problems`] if anything is wrong.
pub fn run(args: &cli::Mirrors, config: &Config) -> Result<()> {
    let mut state = board::read(&config.data_dir)?.unwrap_or_default();
    for name in config.mirrors.keys() {
        state.mirrors.entry(name.clone()).or_default();
    }
    if !is_running(state.pid) {
        // It may have been killed.
        state.pid = 0;
        state.mirrors.values_mut().for_each(|entry| entry.pushing = false);
    }
    if args.json {
        out::line(format_args!("{}", serde_json::to_string_pretty(&state)?));
    } else {
        print(&state);
    }
    if args.strict && is_wrong(&state) {
        return Err(Stop::with(Exit::Problems, "a mirror is not well, or no watch is running"));
    }
    Ok(())
}

/// Whether somebody should look: nobody pushes, a mirror has got nothing yet, or one is behind and cannot
/// be reached. One that is merely behind is being pushed to, or is about to be.
fn is_wrong(state: &State) -> bool {
    let fails = |entry: &Entry| {
        entry.last_success.is_none()
            || (entry.generation < state.generation && entry.last_error.is_some())
    };
    !state.mirrors.is_empty() && (state.pid == 0 || state.mirrors.values().any(fails))
}

fn print(state: &State) {
    if state.pid == 0 && !state.mirrors.is_empty() {
        out::line(format_args!("no watch is running; this is how the last one left it"));
    }
    if state.mirrors.is_empty() {
        out::line(format_args!("no mirrors"));
    }
    for (name, entry) in &state.mirrors {
        out::line(format_args!("{name}: {}", line(entry, state)));
        if let Some(error) = &entry.last_error {
            let times = entry.failures;
            out::line(format_args!(
                "  failed {times} times, last {}: {}",
                ago(entry.last_failure),
                printable(error)
            ));
        }
    }
}

/// Whether there is a process `pid`.
fn is_running(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

fn line(entry: &Entry, state: &State) -> String {
    let lag = state.generation.saturating_sub(entry.generation);
    let has = match (entry.last_success, lag) {
        (None, _) => "never reached".to_owned(),
        (Some(_), 0) => "up to date".to_owned(),
        (Some(_), 1) => "1 generation behind".to_owned(),
        (Some(_), lag) => format!("{lag} generations behind"),
    };
    let now = if entry.pushing { ", being pushed to" } else { "" };
    format!("{has}, last success {}{now}", ago(entry.last_success))
}

fn ago(time: Option<u64>) -> String {
    let Some(time) = time else {
        return "never".to_owned();
    };
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(time);
    let age = SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
    let age = humantime::format_duration(Duration::from_secs(age));
    format!("{} ({age} ago)", humantime::format_rfc3339_seconds(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_should_look_at() {
        let good = Entry { generation: 7, last_success: Some(1), ..Entry::default() };
        let failed = Entry { last_error: Some("refused".to_owned()), ..good.clone() };
        let state = |pid, entry: &Entry| State {
            pid,
            generation: 7,
            mirrors: [("one".to_owned(), entry.clone())].into(),
            ..State::default()
        };
        let behind = |entry: &Entry| Entry { generation: 6, ..entry.clone() };
        assert!(!is_wrong(&State::default()), "no mirrors, no watch");
        assert!(!is_wrong(&state(1, &good)));
        assert!(!is_wrong(&state(1, &behind(&good))), "it is being pushed to");
        assert!(!is_wrong(&state(1, &failed)), "it has got everything");
        assert!(is_wrong(&state(1, &behind(&failed))));
        assert!(is_wrong(&state(1, &Entry::default())), "never reached");
        assert!(is_wrong(&state(0, &good)), "no watch");
    }
}
