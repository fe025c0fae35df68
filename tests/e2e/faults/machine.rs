//! What the tests do to the machine: mounts, and strace as a hand that does harm.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::harness::{Process, signal, until};

/// Says on the terminal, past cargo's capture, that a test did not take place.
pub(crate) fn skip(test: &str, reason: &str) {
    // Without a terminal to say it on, there is nobody to tell.
    drop(writeln!(std::io::stderr(), "SKIP {test}: {reason}"));
}

/// Something mounted, until this goes.
pub(crate) struct Mount {
    at: PathBuf,
}

impl Mount {
    /// `mount` with these arguments, the last of which is the mount point.
    fn new(args: &[&str], at: &Path) -> Result<Self, String> {
        let output = Command::new("mount").args(args).arg(at).output();
        let output = output.map_err(|err| format!("mount: {err}"))?;
        match output.status.success() {
            true => Ok(Self { at: at.to_owned() }),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// An empty file system in memory.
    pub(crate) fn tmpfs(options: &str, at: &Path) -> Result<Self, String> {
        Self::new(&["-t", "tmpfs", "-o", options, "tmpfs"], at)
    }

    /// A directory, in another place.
    pub(crate) fn bind(directory: &Path, at: &Path) -> Result<Self, String> {
        Self::new(&["--bind", &directory.display().to_string()], at)
    }

    /// A directory in another place, through FUSE: what is changed in the directory itself makes no
    /// events in that place.
    pub(crate) fn without_events(directory: &Path, at: &Path) -> Result<Self, String> {
        let output = Command::new("bindfs").arg(directory).arg(at).output();
        let output = output.map_err(|err| format!("bindfs: {err}"))?;
        match output.status.success() {
            true => Ok(Self { at: at.to_owned() }),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// Other options from now on.
    pub(crate) fn change(&self, options: &str) {
        let status = Command::new("mount").args(["-o", options]).arg(&self.at).status();
        assert!(status.expect("mount runs").success(), "mount -o {options}");
    }

    /// Unmounts it, though somebody may be using it for a moment.
    pub(crate) fn end(self) {
        until("it can be unmounted", || {
            let umount = Command::new("umount").arg(&self.at).stderr(Stdio::null()).status();
            umount.expect("umount runs").success().then_some(())
        });
        std::mem::forget(self);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // After a failure: by then nothing else can be done.
        drop(Command::new("umount").arg("-l").arg(&self.at).status());
    }
}

/// strace on all threads of a process. What it does to them it does before the system call, in the
/// very place where the kernel would.
pub(crate) struct Strace {
    child: Child,
    log: PathBuf,
}

impl Strace {
    /// Attaches to `process`; `args` say what to do. Calls are noted in the file `log`.
    #[track_caller]
    pub(crate) fn attach(process: Process, args: &[&str], log: &Path) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o"]).arg(log).args(args);
        command.args(["-p", &process.0.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("strace runs");
        until("strace holds every thread", || {
            let ended = child.try_wait().expect("own child");
            assert!(ended.is_none(), "{command:?} ended: {ended:?}");
            let tasks = fs::read_dir(format!("/proc/{}/task", process.0)).ok()?;
            let mut tasks = tasks
                .flatten()
                .map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default());
            tasks.all(|status| !status.contains("TracerPid:\t0\n")).then_some(())
        });
        Self { child, log: log.to_owned() }
    }

    /// What it did and saw so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has nobody left to hold.
    #[track_caller]
    pub(crate) fn wait(mut self) -> String {
        until("strace ends", || self.child.try_wait().expect("own child"));
        self.log()
    }

    /// Whether processes of another user can be held at all, or why not.
    pub(crate) fn is_possible() -> Result<(), String> {
        let output = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).output();
        let output = output.map_err(|err| format!("strace: {err}"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(Process(self.child.id().try_into().expect("a process id")), Signal::TERM);
            drop(self.child.wait());
        }
    }
}
