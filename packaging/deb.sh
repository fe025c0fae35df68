#!/usr/bin/env bash
# Builds the Debian packages in a clean system of each release, and tests them in another one:
#
#   deb.sh [RELEASE...]      bookworm and trixie, if none is named
#
# They come to target/deb/<release>/. As root: the systems are made by mmdebstrap, from the place that
# this machine's apt has Debian from. Rust is this machine's own, and so are the crates, which are
# fetched before; the build itself needs no network. All mounts and processes are in namespaces of their
# own and end with them.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

fail() {
    echo "deb.sh: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || fail "only root can make the systems that the packages are built in"
[ $# -gt 0 ] || set -- bookworm trixie
packaging/deps.sh package
site=$(packaging/debian-site.sh)

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
rust=$(rustc --print sysroot)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
cargo fetch --quiet --locked
version=$(packaging/version.sh)

# system NAME PACKAGES: a clean system of $release in $work/NAME
system() {
    echo "Making a system of $release: $1"
    mmdebstrap --quiet --variant=minbase --include="$2" "$release" "$work/$1" "$site"
}

for release in "$@"; do
    out=$target/deb/$release
    rm -rf "$out"
    mkdir -p "$out"
    work=$(mktemp -d "$target/deb/$release.XXXXXX")
    trap 'rm -rf "$work"' EXIT

    system build build-essential,debhelper,libclang-dev,lintian,make,nginx-dev,pkg-config
    mkdir -p "$work/build/build/source" "$work/build/opt/rust" "$work/build/opt/cargo"
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -P -t "$work/build/build/source"
    number=$(. "$work/build/etc/os-release" && echo "$VERSION_ID")
    sed -i "1s/([^)]*) [a-z]*;/($version~deb$number) $release;/" \
        "$work/build/build/source/debian/changelog"
    # shellcheck disable=SC2016 # expanded inside
    unshare --mount --pid --fork --kill-child --propagation private \
        env work="$work/build" rust="$rust" cargo_home="$cargo_home" bash -euc '
            mount -t proc proc "$work/proc"
            mount --bind -o ro "$rust" "$work/opt/rust"
            mount --bind "$cargo_home" "$work/opt/cargo"
            exec chroot "$work" env HOME=/root PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin \
                CARGO_HOME=/opt/cargo CARGO_NET_OFFLINE=true LC_ALL=C.UTF-8 bash -euc "
                    cd /build/source
                    dpkg-buildpackage --build=binary --no-sign
                    lintian --allow-root --fail-on error,warning /build/*.changes
                "'
    cp "$work"/build/build/*.deb "$out"

    client=lxd-client
    [ "$release" = bookworm ] || client=incus-client
    system test "adduser,curl,iproute2,nginx,openssl,$client"
    mkdir -p "$work/test/packages"
    cp "$out"/*.deb tests/packages/installed.sh "$work/test/packages"
    packaging/demo-image.sh "$work/test/packages/busybox" 20250101_12:00
    # With a network of its own: its ports are free, and nothing can be fetched.
    # shellcheck disable=SC2016 # expanded inside
    unshare --mount --pid --net --fork --kill-child --propagation private \
        env work="$work/test" bash -euc '
            mount -t proc proc "$work/proc"
            ip link set lo up
            exec chroot "$work" env HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
                DEBIAN_FRONTEND=noninteractive bash /packages/installed.sh'
    rm -rf "$work"
    trap - EXIT
    ls -l "$out"
done
