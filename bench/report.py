"""The report: what was measured, on which machine, in tables; on the terminal and in a file."""

import os
import platform
import re
import subprocess
from pathlib import Path


def first_line(*command):
    """The first line that a command prints, or a dash where it is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "-"
    return ((done.stdout + done.stderr).strip().splitlines() or ["-"])[0]


def machine():
    """Pairs of what and which."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    flags = set(Path("/proc/cpuinfo").read_text().split())
    memory = int(re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[1]) / 2**20
    return [
        ("processor", f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, "
                      f"SHA extensions {'yes' if 'sha_ni' in flags else 'no'}, "
                      f"VAES {'yes' if 'vaes' in flags else 'no'}"),
        ("memory", f"{memory:.0f} GiB"),
        ("kernel", platform.release()),
        ("load when it began", " ".join(f"{x:.2f}" for x in os.getloadavg())),
        ("nginx", first_line("nginx", "-v").removeprefix("nginx version: ")),
        ("OpenSSL", first_line("openssl", "version")),
        ("wrk, ab", f"{first_line('wrk', '-v')[:12]}, {first_line('ab', '-V')[8:50]}"),
        ("Python", platform.python_version()),
        ("lxc, incus", f"{first_line('lxc', '--version')}, {first_line('incus', '--version')}"),
    ]


class Report:
    """Collects tables; each is shown at once."""

    def __init__(self, path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")
        self.missed = []

    def say(self, text=""):
        print(text, flush=True)
        with self.path.open("a") as file:
            file.write(text + "\n")

    def title(self, text, about=""):
        self.say(f"\n## {text}\n")
        if about:
            self.say(about + "\n")

    def table(self, header, rows):
        rows = [[str(cell) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        line = lambda row: "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
        self.say(line(header))
        self.say("|" + "|".join("-" * (w + 2) for w in widths) + "|")
        for row in rows:
            self.say(line(row))
        self.say()

    def verdict(self, what, value, target, at_least=False):
        """`reached`, or by how much not; keeps what was missed for the end."""
        good = value >= target if at_least else value <= target
        if not good:
            self.missed.append(f"{what}: {value:.3g}, to reach was {target:g}")
        return "reached" if good else "**missed**"


def seconds(value):
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.2f} s"


def mebibytes(value):
    return f"{value / 2**20:.1f} MiB"


def spread(median, least, most):
    return f"{median:.2f} ({least:.2f}–{most:.2f})"
