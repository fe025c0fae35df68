//! One run of rsync, as a child in a process group of its own, so that ssh dies with it.
//!
//! It dies with this process too, however that ends: `setpriv` (of util-linux) asks the kernel for
//! that. Without that program, an rsync whose parent was killed ends when its transfer does.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::ssh;
use crate::config::Mirror;
use crate::notify::SOCKET;
use simplestreams::printable;

/// How often it is looked whether rsync has ended, or should.
const TICK: Duration = Duration::from_millis(50);

/// How long rsync may take to end once it is told to; it removes its temporary files meanwhile.
const PATIENCE: Duration = Duration::from_secs(3);

/// Seconds without any data until rsync gives up.
const IO_TIMEOUT: u32 = 120;

/// Most lines of rsync's and ssh's complaints that are kept, and the longest of them in bytes.
const MAX_LINES: usize = 50;
const MAX_LINE: u64 = 4096;

/// Why a push ended.
#[derive(Debug)]
pub enum Fault {
    /// It was told to.
    Stopped,
    /// What went wrong, in one line.
    Failed(String),
}

/// What all runs for one mirror have in common.
pub struct Rsync<'m> {
    pub mirror: &'m Mirror,
    /// The root on the mirror, without a slash at its end.
    pub path: &'m str,
    pub stopped: &'m dyn Fn() -> bool,
}

impl Rsync<'_> {
    /// Runs rsync with `options` from `source` to the directory `below` the mirror's root, with
    /// `input` on its standard input. Both end in a slash, or are empty. Says whether it named any
    /// file on its standard output, as it does if the options ask for that.
    ///
    /// # Errors
    ///
    /// [`Fault`]; with what ssh's or rsync's complaint means, where that is known.
    pub fn run(
        &self,
        options: &[&str],
        source: &std::path::Path,
        below: &str,
        input: &[u8],
    ) -> Result<bool, Fault> {
        let Mirror { user, bandwidth, .. } = self.mirror;
        if !ssh::is_installed("rsync") {
            return Err(Fault::Failed("rsync is missing; install the package rsync".to_owned()));
        }
        // The parent that it dies with is this thread, which waits for it.
        let mut command = match ssh::is_installed("setpriv") {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "TERM", "rsync"]);
                command
            }
            false => Command::new("rsync"),
        };
        // A name in the tree, or the path there, must be neither an option nor a shell's word:
        // names come on standard input, paths behind `--`, and `-s` (`--protect-args`, later
        // `--secluded-args`) keeps them from the shell of the mirror.
        command.args(["-s", &format!("--timeout={IO_TIMEOUT}")]);
        command.arg(format!("--rsh={}", ssh::command(self.mirror)));
        command.args(bandwidth.iter().map(|rate| format!("--bwlimit={rate}")));
        command.args(options).arg("--").arg(source);
        command.arg(format!("{user}@{}:{}/{below}", ssh::host(self.mirror), self.path));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The environment's shell and options are for people, the service manager is for the watch.
        for name in
            ["RSYNC_RSH", "RSYNC_OLD_ARGS", "RSYNC_PROTECT_ARGS", "RSYNC_PARTIAL_DIR", SOCKET]
        {
            command.env_remove(name);
        }
        command.process_group(0).current_dir("/");
        log::debug!("running {command:?}");
        let child =
            command.spawn().map_err(|err| Fault::Failed(format!("cannot run rsync ({err})")))?;
        self.wait(child, input)
    }

    fn wait(&self, mut child: Child, input: &[u8]) -> Result<bool, Fault> {
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let stdout = child.stdout.take();
        thread::scope(|scope| {
            // Both ends at once: either pipe may fill up.
            scope.spawn(move || {
                if let Some(mut stdin) = stdin {
                    // rsync that does not read on ends with an error of its own.
                    drop(stdin.write_all(input));
                }
            });
            let named = scope.spawn(move || stdout.is_some_and(names_any));
            let lines = scope.spawn(move || stderr.map(last_lines).unwrap_or_default());
            let ended = self.wait_or_stop(&mut child);
            let lines = lines.join().unwrap_or_default();
            let named = named.join().unwrap_or(true);
            match ended.map_err(|err| Fault::Failed(format!("cannot wait for rsync ({err})")))? {
                None => Err(Fault::Stopped),
                Some(status) if status.success() => Ok(named),
                Some(status) => Err(Fault::Failed(self.explain(status, &lines))),
            }
        })
    }

    /// The status, or none if it was stopped.
    fn wait_or_stop(&self, child: &mut Child) -> io::Result<Option<ExitStatus>> {
        let mut told: Option<Instant> = None;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(told.is_none().then_some(status));
            }
            match told {
                None if (self.stopped)() => {
                    told = Some(Instant::now());
                    end(child, Signal::TERM);
                }
                Some(since) if since.elapsed() > PATIENCE => end(child, Signal::KILL),
                _ => {}
            }
            thread::sleep(TICK);
        }
    }

    fn explain(&self, status: ExitStatus, lines: &[String]) -> String {
        let text = lines.join("\n");
        if let Some(remedy) = ssh::remedy(self.mirror, &text) {
            return remedy;
        }
        // The last line of rsync's sums up what the ones before said.
        let telling = lines.iter().filter(|line| !line.starts_with("rsync error:"));
        let first = telling.take(3).map(|line| printable(line)).collect::<Vec<_>>().join("; ");
        match first.is_empty() {
            true => format!("rsync ended with {status}"),
            false => format!("{first} (rsync: {status})"),
        }
    }
}

fn end(child: &Child, signal: Signal) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        && let Err(err) = kill_process_group(group, signal)
    {
        log::warn!("cannot end rsync ({err})");
    }
}

/// Whether any line is something else than a directory.
fn names_any(stdout: impl Read) -> bool {
    let mut any = false;
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    // To its end, or rsync would wait for a reader.
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        any |= !matches!(line.trim_ascii_end(), [] | [.., b'/']);
        line.clear();
    }
    any
}

fn last_lines(stderr: impl Read) -> Vec<String> {
    let mut lines = VecDeque::new();
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() {
            log::debug!("rsync: {text}");
            lines.push_back(text);
        }
        if lines.len() > MAX_LINES {
            lines.pop_front();
        }
        line.clear();
    }
    lines.into()
}
