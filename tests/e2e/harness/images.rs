//! Small images that real tools made.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

/// A metadata tarball, always the same.
pub(crate) fn metadata() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let dir = tempfile::tempdir().expect("temp dir");
        let yaml = "architecture: x86_64\ncreation_date: 1767225600\n\
                    properties:\n  os: busybox\n  release: \"1.36\"\n";
        fs::write(dir.path().join("metadata.yaml"), yaml).expect("metadata.yaml");
        run(Command::new("tar").current_dir(&dir).args(["-cJf", "lxd.tar.xz", "metadata.yaml"]));
        fs::read(dir.path().join("lxd.tar.xz")).expect("tarball")
    })
}

/// A root file system that holds `serial`.
pub(crate) fn squashfs(serial: &str) -> Arc<[u8]> {
    static MADE: Mutex<BTreeMap<String, Arc<[u8]>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    made.entry(serial.to_owned())
        .or_insert_with(|| {
            let dir = tempfile::tempdir().expect("temp dir");
            let root = dir.path().join("root");
            fs::create_dir_all(root.join("etc")).expect("root");
            fs::write(root.join("etc/image-serial"), serial).expect("serial");
            run(Command::new("mksquashfs").current_dir(&dir).args([
                "root",
                "rootfs.squashfs",
                "-quiet",
                "-no-progress",
                "-all-root",
            ]));
            fs::read(dir.path().join("rootfs.squashfs")).expect("squashfs").into()
        })
        .clone()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|err| panic!("{command:?}: {err}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}
