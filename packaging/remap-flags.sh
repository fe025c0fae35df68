#!/bin/sh
# Prints the RUSTFLAGS that keep this machine's paths out of what is built, so that the same source makes
# the same bytes in any directory:
#
#     remap-flags.sh SOURCE TARGET CARGO_HOME
set -eu
[ $# -eq 3 ] || { echo "usage: remap-flags.sh SOURCE TARGET CARGO_HOME" >&2; exit 2; }
# Of prefixes that fit, rustc takes the last one.
echo "--remap-path-prefix=$1=/usr/src/lxd-image-server --remap-path-prefix=$2=/usr/src/lxd-image-server/target" \
    "--remap-path-prefix=$3=/usr/share/cargo"
