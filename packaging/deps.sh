#!/usr/bin/env bash
# Installs what is missing of Debian's packages, by group:
#
#   deps.sh build        what compiles the module
#   deps.sh run          what the demonstration needs beside it
#   deps.sh test         what the tests need beside both: the real clients and their daemons
#   deps.sh proof        what the long proofs need beside those: make soak, valgrind, nginx-tests
#   deps.sh bench        what is measured with, and rivals, beside build and test
#   deps.sh package      what packages and images are made and tried with
#
# Several groups may be given. When everything is there, nothing but dpkg's list is read: no network,
# no root. For the rest it needs root, or sudo.
#
# Services that come with a package are neither started nor enabled, so no port is taken, now or at
# the next boot; a service that runs already is not touched.
set -euo pipefail

build=(nginx nginx-dev gcc libc6-dev libclang-dev make pkg-config)
run=(busybox-static ca-certificates curl openssl squashfs-tools xz-utils)
test=(bindfs incus-base incus-client jq libnginx-mod-http-geoip lxd lxd-client openssh-server
    python3-venv qemu-utils rsync strace wrk xdelta3 zstd)
# nginx's own tests load every module that this nginx was built to load.
proof=(libnginx-mod-{http-{geoip,image-filter,perl,xslt-filter},mail,stream,stream-geoip}
    libcryptx-perl libfcgi-perl libio-socket-ssl-perl perl valgrind wrk)
bench=(apache2-utils curl incus-extra linux-perf nghttp2-client openssl util-linux wrk)
package=(buildah busybox-static debian-archive-keyring mmdebstrap podman runc squashfs-tools xz-utils)
services=(nginx nginx-common openssh-server lxd incus-base)

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

wanted=()
for group in "$@"; do
    case $group in
        build) wanted+=("${build[@]}") ;;
        run) wanted+=("${run[@]}") ;;
        test) wanted+=("${test[@]}") ;;
        proof) wanted+=("${proof[@]}") ;;
        bench) wanted+=("${bench[@]}") ;;
        package) wanted+=("${package[@]}") ;;
        *) echo "usage: $0 {build|run|test|proof|package}..." >&2 && exit 2 ;;
    esac
done
missing=()
for package in "${wanted[@]}"; do
    installed "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get > /dev/null || {
    echo "$0: this is no Debian (apt-get is missing); please install: ${missing[*]}" >&2
    exit 1
}
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null || {
        echo "$0: neither root nor sudo; as root, run: $0 $*" >&2
        exit 1
    }
    exec sudo -- "$0" "$@"
fi

echo "Installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get -q update

# A policy-rc.d that is there already is the administrator's, and stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 0755 "$policy"
fi

# Debian 12 has Incus in its backports alone. Where that suite is fetched from is asked of apt: the
# place of this machine's own "bookworm main".
candidate() {
    apt-cache policy "$1" | grep 'Candidate: [0-9]' > /dev/null
}
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
if [[ " ${missing[*]} " == *" incus-"* && $codename = bookworm ]]; then
    if ! candidate incus-base; then
        site=$("$(dirname "$(realpath "$0")")/debian-site.sh")
        keyring=/usr/share/keyrings/debian-archive-keyring.gpg
        [ -e "$keyring" ] && signed="[signed-by=$keyring] " || signed=
        echo "deb $signed$site $codename-backports main" \
            > /etc/apt/sources.list.d/simplestreams-backports.list
        apt-get -q update
    fi
    # Incus asks for systemd's tool that makes system users. Where systemd itself is not installed,
    # its small stand-in is enough, but apt would choose the large one.
    if ! installed systemd && ! installed systemd-standalone-sysusers; then
        apt-get -q install -y --no-install-recommends systemd-standalone-sysusers
    fi
fi

fresh=()
for package in "${services[@]}"; do
    installed "$package" || fresh+=("$package")
done

apt-get -q install -y --no-install-recommends "${missing[@]}"

if command -v systemctl > /dev/null; then
    for package in "${fresh[@]}"; do
        installed "$package" || continue
        mapfile -t units < <(dpkg -L "$package" |
            sed -nE 's#.*/systemd/system/([^/@]+\.(service|socket))$#\1#p' | sort -u)
        if [ ${#units[@]} -gt 0 ]; then
            systemctl --quiet disable "${units[@]}"
            echo "Installed but left disabled: ${units[*]}"
        fi
    done
fi
