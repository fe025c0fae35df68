//! Uploads by the tools that people use, each while a client compares what is listed with the disk.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use rustix::process::Signal;
use simplestreams::Digest;

use super::machine::{Mount, skip};
use super::observer::{Finished, blob, observed};
use crate::command::program::{family, succeed};
use crate::harness::{Answer, Dir, Nginx, Process, metadata, signal, until};
use crate::mirrors::sshd::{Sshd, user};

/// No rescan, and a settle time so long that what was listed early was listed for what was seen of
/// its writer.
const CONF: &str = "
@GLOBALS@
worker_processes 2;
events {}
http {
    @HTTP_GLOBALS@
    access_log off;
    add_header X-Worker $pid always;
    server {
        listen 127.0.0.1:@PORT@ reuseport;
        root @TREE@;
        location / {
            simplestreams on;
            simplestreams_settle 10s;
            simplestreams_rescan 0;
        }
    }
}";

/// Bytes of a root: at the speeds below a second or two.
const ROOT: usize = 3 << 20;

/// The version that is there from the beginning.
const STEADY: &str = "images/steady/1/amd64/default/20260101_0000";

fn version(tool: &str) -> String {
    format!("images/{tool}/1/amd64/default/20260101_0000")
}

fn root_of(tool: &str) -> String {
    format!("{}/rootfs.squashfs", version(tool))
}

/// Whether the answer lists the version of `tool` with this root.
fn lists(answer: &Answer, tool: &str, root: &[u8]) -> bool {
    let items = &answer.json()["products"][format!("{tool}:1:amd64:default")]["versions"]["20260101_0000"]
        ["items"];
    let hash = Digest::of(root).to_string();
    items.as_object().into_iter().flatten().any(|(_, item)| item["sha256"] == hash)
}

#[track_caller]
fn until_listed(nginx: &Nginx<'_>, tool: &str, root: &[u8]) {
    nginx.at_every_worker("/streams/v1/images.json", |answer| {
        answer.status == 200 && lists(answer, tool, root)
    });
}

/// A directory with the two files of a version, outside of the tree.
fn source(dir: &Dir, name: &str, root: &[u8]) -> PathBuf {
    let source = dir.path().join("source").join(name);
    fs::create_dir_all(&source).expect("source");
    fs::write(source.join("lxd.tar.xz"), metadata()).expect("metadata");
    fs::write(source.join("rootfs.squashfs"), root).expect("root");
    source
}

/// The tree with one version, and nginx on it.
fn start<'d>(dir: &'d Dir, conf: &str, may: &mut Finished) -> Nginx<'d> {
    let steady = blob(0, 1 << 16);
    dir.add_file(&format!("{STEADY}/lxd.tar.xz"), metadata());
    dir.add_file(&format!("{STEADY}/rootfs.squashfs"), &steady);
    may.add(&format!("{STEADY}/rootfs.squashfs"), &steady);
    let before = conf.replace("simplestreams_settle 10s", "simplestreams_settle 0");
    // What was there before is listed at once; then the settle time is long.
    let nginx = dir.start(&before);
    until_listed(&nginx, "steady", &steady);
    nginx.reload_with(conf);
    until_listed(&nginx, "steady", &steady);
    nginx
}

/// Makes the directories of these versions, and waits until each is watched: a file that was begun
/// before is told by the settle time.
fn make_watched(dir: &Dir, nginx: &Nginx<'_>, versions: &[String]) {
    for version in versions {
        fs::create_dir_all(dir.tree().join(version)).expect("version");
    }
    until("they are watched", || {
        let watched = nginx.helper().watched();
        let is_watched = |version: &String| {
            let meta = fs::metadata(dir.tree().join(version)).expect("version");
            watched.contains(&std::os::unix::fs::MetadataExt::ino(&meta))
        };
        versions.iter().all(is_watched).then_some(())
    });
}

/// Copies the contents of a directory into another by one tool.
type Tool<'a> = (&'static str, Box<dyn Fn(&Path, &Path) + Sync + 'a>);

fn rsync(args: &'static [&str]) -> impl Fn(&Path, &Path) + Sync {
    move |from, to| {
        let mut rsync = Command::new("rsync");
        // Times as they are now: rsync leaves a file alone that has its size and time.
        rsync.args(["--recursive", "--ignore-times", "--bwlimit=2m"]).args(args);
        succeed(rsync.arg(format!("{}/", from.display())).arg(to));
    }
}

/// Each writes a new version, and then another root over it, in place or beside.
#[test]
fn every_tool_is_waited_for() {
    let (dir, mut may) = (Dir::new(), Finished::default());
    let sshd = Sshd::start(&dir, "host");
    let (key, known) = (dir.path().join("key"), dir.path().join("known_hosts"));
    let aside = dir.path().join("aside");
    fs::create_dir(&aside).expect("aside");
    let other_disk = Mount::tmpfs("mode=0755", &aside);
    if let Err(reason) = &other_disk {
        skip("mv from another file system", reason);
    }
    let copy = |from: &Path, to: &Path| {
        succeed(Command::new("cp").arg("-rT").arg(from).arg(to));
    };
    // By sftp, and by the protocol of old.
    let scp = |args: &[&str], from: &Path, to: &Path| {
        let mut scp = Command::new("scp");
        scp.args(args).args(["-q", "-l", "16384", "-P", &sshd.port.to_string(), "-i"]).arg(&key);
        scp.arg("-o").arg(format!("UserKnownHostsFile={}", known.display()));
        scp.args([from.join("lxd.tar.xz"), from.join("rootfs.squashfs")]);
        succeed(scp.arg(format!("{}@127.0.0.1:{}", user(), to.display())));
    };
    let mut tools: Vec<Tool<'_>> = vec![
        ("cp", Box::new(copy)),
        (
            "dd",
            Box::new(|from, to| {
                for name in ["lxd.tar.xz", "rootfs.squashfs"] {
                    let arg = |key: &str, of: &Path| format!("{key}={}", of.join(name).display());
                    // In small pieces, without cutting what is there first.
                    let args = ["bs=4k", "conv=notrunc", "oflag=dsync", "status=none"];
                    let mut dd = Command::new("dd");
                    succeed(dd.args(args).arg(arg("if", from)).arg(arg("of", to)));
                }
            }),
        ),
        ("scp", Box::new(|from, to| scp(&[], from, to))),
        ("scp-legacy", Box::new(|from, to| scp(&["-O"], from, to))),
        ("rsync", Box::new(rsync(&[]))),
        ("rsync-inplace", Box::new(rsync(&["--inplace"]))),
        ("rsync-partial", Box::new(rsync(&["--partial"]))),
        ("rsync-delay", Box::new(rsync(&["--delay-updates"]))),
        (
            "mv",
            Box::new(|from, to| {
                for name in ["lxd.tar.xz", "rootfs.squashfs"] {
                    succeed(Command::new("mv").arg(from.join(name)).arg(to));
                }
            }),
        ),
    ];
    if other_disk.is_ok() {
        tools.push((
            "mv-across",
            Box::new(|from, to| {
                let beside = aside.join(to.strip_prefix(dir.tree()).expect("in the tree"));
                fs::create_dir_all(&beside).expect("beside");
                copy(from, &beside);
                for name in ["lxd.tar.xz", "rootfs.squashfs"] {
                    succeed(Command::new("mv").arg(beside.join(name)).arg(to));
                }
            }),
        ));
    }
    let mut contents = Vec::new();
    for (number, (tool, _)) in (1_u64..).zip(&tools) {
        let both = [blob(number, ROOT), blob(number + 100, ROOT + 1)];
        both.iter().for_each(|content| may.add(&root_of(tool), content));
        contents.push(both);
    }

    let nginx = start(&dir, CONF, &mut may);
    let versions: Vec<String> = tools.iter().map(|(tool, _)| version(tool)).collect();
    make_watched(&dir, &nginx, &versions);
    observed(&nginx, &dir, &may, || {
        std::thread::scope(|scope| {
            for ((tool, upload), contents) in tools.iter().zip(&contents) {
                let (nginx, dir) = (&nginx, &dir);
                scope.spawn(move || {
                    for (round, content) in contents.iter().enumerate() {
                        let from = source(dir, &format!("{tool}{round}"), content);
                        upload(&from, &dir.tree().join(version(tool)));
                        until_listed(nginx, tool, content);
                    }
                    fs::remove_dir_all(dir.tree().join(version(tool))).expect("rm -r");
                });
            }
        });
        nginx.every_worker_lists(&["steady:1:amd64:default 20260101_0000"]);
    });
    nginx.finish();
    drop(tools);
}

/// A squashfs of real data, a few seconds of upload long. It tells its length, which is all that
/// tells half of it from a whole one when its writer is gone.
fn large_squashfs(dir: &Dir) -> Arc<[u8]> {
    let work = dir.path().join("squashfs");
    fs::create_dir_all(work.join("root")).expect("root");
    fs::write(work.join("root/data"), blob(7, ROOT)).expect("data");
    let mut mksquashfs = Command::new("mksquashfs");
    mksquashfs.current_dir(&work).args(["root", "image", "-quiet", "-no-progress", "-all-root"]);
    succeed(&mut mksquashfs);
    fs::read(work.join("image")).expect("squashfs").into()
}

/// A writer, which does not outlive its test.
struct Writer(Child);

impl Writer {
    fn begin(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).spawn().expect("it runs"))
    }

    fn process(&self) -> Process {
        Process(self.0.id().try_into().expect("a process id"))
    }

    fn wait(&mut self) -> ExitStatus {
        self.0.wait().expect("own child")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            for process in family(self.process()) {
                signal(process, Signal::KILL);
            }
            drop(self.0.wait());
        }
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// Whoever writes is killed half way, which closes the file or even gives it its final name. Later
/// somebody begins again.
#[test]
fn half_an_upload_is_not_listed() {
    let (dir, mut may) = (Dir::new(), Finished::default());
    let whole = large_squashfs(&dir);
    let tools = ["cat", "rsync-inplace", "rsync-partial"];
    // Equal roots would be one image.
    let of = |tool: &str| -> Arc<[u8]> { [&whole[..], tool.as_bytes()].concat().into() };
    tools.iter().for_each(|tool| may.add(&root_of(tool), &of(tool)));
    let nginx = start(&dir, CONF, &mut may);
    make_watched(&dir, &nginx, &tools.map(version));
    observed(&nginx, &dir, &may, || {
        for tool in tools {
            let content = of(tool);
            let from = source(&dir, tool, &content);
            let to = dir.tree().join(root_of(tool));
            dir.add_file(&format!("{}/lxd.tar.xz", version(tool)), metadata());
            let rsync = |args: &[&str]| {
                let mut rsync = Command::new("rsync");
                // Else what was begun stays as closed to others as it was made.
                rsync.arg("--perms").args(args).arg(from.join("rootfs.squashfs")).arg(&to);
                rsync
            };
            let (mut writer, how) = match tool {
                "cat" => {
                    let cat = Writer::begin(
                        Command::new("sh").args(["-c", "exec cat > \"$0\""]).arg(&to),
                    );
                    let mut input = cat.0.stdin.as_ref().expect("a pipe");
                    std::io::Write::write_all(&mut input, &content[..ROOT / 2]).expect("half");
                    (cat, Signal::KILL)
                }
                "rsync-inplace" => {
                    (Writer::begin(&mut rsync(&["--inplace", "--bwlimit=1m"])), Signal::KILL)
                }
                // Asked to go, it leaves what it has under the final name.
                _ => (Writer::begin(&mut rsync(&["--partial", "--bwlimit=1m"])), Signal::TERM),
            };
            let begun = |of: &Path| length(of) >= 1 << 20;
            until("half of it is there", || {
                let beside = fs::read_dir(to.parent().expect("a version")).expect("version");
                let mut files = beside.flatten().map(|entry| entry.path());
                files.any(|file| begun(&file)).then_some(())
            });
            signal(writer.process(), how);
            let status = writer.wait();
            assert!(!status.success(), "{tool} was too fast: {status:?} {:?}", status.signal());
            // It is another process of rsync that leaves it, which may take a moment longer.
            until("what was sent is there", || begun(&to).then_some(()));
            assert!(length(&to) < content.len() as u64, "{tool}: {}", length(&to));
            // rsync lets nobody else read what is not finished; that is reported as such.
            until("it is reported", || nginx.error_log().contains(&root_of(tool)).then_some(()));
            succeed(&mut rsync(match tool {
                "cat" => &["--inplace", "--ignore-times"],
                "rsync-inplace" => &["--inplace"],
                _ => &["--partial"],
            }));
            until_listed(&nginx, tool, &content);
        }
    });
    nginx.finish();
}

/// Of an upload that was begun before there was a watch, the first write after it is seen, and its
/// close; and what its format tells counts from the beginning.
#[test]
fn an_upload_goes_on_while_the_server_starts() {
    let (dir, mut may) = (Dir::new(), Finished::default());
    let nginx = start(&dir, CONF, &mut may);
    nginx.finish();
    let squashfs: Arc<[u8]> = large_squashfs(&dir);
    let blob = blob(9, 2 * ROOT);
    let uploads = [("steady-writer", &blob), ("squashfs", &squashfs)];
    let mut writers = Vec::new();
    for (tool, content) in uploads {
        may.add(&root_of(tool), content);
        let from = source(&dir, tool, content).join("rootfs.squashfs");
        dir.add_file(&format!("{}/lxd.tar.xz", version(tool)), metadata());
        let to = dir.tree().join(root_of(tool));
        let mut rsync = Command::new("rsync");
        writers.push(Writer::begin(rsync.args(["--inplace", "--bwlimit=1m"]).arg(from).arg(&to)));
        until("it has begun", || (length(&to) > 0).then_some(()));
    }
    // The stalled one is not quiet by what was seen of it, but by the settle time it is.
    let conf = CONF.replace("simplestreams_settle 10s", "simplestreams_settle 2s");
    let nginx = dir.start(&conf);
    let stalled = writers[1].process();
    signal(stalled, Signal::STOP);
    observed(&nginx, &dir, &may, || {
        let status = writers[0].wait();
        assert!(status.success(), "{status}");
        until_listed(&nginx, "steady-writer", &blob);
        until("half an image is reported", || {
            nginx.error_log().contains(&root_of("squashfs")).then_some(())
        });
        signal(stalled, Signal::CONT);
        let status = writers[1].wait();
        assert!(status.success(), "{status}");
        until_listed(&nginx, "squashfs", &squashfs);
    });
    nginx.finish();
}

/// A writer changes a listed file in the middle, stalls for longer than the settle time, and goes on.
#[test]
fn what_is_rewritten_in_place_is_withheld_until_it_is_closed() {
    use std::io::{Seek as _, SeekFrom, Write as _};
    let (dir, mut may) = (Dir::new(), Finished::default());
    let old = blob(1, ROOT);
    let mut new = old.to_vec();
    new[ROOT / 2..ROOT / 2 + 4].copy_from_slice(b"this");
    new[ROOT - 4..].copy_from_slice(b"that");
    let new: Arc<[u8]> = new.into();
    [&old, &new].iter().for_each(|content| may.add(&root_of("tool"), content));
    let conf = CONF.replace("simplestreams_settle 10s", "simplestreams_settle 100ms");
    let nginx = start(&dir, &conf, &mut may);
    dir.add_file(&format!("{}/lxd.tar.xz", version("tool")), metadata());
    dir.add_file(&root_of("tool"), &old);
    until_listed(&nginx, "tool", &old);
    observed(&nginx, &dir, &may, || {
        let steady = ["steady:1:amd64:default 20260101_0000"];
        let root = dir.tree().join(root_of("tool"));
        let mut file = fs::File::options().write(true).open(root).expect("open");
        for (at, bytes) in [(ROOT / 2, b"this"), (ROOT - 4, b"that")] {
            file.seek(SeekFrom::Start(at as u64)).expect("seek");
            file.write_all(bytes).expect("write");
            nginx.every_worker_lists(&steady);
            // Other versions come and go meanwhile, each after the settle time.
            for day in 1..4 {
                let path = format!("images/z/1/amd64/default/2026010{day}_0000");
                dir.add_file(&format!("{path}/lxd.tar.xz"), metadata());
                dir.add_file(&format!("{path}/rootfs.tar.xz"), format!("{day}").as_bytes());
                let other = format!("z:1:amd64:default 2026010{day}_0000");
                nginx.every_worker_lists(&[steady[0], &other]);
                fs::remove_dir_all(dir.tree().join(path)).expect("rm -r");
                nginx.every_worker_lists(&steady);
            }
        }
        drop(file);
        until_listed(&nginx, "tool", &new);
    });
    nginx.finish();
}
