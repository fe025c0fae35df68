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

    /// Its children, whichever of its threads started them.
    pub(crate) fn children(self) -> Vec<Self> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0)).into_iter().flatten().flatten();
        let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")));
        let text = lists.map(Result::unwrap_or_default).collect::<String>();
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

    /// What each open descriptor refers to, sorted; of sockets and pipes only that they are such.
    pub(crate) fn descriptors(self) -> Vec<String> {
        let mut targets: Vec<String> = fs::read_dir(format!("/proc/{}/fd", self.0))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .map(|target| target.display().to_string())
            .map(|target| match target.split_once(":[") {
                Some((kind, _)) => kind.to_owned(),
                None => target,
            })
            .collect();
        targets.sort();
        targets
    }

    /// How many directories and files it watches by inotify.
    pub(crate) fn watches(self) -> usize {
        self.watched().len()
    }

    /// Inodes of the directories and files that it watches by inotify.
    pub(crate) fn watched(self) -> Vec<u64> {
        let infos =
            fs::read_dir(format!("/proc/{}/fdinfo", self.0)).into_iter().flatten().flatten();
        let infos = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
        let inode = |line: &str| {
            let (_, inode) = line.strip_prefix("inotify wd:")?.split_once(" ino:")?;
            u64::from_str_radix(inode.split(' ').next()?, 16).ok()
        };
        infos.flat_map(|info| info.lines().filter_map(inode).collect::<Vec<_>>()).collect()
    }

    /// Bytes that it has read, from wherever.
    pub(crate) fn bytes_read(self) -> u64 {
        let io = self.file("io").expect("a live process");
        let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        line.and_then(|bytes| bytes.parse().ok()).expect("a number of bytes")
    }

    /// Every thread but the first.
    pub(crate) fn other_threads(self) -> Vec<Thread> {
        fs::read_dir(format!("/proc/{}/task", self.0))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|task| task.file_name() != *self.0.to_string())
            .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
            .map(|status| Thread::parse(&status))
            .collect()
    }

    /// The CPUs that the first thread may run on.
    pub(crate) fn cpus(self) -> String {
        Thread::parse(&self.file("status").expect("a live process")).cpus
    }
}

/// A thread, as the system describes it.
#[derive(Debug)]
pub(crate) struct Thread {
    /// Blocked signals: signal n is bit n - 1.
    pub(crate) blocked: u64,
    /// CPUs that it may run on.
    pub(crate) cpus: String,
}

impl Thread {
    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        Self {
            blocked: u64::from_str_radix(&field("SigBlk:"), 16).expect("hexadecimal"),
            cpus: field("Cpus_allowed_list:"),
        }
    }
}
