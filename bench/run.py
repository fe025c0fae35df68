#!/usr/bin/env python3
"""`make bench`: measures, and writes a report of ratios. See README.md beside this file."""

import argparse
import importlib
import os
import shutil
import sys
import time
from pathlib import Path

import trees
from report import Report, machine
from server import REPOSITORY

PARTS = ["serving", "hashing", "freshness", "indexing", "change", "clients"]
BENCH = REPOSITORY / "target/bench"


class Cpus:
    """One core for nginx, the others for the load; with one core there is nothing to divide."""

    def __init__(self):
        first, *others = sorted(os.sched_getaffinity(0))
        self.nginx_mask = f"{1 << first:b}"
        self.nginx = str(first)
        self.load = ",".join(map(str, others))


class Work:
    """Where the parts have their files; trees are made once and shared."""

    def __init__(self):
        self.trees = {}
        # Seconds that the Python tool took, by number of versions.
        self.python_update = {}

    def fresh(self, name):
        directory = BENCH / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def tree(self, versions):
        return BENCH / f"tree-{versions}"

    def make_tree(self, versions, root_size):
        tree = self.tree(versions)
        if tree not in self.trees:
            trees.remove(tree)
            trees.make(tree, versions, root_size)
            self.trees[tree] = root_size
            # Files that are a moment old might still be written to, as far as anybody can tell.
            time.sleep(2.5)
        return tree

    def cpus(self):
        return Cpus() if len(os.sched_getaffinity(0)) > 1 else None

    def clean(self):
        for tree in self.trees:
            trees.remove(tree)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} [all]")
    parser.add_argument("--keep", action="store_true", help="leave trees and logs in target/bench")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    report = Report(BENCH / "report.md")
    report.say("# Bench\n")
    report.table(["", ""], machine())
    work = Work()
    begun = time.monotonic()
    try:
        for name in [part for part in PARTS if part in (arguments.parts or PARTS)]:
            print(f"\n=== {name}", flush=True)
            importlib.import_module(name).run(work, report)
    finally:
        if not arguments.keep:
            work.clean()
            for name in PARTS:
                shutil.rmtree(BENCH / name, ignore_errors=True)
    report.title("Missed")
    for line in report.missed or ["nothing"]:
        report.say(f"- {line}")
    report.say(f"\nIt took {(time.monotonic() - begun) / 60:.0f} minutes.")
    print(f"\nThis report: {report.path.relative_to(Path.cwd()) if report.path.is_relative_to(Path.cwd()) else report.path}")


if __name__ == "__main__":
    sys.exit(main())
