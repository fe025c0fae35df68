"""Serving while 1 GiB is hashed by two threads, against serving with nothing to hash.

In turns: one load with the builder idle, one after a byte of a large root was changed. Once with a number
of requests that leaves the machine room, so that both cores hash; once with as many as there can be, so
that hashing gets hardly anything. How much the builder worked meanwhile is shown; its threads have the
lowest priority and take what is left. The third in turn is a load while as many shells count at that
priority, touching neither files nor memory: what that costs the slowest requests is the scheduler's part,
which nothing that uses both cores can be below.
"""

import contextlib
import os
import statistics
import subprocess
import time

import load
import trees
from report import seconds, spread
from server import Nginx, free_port

SIZE, ROUNDS, TARGET = 1 << 30, 7, 1.3
CONNECTIONS = 16
# Requests per second of each connection; none: as many as there can be.
LOADS = {"1,600 requests/s": 100, "as many as can be": None}


@contextlib.contextmanager
def counting(number):
    """So many shells that count, in the scheduler's idle class."""
    command = ["chrt", "--idle", "0", "nice", "-n", "19", "sh", "-c", "while :; do :; done"]
    shells = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for shell in shells:
            shell.kill()
            shell.wait()


def run(work, report):
    directory = work.fresh("hashing")
    tree = trees.make(directory / "tree", 12, 65536)
    for number in range(2):
        trees.add_version(tree / f"images/large/{number}/amd64/default/20250101_00:00", SIZE)
    time.sleep(2.5)
    port = free_port()
    threads = os.cpu_count()
    body = (f"    simplestreams_threads {threads};\n"
            f"    server {{ listen 127.0.0.1:{port}; simplestreams {tree}; }}\n")
    cpus = work.cpus()
    main = f"worker_cpu_affinity {cpus.nginx_mask};" if cpus else ""
    roots = sorted(tree.glob("images/large/**/rootfs.squashfs"))
    url = f"http://127.0.0.1:{port}/streams/v1/images.json"
    sides = {load_of: [load.Side(name, url) for name in ("idle", "hashing", "counting")]
             for load_of in LOADS}
    worked = {load_of: [] for load_of in LOADS}
    with Nginx(directory / "nginx", body, main=main) as nginx:

        def whole():
            return (nginx.fetch(port, "/streams/v1/images.json") or b"").count(b"release_title") == 14

        nginx.wait_for(whole)
        [worker], [builder] = nginx.family("worker process"), nginx.family("cache manager process")
        for _ in range(ROUNDS):
            for load_of, each in LOADS.items():
                idle, busy, count = sides[load_of]
                asked = (worker, 2, CONNECTIONS, False, cpus and cpus.load, each)
                nginx.wait_for(whole)
                idle.measure(*asked)
                for root in roots:
                    with open(root, "r+b") as file:
                        file.seek(SIZE - 1)
                        file.write(os.urandom(1))
                before = load.cpu_seconds(builder)
                busy.measure(*asked)
                worked[load_of].append(load.cpu_seconds(builder) - before)
                nginx.wait_for(whole)
                with counting(threads):
                    count.measure(*asked)
    rows = []
    for load_of, (idle, busy, count) in sides.items():
        least = load.ratios(count.p99, idle.p99)
        p99, rate = load.ratios(busy.p99, idle.p99), load.ratios(busy.rate, idle.rate)
        rows.append([
            load_of, seconds(statistics.median(idle.p99)), seconds(statistics.median(busy.p99)),
            spread(*p99), spread(*least), spread(*rate), seconds(statistics.median(worked[load_of])),
            report.verdict(f"p99 while hashing, {load_of}", p99[0], TARGET)])
    report.title(f"Serving while hashing: p99 at most {TARGET} × of idle", __doc__.strip())
    report.table(["load", "p99 idle", "p99 hashing", "ratio", "while shells count", "requests/s ratio",
                  "builder's CPU in 2 s", ""], rows)
