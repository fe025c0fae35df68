//! What a file in a version is, told by its name alone (`CLIENTS.md`, "Metadata items", "Roots and
//! fingerprints" and "Deltas").

/// Which client a metadata file or unified tarball names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// `lxc` and LXD.
    Lxd,
    /// `incus` and Incus.
    Incus,
}

impl Client {
    /// Both, in the order in which their items are listed.
    pub const ALL: [Self; 2] = [Self::Lxd, Self::Incus];

    /// `ftype` of split metadata, and the name of the file that is one.
    pub const fn metadata_ftype(self) -> &'static str {
        match self {
            Self::Lxd => "lxd.tar.xz",
            Self::Incus => "incus.tar.xz",
        }
    }

    /// `ftype` of a unified tarball, and the name of the file that is one.
    pub const fn unified_ftype(self) -> &'static str {
        match self {
            Self::Lxd => "lxd_combined.tar.gz",
            Self::Incus => "incus_combined.tar.gz",
        }
    }
}

/// The kinds of root files, in the order in which clients prefer them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Root {
    /// `*.squashfs`: a container.
    Squashfs,
    /// `root.tar.xz`, `rootfs.tar.xz`: a container.
    TarXz,
    /// `*.qcow2`, `disk-kvm.img`: a virtual machine.
    DiskKvm,
    /// `uefi1.img`: a virtual machine.
    Uefi1,
    /// `disk1.img`: a virtual machine.
    Disk1,
}

impl Root {
    /// The `ftype` of an item of this kind.
    pub const fn ftype(self) -> &'static str {
        match self {
            Self::Squashfs => "squashfs",
            Self::TarXz => "root.tar.xz",
            Self::DiskKvm => "disk-kvm.img",
            Self::Uefi1 => "uefi1.img",
            Self::Disk1 => "disk1.img",
        }
    }

    /// The key on a metadata item that carries sha256(metadata ‖ root), the image's fingerprint.
    pub const fn combined_key(self) -> &'static str {
        match self {
            Self::Squashfs => "combined_squashfs_sha256",
            Self::TarXz => "combined_rootxz_sha256",
            Self::DiskKvm => "combined_disk-kvm-img_sha256",
            Self::Uefi1 => "combined_uefi1-img_sha256",
            Self::Disk1 => "combined_disk1-img_sha256",
        }
    }

    /// Containers and virtual machines have separate name spaces for aliases.
    pub const fn is_vm(self) -> bool {
        matches!(self, Self::DiskKvm | Self::Uefi1 | Self::Disk1)
    }
}

/// How a file of overrides is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Overrides {
    /// `.requirements`: a JSON object, for everything below its directory.
    Requirements,
    /// `image.yaml`, `images.yaml`: the definition that lxd-imagebuilder leaves.
    ImageYaml,
    /// `metadata.json`.
    MetadataJson,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Split metadata; without a root beside it, perhaps a unified tarball.
    Metadata(Client),
    /// Metadata and root in one tarball.
    Unified(Client),
    /// A tarball that may be a unified image, as `image export` and distrobuilder name them.
    Tarball,
    /// A root.
    Root(Root),
    /// The difference of a root to that of another version.
    Delta(Root),
    /// `SHA256SUMS`.
    Sums,
    /// Overrides of what the path says.
    Overrides(Overrides),
    /// Nothing that matters.
    Other,
}

impl Kind {
    /// The kind of the file called `name`.
    pub fn of(name: &str) -> Self {
        match name {
            "lxd.tar.xz" => Self::Metadata(Client::Lxd),
            "incus.tar.xz" => Self::Metadata(Client::Incus),
            "lxd_combined.tar.gz" => Self::Unified(Client::Lxd),
            "incus_combined.tar.gz" => Self::Unified(Client::Incus),
            "root.tar.xz" | "rootfs.tar.xz" => Self::Root(Root::TarXz),
            "disk-kvm.img" => Self::Root(Root::DiskKvm),
            "uefi1.img" => Self::Root(Root::Uefi1),
            "disk1.img" => Self::Root(Root::Disk1),
            "SHA256SUMS" => Self::Sums,
            ".requirements" => Self::Overrides(Overrides::Requirements),
            "image.yaml" | "images.yaml" => Self::Overrides(Overrides::ImageYaml),
            "metadata.json" => Self::Overrides(Overrides::MetadataJson),
            _ if name.ends_with(".squashfs") => Self::Root(Root::Squashfs),
            _ if name.ends_with(".qcow2") => Self::Root(Root::DiskKvm),
            _ if name.ends_with(".qcow2.vcdiff") => Self::Delta(Root::DiskKvm),
            _ if name.ends_with(".vcdiff") => Self::Delta(Root::Squashfs),
            // What `image export` makes of an image that came in two files.
            _ if name.starts_with("meta-") && tarball_stem(name).is_some() => {
                Self::Metadata(Client::Lxd)
            }
            _ if tarball_stem(name).is_some() => Self::Tarball,
            _ => Self::Other,
        }
    }

    /// Whether files of this kind make a directory one that holds an image.
    pub const fn is_image(self) -> bool {
        matches!(self, Self::Metadata(_) | Self::Unified(_) | Self::Root(_))
    }

    /// Where two files of a version are of one kind, the one with the lower rank is listed.
    pub fn rank(name: &str) -> u8 {
        match name {
            "rootfs.squashfs" | "rootfs.tar.xz" | "disk.qcow2" => 0,
            "lxd.tar.xz" | "incus.tar.xz" | "root.squashfs" => 1,
            _ => 2,
        }
    }
}

/// The name of a tarball that can hold an image, without its ending. Names that begin with `root`
/// are roots in a format that clients do not take.
fn tarball_stem(name: &str) -> Option<&str> {
    const ENDINGS: [&str; 4] = [".tar", ".tar.gz", ".tar.xz", ".tar.zst"];
    let stem = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending));
    stem.filter(|stem| !stem.starts_with("root"))
}

/// Whether the tarball called `name` is the root to the metadata called `metadata`: `image export`
/// writes `meta-FINGERPRINT.tar.xz` and `FINGERPRINT.tar.xz`, each with the ending of its packing.
pub fn is_exported_root(name: &str, metadata: &str) -> bool {
    let root = tarball_stem(name);
    root.is_some() && root == tarball_stem(metadata).and_then(|stem| stem.strip_prefix("meta-"))
}

/// The version that a delta starts from, as its file's name tells it: `delta-BASE.vcdiff`,
/// `delta-BASE.qcow2.vcdiff`, `rootfs.BASE.vcdiff` or `disk.BASE.qcow2.vcdiff`.
pub fn delta_base(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".vcdiff")?;
    let base = match stem.strip_suffix(".qcow2") {
        Some(stem) => stem.strip_prefix("delta-").or_else(|| stem.strip_prefix("disk."))?,
        None => stem.strip_prefix("delta-").or_else(|| stem.strip_prefix("rootfs."))?,
    };
    crate::name::is_version(base).then_some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_kinds() {
        let table = [
            ("lxd.tar.xz", Kind::Metadata(Client::Lxd)),
            ("incus.tar.xz", Kind::Metadata(Client::Incus)),
            ("meta-0123abcd.tar.xz", Kind::Metadata(Client::Lxd)),
            ("meta-0123abcd.tar.gz", Kind::Metadata(Client::Lxd)),
            ("meta-0123abcd.squashfs", Kind::Root(Root::Squashfs)),
            ("lxd_combined.tar.gz", Kind::Unified(Client::Lxd)),
            ("incus_combined.tar.gz", Kind::Unified(Client::Incus)),
            ("0123abcd.tar.gz", Kind::Tarball),
            ("ubuntu-noble-x86_64.tar.xz", Kind::Tarball),
            ("image.tar.zst", Kind::Tarball),
            ("image.tar", Kind::Tarball),
            ("rootfs.squashfs", Kind::Root(Root::Squashfs)),
            ("0123abcd.squashfs", Kind::Root(Root::Squashfs)),
            ("root.tar.xz", Kind::Root(Root::TarXz)),
            ("rootfs.tar.xz", Kind::Root(Root::TarXz)),
            ("rootfs.tar.gz", Kind::Other),
            ("disk.qcow2", Kind::Root(Root::DiskKvm)),
            ("0123abcd.qcow2", Kind::Root(Root::DiskKvm)),
            ("disk-kvm.img", Kind::Root(Root::DiskKvm)),
            ("uefi1.img", Kind::Root(Root::Uefi1)),
            ("disk1.img", Kind::Root(Root::Disk1)),
            ("delta-20240101.vcdiff", Kind::Delta(Root::Squashfs)),
            ("disk.20240101.qcow2.vcdiff", Kind::Delta(Root::DiskKvm)),
            ("SHA256SUMS", Kind::Sums),
            ("metadata.json", Kind::Overrides(Overrides::MetadataJson)),
            ("images.yaml", Kind::Overrides(Overrides::ImageYaml)),
            (".requirements", Kind::Overrides(Overrides::Requirements)),
            ("rootfs.squashfs.part", Kind::Other),
            ("LXD.TAR.XZ", Kind::Other),
            ("", Kind::Other),
        ];
        for (name, kind) in table {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }

    #[test]
    fn exported_roots_are_called_as_their_metadata() {
        let table = [
            ("0123.tar.xz", "meta-0123.tar.xz", true),
            ("0123.tar.gz", "meta-0123.tar.xz", true),
            ("0124.tar.xz", "meta-0123.tar.xz", false),
            ("0123.tar.xz", "lxd.tar.xz", false),
            ("0123.squashfs", "meta-0123.tar.xz", false),
        ];
        for (name, metadata, is) in table {
            assert_eq!(is_exported_root(name, metadata), is, "{name} {metadata}");
        }
    }

    #[test]
    fn delta_names_tell_their_base() {
        let table = [
            ("delta-20240101_1200.vcdiff", Some("20240101_1200")),
            ("delta-20240101_12:00.qcow2.vcdiff", Some("20240101_12:00")),
            ("rootfs.20240101_1200.vcdiff", Some("20240101_1200")),
            ("disk.20240101_1200.qcow2.vcdiff", Some("20240101_1200")),
            ("rootfs.20240101.squashfs.vcdiff", Some("20240101.squashfs")),
            ("rootfs.squashfs.vcdiff", None),
            ("delta-.vcdiff", None),
            ("delta-latest.vcdiff", None),
            ("disk.20240101.vcdiff", None),
            ("vcdiff", None),
        ];
        for (name, base) in table {
            assert_eq!(delta_base(name), base, "{name}");
        }
    }
}
