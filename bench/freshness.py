"""From close() of a version's last file to the version being listed.

By the module: at all four workers, each asked over a connection of its own again and again until its
entity tag is another; every change adds one version, so the tag changes when that one is listed, and
at the end all must be there. By `watch`, ours and the Python tool's: images.json on disk is another.
"""

import http.client
import signal
import statistics
import subprocess
import time

import process
import rivals
import trees
from report import seconds
from server import Nginx, free_port

VERSIONS, SIZE = 3000, 65536
CHANGES, WATCH_CHANGES, PYTHON_CHANGES = 100, 30, 3
PAUSE = 0.1
P50, P99 = 0.020, 0.060


def percentile(times, share):
    times = sorted(times)
    return times[min(len(times) - 1, int(len(times) * share))]


def connections(nginx, port, workers):
    """A kept connection to each of the workers, by its process id."""
    found = {}
    deadline = time.monotonic() + 60
    while len(found) < workers and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        _, worker = tag(connection)
        found.setdefault(worker, connection)
    if len(found) < workers:
        raise SystemExit(f"only {len(found)} workers answered")
    return list(found.values())


def tag(connection):
    connection.request("HEAD", "/streams/v1/images.json")
    answer = connection.getresponse()
    answer.read()
    return answer.getheader("ETag"), answer.getheader("X-Worker")


def by_module(work, tree, directory):
    port = free_port()
    body = (f"    server {{ listen 127.0.0.1:{port} reuseport; add_header X-Worker $pid; "
            f"simplestreams {tree}; }}\n")
    with Nginx(directory / "nginx", body, workers=4) as nginx:

        def listed():
            document = nginx.fetch(port, "/streams/v1/images.json") or b""
            return document.count(b'"combined_squashfs_sha256"')

        # Two for each version: one for each client's metadata.
        nginx.wait_for(lambda: listed() == 2 * VERSIONS)
        times = []
        kept = connections(nginx, port, 4)
        before_all = listed()
        for number in range(CHANGES):
            before, _ = tag(kept[0])
            version = tree / f"images/{trees.product(number)}/20250101_{number:04}"
            trees.add_version(version, SIZE, pause=PAUSE)
            closed = time.monotonic()
            waiting = list(kept)
            while waiting:
                waiting = [one for one in waiting if tag(one)[0] == before]
                if time.monotonic() > closed + 30:
                    raise SystemExit(f"not listed after 30 s:\n{nginx.log()[-2000:]}")
            times.append(time.monotonic() - closed)
        items = listed() - before_all
        if items % CHANGES or not items:
            raise SystemExit(f"{CHANGES} versions were added, {items} items came")
    return times


def by_watch(command, tree, changes, mark, patience, config=None):
    """Times until images.json on disk is another, of versions named by `mark`."""
    document = tree / "streams/v1/images.json"
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    times = []
    try:
        # The watches of 12,000 directories have to be there first.
        settle(document, 20)
        for number in range(changes):
            before = document.stat().st_mtime_ns
            version = tree / f"images/{trees.product(number)}/{mark}_{number:04}"
            trees.add_version(version, SIZE, pause=PAUSE)
            closed = time.monotonic()
            name = f"{mark}_{number:04}".encode()
            while True:
                if document.stat().st_mtime_ns != before and name in document.read_bytes():
                    break
                if time.monotonic() > closed + patience:
                    raise SystemExit(f"not on disk after {patience} s: {command}")
                time.sleep(0.0005)
            times.append(time.monotonic() - closed)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return times


def settle(document, seconds_long):
    """Waits until the document is there and has not changed for two seconds."""
    deadline = time.monotonic() + seconds_long
    last, since = None, time.monotonic()
    while time.monotonic() < deadline:
        now = document.stat().st_mtime_ns if document.exists() else None
        if now != last:
            last, since = now, time.monotonic()
        if last and time.monotonic() - since > 2:
            return
        time.sleep(0.05)
    if not last:
        raise SystemExit(f"{document} was not made")


def run(work, report):
    directory = work.fresh("freshness")
    tree = trees.make(directory / "tree", VERSIONS, SIZE)
    config = rivals.our_config(directory)
    time.sleep(2.5)
    rows = []

    def add(name, times, targets=None):
        p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
        told = ""
        if targets:
            told = ", ".join(report.verdict(f"freshness {what}", value, target) for what, value, target
                             in (("p50", p50, targets[0]), ("p99", p99, targets[1])))
        rows.append([name, len(times), seconds(p50), seconds(p99), seconds(max(times)), told])

    add("module, all four workers", by_module(work, tree, directory), (P50, P99))
    rivals.prepared(tree)
    watch = [rivals.OURS, "--config", config, "watch", "--img-dir", tree / "images", "--streams-dir",
             tree / "streams/v1", "--pid-file", directory / "pid"]
    add("lxd-image-server watch, on disk", by_watch(watch, tree, WATCH_CHANGES, "20250102", 60))
    tool = rivals.python_tool()
    if tool:
        rivals.prepared(tree)
        process.take(rivals.python_update(tool, tree))
        try:
            add("Python tool's watch, on disk",
                by_watch(rivals.python_watch(tool, tree), tree, PYTHON_CHANGES, "20250103", 90))
        except SystemExit as nothing:
            # Whatever is wrong with it here is said, and ends no bench.
            rows.append(["Python tool's watch", "-", "-", "-", str(nothing).partition(":")[0], ""])
    report.title(f"Freshness at {VERSIONS} versions: p50 at most {seconds(P50)}, p99 {seconds(P99)}",
                 __doc__.strip())
    report.table(["by", "changes", "p50", "p99", "longest", ""], rows)
