#!/usr/bin/env bash
# Builds the module twice, in directories of different names and with crates in different places, and
# compares the bytes.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

packaging/deps.sh build
cargo_home=$(realpath "${CARGO_HOME:-$HOME/.cargo}")
cargo fetch --quiet --locked
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
mkdir -p "$target"
work=$(mktemp -d "$target/reproducible.XXXXXX")
trap 'rm -rf "$work"' EXIT
module=release/libngx_http_simplestreams_module.so

# Both copies before anything is built: work may go on here meanwhile.
mkdir -p "$work/one" "$work/another"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -P -t "$work/one"
cp -a "$work/one" "$work/another/place"

# build SOURCE TARGET CARGO_HOME
build() {
    ln -s "$cargo_home" "$3"
    (
        cd "$1"
        export CARGO_HOME=$3 CARGO_TARGET_DIR=$2 CARGO_NET_OFFLINE=true NGINX_BUILD_DIR=$2/nginx/objs
        export NGINX_SOURCE_DIR=${NGINX_SOURCE_DIR:-/usr/share/nginx/src}
        RUSTFLAGS=$(packaging/remap-flags.sh "$1" "$2" "$3")
        export RUSTFLAGS
        # Of C that writes it into itself; packages and `make module` set it too.
        export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}
        packaging/nginx-headers.sh "$2"
        cargo build --quiet --release --locked -p ngx-http-simplestreams
    )
    sha256sum "$2/$module"
}

build "$work/one" "$work/one/target" "$work/cargo"
build "$work/another/place" "$work/elsewhere" "$work/crates-of-another-name"
if ! cmp "$work/one/target/$module" "$work/elsewhere/$module"; then
    echo "reproducible.sh: the two differ; what of their texts does:" >&2
    diff <(strings -n 8 "$work/one/target/$module") <(strings -n 8 "$work/elsewhere/$module") | head -n 20 >&2
    exit 1
fi
if strings "$work/elsewhere/$module" | grep -F -e "$work" -e "$cargo_home" -m 5; then
    echo "reproducible.sh: paths of this machine are in it" >&2
    exit 1
fi
echo "Both builds made the same bytes."
