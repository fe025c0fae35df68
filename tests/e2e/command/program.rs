//! The command as a process: run to its end, or watching.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::Signal;

use crate::harness::{Dir, Process, signal, until};

/// Where the index files of a test go.
pub(crate) fn streams(dir: &Dir) -> PathBuf {
    dir.tree().join("streams/v1")
}

/// The configuration of a test, with `more` at its end.
pub(crate) fn configure(dir: &Dir, more: &str) {
    fs::create_dir_all(streams(dir)).expect("streams");
    let text = format!(
        "img_dir = \"@/tree/images\"\nstreams_dir = \"@/tree/streams/v1\"\npid_file = \"@/pidfile\"\n\
         data_dir = \"@/data\"\nsettle = \"300ms\"\nrescan = \"0s\"\n{more}\n"
    );
    let beside = dir.path().join("config.toml.new");
    fs::write(&beside, text.replace('@', &dir.path().display().to_string())).expect("config");
    fs::rename(beside, dir.path().join("config.toml")).expect("config");
}

/// The command, in the surroundings of a user that has no files.
pub(crate) fn bare(dir: &Dir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lxd-image-server"));
    command.env("HOME", dir.path()).env_remove("LXD_IMAGE_SERVER_CONFIG");
    for name in ["NOTIFY_SOCKET", "JOURNAL_STREAM", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).current_dir(dir.path());
    command
}

/// The same, with the configuration of the test.
pub(crate) fn command(dir: &Dir, args: &[&str]) -> Command {
    let mut command = bare(dir);
    command.arg("--config").arg(dir.path().join("config.toml")).args(args);
    command
}

/// Runs it to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    command.output().expect("the command runs")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs it to its end, which must be a good one, and gives what it printed.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {output:#?}");
    stdout(&output)
}

/// A running `watch`. Dropping it stops it, and fails if anything of it is left.
pub(crate) struct Watch<'d> {
    dir: &'d Dir,
    child: Child,
}

impl<'d> Watch<'d> {
    /// Starts it with the configuration of the test.
    pub(crate) fn start(dir: &'d Dir) -> Self {
        Self::start_as(dir, &mut command(dir, &["--verbose", "watch"]))
    }

    pub(crate) fn start_as(dir: &'d Dir, command: &mut Command) -> Self {
        let log = fs::File::create(dir.path().join("watch.log")).expect("log");
        let child = command.stderr(log).spawn().expect("the command runs");
        Self { dir, child }
    }

    pub(crate) fn process(&self) -> Process {
        Process(self.child.id().try_into().expect("a process id"))
    }

    /// Kills it, as nothing that it could prepare for.
    pub(crate) fn kill(mut self) {
        signal(self.process(), Signal::KILL);
        self.child.wait().expect("own child");
        // There is no good end to look for.
        std::mem::forget(self);
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("watch.log")).unwrap_or_default()
    }

    /// Waits until the log has `text`.
    #[track_caller]
    pub(crate) fn says(&self, text: &str) {
        until(&format!("the log says: {text}"), || self.log().contains(text).then_some(()));
    }
}

/// A process and everything below it.
pub(crate) fn family(process: Process) -> Vec<Process> {
    let below = process.children().into_iter().flat_map(family);
    std::iter::once(process).chain(below).collect()
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let family = family(self.process());
        if std::thread::panicking() {
            eprintln!("--- watch\n{}--- files\n{}---", self.log(), self.dir.listing());
            for process in family {
                signal(process, Signal::KILL);
            }
            drop(self.child.wait());
            return;
        }
        signal(self.process(), Signal::TERM);
        let status = until("watch stops", || self.child.try_wait().expect("own child"));
        assert!(status.success(), "watch ended with {status}:\n{}", self.log());
        assert!(!self.dir.path().join("pidfile").exists(), "the pid file is left");
        for process in &family[1..] {
            until("what watch started is gone", || process.title().is_none().then_some(()));
        }
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }
}
