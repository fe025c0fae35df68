#!/usr/bin/env bash
# Installs python-simplestreams, a reader of image servers that the tests try the server with, from
# the Python package index that pip is configured for.
#
#   sstream.sh DIR
#
# Makes DIR, a virtual environment with bin/sstream-query and bin/sstream-mirror in it; one that is
# there already with the right version is left alone. Needs Debian's python3-venv.
set -euo pipefail

version=0.1.0.post59

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
dir=$1 done=$1/python-simplestreams-$version

mkdir -p "$dir"
exec 9> "$dir.lock"
flock 9
[ ! -e "$done" ] || exit 0
# Debian's own Python, whichever comes first in PATH.
/usr/bin/python3 -m venv --clear "$dir"
"$dir/bin/pip" --quiet --disable-pip-version-check install "python-simplestreams==$version"
touch "$done"
