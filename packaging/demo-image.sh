#!/usr/bin/env bash
# Makes one version of a small container image that LXD and Incus can start: busybox and nothing
# else, about 1 MiB.
#
#   demo-image.sh DIR SERIAL
#
# DIR is the product's directory, such as <root>/images/busybox/1.35/amd64/default, and SERIAL the
# version's name, such as 20250101_12:00. Makes DIR/SERIAL with lxd.tar.xz and rootfs.squashfs in it;
# a version that is there already is left alone. Inside the container /etc/image-serial holds SERIAL.
#
# Needs busybox-static, squashfs-tools, tar and xz-utils, but not root. All times in the image come
# from SERIAL, so the same tools make the same bytes.
set -euo pipefail
umask 022

if [ $# -ne 2 ] || ! [[ $2 =~ ^[0-9]{8} ]]; then
    echo "usage: $0 DIR SERIAL  (SERIAL begins with a date, YYYYMMDD)" >&2
    exit 2
fi
dir=$1 serial=$2
[ ! -e "$dir/$serial" ] || exit 0

busybox=$(command -v busybox) || { echo "$0: busybox is missing (package busybox-static)" >&2; exit 1; }
release=$("$busybox" 2>&1 | sed -n '1s/^BusyBox v\([0-9]*\.[0-9]*\).*/\1/p')
arch=$(dpkg --print-architecture)
# The kernel's names, as metadata.yaml has them.
case $arch in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    armhf) machine=armv7l ;;
    i386) machine=i686 ;;
    ppc64el) machine=ppc64le ;;
    *) machine=$arch ;;
esac
created=$(date -u -d "${serial:0:8}" +%s)

# Everything is made in a directory that begins with a dot, which no index lists, and renamed when
# it is whole.
mkdir -p "$dir"
work=$(mktemp -d "$dir/.demo-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/metadata" "$work/rootfs" "$work/version"

rootfs=$work/rootfs
mkdir -p "$rootfs"/{bin,dev,etc/init.d,mnt,proc,root,run,sbin,sys,tmp,usr/bin,usr/sbin,usr/share/udhcpc,var}
chmod 1777 "$rootfs/tmp"
chmod 0700 "$rootfs/root"
cp "$busybox" "$rootfs/bin/busybox"
"$busybox" --list | while read -r applet; do
    case $applet in
        busybox | init) ;;
        *) ln -s busybox "$rootfs/bin/$applet" ;;
    esac
done

cat > "$rootfs/sbin/init" <<'INIT'
#!/bin/sh
# Process 1. LXD and Incus ask for a stop with SIGPWR and for a restart with SIGINT, which busybox's
# own init does not know.
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
trap 'exec poweroff -f' PWR
trap 'exec reboot -f' INT
/etc/init.d/rcS
while :; do
    sleep 86400 &
    wait $!
done
INIT
cat > "$rootfs/etc/init.d/rcS" <<'RCS'
#!/bin/sh
[ ! -e /etc/hostname ] || hostname -F /etc/hostname
ip link set lo up
[ ! -e /sys/class/net/eth0 ] || udhcpc -b -i eth0 >/dev/null 2>&1
RCS
cat > "$rootfs/usr/share/udhcpc/default.script" <<'DHCP'
#!/bin/sh
case $1 in
    deconfig)
        ip address flush dev "$interface"
        ip link set "$interface" up
        ;;
    bound | renew)
        ip address replace "$ip/${mask:-24}" dev "$interface"
        for gateway in $router; do ip route replace default via "$gateway"; break; done
        : > /etc/resolv.conf
        for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done
        ;;
esac
DHCP
# Where busybox was built to look for it differs between distributions.
mkdir -p "$rootfs/etc/udhcpc"
ln -s /usr/share/udhcpc/default.script "$rootfs/etc/udhcpc/default.script"
chmod 0755 "$rootfs/sbin/init" "$rootfs/etc/init.d/rcS" "$rootfs/usr/share/udhcpc/default.script"
echo 'root:x:0:0:root:/root:/bin/sh' > "$rootfs/etc/passwd"
echo 'root:x:0:' > "$rootfs/etc/group"
echo '127.0.0.1 localhost' > "$rootfs/etc/hosts"
echo 'busybox' > "$rootfs/etc/hostname"
echo "$serial" > "$rootfs/etc/image-serial"

mkdir "$work/metadata/templates"
cat > "$work/metadata/metadata.yaml" <<YAML
architecture: $machine
creation_date: $created
properties:
  architecture: $arch
  description: BusyBox $release $arch ($serial)
  name: busybox-$release-$arch-$serial
  os: BusyBox
  release: "$release"
  serial: "$serial"
  variant: default
templates:
  /etc/hostname:
    when: [create, copy]
    template: hostname.tpl
YAML
echo '{{ container.name }}' > "$work/metadata/templates/hostname.tpl"

tar -C "$work/metadata" --format=gnu --sort=name --mtime="@$created" --owner=0 --group=0 \
    --numeric-owner --mode='u=rwX,go=rX' -cf - metadata.yaml templates |
    xz -T1 -6 > "$work/version/lxd.tar.xz"
# The environment may carry a time of its own, which mksquashfs refuses beside ours.
env -u SOURCE_DATE_EPOCH mksquashfs "$rootfs" "$work/version/rootfs.squashfs" -quiet -no-progress \
    -noappend -no-xattrs -all-root -reproducible -processors 1 -comp xz \
    -mkfs-time "$created" -all-time "$created" > /dev/null

mv -T "$work/version" "$dir/$serial"
