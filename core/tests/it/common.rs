//! A tree in a temporary directory, a live index on it, and waits with a deadline.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use simplestreams::snapshot::Counts;
use simplestreams::{Digest, Index, IndexOptions, Progress, Settings, Snapshot};

/// The version of tests that need just one.
pub const VERSION: &str = "images/a/1/amd64/default/20240101";

/// A tree.
pub struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    /// Short, so that tests are; long enough for a loaded machine to see events in order.
    pub const SETTLE: Duration = Duration::from_millis(300);
    /// After this long, what should have happened did not.
    pub const DEADLINE: Duration = Duration::from_secs(60);

    /// An empty tree with a directory `images`.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("images")).unwrap();
        Self { dir }
    }

    /// One in memory, where there is a file system for that: its directories are remembered, wherever the
    /// tests run.
    pub fn in_memory() -> Self {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
            return Self::new();
        };
        fs::create_dir(dir.path().join("images")).unwrap();
        Self { dir }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Makes the directory of a version.
    pub fn version(&self, path: &str) -> VersionDir {
        let path = self.path(path);
        fs::create_dir_all(&path).unwrap();
        VersionDir { path }
    }

    /// A version whose root has this content; the metadata is everywhere the same.
    pub fn image(&self, path: &str, root: &str) {
        let version = self.version(path);
        version.write("lxd.tar.xz", b"metadata");
        version.write("rootfs.squashfs", root.as_bytes());
    }

    pub fn settings(&self) -> Settings {
        // No rescan: what shows was seen by an event.
        let rescan = Duration::ZERO;
        Settings { settle: Self::SETTLE, rescan, ..Settings::new(self.dir.path()) }
    }

    pub fn open(&self) -> Live {
        self.open_with(self.settings())
    }

    pub fn open_with_threads(&self, settings: Settings, threads: NonZeroUsize) -> Live {
        Live { index: Index::with_threads(settings, threads).unwrap() }
    }

    /// For one generation of what is there.
    pub fn open_once(&self) -> Live {
        let options = IndexOptions { once: true, ..IndexOptions::default() };
        Live { index: Index::open_with(self.settings(), options).unwrap() }
    }

    pub fn open_with(&self, settings: Settings) -> Live {
        Live { index: Index::open(settings).unwrap() }
    }
}

pub struct VersionDir {
    path: PathBuf,
}

impl VersionDir {
    pub fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path.join(name), content).unwrap();
    }
}

/// A live index.
pub struct Live {
    index: Index,
}

impl From<Index> for Live {
    fn from(index: Index) -> Self {
        Self { index }
    }
}

impl Live {
    /// Waits for something that no generation shows.
    pub fn until(&self, what: &str, done: impl Fn(&Index) -> bool) {
        let deadline = Instant::now() + Site::DEADLINE;
        while !done(&self.index) {
            assert!(Instant::now() < deadline, "{what} did not happen");
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits until there is nothing to do.
    pub fn wait_idle(&self) {
        assert!(self.index.wait_idle(Site::DEADLINE), "{:?}", self.index.progress());
    }

    /// What is known now, published by request.
    pub fn published_now(&self) -> Images {
        assert!(self.index.publish_now(Site::DEADLINE), "{:?}", self.index.progress());
        Images { snapshot: self.index.snapshot().unwrap() }
    }

    /// Waits for a generation that is as wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Images) -> bool) -> Images {
        let deadline = Instant::now() + Site::DEADLINE;
        let mut seen = 0;
        let mut last = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(snapshot) = self.index.wait_newer(seen, left) else {
                panic!("{what} did not show; the last generation was {last:#?}");
            };
            seen = snapshot.generation();
            let images = Images { snapshot };
            if wanted(&images) {
                return images;
            }
            last = Some(images);
        }
    }

    /// All generations that are published while `story` goes on, the current one included.
    pub fn record(&self, story: impl FnOnce()) -> Vec<Images> {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        thread::scope(|scope| {
            let recorder = scope.spawn(move || {
                let (mut all, mut seen) = (Vec::new(), 0);
                loop {
                    let last =
                        !matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty));
                    let wait = if last { Duration::ZERO } else { Duration::from_millis(20) };
                    match self.index.wait_newer(seen, wait) {
                        Some(snapshot) => {
                            seen = snapshot.generation();
                            all.push(Images { snapshot });
                        }
                        None if last => return all,
                        None => {}
                    }
                }
            });
            story();
            drop(stop);
            recorder.join().unwrap()
        })
    }

    /// Lets time pass, for a story in which nothing happens meanwhile.
    pub fn pass(&self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            thread::park_timeout(left);
        }
    }

    /// Waits until the directory at `path` is watched: the kernel lists the inodes of watches.
    pub fn until_watched(&self, path: &str) {
        let root = self.index_root();
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(root.join(path)).unwrap());
        let wanted = format!("ino:{inode:x} ");
        let deadline = Instant::now() + Site::DEADLINE;
        loop {
            let watched = fs::read_dir("/proc/self/fdinfo").unwrap().flatten().any(|entry| {
                fs::read_to_string(entry.path()).is_ok_and(|info| info.contains(&wanted))
            });
            if watched {
                return;
            }
            assert!(Instant::now() < deadline, "{path} is not watched");
            thread::yield_now();
        }
    }

    fn index_root(&self) -> &Path {
        self.index.root()
    }

    /// Waits until everything on disk is listed or a problem, and stays so while what the kernel
    /// has queued comes in.
    pub fn until_idle(&self) {
        let deadline = Instant::now() + Site::DEADLINE;
        let mut since = Instant::now();
        let mut before = (self.generation(), self.progress());
        while since.elapsed() < Duration::from_millis(200) {
            assert!(Instant::now() < deadline, "never at rest: {:?}", self.progress());
            thread::yield_now();
            let now = (self.generation(), self.progress());
            if now != before || !now.1.is_idle() {
                (since, before) = (Instant::now(), now);
            }
        }
    }

    pub fn current(&self) -> Images {
        Images { snapshot: self.index.snapshot().unwrap() }
    }

    pub fn generation(&self) -> u64 {
        self.index.snapshot().map_or(0, |snapshot| snapshot.generation())
    }

    pub fn waiting(&self) -> Vec<String> {
        self.index.waiting()
    }

    pub fn progress(&self) -> Progress {
        self.index.progress()
    }
}

/// One generation.
#[derive(Debug)]
pub struct Images {
    snapshot: Arc<Snapshot>,
}

impl Images {
    pub fn document(&self, name: &str) -> Value {
        let document = self.snapshot.document(name).unwrap();
        serde_json::from_slice(document.identity.bytes).unwrap()
    }

    pub fn text(&self) -> String {
        let document = self.snapshot.document("images.json");
        document.map_or_else(String::new, |images| {
            String::from_utf8(images.identity.bytes.to_vec()).unwrap()
        })
    }

    pub fn names(&self) -> Vec<String> {
        self.snapshot.names().map(str::to_owned).collect()
    }

    pub fn counts(&self) -> Counts {
        self.snapshot.counts()
    }

    pub fn index(&self) -> Value {
        self.document("index.json")
    }

    pub fn products(&self) -> serde_json::Map<String, Value> {
        if self.text().is_empty() {
            return serde_json::Map::new();
        }
        self.document("images.json")["products"].as_object().unwrap().clone()
    }

    pub fn versions(&self) -> usize {
        let products = self.products();
        products.values().map(|product| product["versions"].as_object().unwrap().len()).sum()
    }

    /// The items of the version at a path of five components below the stream.
    pub fn items(&self, path: &str) -> Value {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let (version, product) = parts.split_last().unwrap();
        self.products()[&product.join(":")]["versions"][*version]["items"].clone()
    }

    pub fn root_hash(&self, path: &str) -> String {
        self.items(path)["rootfs.squashfs"]["sha256"].as_str().unwrap_or("none").to_owned()
    }

    pub fn problems(&self) -> Vec<String> {
        self.snapshot.problems().iter().map(ToString::to_string).collect()
    }

    pub fn etags(&self) -> BTreeMap<String, (String, String)> {
        let etag = |name: &str| {
            let document = self.snapshot.document(name).unwrap();
            (document.identity.etag.to_owned(), document.gzip.etag.to_owned())
        };
        self.snapshot.names().map(|name| (name.to_owned(), etag(name))).collect()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}
