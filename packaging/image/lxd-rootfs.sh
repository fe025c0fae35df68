#!/bin/sh
# Turns a system of Debian's packages into the root of the LXD and Incus image. mmdebstrap calls it:
#
#     lxd-rootfs.sh ROOT      ROOT/packages has both packages, ROOT/packages/image these files
set -eu
[ $# -eq 1 ] || { echo "usage: lxd-rootfs.sh ROOT" >&2; exit 2; }
root=$1

# The command last: the site that it makes uses the module if it is there. And without a network: it
# makes none if its port is taken on this machine.
unshare --net chroot "$root" sh -euc '
    dpkg -i /packages/libnginx-mod-http-simplestreams_*.deb
    dpkg -i /packages/lxd-image-server_*.deb
    test -e /etc/nginx/sites-enabled/simplestreams.conf
    install -m 0644 /packages/image/certificate.service /etc/systemd/system/image-server-certificate.service
    systemctl --quiet enable image-server-certificate.service nginx.service systemd-networkd.service
    # nginx makes the index; this is for mirrors.
    systemctl --quiet disable lxd-image-server.service
    # What the unit may do, in tenths of ten: it was 17 when this was written.
    systemd-analyze security --no-pager --offline=yes --threshold=20 lxd-image-server.service > /tmp/security ||
        { cat /tmp/security >&2; exit 1; }
    rm /tmp/security
    logrotate --debug /etc/logrotate.d/lxd-image-server
    # Every container makes its own.
    rm /etc/nginx/ssl/nginx.crt /etc/nginx/ssl/nginx.key
    # Nobody asks for the page that nginx comes with.
    rm /etc/nginx/sites-enabled/default
    # A container has no hardware, no console but its one, and no other use for these.
    systemctl --quiet mask systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
        systemd-udev-trigger.service systemd-networkd-wait-online.service
    apt-get clean
'
cat > "$root/etc/systemd/network/eth0.network" <<'NETWORK'
[Match]
Name=eth0

[Network]
DHCP=yes
NETWORK
rm -rf "$root/packages" "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/apt \
    "$root"/var/log/*.log "$root"/var/log/nginx/* "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old
rm -rf "$root/var/lib/nginx/simplestreams"
# Made anew by each container.
: > "$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root/etc/resolv.conf" "$root/var/lib/dbus/machine-id"
ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
