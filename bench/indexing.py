"""An index from nothing: `lxd-image-server update` against the Python tool's `update`.

Both on the same tree in turns, files in the page cache. Ours hashes with as many threads as there are
cores. The floor is what two SHA-256 of every byte take at the rate that `openssl speed` shows here,
spread over all cores; the last but one column is that time on one core to the Python tool's CPU, below
which no CPU ratio can be. incus-simplestreams adds the same large images to a tree of its own; it copies
nothing, and reads each file twice.
"""

import os
import re
import shutil
import statistics
import subprocess
import time

import process
import rivals
import trees
from report import mebibytes, seconds, spread
from load import ratios

MIB = 1 << 20
# name, versions, bytes of a root, rounds, most of the Python tool's wall and CPU
ROWS = [
    ("4 × 256 MiB", 4, 256 * MIB, 3, 0.45, 0.9),
    ("one file of 1 GiB", 1, 1024 * MIB, 3, 0.6, None),
    ("3,000 × 64 KiB", 3000, 65536, 3, 0.3, 0.35),
    ("40,000 × 1 KiB", 40000, 1024, 2, 0.08, 0.1),
]


def openssl_rate():
    """Bytes per second of one SHA-256 stream on one core."""
    text = subprocess.run(["openssl", "speed", "-seconds", "2", "-bytes", "1048576", "-evp", "sha256"],
                          check=True, capture_output=True, text=True).stdout
    return float(re.search(r"sha256\s+([\d.]+)k", text, re.IGNORECASE)[1]) * 1000


def run(work, report):
    directory = work.fresh("indexing")
    config = rivals.our_config(directory)
    tool = rivals.python_tool()
    report.title("Indexing from nothing: ratios to the Python tool", __doc__.strip())
    if tool is None:
        report.say("The Python tool is left out: LXD_IMAGE_SERVER_PY is not set (bench/rivals.py).\n")
    cores = len(os.sched_getaffinity(0))
    floor_rate = openssl_rate()
    rows = []
    for name, versions, size, rounds, wall_target, cpu_target in ROWS:
        large = size > MIB
        tree = directory / "large" if large else work.make_tree(versions, size)
        if large:
            trees.make(tree, versions, size)
            time.sleep(2.5)
        ours, theirs = [], []
        for _ in range(rounds):
            rivals.prepared(tree)
            ours.append(process.take([*rivals.our_update(tree, config), "--threads", cores]))
            if tool:
                rivals.prepared(tree)
                theirs.append(process.take(rivals.python_update(tool, tree)))
        if theirs:
            work.python_update[versions] = median(theirs, "wall")
        rows.append(row(report, name, ours, theirs, wall_target, cpu_target,
                        2 * versions * size / floor_rate, cores if large else None))
        if name.startswith("4 ×") and rivals.incus_simplestreams():
            rows.append(incus(directory, tree, ours))
        shutil.rmtree(tree / "streams", ignore_errors=True)
        if large:
            trees.remove(tree)
    report.table(["catalogue", "ours: wall", "CPU", "peak", "rival: wall", "CPU", "peak",
                  "wall ratio", "CPU ratio", "wall / floor", "hashing's CPU ratio", ""], rows)
    report.say(f"openssl speed: {floor_rate / 1e6:.0f} MB/s for one SHA-256 stream.\n")


def median(taken, what):
    return statistics.median(getattr(one, what) for one in taken)


def row(report, name, ours, theirs, wall_target, cpu_target, hashing, cores):
    """`hashing`: seconds of one core for two SHA-256 of every byte; `cores`: of a floor, where one is told."""
    mine = [seconds(median(ours, "wall")), seconds(median(ours, "cpu")), mebibytes(median(ours, "peak"))]
    over = "-"
    told = []
    if cores:
        floor = median(ours, "wall") / (hashing / cores)
        over = f"{floor:.2f}"
        told.append(report.verdict(f"{name}, wall / floor", floor, 1.15))
    if not theirs:
        return [name, *mine, "-", "-", "-", "-", "-", over, "-", ", ".join(told)]
    wall = ratios([o.wall for o in ours], [t.wall for t in theirs])
    cpu = ratios([o.cpu for o in ours], [t.cpu for t in theirs])
    told.append(report.verdict(f"{name}, wall", wall[0], wall_target))
    if cpu_target:
        told.append(report.verdict(f"{name}, CPU", cpu[0], cpu_target))
    if name.startswith("40,000"):
        told.append(report.verdict(f"{name}, peak in MiB", median(ours, "peak") / MIB, 150))
    return [name, *mine, seconds(median(theirs, "wall")), seconds(median(theirs, "cpu")),
            mebibytes(median(theirs, "peak")), spread(*wall), spread(*cpu), over,
            f"{hashing / median(theirs, 'cpu'):.2f}", ", ".join(told)]


def incus(directory, tree, ours):
    """incus-simplestreams adds every version of `tree` to a tree of its own."""
    place = directory / "incus"
    place.mkdir()
    taken = []
    for number, root in enumerate(sorted(tree.glob("images/**/rootfs.squashfs"))):
        metadata = rivals.incus_metadata(directory / f"metadata-{number}.tar.xz", f"bench{number}")
        taken.append(process.take(["incus-simplestreams", "add", metadata, root], cwd=place))
    wall, cpu = sum(one.wall for one in taken), sum(one.cpu for one in taken)
    shutil.rmtree(place)
    return ["4 × 256 MiB, incus-simplestreams add", seconds(median(ours, "wall")),
            seconds(median(ours, "cpu")), mebibytes(median(ours, "peak")), seconds(wall), seconds(cpu),
            mebibytes(max(one.peak for one in taken)), f"{median(ours, 'wall') / wall:.2f}",
            f"{median(ours, 'cpu') / cpu:.2f}", "-", "-", ""]
