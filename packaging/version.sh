#!/bin/sh
# Prints the version of everything here, which stands in Cargo.toml and nowhere else.
set -eu
cd "$(dirname "$0")/.."
sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml
