//! A temporary directory: the tree of images, nginx's prefix, the state.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use simplestreams::snapshot::{self, Counts, Lineage, Rendered};
use simplestreams::{Settings, Snapshot};
use tempfile::TempDir;

use super::images;

/// Where one test has everything.
pub(crate) struct Dir {
    temp: TempDir,
    locks: Mutex<Vec<fs::File>>,
}

impl Dir {
    /// With an empty stream `images`.
    pub(crate) fn new() -> Self {
        let temp = tempfile::Builder::new().prefix("simplestreams-").tempdir().expect("temp dir");
        // Workers are another user.
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let dir = Self { temp, locks: Mutex::default() };
        fs::create_dir_all(dir.tree().join("images")).expect("tree");
        dir
    }

    pub(crate) fn path(&self) -> &Path {
        self.temp.path()
    }

    /// The root of the tree.
    pub(crate) fn tree(&self) -> PathBuf {
        self.path().join("tree")
    }

    /// Where the configurations of the tests keep state.
    pub(crate) fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// A file below the tree, with whatever directories it needs.
    pub(crate) fn add_file(&self, path: &str, bytes: &[u8]) {
        let path = self.tree().join(path);
        fs::create_dir_all(path.parent().expect("below the tree")).expect("directories");
        fs::write(path, bytes).expect("file");
    }

    /// A complete version in the directory `version` of the tree. What its root holds, and hence its
    /// fingerprint, hangs on `serial`.
    pub(crate) fn add_image(&self, version: &str, serial: &str) {
        self.add_file(&format!("{version}/lxd.tar.xz"), images::metadata());
        self.add_file(&format!("{version}/rootfs.squashfs"), &images::squashfs(serial));
    }

    /// Publishes a generation as the builder does, with the documents `(name, content)`.
    pub(crate) fn publish(&self, settings: &Settings, documents: &[(&str, &str)]) {
        fs::create_dir_all(self.state()).expect("state directory");
        let path = snapshot::path(&self.state(), &settings.id());
        let previous = match path.exists() {
            true => Lineage::from(&Snapshot::open(&path).expect("own snapshot")),
            false => Lineage::default(),
        };
        let documents: Vec<Rendered> = documents
            .iter()
            .map(|(name, content)| Rendered {
                name: (*name).to_owned(),
                identity: content.as_bytes().to_vec(),
                gzip: gzip(content.as_bytes()),
            })
            .collect();
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("clock").as_millis();
        let now = u64::try_from(now).expect("clock");
        let bytes = snapshot::encode(&documents, &[], Counts::default(), &previous, now);
        snapshot::write_file(&path, &bytes).expect("write snapshot");
        // Tests run as root, workers do not.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("chmod");
    }

    /// Keeps every builder from publishing generations of this index, as another nginx would that
    /// builds it, until this directory goes.
    pub(crate) fn hold_back(&self, settings: &Settings) {
        fs::create_dir_all(self.state()).expect("state directory");
        let path = self.state().join(format!("{}.lock", settings.id()));
        let lock = fs::File::create(&path).expect("lock");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
        lock.try_lock().expect("nobody builds yet");
        self.locks.lock().expect("one thread").push(lock);
    }

    /// Everything below, one line each, for failures.
    pub(crate) fn listing(&self) -> String {
        fn walk(dir: &Path, out: &mut String) {
            let mut entries: Vec<PathBuf> =
                fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
            entries.sort();
            for path in entries {
                let length = path.symlink_metadata().map_or(0, |meta| meta.len());
                out.push_str(&format!("{length:>10} {}\n", path.display()));
                if path.is_dir() && !path.is_symlink() {
                    walk(&path, out);
                }
            }
        }
        let mut out = String::new();
        walk(self.path(), &mut out);
        out
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}
