//! `lxd` or `incusd` with a directory of its own, and its end, whatever happened before.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::clients::client::{Client, Kind, stdout_of};
use crate::harness::{until, within};

/// One storage pool, which needs nothing but a directory, and no network.
const PRESEED: &str = "
storage_pools:
- name: default
  driver: dir
profiles:
- name: default
  devices:
    root: {path: /, pool: default, type: disk}
";

/// How long the daemon may take to go, with its containers.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Daemon {
    client: Client,
    /// `/tmp/…`, for the path of the daemon's socket may have 107 bytes and no more.
    dir: TempDir,
    child: Child,
}

impl Daemon {
    /// Starts the daemon, waits until it is ready, and gives it its storage pool.
    pub(crate) fn start(kind: Kind, client: Client) -> Self {
        let dir = tempfile::Builder::new().prefix("ss").tempdir_in("/tmp").expect("directory");
        fs::create_dir(dir.path().join("d")).expect("the daemon's directory");
        let log = fs::File::create(dir.path().join("log")).expect("log");
        let binary = match kind {
            Kind::Lxd => "/usr/bin/lxd",
            Kind::Incus => "/usr/libexec/incus/incusd",
        };
        let mut command = client.command(binary);
        set_dir(&mut command, kind, dir.path());
        let child = command
            .args(["--group", "root"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|err| panic!("{binary}: {err}"));
        let mut daemon = Self { client, dir, child };
        until("the daemon is ready", || {
            let ended = daemon.child.try_wait().expect("own child");
            assert!(ended.is_none(), "{binary} ended: {ended:?}");
            let mut wait = daemon.command(binary);
            wait.args(["waitready", "--timeout=1"]).stdout(Stdio::null()).stderr(Stdio::null());
            wait.status().expect(binary).success().then_some(())
        });
        daemon.preseed();
        daemon
    }

    fn preseed(&self) {
        let mut command = match self.client.kind {
            Kind::Lxd => self.command("lxd"),
            Kind::Incus => {
                let mut command = self.command("incus");
                command.arg("admin");
                command
            }
        };
        let mut child = command
            .args(["init", "--preseed"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("init");
        child.stdin.take().expect("stdin").write_all(PRESEED.as_bytes()).expect("preseed");
        let output = child.wait_with_output().expect("init");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?} init: {said}\n{}", self.client.kind, self.log());
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.client.command(program);
        set_dir(&mut command, self.client.kind, self.dir.path());
        command
    }

    pub(crate) fn kind(&self) -> Kind {
        self.client.kind
    }

    /// Lets the daemon look at the server's index again. It keeps what it has read in files, and
    /// trusts each until it is an hour old; this makes them older than that.
    pub(crate) fn an_hour_passes(&self) {
        let old = SystemTime::now() - Duration::from_secs(2 * 3600);
        let cached = files_below(&self.dir.path().join("d/cache"));
        assert!(!cached.is_empty(), "{:?} has nothing in its cache", self.kind());
        for path in cached {
            let file = fs::File::options().write(true).open(&path).expect("cached file");
            file.set_modified(old).expect("cached file");
        }
    }

    /// Runs the client against this daemon and gives its standard output; fails the test unless it
    /// succeeds.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        stdout_of(self.command(self.client.kind.program()).args(args))
    }

    /// Runs the client against this daemon, whatever comes of it.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(self.client.kind.program())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("client")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_else(|err| err.to_string())
    }

    /// Asks the daemon to stop its containers and to go.
    fn shut_down(&mut self) -> Result<(), String> {
        let mut command = match self.client.kind {
            Kind::Lxd => self.command("lxd"),
            Kind::Incus => {
                let mut command = self.command("incus");
                command.arg("admin");
                command
            }
        };
        let output = command
            .args(["shutdown", "--timeout=30"])
            .stdin(Stdio::null())
            .output()
            .map_err(|err| err.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        match within(PATIENCE, || self.child.try_wait().transpose()) {
            Some(ended) => ended.map(drop).map_err(|err| err.to_string()),
            None => Err(format!("still there after {} s", PATIENCE.as_secs())),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let failed = self.shut_down().err();
        if failed.is_some() {
            drop(self.child.kill());
            drop(self.child.wait());
            end_processes_of(self.dir.path());
        }
        unmount_below(self.dir.path());
        if std::thread::panicking() {
            eprintln!("what {:?} logged:\n{}", self.client.kind, self.log());
        } else if let Some(reason) = failed {
            panic!("{:?} did not shut down: {reason}\n{}", self.client.kind, self.log());
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("directory").map(|entry| entry.expect("entry").path());
    let below = |path: PathBuf| if path.is_dir() { files_below(&path) } else { vec![path] };
    entries.flat_map(below).collect()
}

fn set_dir(command: &mut Command, kind: Kind, dir: &Path) {
    command.env(format!("{}_DIR", kind.prefix()), dir.join("d"));
}

/// Ends what a killed daemon leaves: the monitors of its containers, which name the directory in
/// their arguments and end their container with them.
fn end_processes_of(dir: &Path) {
    let dir = dir.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let ours = arguments.windows(dir.len()).any(|part| part == dir);
        if ours && id != std::process::id().to_string() {
            drop(Command::new("kill").args(["-KILL", &id]).output());
        }
    }
}

/// Takes away what is mounted below `dir`, the last mounted first, so that it can be removed.
fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(PathBuf::from))
        .filter(|place| place.starts_with(dir))
        .collect();
    for place in below.iter().rev() {
        drop(Command::new("umount").arg("--lazy").arg(place).output());
    }
}
