"""Makes catalogues of images: the right names, unique content, no more than an index looks at.

A root begins as a squashfs does, and its superblock says its true length, so that checks of whether a
file is whole are made and passed. What follows are random bytes, of which no two roots share any.
"""

import os
import shutil
import struct
import time
from pathlib import Path

ARCHES = ["amd64", "arm64", "armhf", "ppc64el", "s390x"]
RELEASES = 40
CHUNK = 1 << 20


def squashfs_head(size):
    """The 96 bytes of a squashfs superblock that uses `size` bytes."""
    return b"hsqs" + bytes(36) + struct.pack("<Q", size) + bytes(48)


def product(number):
    """Path of a product below the stream; 400 for each operating system."""
    arch = ARCHES[number % len(ARCHES)]
    number //= len(ARCHES)
    variant = ["default", "cloud"][number % 2]
    number //= 2
    return f"os{number // RELEASES:03}/release{number % RELEASES:02}/{arch}/{variant}"


def add_version(directory, root_size, pause=0):
    """One version with a metadata tarball and a root of `root_size` bytes; the root is closed last.

    `pause` is how many seconds pass before the first file. Uploads take a moment; files that are
    complete before anybody could watch their new directory are another case, that of the settle time.
    """
    directory = Path(directory)
    directory.mkdir(parents=True)
    time.sleep(pause)
    # Neither xz nor anything else that is checked; clients would refuse it, an index does not.
    (directory / "lxd.tar.xz").write_bytes(os.urandom(600))
    with open(directory / "rootfs.squashfs", "wb", buffering=0) as file:
        file.write(squashfs_head(root_size)[:root_size])
        left = root_size - 96
        while left > 0:
            left -= file.write(os.urandom(min(left, CHUNK)))


def make(tree, versions, root_size, per_product=1):
    """A tree with `versions` versions, `per_product` of each product, all a minute old at least."""
    images = Path(tree) / "images"
    for number in range(versions):
        name = f"2024{number % per_product + 1:02}15_12:00"
        add_version(images / product(number // per_product) / name, root_size)
    return Path(tree)


def remove(tree):
    shutil.rmtree(tree, ignore_errors=True)
