#!/usr/bin/env bash
# Lists the crates that module and command consist of, in CycloneDX's format:
#
#   target/sbom/lxd-image-server-<version>.cdx.json
#   target/sbom/ngx-http-simplestreams-<version>.cdx.json
#
# cargo-cyclonedx is installed below target/tools if it is missing.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
tools=$target/tools out=$target/sbom version=$(packaging/version.sh)
export PATH=$PATH:$tools/bin
if ! command -v cargo-cyclonedx > /dev/null; then
    cargo install --quiet --debug --locked --root "$tools" --target-dir "$tools/build" cargo-cyclonedx@0.5.9
    rm -r "$tools/build"
fi
mkdir -p "$out"
# It writes beside every Cargo.toml, so it is given a copy.
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -P -t "$work"
(cd "$work" && cargo-cyclonedx cyclonedx --format json --spec-version 1.5 --target x86_64-unknown-linux-gnu \
    --override-filename sbom)
for package in lxd-image-server:. ngx-http-simplestreams:ngx-module; do
    # Where it was made is nobody's business.
    sed "s#$work#/usr/src/lxd-image-server#g" "$work/${package#*:}/sbom.json" \
        > "$out/${package%%:*}-$version.cdx.json"
done
ls -l "$out"
