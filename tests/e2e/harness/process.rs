//! What the system knows of a process.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// A process, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process(pub(crate) i32);

/// Sends a signal; a process that is gone already is fine.
pub(crate) fn signal(process: Process, signal: Signal) {
    let pid = Pid::from_raw(process.0).expect("a process id");
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(err) => panic!("signal {signal:?} to {process:?}: {err}"),
    }
}

impl Process {
    fn file(self, name: &str) -> Option<String> {
        fs::read(format!("/proc/{}/{name}", self.0))
            .ok()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The command line, as nginx has rewritten it. None if the process is gone, or a zombie.
    pub(crate) fn title(self) -> Option<String> {
        self.file("cmdline").filter(|title| !title.is_empty())
    }

    pub(crate) fn children(self) -> Vec<Self> {
        let text = self.file(&format!("task/{}/children", self.0)).unwrap_or_default();
        text.split_whitespace().map(|pid| Self(pid.parse().expect("a process id"))).collect()
    }

    /// Names of the threads, sorted.
    pub(crate) fn threads(self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(format!("/proc/{}/task", self.0))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect();
        names.sort();
        names
    }

    /// What each open descriptor refers to, sorted.
    pub(crate) fn descriptors(self) -> Vec<String> {
        let mut targets: Vec<String> = fs::read_dir(format!("/proc/{}/fd", self.0))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .map(|target| target.display().to_string())
            .collect();
        targets.sort();
        targets
    }

    /// The mask of blocked signals of each thread but the first.
    pub(crate) fn masks_of_other_threads(self) -> Vec<u64> {
        fs::read_dir(format!("/proc/{}/task", self.0))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|task| task.file_name() != *self.0.to_string())
            .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
            .filter_map(|status| {
                let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
                u64::from_str_radix(line.trim(), 16).ok()
            })
            .collect()
    }
}
