#!/bin/sh
# Collects what the container image consists of, from a system that has all packages installed:
#
#     collect.sh DIR
#
# Programs and the libraries they load, a few files, and for scanners a note of the packages that these
# are from.
set -eu
[ $# -eq 1 ] || { echo "usage: collect.sh DIR" >&2; exit 2; }
image=$1
mkdir -p "$image"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

programs='/bin/busybox /usr/bin/lxd-image-server /usr/lib/nginx/modules/ngx_http_simplestreams_module.so
    /usr/sbin/nginx'
# shellcheck disable=SC2086 # several words
ldd $programs | sed -nE 's#^.*(=> |\t)(/[^ ]+) \(.*#\2#p' > "$work/libraries"
[ -s "$work/libraries" ] || { echo "collect.sh: ldd names no libraries" >&2; exit 1; }

for dir in bin lib lib64 sbin; do
    [ ! -L "/$dir" ] || { ln -s "usr/$dir" "$image/$dir"; mkdir -p "$image/usr/$dir"; }
done
# What a library's name is a link to comes too.
{
    printf '%s\n' $programs /etc/nginx/snippets/simplestreams.conf /etc/lxd-image-server/config.toml \
        /usr/share/nginx/modules /usr/share/nginx/modules-available/mod-http-simplestreams.conf \
        /etc/debian_version /usr/lib/os-release
    while read -r library; do
        echo "$library"
        realpath "$library"
    done < "$work/libraries"
} | sort -u > "$work/files"
tar -C / -c -T "$work/files" | tar -C "$image" -x --keep-directory-symlink
ln -s ../usr/lib/os-release "$image/etc/os-release"

# Of the merged /usr, dpkg knows a file by the one name or by the other.
owner() {
    dpkg-query -S "$1" 2> /dev/null || dpkg-query -S "/usr$1" 2> /dev/null || dpkg-query -S "${1#/usr}"
}
while read -r file; do
    owner "$file" | sed 's/:.*//'
done < "$work/files" | sort -u > "$work/packages"
while read -r package; do
    mkdir -p "$image/var/lib/dpkg/status.d" "$image/usr/share/doc/$package"
    dpkg-query -s "$package" > "$image/var/lib/dpkg/status.d/$package"
    cp -L "/usr/share/doc/$package/copyright" "$image/usr/share/doc/$package/"
done < "$work/packages"

grep -E '^(root|www-data|nobody):' /etc/passwd > "$image/etc/passwd"
grep -E '^(root|www-data|nogroup):' /etc/group > "$image/etc/group"
busybox --list | while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "$image/bin/$applet"
done

mkdir -p "$image/etc/nginx/ssl" "$image/var/lib/simplestreams" "$image/var/www/simplestreams/images"
chown -R www-data:www-data "$image/etc/nginx/ssl" "$image/var/lib/simplestreams" "$image/var/www/simplestreams"
chmod 0700 "$image/var/lib/simplestreams"
mkdir -m 1777 "$image/tmp"
