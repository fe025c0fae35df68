//! `lxd-image-server mirrors`: how far each mirror is.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::cli;
use crate::config::Config;
use crate::mirror::board::{self, Entry, State};
use crate::out;
use simplestreams::printable;

/// Prints what the watch wrote down, with the mirrors that it has not heard of yet.
///
/// # Errors
///
/// When that cannot be read.
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
        return Ok(());
    }
    if state.pid == 0 && !state.mirrors.is_empty() {
        out::line(format_args!("no watch is running; this is how the last one left it"));
    }
    if state.mirrors.is_empty() {
        out::line(format_args!("no mirrors"));
    }
    for (name, entry) in &state.mirrors {
        out::line(format_args!("{name}: {}", line(entry, &state)));
        if let Some(error) = &entry.last_error {
            let times = entry.failures;
            out::line(format_args!(
                "  failed {times} times, last {}: {}",
                ago(entry.last_failure),
                printable(error)
            ));
        }
    }
    Ok(())
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
