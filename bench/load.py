"""Load on one worker, and what it took: requests per second, the slowest percent, the worker's CPU.

wrk makes the load; ab does for HEAD, whose answers wrk waits for a body of; h2load where so many requests a
second are to be, and no more. Both sides of a cell are measured in turns, several times, and what counts is
the ratio within each turn: what else happens on the machine meets both.
"""

import re
import statistics
import subprocess
import tempfile
from pathlib import Path

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def cpu_seconds(pid):
    """CPU time that a process has taken, by the scheduler's own nanoseconds."""
    return sum(int((task / "schedstat").read_text().split()[0])
               for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def run(url, seconds, connections, headers=(), head=False, cpus=None):
    """(requests per second, requests, p99 in seconds) of one load."""
    pin = ["taskset", "-c", cpus] if cpus else []
    lines = [word for header in headers for word in ("-H", header)]
    percentiles = tempfile.NamedTemporaryFile(suffix=".csv")
    if head:
        command = ["ab", "-q", "-e", percentiles.name, "-i", "-k", "-c", str(connections), "-t", str(seconds),
                   "-n", "100000000", *lines, url]
    else:
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency",
                   *lines, url]
    text = subprocess.run(pin + command, check=True, capture_output=True, text=True).stdout

    def number(pattern):
        found = re.search(pattern, text)
        if not found:
            raise SystemExit(f"{' '.join(command)} said:\n{text}")
        return found

    if re.search(r"Non-2xx or 3xx|Socket errors|Failed requests: +[1-9]", text):
        raise SystemExit(f"{' '.join(command)} met errors:\n{text}")
    if head:
        requests = int(number(r"Complete requests: +(\d+)")[1])
        rate = float(number(r"Requests per second: +([\d.]+)")[1])
        # On the terminal ab tells whole milliseconds.
        slowest = re.search(r"^99,([\d.]+)$", Path(percentiles.name).read_text(), re.MULTILINE)
        return rate, requests, float(slowest[1]) / 1e3
    requests = int(number(r"(\d+) requests in")[1])
    rate = float(number(r"Requests/sec: +([\d.]+)")[1])
    slowest = number(r"99% +([\d.]+)(us|ms|s|m)\b")
    return rate, requests, float(slowest[1]) * UNITS[slowest[2]]


def shares(pid, url, seconds, connections, headers=(), head=False, cpus=None):
    """Parts of the worker's time during a load, by what it is spent in; None where perf does not work."""
    kinds = {"kernel": "kernel", "libcrypto": "cipher", "libssl": "cipher", "libc": "libc", "nginx": "nginx",
             "libngx_http_simplestreams": "module"}
    with tempfile.NamedTemporaryFile(suffix=".perf") as data:
        # It ends with the load, a little after it.
        recording = subprocess.Popen(
            ["perf", "record", "-q", "-F", "2000", "-p", str(pid), "-o", data.name, "--", "sleep", str(seconds)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run(url, seconds, connections, headers, head, cpus)
        if recording.wait() != 0:
            return None
        text = subprocess.run(["perf", "report", "-i", data.name, "--stdio", "-q", "--sort", "dso"],
                              capture_output=True, text=True).stdout
    found = dict.fromkeys([*kinds.values(), "other"], 0.0)
    for part, place in re.findall(r"^ *([\d.]+)% +\[?(\S+?)\]? *$", text, re.MULTILINE):
        kind = next((kind for begin, kind in kinds.items() if place.startswith(begin)), "other")
        found[kind] += float(part)
    return found if found["kernel"] else None


def paced(url, seconds, connections, each, cpus=None):
    """As `run`, with `each` requests per second and connection: what is left of the machine stays free."""
    pin = ["taskset", "-c", cpus] if cpus else []
    with tempfile.NamedTemporaryFile(suffix=".tsv") as log:
        subprocess.run([*pin, "h2load", "--h1", f"-c{connections}", f"--rps={each}", f"-D{seconds}",
                        f"--log-file={log.name}", url], check=True, capture_output=True, text=True)
        answers = [line.split() for line in Path(log.name).read_text().splitlines()]
    if not answers or any(status != "200" for _, status, *_ in answers):
        raise SystemExit(f"h2load met errors at {url}")
    times = sorted(int(took) for _, _, took, *_ in answers)
    return len(answers) / seconds, len(answers), times[len(times) * 99 // 100] / 1e6


class Side:
    """One of those that are compared, and its measurements so far."""

    def __init__(self, name, url, headers=()):
        self.name, self.url, self.headers = name, url, headers
        self.rate, self.p99, self.cpu = [], [], []

    def measure(self, worker, seconds, connections, head, cpus, each=None):
        before = cpu_seconds(worker)
        if each is None:
            rate, requests, p99 = run(self.url, seconds, connections, self.headers, head, cpus)
        else:
            rate, requests, p99 = paced(self.url, seconds, connections, each, cpus)
        self.rate.append(rate)
        self.p99.append(p99)
        self.cpu.append((cpu_seconds(worker) - before) / max(requests, 1))


def alternate(sides, rounds, worker, seconds=1, connections=16, head=False, cpus=None):
    """Measures every side in every round, each round beginning with another one."""
    for number in range(rounds):
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            side.measure(worker, seconds, connections, head, cpus)


def ratios(ours, theirs):
    """Of two lists of measurements, turn by turn: median, least and greatest."""
    each = sorted(a / b for a, b in zip(ours, theirs) if b)
    return statistics.median(each), each[0], each[-1]
