"""One version more at 40,000: how long until it is published, and that its bytes are a full render's;
a restart with nothing changed; and the memory that all of it takes.

"Published" is when the builder announces the generation to the workers. The full render is the
command's `update` of the same tree, which hashes everything too; its bytes must be the same.
"""

import os
import statistics
import time

import process
import rivals
import trees
from report import mebibytes, seconds
from server import Nginx, free_port

VERSIONS, SIZE, CHANGES, RESTARTS = 40000, 1024, 20, 5
PAUSE = 0.1
MIB = 1 << 20


def live(state):
    """When the last generation was announced, if any was."""
    files = [entry for entry in os.scandir(state) if entry.name.endswith(".live")]
    return max((entry.stat().st_mtime_ns for entry in files), default=None)


def worker_memory(directory, name, body, module):
    with Nginx(directory / name, body, module=module) as nginx:
        worker = nginx.wait_for(lambda: nginx.family("worker process"))[0]
        time.sleep(0.5)
        return process.memory(worker)[0]


def run(work, report):
    directory = work.fresh("change")
    tree = trees.make(directory / "tree", VERSIONS, SIZE)
    time.sleep(2.5)
    port = free_port()
    listen = f"listen 127.0.0.1:{port};"
    body = f"    server {{ {listen} simplestreams {tree}; }}\n"
    times = []

    def count(nginx):
        document = nginx.fetch(port, "/streams/v1/images.json") or b""
        return document.count(b'"release_title"')

    with Nginx(directory / "nginx", body) as nginx:
        state = nginx.state
        nginx.wait_for(lambda: count(nginx) == VERSIONS)
        [worker], [builder] = nginx.family("worker process"), nginx.family("cache manager process")
        for number in range(CHANGES):
            before = live(state)
            version = tree / f"images/{trees.product(number * 997)}/20250101_{number:04}"
            trees.add_version(version, SIZE, pause=PAUSE)
            closed = time.monotonic()
            while live(state) == before:
                if time.monotonic() > closed + 30:
                    raise SystemExit("not published after 30 s")
                time.sleep(0.0002)
            times.append(time.monotonic() - closed)
        time.sleep(1)
        served, tag = (ask(port, "/streams/v1/images.json") for ask in (nginx.fetch, nginx.tag))
        private, shared = process.memory(worker)
        peak = process.peak(builder)
    plain = worker_memory(directory, "without",
                          f"    server {{ {listen} root {tree}; }}\n", module=False)
    config = rivals.our_config(directory)
    streams = rivals.prepared(tree)
    full = process.take([*rivals.our_update(tree, config), "--threads", os.cpu_count()])
    same = (streams / "images.json").read_bytes() == served
    if not same:
        report.missed.append("bytes after changes are not those of a full render")
    rows = [
        ["event to published, median", seconds(statistics.median(times)),
         report.verdict("one version added, median in ms", statistics.median(times) * 1e3, 50)],
        ["event to published, longest", seconds(max(times)), ""],
        ["full render with hashing (update)", seconds(full.wall), ""],
        ["bytes are a full render's", "yes" if same else "**no**", ""],
        ["worker, private memory", mebibytes(private), ""],
        ["worker of an nginx without the module", mebibytes(plain), ""],
        ["what the module adds to a worker", mebibytes(private - plain),
         report.verdict("worker, private MiB more", (private - plain) / MIB, 2)],
        ["worker, shared memory", mebibytes(shared), ""],
        ["builder, peak", mebibytes(peak), report.verdict("builder, peak MiB", peak / MIB, 150)],
        *restart(directory, body, port, tree, state, tag, python_seconds(work, tree), report),
    ]
    report.title(f"One version more at {VERSIONS}, restart, memory", __doc__.strip())
    report.table(["what", "measured", ""], rows)


def python_seconds(work, tree):
    """What the Python tool's update takes on as many versions; None where it is not there."""
    tool = rivals.python_tool()
    if tool and VERSIONS not in work.python_update:
        rivals.prepared(tree)
        work.python_update[VERSIONS] = process.take(rivals.python_update(tool, tree)).wall
    return work.python_update.get(VERSIONS)


def restart(directory, body, port, tree, state, served, python, report):
    """Rows of starts with nothing hashed: first answer, and when what is on disk is known.

    A version that came while nginx was stopped tells when the whole tree has been looked at. Before,
    `served` was the tag of the list.
    """
    firsts, currents, peaks, read = [], [], [], 0
    path = "/streams/v1/images.json"
    for number in range(RESTARTS):
        name = f"20250102_{number:04}"
        trees.add_version(tree / f"images/{trees.product(number * 997 + 1)}/{name}", SIZE)
        time.sleep(2.5)
        begun = time.monotonic()
        with Nginx(directory / "nginx", body) as nginx:
            while nginx.fetch(port, "/streams/v1/index.json") is None:
                time.sleep(0.0005)
            firsts.append(time.monotonic() - begun)
            # Whoever asks again and again, for forty megabytes even, takes the time that is measured.
            while True:
                announced = live(state)
                if nginx.tag(port, path) == served:
                    while live(state) == announced:
                        if time.monotonic() > begun + 120:
                            raise SystemExit("not current after 120 s")
                        time.sleep(0.003)
                    nginx.wait_for(lambda: nginx.tag(port, path) != served)
                current = time.monotonic() - begun
                served = nginx.tag(port, path)
                if name.encode() in nginx.fetch(port, path):
                    break
            currents.append(current)
            [builder] = nginx.family("cache manager process")
            read = max(read, int(open(f"/proc/{builder}/io").readline().split()[1]))
            time.sleep(1)
            peaks.append(process.peak(builder))
    first, current = statistics.median(firsts), statistics.median(currents)
    told = lambda times: f"{seconds(statistics.median(times))} ({seconds(min(times))}–{seconds(max(times))})"
    to_python = [] if python is None else [
        ["the same to the Python tool's update", f"{current / python:.4f}",
         report.verdict("warm start to the Python tool", current / python, 0.03)]]
    return [
        [f"start of nginx to first answer, median of {RESTARTS}", told(firsts),
         report.verdict("first answer in ms", first * 1e3, 50)],
        [f"start of nginx until all is current, median of {RESTARTS}", told(currents),
         report.verdict("warm start in s", current, 1)],
        *to_python,
        ["the builder's peak in such a start, at most", mebibytes(max(peaks)),
         report.verdict("builder at a restart, peak MiB", max(peaks) / MIB, 150)],
        ["bytes that the builder read since its start", mebibytes(read), ""],
    ]
