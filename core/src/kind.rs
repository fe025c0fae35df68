//! What a file in a version is, told by its name alone (`CLIENTS.md`, "Metadata items" and "Roots
//! and fingerprints").

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
}

/// The kinds of root files, in the order in which clients prefer them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Root {
    /// `*.squashfs`: a container.
    Squashfs,
    /// `root.tar.xz`, `rootfs.tar.xz`: a container.
    TarXz,
    /// `disk.qcow2`, `disk-kvm.img`: a virtual machine.
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

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Split metadata.
    Metadata(Client),
    /// A root.
    Root(Root),
    /// Nothing that is listed.
    Other,
}

impl Kind {
    /// The kind of the file called `name`.
    pub fn of(name: &str) -> Self {
        match name {
            "lxd.tar.xz" => Self::Metadata(Client::Lxd),
            "incus.tar.xz" => Self::Metadata(Client::Incus),
            "root.tar.xz" | "rootfs.tar.xz" => Self::Root(Root::TarXz),
            "disk.qcow2" | "disk-kvm.img" => Self::Root(Root::DiskKvm),
            "uefi1.img" => Self::Root(Root::Uefi1),
            "disk1.img" => Self::Root(Root::Disk1),
            _ if name.ends_with(".squashfs") => Self::Root(Root::Squashfs),
            _ => Self::Other,
        }
    }

    /// Where two files of a version are of one kind, the one with the lower rank is listed.
    pub fn rank(name: &str) -> u8 {
        match name {
            "rootfs.squashfs" | "rootfs.tar.xz" | "disk.qcow2" => 0,
            "root.squashfs" => 1,
            _ => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_kinds() {
        let table = [
            ("lxd.tar.xz", Kind::Metadata(Client::Lxd)),
            ("incus.tar.xz", Kind::Metadata(Client::Incus)),
            ("rootfs.squashfs", Kind::Root(Root::Squashfs)),
            ("ubuntu-noble.squashfs", Kind::Root(Root::Squashfs)),
            ("root.tar.xz", Kind::Root(Root::TarXz)),
            ("rootfs.tar.xz", Kind::Root(Root::TarXz)),
            ("disk.qcow2", Kind::Root(Root::DiskKvm)),
            ("disk-kvm.img", Kind::Root(Root::DiskKvm)),
            ("uefi1.img", Kind::Root(Root::Uefi1)),
            ("disk1.img", Kind::Root(Root::Disk1)),
            ("SHA256SUMS", Kind::Other),
            ("rootfs.squashfs.part", Kind::Other),
            ("LXD.TAR.XZ", Kind::Other),
            ("", Kind::Other),
        ];
        for (name, kind) in table {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }
}
