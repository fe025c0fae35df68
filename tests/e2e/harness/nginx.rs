//! The nginx of one test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Instant;

use rustix::process::Signal;

use super::{Answer, Ask, DEADLINE, Dir, PAUSE, Process, signal, until};

/// Lines that no healthy server writes.
const ALARMS: [&str; 4] = ["[alert]", "[emerg]", "exited on signal", "panicked"];

/// A running nginx, in the foreground of its own prefix. Dropping it makes it quit and looks through
/// its error log.
pub(crate) struct Nginx<'d> {
    dir: &'d Dir,
    child: Child,
    port: u16,
    worker_processes: usize,
    allowed: Vec<&'static str>,
    finished: bool,
}

/// The module under test.
pub(crate) fn module() -> PathBuf {
    let module = std::env::var_os("SIMPLESTREAMS_MODULE").map_or_else(
        || {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            root.join("target/release/libngx_http_simplestreams_module.so")
        },
        PathBuf::from,
    );
    assert!(module.is_file(), "no module \"{}\"; make it with: make module", module.display());
    module
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("an address").port()
}

/// Where nginx is.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|place| place.join("nginx"));
    places.chain(["/usr/sbin/nginx".into()]).find(|place| place.is_file()).expect("nginx")
}

impl Dir {
    fn error_log(&self) -> PathBuf {
        self.path().join("error.log")
    }

    /// Fills in what differs from test to test:
    ///
    /// - `@GLOBALS@`: the module, the workers' user, pid file, error log, and that nginx stays in the
    ///   foreground;
    /// - `@HTTP_GLOBALS@`: nginx's own temporary directories, and where the state goes;
    /// - `@DIR@`, `@TREE@`, `@PORT@`.
    fn fill_in(&self, conf: &str, port: u16) -> String {
        let user = if rustix::process::geteuid().is_root() { "user www-data;\n" } else { "" };
        let globals = format!(
            "load_module {};\n{user}daemon off;\npid @DIR@/nginx.pid;\n\
             error_log @DIR@/error.log info;",
            module().display()
        );
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|of| format!("    {of}_temp_path @DIR@/temp-{of};\n"))
            .concat();
        let http = format!("{}\n    simplestreams_state_path @DIR@/state;", temporary.trim());
        conf.replace("@GLOBALS@", &globals)
            .replace("@HTTP_GLOBALS@", &http)
            .replace("@TREE@", "@DIR@/tree")
            .replace("@DIR@", &self.path().display().to_string())
            .replace("@PORT@", &port.to_string())
    }

    fn nginx(&self) -> Command {
        // By its whole path, which a binary upgrade starts once more.
        let mut command = Command::new(program());
        command.arg("-p").arg(self.path()).arg("-e").arg(self.error_log());
        command.arg("-c").arg(self.path().join("nginx.conf")).stdin(Stdio::null());
        command
    }

    /// `nginx -t` with this configuration.
    pub(crate) fn test(&self, conf: &str) -> Output {
        fs::write(self.path().join("nginx.conf"), self.fill_in(conf, free_port())).expect("conf");
        self.nginx().arg("-t").output().expect("nginx runs")
    }

    /// The error that `nginx -t` gives, after its level, without this test's directory.
    #[track_caller]
    pub(crate) fn refusal(&self, conf: &str) -> String {
        let output = self.test(conf);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "was accepted:\n{conf}\n{text}");
        let line = text.lines().find_map(|line| line.strip_prefix("nginx: [emerg] "));
        let line = line.unwrap_or_else(|| panic!("no [emerg]:\n{text}"));
        line.replace(&format!("{}/", self.path().display()), "")
    }

    /// Starts nginx with this configuration and waits until it accepts connections.
    #[track_caller]
    pub(crate) fn start(&self, conf: &str) -> Nginx<'_> {
        self.start_by(&[], conf, |_| {})
    }

    /// The same, by a program that runs what follows its own arguments in its place; `meanwhile` is
    /// told which process that is.
    #[track_caller]
    pub(crate) fn start_by(
        &self,
        program: &[&str],
        conf: &str,
        meanwhile: impl FnOnce(Process),
    ) -> Nginx<'_> {
        let port = free_port();
        self.write_conf(conf, port);
        // nginx's default is one.
        let worker_processes = conf.split_once("worker_processes ").map_or(1, |(_, rest)| {
            let number = rest.split(';').next().expect("a directive");
            number.parse().expect("a number of workers")
        });
        let output = fs::File::create(self.path().join("output")).expect("output");
        let nginx = self.nginx();
        let mut command = match program {
            [] => nginx,
            [program, args @ ..] => {
                let mut command = Command::new(program);
                command.args(args).arg(nginx.get_program()).args(nginx.get_args());
                command
            }
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("output"))
            .stderr(output)
            .spawn()
            .expect("nginx runs");
        meanwhile(Process(child.id().try_into().expect("a process id")));
        let mut nginx = Nginx {
            dir: self,
            child,
            port,
            worker_processes,
            allowed: Vec::new(),
            finished: false,
        };
        until("nginx accepts connections", || {
            let ended = nginx.child.try_wait().expect("own child");
            assert!(ended.is_none(), "nginx ended: {ended:?}");
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        nginx
    }

    /// Starts nginx as a daemon, which the test has to end, and gives its port.
    #[track_caller]
    pub(crate) fn start_daemon(&self, conf: &str) -> u16 {
        let port = free_port();
        self.write_conf(conf, port);
        let output = self.nginx().output().expect("nginx runs");
        assert!(output.status.success(), "{output:?}");
        port
    }

    fn write_conf(&self, conf: &str, port: u16) {
        fs::write(self.path().join("nginx.conf"), self.fill_in(conf, port)).expect("conf");
    }
}

impl Nginx<'_> {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn master(&self) -> Process {
        Process(self.child.id().try_into().expect("a process id"))
    }

    fn titled(&self, title: &str) -> Vec<Process> {
        let mut found = self.master().children();
        found.retain(|child| child.title().is_some_and(|t| t.contains(title)));
        found
    }

    /// The workers that are not leaving, as many as the configuration asks for.
    #[track_caller]
    pub(crate) fn workers(&self) -> Vec<Process> {
        until("all workers", || {
            let mut workers = self.titled("worker process");
            workers.retain(|w| w.title().is_some_and(|t| !t.contains("shutting down")));
            (workers.len() == self.worker_processes).then_some(workers)
        })
    }

    /// The cache manager process, where the builder runs.
    #[track_caller]
    pub(crate) fn helper(&self) -> Process {
        until("one cache manager process", || match self.helpers()[..] {
            [helper] => Some(helper),
            _ => None,
        })
    }

    /// All cache manager processes: none without an index, two for a moment during a reload.
    pub(crate) fn helpers(&self) -> Vec<Process> {
        self.titled("cache manager process")
    }

    pub(crate) fn error_log(&self) -> String {
        let bytes = fs::read(self.dir.error_log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Lines of the error log that this text makes alarming are expected in this test.
    pub(crate) fn allow(&mut self, text: &'static str) {
        self.allowed.push(text);
    }

    /// Asks for `path` until every worker has given an answer that is `right` and, since then, no
    /// other.
    #[track_caller]
    pub(crate) fn at_every_worker(&self, path: &str, right: impl Fn(&Answer) -> bool) {
        let ask = Ask::get(path);
        let deadline = Instant::now() + DEADLINE;
        let mut last: BTreeMap<i32, (bool, Answer)> = BTreeMap::new();
        loop {
            let workers: BTreeSet<i32> = self.workers().iter().map(|w| w.0).collect();
            let is_right = |w: &i32| last.get(w).is_some_and(|(right, _)| *right);
            if !workers.is_empty() && workers.iter().all(is_right) {
                return;
            }
            if Instant::now() > deadline {
                let answers: Vec<_> =
                    last.iter().map(|(w, (_, a))| (w, a.status, a.text())).collect();
                panic!("not at every worker of {workers:?}: {answers:#?}");
            }
            let answer = ask.of(self);
            let is_right = right(&answer);
            last.insert(answer.worker(), (is_right, answer));
            if !is_right {
                // Ten tests' threads that ask without a pause leave nothing for those who hash.
                std::thread::park_timeout(PAUSE);
            }
        }
    }

    /// Every worker lists exactly these, each as `product version`.
    #[track_caller]
    pub(crate) fn every_worker_lists(&self, versions: &[&str]) {
        self.at_every_worker("/streams/v1/images.json", |answer| {
            answer.status == 200 && answer.versions() == versions
        });
    }

    /// Reads the configuration again and waits until every old worker is gone.
    #[track_caller]
    pub(crate) fn reload(&self) {
        let old = self.titled("worker process");
        signal(self.master(), Signal::HUP);
        until("the old workers are gone", || {
            let now = self.titled("worker process");
            (!now.is_empty() && now.iter().all(|worker| !old.contains(worker))).then_some(())
        });
    }

    /// The same, with another configuration; the port stays.
    #[track_caller]
    pub(crate) fn reload_with(&self, conf: &str) {
        self.dir.write_conf(conf, self.port);
        self.reload();
    }

    /// Puts another configuration in place, for a reload that the test triggers by itself.
    pub(crate) fn write_conf(&self, conf: &str) {
        self.dir.write_conf(conf, self.port);
    }

    /// Its test killed it: there is no good end to look for.
    pub(crate) fn was_killed(&mut self) {
        self.finished = true;
        until("nginx is gone", || self.child.try_wait().expect("own child"));
    }

    /// Lets nginx quit, and looks through its error log.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.end_and_check(Signal::QUIT);
    }

    /// The same, without waiting for connections.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        self.end_and_check(Signal::TERM);
    }

    #[track_caller]
    fn end_and_check(&mut self, how: Signal) {
        self.finished = true;
        signal(self.master(), how);
        let status: ExitStatus = until("nginx quits", || self.child.try_wait().expect("own child"));
        let log = self.error_log();
        let alarms: Vec<&str> = log
            .lines()
            .filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm)))
            .filter(|line| !self.allowed.iter().any(|allowed| line.contains(allowed)))
            .collect();
        if !alarms.is_empty() || !status.success() {
            self.dump();
            panic!("{status}, and the error log has {alarms:#?}");
        }
    }

    fn dump(&self) {
        let read = |name: &str| {
            let bytes = fs::read(self.dir.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        eprintln!("--- configuration\n{}", read("nginx.conf"));
        eprintln!("--- output\n{}", read("output"));
        eprintln!("--- error log\n{}", self.error_log());
        eprintln!("--- files\n{}---", self.dir.listing());
    }
}

impl Drop for Nginx<'_> {
    fn drop(&mut self) {
        if !self.finished && !std::thread::panicking() {
            self.end_and_check(Signal::QUIT);
            return;
        }
        if std::thread::panicking() {
            self.dump();
        }
        // Whatever did not go by itself must not outlive the test. The master first, or it would
        // start the others again.
        let family = self.master().children();
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.master(), Signal::KILL);
            family.into_iter().for_each(|process| signal(process, Signal::KILL));
        }
        // It was killed, or had ended before.
        drop(self.child.wait());
    }
}
