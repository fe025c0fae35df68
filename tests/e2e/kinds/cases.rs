//! The table: what lies in a version, and which images the clients must see in it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::Value;
use simplestreams::Digest;

use super::image::Image;
use crate::clients::client::Kind;
use crate::clients::site::{Site, arch};
use crate::harness::{Dir, until};

/// What an image is, as clients say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Type {
    Container,
    VirtualMachine,
}

impl Type {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::VirtualMachine => "virtual-machine",
        }
    }

    /// What a client needs to be told beside the alias.
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            Self::Container => &[],
            Self::VirtualMachine => &["--vm"],
        }
    }
}

/// A version, the only one of the product `<os>/1/<arch>/default`.
pub(crate) struct Case {
    pub(crate) os: &'static str,
    /// The version's name, and what `/etc/image-serial` says.
    pub(crate) serial: &'static str,
    files: &'static [(&'static str, Make)],
    images: &'static [(Type, Files)],
}

/// What makes a file's content.
type Make = fn(&Image) -> Vec<u8>;

/// The files whose bytes, one after the other, have the fingerprint.
enum Files {
    Same(&'static [&'static str]),
    /// Those for LXD, and those for Incus.
    Own(&'static [&'static str], &'static [&'static str]),
    /// For both, and reached by the fingerprint alone: the aliases go to a root that is preferred.
    Hidden(&'static [&'static str]),
}

use Files::{Hidden, Own, Same};
use Type::{Container, VirtualMachine};

/// A name with the fingerprint in it, as in the file that `image export` writes.
const BY_FINGERPRINT: &str = "<fingerprint>.tar.gz";

pub(crate) const CASES: &[Case] = &[
    Case {
        os: "unified-for-lxd",
        serial: "20250301_0100",
        files: &[("lxd_combined.tar.gz", Image::unified_gz)],
        images: &[(Container, Same(&["lxd_combined.tar.gz"]))],
    },
    Case {
        os: "unified-for-incus",
        serial: "20250301_0200",
        files: &[("incus_combined.tar.gz", Image::unified_gz)],
        images: &[(Container, Same(&["incus_combined.tar.gz"]))],
    },
    Case {
        os: "unified-for-each",
        serial: "20250301_0300",
        files: &[
            ("lxd_combined.tar.gz", Image::unified_gz),
            ("incus_combined.tar.gz", Image::unified_xz),
        ],
        images: &[(Container, Own(&["lxd_combined.tar.gz"], &["incus_combined.tar.gz"]))],
    },
    Case {
        os: "exported",
        serial: "20250301_0400",
        files: &[(BY_FINGERPRINT, Image::unified_gz)],
        images: &[(Container, Same(&[BY_FINGERPRINT]))],
    },
    Case {
        os: "distrobuilder",
        serial: "20250301_0500",
        files: &[("lxd.tar.xz", Image::unified_xz)],
        images: &[(Container, Same(&["lxd.tar.xz"]))],
    },
    Case {
        os: "unified-plain",
        serial: "20250301_0600",
        files: &[("image.tar", Image::unified_plain)],
        images: &[(Container, Same(&["image.tar"]))],
    },
    Case {
        os: "unified-zst",
        serial: "20250301_0700",
        files: &[("image.tar.zst", Image::unified_zst)],
        images: &[(Container, Same(&["image.tar.zst"]))],
    },
    Case {
        os: "squashfs",
        serial: "20250301_0800",
        files: &[("incus.tar.xz", Image::metadata), ("rootfs.squashfs", Image::squashfs)],
        images: &[(Container, Same(&["incus.tar.xz", "rootfs.squashfs"]))],
    },
    Case {
        os: "rootfs-tar-xz",
        serial: "20250301_0900",
        files: &[("lxd.tar.xz", Image::metadata), ("rootfs.tar.xz", Image::root_tar_xz)],
        images: &[(Container, Same(&["lxd.tar.xz", "rootfs.tar.xz"]))],
    },
    Case {
        os: "root-tar-xz",
        serial: "20250301_1000",
        files: &[("incus.tar.xz", Image::metadata), ("root.tar.xz", Image::root_tar_xz)],
        images: &[(Container, Same(&["incus.tar.xz", "root.tar.xz"]))],
    },
    Case {
        os: "metadata-for-each",
        serial: "20250301_1100",
        files: &[
            ("lxd.tar.xz", Image::metadata),
            ("incus.tar.xz", Image::other_metadata),
            ("rootfs.squashfs", Image::squashfs),
        ],
        images: &[(
            Container,
            Own(&["lxd.tar.xz", "rootfs.squashfs"], &["incus.tar.xz", "rootfs.squashfs"]),
        )],
    },
    Case {
        os: "metadata-twice",
        serial: "20250301_1200",
        files: &[
            ("lxd.tar.xz", Image::metadata),
            ("incus.tar.xz", Image::metadata),
            ("rootfs.squashfs", Image::squashfs),
        ],
        images: &[(
            Container,
            Own(&["lxd.tar.xz", "rootfs.squashfs"], &["incus.tar.xz", "rootfs.squashfs"]),
        )],
    },
    Case {
        os: "disk-qcow2",
        serial: "20250301_1300",
        files: &[("lxd.tar.xz", Image::metadata), ("disk.qcow2", Image::qcow2)],
        images: &[(VirtualMachine, Same(&["lxd.tar.xz", "disk.qcow2"]))],
    },
    Case {
        os: "disk-kvm-img",
        serial: "20250301_1400",
        files: &[("incus.tar.xz", Image::metadata), ("disk-kvm.img", Image::qcow2)],
        images: &[(VirtualMachine, Same(&["incus.tar.xz", "disk-kvm.img"]))],
    },
    Case {
        os: "uefi1-img",
        serial: "20250301_1500",
        files: &[("lxd.tar.xz", Image::metadata), ("uefi1.img", Image::qcow2)],
        images: &[(VirtualMachine, Same(&["lxd.tar.xz", "uefi1.img"]))],
    },
    Case {
        os: "disk1-img",
        serial: "20250301_1600",
        files: &[("lxd.tar.xz", Image::metadata), ("disk1.img", Image::qcow2)],
        images: &[(VirtualMachine, Same(&["lxd.tar.xz", "disk1.img"]))],
    },
    Case {
        os: "several-roots",
        serial: "20250301_1700",
        files: &[
            ("lxd.tar.xz", Image::metadata),
            ("rootfs.squashfs", Image::squashfs),
            ("rootfs.tar.xz", Image::root_tar_xz),
            ("disk.qcow2", Image::qcow2),
        ],
        images: &[
            (Container, Same(&["lxd.tar.xz", "rootfs.squashfs"])),
            (Container, Hidden(&["lxd.tar.xz", "rootfs.tar.xz"])),
            (VirtualMachine, Same(&["lxd.tar.xz", "disk.qcow2"])),
        ],
    },
    // Pairs are called as `image export` calls them, with something for the fingerprint.
    Case {
        os: "exported-squashfs",
        serial: "20250301_1800",
        files: &[("meta-f00d.tar.xz", Image::metadata), ("f00d.squashfs", Image::squashfs)],
        images: &[(Container, Same(&["meta-f00d.tar.xz", "f00d.squashfs"]))],
    },
    Case {
        os: "exported-tarball",
        serial: "20250301_1900",
        files: &[("meta-f00d.tar.xz", Image::metadata), ("f00d.tar.xz", Image::root_tar_xz)],
        images: &[(Container, Same(&["meta-f00d.tar.xz", "f00d.tar.xz"]))],
    },
    Case {
        os: "exported-disk",
        serial: "20250301_2000",
        files: &[("meta-f00d.tar.xz", Image::metadata), ("f00d.qcow2", Image::qcow2)],
        images: &[(VirtualMachine, Same(&["meta-f00d.tar.xz", "f00d.qcow2"]))],
    },
];

/// An image that a client must see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) os: &'static str,
    pub(crate) serial: &'static str,
    pub(crate) of_type: Type,
    /// Whether the product's aliases lead to it.
    pub(crate) named: bool,
    /// Name and content of its files; the fingerprint is that of all bytes in this order.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

impl Expected {
    pub(crate) fn fingerprint(&self) -> String {
        let bytes: Vec<u8> = self.files.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        Digest::of(&bytes).to_string()
    }

    /// The aliases that it must have, none but these.
    pub(crate) fn aliases(&self) -> Vec<String> {
        if self.named { aliases(self.os).into() } else { Vec::new() }
    }

    /// What a client is asked for: the first alias, or the fingerprint.
    pub(crate) fn name(&self) -> String {
        self.aliases().into_iter().next().unwrap_or_else(|| self.fingerprint())
    }
}

/// The default aliases of the product `<os>/1/<arch>/default`.
pub(crate) fn aliases(os: &str) -> [String; 4] {
    let arch = arch();
    [
        format!("{os}/1"),
        format!("{os}/1/default"),
        format!("{os}/1/{arch}/default"),
        format!("{os}:1:{arch}:default"),
    ]
}

/// What is in the files of all cases, by os and name in the table.
type Contents = BTreeMap<(&'static str, &'static str), Vec<u8>>;

/// Made once.
fn contents() -> &'static Contents {
    static CONTENTS: OnceLock<Contents> = OnceLock::new();
    CONTENTS.get_or_init(|| {
        let of_case = |case: &'static Case| {
            let image = Image::make(case.serial);
            case.files.iter().map(move |(name, make)| ((case.os, *name), make(&image)))
        };
        CASES.iter().flat_map(of_case).collect()
    })
}

/// Puts all cases into the tree.
pub(crate) fn add_all(dir: &Dir) {
    for case in CASES {
        for (name, _) in case.files {
            let bytes = &contents()[&(case.os, *name)];
            let version = version(case.os, case.serial);
            dir.add_file(&format!("{version}/{}", on_disk(name, bytes)), bytes);
        }
    }
}

/// Starts the site over a tree with all cases in it, and waits until they are listed.
#[track_caller]
pub(crate) fn serve(dir: &Dir) -> Site<'_> {
    add_all(dir);
    let site = Site::serve(dir);
    until_listed(&site, CASES.iter().map(|case| (case.os, case.serial)));
    site
}

/// The images that `client` must see, and no others.
pub(crate) fn expected(client: Kind) -> Vec<Expected> {
    let images = CASES.iter().flat_map(|case| case.images.iter().map(move |of| (case, of)));
    let image = |(case, (of_type, files)): (&Case, &(Type, Files))| {
        let names = match (files, client) {
            (Same(names) | Hidden(names), _)
            | (Own(names, _), Kind::Lxd)
            | (Own(_, names), Kind::Incus) => names,
        };
        let file = |name: &&'static str| {
            let bytes = contents()[&(case.os, *name)].clone();
            (on_disk(name, &bytes), bytes)
        };
        Expected {
            os: case.os,
            serial: case.serial,
            of_type: *of_type,
            named: !matches!(files, Hidden(_)),
            files: names.iter().map(file).collect(),
        }
    };
    images.map(image).collect()
}

/// A version's directory in the tree.
pub(crate) fn version(os: &str, serial: &str) -> String {
    format!("images/{os}/1/{}/default/{serial}", arch())
}

fn on_disk(name: &str, bytes: &[u8]) -> String {
    name.replace("<fingerprint>", &Digest::of(bytes).to_string())
}

/// Waits until the site lists exactly these versions, each by os and name.
#[track_caller]
pub(crate) fn until_listed<'a>(
    site: &Site<'_>,
    versions: impl IntoIterator<Item = (&'a str, &'a str)>,
) {
    let arch = arch();
    let mut expected: Vec<String> = versions
        .into_iter()
        .map(|(os, serial)| format!("{os}:1:{arch}:default {serial}"))
        .collect();
    expected.sort();
    let mut last = Vec::new();
    until("the versions are listed", || {
        let now = listed(&site.document());
        if now != last {
            // Seen if the test fails.
            eprintln!("listed: {now:#?}");
            last = now;
        }
        (last == expected).then_some(())
    });
}

/// What a products file lists, each as `product version`.
fn listed(document: &Value) -> Vec<String> {
    let mut listed = Vec::new();
    for (product, value) in document["products"].as_object().into_iter().flatten() {
        let versions = value["versions"].as_object().into_iter().flatten();
        listed.extend(versions.map(|(version, _)| format!("{product} {version}")));
    }
    listed.sort();
    listed
}
