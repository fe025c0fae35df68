"""What a command takes: wall clock, CPU and memory, its children's included."""

import os
import resource
import subprocess
import time
from dataclasses import dataclass


@dataclass
class Taken:
    wall: float
    cpu: float
    """Seconds, user and system."""
    peak: int
    """Bytes resident at most, of the largest process."""


def take(command, **options):
    """Runs a command to its end; a failure ends the bench."""
    begun = time.monotonic()
    with open(os.devnull, "w") as null:
        child = subprocess.Popen([str(word) for word in command], stdout=null,
                                 stderr=subprocess.PIPE, text=True, **options)
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{command} failed with {child.returncode}:\n{said[-4000:]}")
    return Taken(time.monotonic() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def memory(pid):
    """(of its own, shared) bytes resident of a process.

    Its own is anonymous memory, in which pages that it has in common with its parent count by their
    share. Mapped sealed memory counts as shared, even while nobody else has it mapped.
    """
    sums = {}
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if rest.strip().endswith("kB"):
                sums[name] = int(rest.split()[0]) * 1024
    return sums["Pss_Anon"], sums["Rss"] - sums["Anonymous"]


def peak(pid):
    """The most bytes that a process has had resident."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def let_files_open():
    """As many descriptors as may be had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
