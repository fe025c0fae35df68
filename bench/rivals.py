"""Other makers of an index, where they are installed; a part leaves out the ones that are not.

The Python tool `lxd-image-server` is not on PyPI, and none of it is in this repository. Get it from
its authors (github.com/Avature/lxd-image-server), and name its directory:

    make bench LXD_IMAGE_SERVER_PY=/path/to/lxd-image-server

Its dependencies come from PyPI, into an environment under target/bench.
"""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from server import REPOSITORY

OURS = REPOSITORY / "target/release/lxd-image-server"
DEPENDENCIES = ["attrs", "click", "inotify", "cryptography", "confight", "python-pidfile",
                "setuptools"]


def python_tool():
    """The command of the Python tool, without its verb; None where it is not there."""
    place = os.environ.get("LXD_IMAGE_SERVER_PY")
    if not place:
        return None
    if not (Path(place) / "lxd_image_server/cli.py").is_file():
        raise SystemExit(f"LXD_IMAGE_SERVER_PY: no lxd_image_server/cli.py in \"{place}\"")
    venv = REPOSITORY / "target/bench-venv"
    python = venv / "bin/python"
    if not (venv / "complete").exists():
        subprocess.run(["python3", "-m", "venv", "--clear", venv], check=True)
        subprocess.run([python, "-m", "pip", "-q", "install", *DEPENDENCIES], check=True)
        (venv / "complete").touch()
    # Its configuration files are this machine's; what they say is where to log, and mirrors.
    start = (f"import sys; sys.path.insert(0, {place!r}); import lxd_image_server.cli as tool; "
             "tool.Config.load_data = tool.update_config = lambda: None; "
             "tool.configure_log = lambda verbose=False: None; "
             "tool.MirrorManager.update_mirror_list = tool.MirrorManager.update = lambda: None; ")
    return [str(python), "-c", start]


def prepared(tree):
    """An empty directory for the index of `tree`, below which the Python tool wants it."""
    streams = Path(tree) / "streams/v1"
    shutil.rmtree(streams, ignore_errors=True)
    streams.mkdir(parents=True)
    return streams


def python_update(tool, tree):
    *python, start = tool
    return [*python, start + "tool.cli()", "update", "--img_dir", Path(tree) / "images",
            "--streams_dir", Path(tree) / "streams/v1"]


def python_watch(tool, tree):
    *python, start = tool
    return [*python, start + f"tool._watch({str(Path(tree) / 'images')!r}, "
                             f"{str(Path(tree) / 'streams/v1')!r})"]


def our_config(directory):
    """An empty configuration, for this machine's own to have no say."""
    path = Path(directory) / "config.toml"
    path.write_text(f'data_dir = "{directory}/data"\n')
    return path


def our_update(tree, config, streams=None):
    return [OURS, "--config", config, "update", "--no-wait", "--img-dir", Path(tree) / "images",
            "--streams-dir", streams or Path(tree) / "streams/v1"]


def incus_metadata(path, os):
    """Metadata of an image as `incus-simplestreams add` wants it, in a tarball at `path`."""
    yaml = (f"architecture: x86_64\ncreation_date: 1767225600\nproperties:\n  os: {os}\n"
            "  release: one\n  variant: default\n  architecture: amd64\n  description: bench\n").encode()
    with tarfile.open(path, "w:xz") as tar:
        member = tarfile.TarInfo("metadata.yaml")
        member.size = len(yaml)
        tar.addfile(member, io.BytesIO(yaml))
    return path


def incus_simplestreams():
    return shutil.which("incus-simplestreams")
