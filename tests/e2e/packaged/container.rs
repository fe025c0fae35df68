//! podman with a storage of its own, and containers that end with the test.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::clients::client::stdout_of;
use crate::harness::{Dir, Process};

/// An engine that has the image.
pub(crate) struct Engine {
    storage: TempDir,
    image: String,
}

impl Engine {
    /// Loads the archive that is in `images`.
    pub(crate) fn load(images: &Path) -> Self {
        let storage = tempfile::Builder::new().prefix("ss").tempdir_in("/tmp").expect("directory");
        let mut engine = Self { storage, image: String::new() };
        let archives = fs::read_dir(images).expect("images").map(|entry| entry.unwrap().path());
        let archive = archives.filter(|path| path.to_string_lossy().ends_with(".docker.tar"));
        let [archive] = &archive.collect::<Vec<_>>()[..] else {
            panic!("no archive in {images:?}")
        };
        let said = stdout_of(engine.podman(&["load", "--quiet", "--input"]).arg(archive));
        engine.image = said.trim().trim_start_matches("Loaded image: ").to_owned();
        engine
    }

    /// As it runs on machines without systemd, and with cgroups of the first version.
    fn podman(&self, args: &[&str]) -> Command {
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(self.storage.path().join("root"));
        podman.arg("--runroot").arg(self.storage.path().join("run"));
        podman
            .args(["--storage-driver=vfs", "--runtime=runc", "--cgroup-manager=cgroupfs"])
            .args(args);
        podman
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.podman(&["rm", "--all", "--force", "--time=5"]).output());
        drop(self.podman(&["volume", "rm", "--all", "--force"]).output());
    }
}

/// A running one. Dropping it removes it, but not its volumes.
pub(crate) struct Container<'e> {
    engine: &'e Engine,
    id: String,
}

impl<'e> Container<'e> {
    /// Starts it over the tree of `dir`, with volumes that outlive it.
    #[track_caller]
    pub(crate) fn run(engine: &'e Engine, dir: &Dir, ports: [u16; 2], more: &[&str]) -> Self {
        let mut podman = Self::command(engine, dir, ports, &["--detach"]);
        podman
            .args(["--volume=ssl:/etc/nginx/ssl", "--volume=state:/var/lib/simplestreams"])
            .args(more);
        let id = stdout_of(podman.arg(&engine.image)).trim().to_owned();
        Self { engine, id }
    }

    /// What it says when it does not start with the volume `volume`.
    #[track_caller]
    pub(crate) fn refusal(engine: &Engine, dir: &Dir, ports: [u16; 2], volume: &str) -> String {
        let mut podman = Self::command(engine, dir, ports, &["--rm", "--volume", volume]);
        let output = podman.arg(&engine.image).output().expect("podman");
        assert!(!output.status.success(), "it started: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn command(engine: &Engine, dir: &Dir, ports: [u16; 2], args: &[&str]) -> Command {
        // A sandbox has no network to give, and limits that may not be raised.
        let mut podman = engine.podman(&["run", "--network=host"]);
        podman.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        podman.arg(format!("--env=HTTPS_PORT={}", ports[0]));
        podman.arg(format!("--env=HTTP_PORT={}", ports[1]));
        podman.arg("--env=NAMES=images.example.org 192.0.2.1");
        podman.arg(format!("--volume={}:/var/www/simplestreams:ro", dir.tree().display()));
        podman.args(args);
        podman
    }

    fn podman(&self, args: &[&str]) -> Output {
        self.engine.podman(args).arg(&self.id).output().expect("podman")
    }

    /// Runs the image's own health check.
    #[track_caller]
    pub(crate) fn healthy(&self) -> bool {
        let output = self.podman(&["healthcheck", "run"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !said.contains("not running") && !said.contains("improper"),
            "{said}{:?}",
            self.logs()
        );
        assert!(!said.contains("no defined healthcheck"), "{said}");
        output.status.success()
    }

    /// Runs a program in it and gives its standard output.
    #[track_caller]
    pub(crate) fn exec(&self, args: &[&str]) -> String {
        stdout_of(self.engine.podman(&["exec", &self.id]).args(args))
    }

    /// The users (real, effective, saved, file system) of all processes.
    pub(crate) fn users(&self) -> Vec<String> {
        let pid = self.podman(&["inspect", "--format={{.State.Pid}}"]);
        let first =
            Process(String::from_utf8_lossy(&pid.stdout).trim().parse().expect("a process id"));
        let all = [vec![first], first.children()].concat();
        let user = |process: &Process| {
            let status = fs::read_to_string(format!("/proc/{}/status", process.0)).expect("status");
            let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("Uid");
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        all.iter().map(user).collect()
    }

    /// Standard output and standard error so far.
    pub(crate) fn logs(&self) -> (String, String) {
        let output = self.podman(&["logs"]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    }

    /// Stops it as its image says, which must end well, and gives its logs.
    #[track_caller]
    pub(crate) fn stop(self) -> (String, String) {
        stdout_of(self.engine.podman(&["stop", "--time=30"]).arg(&self.id));
        let code = self.podman(&["inspect", "--format={{.State.ExitCode}}"]);
        let logs = self.logs();
        assert_eq!(String::from_utf8_lossy(&code.stdout).trim(), "0", "{logs:?}");
        logs
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the container's logs: {:#?}", self.logs());
        }
        drop(self.podman(&["rm", "--force", "--time=5"]));
    }
}
