//! Notices that something in the tree changed. Events only say "look again", with one exception:
//! who writes a file and closes it tells us when it is complete.
//!
//! inotify directly and not through a crate that hides it: which directories have a watch, whether
//! the queue overflowed and whether a limit was reached decide what the rescan has to make up for.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread::{self, JoinHandle};

use foldhash::{HashMap, HashMapExt as _};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::recall::Mark;
use crate::tree::{Tree, is_below};

/// Most events that wait to be taken in. What comes while that many wait is lost, as it would be in the
/// kernel's queue, rather than filling the memory of a process that has no time for it just now.
const MAX_WAITING: usize = 1 << 16;

/// Number of watches that are not worth while keeping in order before there are more: that of the root.
const HARDLY_ANY: usize = 1;

/// What happened to a name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A file was created or written to; its writer has it open.
    Written,
    /// A writer closed the file.
    Closed,
    /// The name was moved to where it is now.
    MovedIn,
    /// The name went away.
    Left,
    /// Anything else: its attributes changed, a directory was made.
    Changed,
}

/// An event in terms of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Something happened to `name` in `directory`.
    Entry {
        /// The directory's path in the tree.
        directory: String,
        /// The name; may be anything but empty.
        name: Vec<u8>,
        /// What happened.
        what: What,
    },
    /// The directory itself went away, or its file system was unmounted.
    Gone {
        /// The directory's path in the tree.
        directory: String,
    },
    /// Events were lost: look at everything.
    Overflow,
}

/// An event as the kernel words it.
#[derive(Debug)]
pub struct RawEvent {
    watch: i32,
    flags: ReadFlags,
    name: Vec<u8>,
}

/// How many events were read and not taken in yet.
#[derive(Debug, Default)]
struct Waiting {
    events: AtomicUsize,
    /// Some were lost, and nobody was told of it yet.
    lost: AtomicBool,
}

impl Waiting {
    /// What is handed on of a batch: itself, or once that events were lost, or nothing.
    fn admit(&self, mut batch: Vec<RawEvent>) -> Vec<RawEvent> {
        // Nothing comes between what was lost and the look at everything that makes up for it.
        let lost = self.lost.load(Relaxed);
        if lost || self.events.load(Relaxed) + batch.len() > MAX_WAITING {
            batch.clear();
            if !lost {
                self.lost.store(true, Relaxed);
                batch.push(RawEvent { watch: -1, flags: ReadFlags::QUEUE_OVERFLOW, name: vec![] });
            }
        }
        self.events.fetch_add(batch.len(), Relaxed);
        batch
    }

    fn taken(&self, batch: &[RawEvent]) {
        // Those of a watcher before may be among them.
        let less = |events: usize| Some(events.saturating_sub(batch.len()));
        let _ = self.events.fetch_update(Relaxed, Relaxed, less);
        // From here on, what is lost is lost anew.
        if batch.iter().any(|event| event.flags.contains(ReadFlags::QUEUE_OVERFLOW)) {
            self.lost.store(false, Relaxed);
        }
    }
}

/// The watches of one tree. Dropping it stops and joins the thread that reads events.
#[derive(Debug)]
pub struct Watcher {
    fd: Arc<OwnedFd>,
    /// The directories of watches. There may be hundreds of thousands.
    paths: HashMap<i32, Arc<str>>,
    /// Further ones: a directory that several paths lead to has one watch.
    further: HashMap<i32, Vec<Arc<str>>>,
    watches: BTreeMap<Arc<str>, Watch>,
    /// See [`Watcher::unknown_marks`].
    unknown_marks: usize,
    /// Those that were noted while there were hardly any: a hundred thousand are sorted in faster at once.
    noted: Vec<(Arc<str>, Watch)>,
    /// Watches that paths had before those that were noted.
    replaced: Vec<(i32, Arc<str>)>,
    refused: Option<(io::Error, u64)>,
    waiting: Arc<Waiting>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// A directory's watch, and by what it is to be remembered.
#[derive(Clone, Copy, Debug)]
struct Watch {
    number: i32,
    mark: Option<Mark>,
}

// There may be hundreds of thousands.
const _: () = assert!(size_of::<Watch>() == 16);

/// Adds watches of a [`Watcher`], on any thread.
#[derive(Clone, Debug)]
pub struct Adder {
    fd: Arc<OwnedFd>,
}

/// A watch, or that there is none.
#[derive(Debug)]
pub struct Added {
    path: Arc<str>,
    watch: Result<i32, Errno>,
    mark: Option<Mark>,
}

impl Added {
    /// With what the directory is to be remembered by, that was looked at after the watch was added.
    pub fn with(self, mark: Option<Mark>) -> Self {
        Self { mark, ..self }
    }
}

impl Adder {
    /// Watches the directory at `path`.
    pub fn add(&self, tree: &Tree, path: impl Into<Arc<str>>) -> Added {
        let path = path.into();
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::EXCL_UNLINK
            | WatchFlags::ONLYDIR;
        let watch = inotify::add_watch(&self.fd, tree.absolute(&path), flags);
        Added { path, watch, mark: None }
    }
}

impl Watcher {
    /// Starts without a watch; `sink` gets the events, in batches, on a thread that inherits the
    /// caller's signal mask.
    ///
    /// # Errors
    ///
    /// When the inotify instance (limited per user, `fs.inotify.max_user_instances`) or the thread
    /// cannot be had.
    pub fn spawn(sink: impl Fn(Vec<RawEvent>) + Send + 'static) -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = Arc::new(inotify::init(flags)?);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let waiting = Arc::new(Waiting::default());
        let (events, stopped) = (Arc::clone(&fd), Arc::clone(&stop));
        let queue = Arc::clone(&waiting);
        let sink = move |batch| {
            let batch = queue.admit(batch);
            if !batch.is_empty() {
                sink(batch);
            }
        };
        let thread = thread::Builder::new()
            .name("ss-watch".into())
            .spawn(move || read(&events, &stopped, &sink))?;
        Ok(Self {
            fd,
            paths: HashMap::new(),
            further: HashMap::new(),
            watches: BTreeMap::new(),
            unknown_marks: 0,
            noted: Vec::new(),
            replaced: Vec::new(),
            refused: None,
            waiting,
            stop,
            thread: Some(thread),
        })
    }

    /// For watching directories on other threads. This one is to be [told](Self::note) of them.
    pub fn adder(&self) -> Adder {
        Adder { fd: Arc::clone(&self.fd) }
    }

    /// Watches the directory at `path`; one that is watched already stays so.
    pub fn add(&mut self, tree: &Tree, path: &str) {
        self.note(self.adder().add(tree, path));
        self.all_noted();
    }

    /// Takes note of a watch. What happened since it was added is not lost: events are
    /// [translated](Self::translate) where this is called. To be followed by
    /// [`all_noted`](Self::all_noted).
    pub fn note(&mut self, Added { path, watch, mark }: Added) {
        match watch {
            Ok(number) => {
                let watch = Watch { number, mark };
                if self.watches.len() <= HARDLY_ANY {
                    self.noted.push((path, watch));
                } else {
                    let before = self.watches.insert(Arc::clone(&path), watch);
                    self.entered(&path, watch, before);
                }
            }
            // It went away, or is no directory any more: the event of its parent says so. Or it may
            // not be read, which is a problem of its own.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
            Err(err) => {
                let refused = self.refused.as_ref().map_or(0, |(_, refused)| *refused);
                self.refused = Some((err.into(), refused + 1));
            }
        }
    }

    /// All watches were noted that were added in one look.
    pub fn all_noted(&mut self) {
        self.enter_noted();
        // Only now: a directory that was renamed has the same watch under its new path.
        for (watch, path) in std::mem::take(&mut self.replaced) {
            self.forget(watch, &path);
        }
    }

    fn enter_noted(&mut self) {
        let mut noted = std::mem::take(&mut self.noted);
        // Of several of one path, the last comes last.
        noted.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut before: Option<(&Arc<str>, Watch)> = None;
        for (path, watch) in &noted {
            let same = before.filter(|(of, _)| *of == path).map(|(_, watch)| watch);
            self.entered(path, *watch, same.or_else(|| self.watches.get(path).copied()));
            before = Some((path, *watch));
        }
        self.watches.append(&mut noted.into_iter().collect());
    }

    /// `path` is going to have this watch, and had that `before`.
    fn entered(&mut self, path: &Arc<str>, Watch { number, mark }: Watch, before: Option<Watch>) {
        let is_new = mark.is_some() && before.and_then(|of| of.mark) != mark;
        self.unknown_marks += usize::from(is_new);
        let before = before.map(|before| before.number);
        if before == Some(number) {
            return;
        }
        if let Some(first) = self.paths.insert(number, Arc::clone(path)) {
            self.further.entry(number).or_default().push(first);
        }
        self.replaced.extend(before.map(|before| (before, Arc::clone(path))));
    }

    /// Whether its thread has given up; there are no more events.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Drops the watches of `path` and of everything below it.
    pub fn remove_below(&mut self, path: &str) {
        self.enter_noted();
        let mut gone: Vec<(Arc<str>, i32)> = Vec::new();
        for (below, watch) in
            self.watches.range::<str, _>((Bound::Included(path), Bound::Unbounded))
        {
            if is_below(below, path) {
                gone.push((Arc::clone(below), watch.number));
            } else if !below.starts_with(path) {
                break;
            }
        }
        for (below, watch) in gone {
            self.watches.remove(&below);
            self.forget(watch, &below);
        }
    }

    /// Number of directories whose marks are news, and not known by [`marks_are_known`](Self::marks_are_known).
    pub fn unknown_marks(&self) -> usize {
        self.unknown_marks
    }

    /// So many of them are not any more.
    pub fn marks_are_known(&mut self, number: usize) {
        self.unknown_marks = self.unknown_marks.saturating_sub(number);
    }

    /// Directories that are to be remembered, and by what.
    pub fn marks(&self) -> impl Iterator<Item = (&str, Mark)> {
        self.watches.iter().filter_map(|(path, watch)| Some((&**path, watch.mark?)))
    }

    /// The names of those in `directory` that have a watch, sorted.
    pub fn below(&self, directory: &str) -> impl Iterator<Item = &str> {
        let above = format!("{directory}/");
        let from = (Bound::Included(&*above), Bound::Unbounded);
        let names = self.watches.range::<str, _>(from);
        let length = above.len();
        let names = names.map(|(path, _)| &**path);
        let names = names.take_while(move |path| path.starts_with(&above));
        names.map(move |path| &path[length..]).filter(|name| !name.contains('/'))
    }

    /// Number of directories that have a watch.
    pub fn directories(&self) -> usize {
        self.watches.len()
    }

    /// Why and how often a directory could not be watched, since the last call; mostly that the
    /// limit `fs.inotify.max_user_watches` was reached.
    pub fn take_refusal(&mut self) -> Option<(io::Error, u64)> {
        self.refused.take()
    }

    /// A batch that the sink got is taken in.
    pub fn taken(&self, batch: &[RawEvent]) {
        self.waiting.taken(batch);
    }

    /// What an event means. An event of a directory with several paths is one for each.
    pub fn translate(&mut self, event: &RawEvent) -> Vec<Touch> {
        if event.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return vec![Touch::Overflow];
        }
        if event.flags.contains(ReadFlags::IGNORED) {
            let further = self.further.remove(&event.watch).unwrap_or_default();
            for path in self.paths.remove(&event.watch).into_iter().chain(further) {
                self.watches.remove(&path);
            }
            return Vec::new();
        }
        let Some(first) = self.paths.get(&event.watch) else {
            return Vec::new(); // Of a watch that was dropped meanwhile.
        };
        let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT;
        let gone = event.flags.intersects(gone);
        let what = if event.flags.contains(ReadFlags::CLOSE_WRITE) {
            What::Closed
        } else if event.flags.contains(ReadFlags::MOVED_TO) {
            What::MovedIn
        } else if event.flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            What::Left
        } else if event.flags.intersects(ReadFlags::CREATE | ReadFlags::MODIFY)
            && !event.flags.contains(ReadFlags::ISDIR)
        {
            What::Written
        } else {
            What::Changed
        };
        let touch = |directory: &Arc<str>| {
            let directory = directory.to_string();
            if gone {
                Some(Touch::Gone { directory })
            } else if event.name.is_empty() {
                None // The directory's own attributes; its parent's watch names it.
            } else {
                Some(Touch::Entry { directory, name: event.name.clone(), what })
            }
        };
        let further = self.further.get(&event.watch).into_iter().flatten();
        std::iter::once(first).chain(further).filter_map(touch).collect()
    }

    fn forget(&mut self, watch: i32, path: &str) {
        let Some(first) = self.paths.get_mut(&watch) else {
            return;
        };
        if let Some(further) = self.further.get_mut(&watch) {
            further.retain(|known| **known != *path);
            if **first == *path
                && let Some(next) = further.pop()
            {
                *first = next;
            }
            if further.is_empty() {
                self.further.remove(&watch);
            }
        } else if **first == *path {
            self.paths.remove(&watch);
            // Fails if the directory is gone, and the watch with it.
            let _ = inotify::remove_watch(&self.fd, watch);
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).is_err() {
            return; // Cannot happen with an eventfd; a join would hang.
        }
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

fn read(events: &OwnedFd, stop: &OwnedFd, sink: &dyn Fn(Vec<RawEvent>)) {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 64 * 1024];
    let mut reader = inotify::Reader::new(events, &mut buffer);
    loop {
        let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(events, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => {
                log::error!("waiting for file system events failed ({err}); rescans go on");
                return;
            }
        }
        if fds[0].revents().contains(PollFlags::IN) {
            return;
        }
        let mut batch: Vec<RawEvent> = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map_or(&b""[..], |name| name.to_bytes());
                    let (watch, flags) = (event.wd(), event.events());
                    // A writer makes one event for each write.
                    let again = batch.last().is_some_and(|last| {
                        last.watch == watch && last.flags == flags && last.name == name
                    });
                    if !again {
                        batch.push(RawEvent { watch, flags, name: name.to_owned() });
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(err) => {
                    log::error!("reading file system events failed ({err}); rescans go on");
                    return;
                }
            }
            if reader.is_buffer_empty() && batch.len() > 4096 {
                break;
            }
        }
        if !batch.is_empty() {
            sink(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Watches are added on several threads before any of them is noted: that of a directory which was
    /// renamed is that of its new path by then.
    #[test]
    fn a_directory_that_was_renamed_within_one_look_stays_watched() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(dir.path());
        let (sender, events) = std::sync::mpsc::channel();
        let mut watcher = Watcher::spawn(move |batch| drop(sender.send(batch))).unwrap();
        std::fs::create_dir(dir.path().join("x")).unwrap();
        watcher.add(&tree, "x");
        std::fs::rename(dir.path().join("x"), dir.path().join("y")).unwrap();
        std::fs::create_dir(dir.path().join("x")).unwrap();
        let adder = watcher.adder();
        for path in ["x", "y"] {
            watcher.note(adder.add(&tree, path));
        }
        watcher.all_noted();
        for directory in ["x", "y"] {
            std::fs::write(dir.path().join(directory).join("f"), "").unwrap();
            let seen = Touch::Entry {
                directory: directory.to_owned(),
                name: b"f".to_vec(),
                what: What::Closed,
            };
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
            loop {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                let batch = events.recv_timeout(left).expect("an event of each");
                if batch.iter().any(|event| watcher.translate(event).contains(&seen)) {
                    break;
                }
            }
        }
    }

    #[test]
    fn events_that_nobody_takes_in_are_lost_and_said_to_be() {
        let waiting = Waiting::default();
        let batch = |length| -> Vec<RawEvent> {
            let event = |_| RawEvent { watch: 1, flags: ReadFlags::MODIFY, name: vec![b'x'] };
            (0..length).map(event).collect()
        };
        let first = waiting.admit(batch(MAX_WAITING));
        assert_eq!(first.len(), MAX_WAITING);
        let lost = waiting.admit(batch(10));
        assert!(matches!(&lost[..], [one] if one.flags.contains(ReadFlags::QUEUE_OVERFLOW)));
        assert!(waiting.admit(batch(10)).is_empty(), "said once");
        waiting.taken(&first);
        assert!(waiting.admit(batch(10)).is_empty(), "not before that is known");
        waiting.taken(&lost);
        assert_eq!(waiting.admit(batch(10)).len(), 10, "there is room again");
        waiting.admit(batch(MAX_WAITING - 10));
        assert_eq!(waiting.admit(batch(1)).len(), 1, "and lost anew");
    }
}
