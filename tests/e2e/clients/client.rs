//! A real `lxc` or `incus` with a configuration, a cache and a home of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Name that the server under test has in every client.
pub(crate) const REMOTE: &str = "demo";

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Lxd,
    Incus,
}

impl Kind {
    pub(crate) const BOTH: [Self; 2] = [Self::Lxd, Self::Incus];

    /// The command line's program.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Lxd => "lxc",
            Self::Incus => "incus",
        }
    }

    /// Prefix of the environment variables that move the program's directories.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Lxd => "LXD",
            Self::Incus => "INCUS",
        }
    }
}

/// A client that knows the server as [`REMOTE`] and trusts its certificate.
pub(crate) struct Client {
    pub(crate) kind: Kind,
    dir: TempDir,
}

impl Client {
    /// Makes the configuration directory, puts `certificate` where trust is looked for, and adds
    /// the remote at `url`.
    pub(crate) fn new(kind: Kind, url: &str, certificate: &Path) -> Self {
        let client = Self { kind, dir: tempfile::tempdir().expect("temporary directory") };
        let trusted = client.conf().join("servercerts");
        std::fs::create_dir_all(&trusted).expect("servercerts");
        std::fs::copy(certificate, trusted.join(format!("{REMOTE}.crt"))).expect("certificate");
        client.ok(["remote", "add", REMOTE, url, "--protocol=simplestreams"]);
        client
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("conf")
    }

    /// The program with nothing of this machine's own configuration. Proxies lead nowhere, so that
    /// nothing but this host is ever asked (they are not used for it).
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.dir.path())
            .env("LC_ALL", "C.UTF-8")
            .env("https_proxy", "http://127.0.0.1:9")
            .env("http_proxy", "http://127.0.0.1:9")
            .env(format!("{}_CONF", self.kind.prefix()), self.conf())
            // Without a daemon; one that runs on this machine is not ours to ask.
            .env(format!("{}_DIR", self.kind.prefix()), self.dir.path().join("none"));
        command
    }

    /// Runs the program and gives its standard output; fails the test unless it succeeds.
    pub(crate) fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        stdout_of(self.command(self.kind.program()).args(args))
    }

    /// Runs the program, whatever comes of it.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        run(self.command(self.kind.program()).args(args))
    }

    /// `image list`, as the values of its JSON form.
    pub(crate) fn images(&self) -> Vec<Value> {
        let text = self.ok(["image", "list", &format!("{REMOTE}:"), "--format=json"]);
        serde_json::from_str(&text).expect("a JSON array of images")
    }
}

fn run(command: &mut Command) -> Output {
    command
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|err| panic!("{command:?}: {err}"))
}

/// Runs `command` and gives its standard output; fails the test unless it succeeds.
pub(crate) fn stdout_of(command: &mut Command) -> String {
    let output = run(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
