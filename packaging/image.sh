#!/usr/bin/env bash
# Makes the container image and the LXD and Incus image, from the packages of Debian 12, and tests both:
#
#   image.sh
#
# As root. They come to target/image:
#
#   lxd-image-server-<version>.docker.tar    for `docker load` and `podman load`
#   lxd-image-server-<version>.oci.tar       the same in OCI's format, which has no health check
#   tree/                                    the LXD and Incus image as a tree that can be served
#   context/                                 what `docker build` makes the container image of
#
# The packages are made by deb.sh if they are missing, or older than what they are made of.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
umask 022

fail() {
    echo "image.sh: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || fail "only root can make systems"
packaging/deps.sh package
release=bookworm number=12
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
debs=$target/deb/$release out=$target/image
version=$(packaging/version.sh) arch=$(dpkg --print-architecture)
site=$(packaging/debian-site.sh)
# Of the last change, so that the same tree makes images of the same name.
time=$(git log -1 --format=%ct)
serial=$(date -u -d "@$time" +%Y%m%d_%H:%M)

mkdir -p "$debs"
oldest=$(find "$debs" -name '*.deb' -printf '%T@ %p\n' | sort -n | sed -n '1s/^[^ ]* //p')
if [ -z "$oldest" ] || [ -n "$(git ls-files -z --cached --others --exclude-standard core debian nginx-conf \
    ngx-module src build.rs Cargo.lock Cargo.toml packaging/config.toml packaging/lxd-image-server.service |
    xargs -0 -I{} find {} -newer "$oldest" -print -quit)" ]; then
    packaging/deb.sh "$release"
fi

rm -rf "$out"
mkdir -p "$out/context" "$out/tree"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Neither image needs what is for readers.
lean=(--dpkgopt=path-exclude=/usr/share/man/\* --dpkgopt=path-exclude=/usr/share/locale/\*
    --dpkgopt=path-exclude=/usr/share/doc/\* --dpkgopt=path-include=/usr/share/doc/\*/copyright
    --dpkgopt=path-exclude=/usr/share/info/\*)

echo "The container image: a base of Debian's packages"
mmdebstrap --quiet --variant=minbase "${lean[@]}" "$release" "$work/base.tar" "$site"
# A storage of its own, which goes with $work.
mkdir "$work/storage"
buildah=(buildah --root "$work/storage/root" --runroot "$work/storage/run" --storage-driver vfs)
base=$("${buildah[@]}" from scratch)
"${buildah[@]}" add --quiet "$base" "$work/base.tar" / > /dev/null
"${buildah[@]}" commit --quiet --rm "$base" localhost/base > /dev/null
rm "$work/base.tar"

echo "The container image: building"
cp packaging/image/{Containerfile,collect.sh,nginx.conf,serve.sh} "$debs"/*.deb "$out/context"
name=localhost/lxd-image-server:$version
"${buildah[@]}" bud --quiet --isolation chroot --network host --format docker --timestamp "$time" \
    --build-arg BASE=localhost/base --tag "$name" "$out/context" > "$work/bud.log" 2>&1 ||
    { cat "$work/bud.log" >&2; fail "buildah failed"; }
file=$out/lxd-image-server-$version
"${buildah[@]}" push --quiet "$name" "docker-archive:$file.docker.tar:$name"
"${buildah[@]}" push --quiet --format oci "$name" "oci-archive:$file.oci.tar:$version" 2> "$work/push.log" ||
    { cat "$work/push.log" >&2; fail "no OCI archive"; }
rm -rf "$work/storage"

echo "The LXD and Incus image"
mkdir -p "$work/packages/image"
cp "$debs"/*.deb "$work/packages"
cp packaging/image/certificate.service "$work/packages/image"
# udev is what systemd recommends; a container has none.
mmdebstrap --quiet --variant=minbase "${lean[@]}" \
    --include=adduser,logrotate,nginx,systemd-resolved,systemd-sysv \
    --customize-hook="copy-in $work/packages /" --customize-hook=packaging/image/lxd-rootfs.sh \
    "$release" "$work/rootfs" "$site" > "$work/rootfs.log" 2>&1 ||
    { cat "$work/rootfs.log" >&2; fail "mmdebstrap failed"; }

mkdir -p "$work/metadata/templates" "$work/version"
cat > "$work/metadata/metadata.yaml" <<YAML
architecture: $(uname -m)
creation_date: $time
properties:
  architecture: $arch
  description: Image server for LXD and Incus $version $arch, on Debian $number ($serial)
  name: lxd-image-server-$version-$arch-$serial
  os: lxd-image-server
  release: "$version"
  serial: "$serial"
  variant: default
templates:
  /etc/hostname:
    when: [create, copy]
    template: hostname.tpl
  /etc/hosts:
    when: [create, copy]
    template: hosts.tpl
YAML
echo '{{ container.name }}' > "$work/metadata/templates/hostname.tpl"
printf '127.0.0.1 localhost\n127.0.1.1 {{ container.name }}\n::1 localhost ip6-localhost ip6-loopback\n' \
    > "$work/metadata/templates/hosts.tpl"
tar -C "$work/metadata" --format=gnu --sort=name --mtime="@$time" --owner=0 --group=0 --numeric-owner \
    --mode='u=rwX,go=rX' -cf - metadata.yaml templates | xz -T1 -6 > "$work/version/lxd.tar.xz"
# The only attributes in it are access lists of the journal, which systemd sets again.
env -u SOURCE_DATE_EPOCH mksquashfs "$work/rootfs" "$work/version/rootfs.squashfs" -quiet -no-progress \
    -noappend -no-xattrs -comp xz -mkfs-time "$time" > /dev/null
product=$out/tree/images/lxd-image-server/$version/$arch/default
mkdir -p "$product"
mv -T "$work/version" "$product/$serial"

echo "Sizes in bytes: files, and what is unpacked of them"
stat -c '%s %n' "$file".*.tar "$product/$serial"/*
du -sb "$work/rootfs" | sed 's#\t.*# the root of the LXD and Incus image#'
rm -rf "$work"
trap - EXIT
