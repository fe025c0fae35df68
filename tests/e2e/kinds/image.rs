//! The demonstration image in every form that images have in the field, each made by the program
//! that people make it with.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::clients::client::stdout_of;
use crate::clients::site::demo_image;

/// One system, taken apart: `metadata.yaml`, `templates/`, `rootfs/`. Inside of it
/// `/etc/image-serial` holds the serial, hence two serials are two fingerprints.
pub(crate) struct Image {
    dir: TempDir,
    serial: String,
}

impl Image {
    pub(crate) fn make(serial: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        stdout_of(&mut demo_image(dir.path(), serial));
        let image = Self { dir, serial: serial.to_owned() };
        let apart = image.path("apart");
        fs::create_dir(&apart).expect("directory");
        stdout_of(Command::new("tar").arg("-C").arg(&apart).arg("-xf").arg(image.packed(METADATA)));
        stdout_of(
            Command::new("unsquashfs")
                .args(["-no-progress", "-d"])
                .arg(apart.join("rootfs"))
                .arg(image.packed("rootfs.squashfs")),
        );
        image
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn packed(&self, name: &str) -> PathBuf {
        self.path(&self.serial).join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect(name)
    }

    /// Split metadata.
    pub(crate) fn metadata(&self) -> Vec<u8> {
        fs::read(self.packed(METADATA)).expect(METADATA)
    }

    /// Split metadata that says the same in other bytes.
    pub(crate) fn other_metadata(&self) -> Vec<u8> {
        self.tar(&["-J", "-C", "apart", "templates", "metadata.yaml"])
    }

    pub(crate) fn squashfs(&self) -> Vec<u8> {
        fs::read(self.packed("rootfs.squashfs")).expect("rootfs.squashfs")
    }

    pub(crate) fn root_tar_xz(&self) -> Vec<u8> {
        self.tar(&["-J", "-C", "apart/rootfs", "."])
    }

    /// As daemons publish and clients export it: metadata first.
    pub(crate) fn unified_gz(&self) -> Vec<u8> {
        self.tar(&["-z", "-C", "apart", "metadata.yaml", "rootfs", "templates"])
    }

    pub(crate) fn unified_plain(&self) -> Vec<u8> {
        self.tar(&["-C", "apart", "metadata.yaml", "rootfs", "templates"])
    }

    pub(crate) fn unified_zst(&self) -> Vec<u8> {
        self.tar(&["--zstd", "-C", "apart", "metadata.yaml", "rootfs", "templates"])
    }

    /// As distrobuilder makes it: the root first.
    pub(crate) fn unified_xz(&self) -> Vec<u8> {
        self.tar(&["-J", "-C", "apart", "rootfs", "templates", "metadata.yaml"])
    }

    /// A disk that holds the serial, and nothing that boots.
    pub(crate) fn qcow2(&self) -> Vec<u8> {
        let mut raw = vec![0; 1 << 20];
        raw[..self.serial.len()].copy_from_slice(self.serial.as_bytes());
        fs::write(self.path("disk.raw"), raw).expect("disk.raw");
        let mut convert = Command::new("qemu-img");
        convert.current_dir(&self.dir).args(["convert", "-f", "raw", "-O", "qcow2"]);
        stdout_of(convert.args(["disk.raw", "disk.qcow2"]));
        self.read("disk.qcow2")
    }

    fn tar(&self, args: &[&str]) -> Vec<u8> {
        let mut tar = Command::new("tar");
        tar.current_dir(&self.dir).args(["--owner=0", "--group=0", "--numeric-owner"]);
        stdout_of(tar.args(["-cf", "packed"]).args(args));
        self.read("packed")
    }
}

const METADATA: &str = "lxd.tar.xz";
