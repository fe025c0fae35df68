//! An sshd of one test: own host key, own port on loopback, one user key.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::command::program::{family, succeed};
use crate::harness::{Dir, signal, until};

/// Dropping it ends it, with everything that it started.
pub(crate) struct Sshd {
    pub(crate) port: u16,
    conf: PathBuf,
    child: Option<Child>,
}

/// Who runs the tests, and is logged in as.
pub(crate) fn user() -> String {
    succeed(Command::new("id").arg("-un")).trim().to_owned()
}

fn make_key(path: &Path) {
    if !path.exists() {
        let mut keygen = Command::new("ssh-keygen");
        succeed(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path));
    }
}

impl Sshd {
    /// Starts one, and makes it known: `known_hosts`, `key` and `authorized_keys` are in `dir`, and
    /// a directory `name` for a mirror.
    pub(crate) fn start(dir: &Dir, name: &str) -> Self {
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path(name).join("images")).expect("mirror");
        let key = path("key");
        make_key(&key);
        fs::copy(path("key.pub"), path("authorized_keys")).expect("authorized_keys");
        let host_key = path(&format!("host_key_{name}"));
        make_key(&host_key);
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = socket.local_addr().expect("an address").port();
        drop(socket);
        let public = fs::read_to_string(path(&format!("host_key_{name}.pub"))).expect("host key");
        let known = fs::read_to_string(path("known_hosts")).unwrap_or_default();
        fs::write(path("known_hosts"), format!("{known}[127.0.0.1]:{port} {public}"))
            .expect("known");
        let conf = path(&format!("sshd_{name}.conf"));
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nPidFile none\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nAuthorizedKeysFile {}\nMaxStartups 100\n\
             Subsystem sftp internal-sftp\n",
            host_key.display(),
            path("authorized_keys").display(),
        );
        fs::write(&conf, text).expect("configuration");
        // Where sshd separates privileges; Debian's service makes it when it starts.
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").expect("/run/sshd");
        }
        let mut sshd = Self { port, conf, child: None };
        sshd.restart();
        sshd
    }

    /// Starts it on the same port.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        let log = self.conf.with_extension("log");
        let mut command = Command::new("/usr/sbin/sshd");
        command.arg("-D").arg("-f").arg(&self.conf).arg("-E").arg(&log).stdin(Stdio::null());
        let mut child = command.spawn().expect("sshd runs");
        let port = self.port;
        until("sshd accepts connections", || {
            let ended = child.try_wait().expect("own child");
            let log = || fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "sshd ended: {ended:?}\n{}", log());
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        self.child = Some(child);
    }

    /// Kills it and its sessions, as a machine does that loses power.
    pub(crate) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let process = crate::harness::Process(child.id().try_into().expect("a process id"));
        for process in family(process) {
            signal(process, Signal::KILL);
        }
        drop(child.wait());
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}
