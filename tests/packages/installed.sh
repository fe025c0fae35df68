#!/usr/bin/env bash
# Runs in a clean Debian with nginx and one client, which packaging/deb.sh makes: what installing,
# upgrading, removing and purging the packages does, and that a real client can use them.
#
# /packages has both packages and an image, busybox/<version>.
set -euo pipefail
cd /packages

fail() {
    echo "FAILED: $*" >&2
    tail -n 20 /var/log/nginx/error.log >&2 || true
    exit 1
}
ok() {
    echo "ok: $*"
}
# until WHAT COMMAND...: again and again, for at most 30 seconds.
until_true() {
    local what=$1 deadline=$((SECONDS + 30))
    shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "waited 30 seconds in vain: $what"
        sleep 0.1
    done
    ok "$what"
}
index() {
    curl -sSf --cacert /etc/nginx/ssl/nginx.crt https://localhost:8443/streams/v1/images.json
}
lists() {
    index | grep "$1" > /dev/null
}
# nginx is the same that was started: neither ended nor started anew.
same_nginx() {
    nginx -t -q || fail "$1: nginx refuses its configuration"
    [ "$(cat /run/nginx.pid)" = "$master" ] && kill -0 "$master" || fail "$1: nginx did not go on"
    curl -sSf -o /dev/null http://localhost/ || fail "$1: nginx does not answer"
    ok "$1: nginx goes on"
}
# The package once more, as version $2.
newer() {
    rm -rf newer
    dpkg-deb -R "$1" newer
    sed -i "s/^Version: .*/&+$2/" newer/DEBIAN/control
    echo "# Newer." >> "newer/$3"
    (cd newer && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | xargs -0 md5sum > DEBIAN/md5sums)
    dpkg-deb --root-owner-group -b newer "newer-${1##*/}" > /dev/null
    dpkg -i --force-confdef --force-confold "newer-${1##*/}"
}

# A minimal system has no names of its own.
printf '127.0.0.1 localhost\n' > /etc/hosts

module=$(echo /packages/libnginx-mod-http-simplestreams_*.deb)
command=$(echo /packages/lxd-image-server_*.deb)
snippet=/etc/nginx/snippets/simplestreams.conf
site=/etc/nginx/sites-enabled/simplestreams.conf
config=/etc/lxd-image-server/config.toml
product=/var/www/simplestreams/images/busybox/1/$(dpkg --print-architecture)/default

# nginx starts without systemd, and the policy of the system that made this one is gone.
nginx
master=$(cat /run/nginx.pid)

# The module alone.
dpkg-deb -f "$module" Depends | grep 'nginx-abi-' > /dev/null || fail "the module fits any nginx"
dpkg -i "$module"
[ -e /etc/nginx/modules-enabled/50-mod-http-simplestreams.conf ] || fail "the module is not enabled"
nginx -s reload
same_nginx "module installed"
mkdir -p /srv/alone/images
sed 's#/var/www/simplestreams#/srv/alone#' "$snippet" > /etc/nginx/snippets/alone.conf
printf 'server { listen 8080; include /etc/nginx/snippets/alone.conf; }\n' > /etc/nginx/conf.d/alone.conf
nginx -s reload
alone() {
    curl -sSf http://localhost:8080/streams/v1/index.json | grep images > /dev/null
}
until_true "the module alone serves an index" alone
rm /etc/nginx/conf.d/alone.conf /etc/nginx/snippets/alone.conf

# The command beside it.
dpkg -i "$command"
same_nginx "command installed"
[ -L "$site" ] || fail "the site is not enabled"
grep -q 'simplestreams on;' "$site" || fail "the site does not use the module"
[ "$(stat -c %U:%G /var/www/simplestreams/images)" = lxdadm:www-data ] || fail "owner of the tree"
[ "$(id -gn lxdadm)" = www-data ] || fail "group of the account"
verbs=$(lxd-image-server --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]\+\) .*/\1/p' | grep -vx help)
[ "$(wc -w <<< "$verbs")" -ge 6 ] || fail "help lists no verbs"
for verb in '' $verbs; do
    [ -e "/usr/share/man/man1/lxd-image-server${verb:+-$verb}.1.gz" ] || fail "no manual page: $verb"
done
for file in bash-completion/completions/lxd-image-server zsh/vendor-completions/_lxd-image-server \
    fish/vendor_completions.d/lxd-image-server.fish; do
    [ -s "/usr/share/$file" ] || fail "no completion: $file"
done
bash -n /usr/share/bash-completion/completions/lxd-image-server
for file in /etc/logrotate.d/lxd-image-server /usr/lib/tmpfiles.d/lxd-image-server.conf \
    /lib/systemd/system/lxd-image-server.service; do
    [ -s "$file" ] || fail "$file is missing"
done
ok "manual pages, completions, service and what belongs to it"
mkdir -p "$product"
cp -r busybox/* "$product/"
until_true "the module lists a version that was copied there" lists 20250101_12:00

# A real client.
if command -v lxc > /dev/null; then client=lxc; else client=incus; fi
conf=~/.config/$client
mkdir -p "$conf/servercerts"
cp /etc/nginx/ssl/nginx.crt "$conf/servercerts/here.crt"
"$client" remote add here https://localhost:8443 --protocol=simplestreams
"$client" image list here: | grep busybox > /dev/null || fail "$client does not list it"
mkdir exported
"$client" image export here:busybox/1/default exported
cmp exported/*.squashfs "$product/20250101_12:00/rootfs.squashfs" || fail "$client got another root"
ok "$client lists and exports"

# Upgrades.
echo "# The administrator's." >> "$config"
echo "# The administrator's." >> "$snippet"
newer "$module" newer etc/nginx/snippets/simplestreams.conf
newer "$command" newer etc/lxd-image-server/config.toml
grep -q "administrator's" "$config" && grep -q "administrator's" "$snippet" || fail "conffiles were replaced"
same_nginx "upgraded"
until_true "it goes on listing" lists 20250101_12:00
nginx -s quit
gone() {
    ! kill -0 "$master"
}
until_true "nginx quits" gone
nginx
master=$(cat /run/nginx.pid)
until_true "it lists after the restart that an upgrade needs" lists 20250101_12:00

# Removal: the module goes first, and takes along the site that needs it.
dpkg -r libnginx-mod-http-simplestreams
[ ! -L "$site" ] || fail "a site that nginx refuses is left"
nginx -s reload
same_nginx "module removed"
dpkg -i --force-confdef --force-confold "$module"
[ -e /etc/nginx/modules-enabled/50-mod-http-simplestreams.conf ] || fail "not enabled again"
lxd-image-server init
until_true "the site comes back with init" lists 20250101_12:00
dpkg -r lxd-image-server
nginx -s reload
same_nginx "command removed"
[ -e "$config" ] || fail "removal took a conffile"
dpkg -P lxd-image-server libnginx-mod-http-simplestreams
nginx -s reload
same_nginx "both purged"
for left in "$config" "$snippet" "$site" /etc/nginx/sites-available/simplestreams.conf \
    /etc/nginx/ssl/nginx.key /etc/nginx/modules-enabled/50-mod-http-simplestreams.conf; do
    [ ! -e "$left" ] || fail "purge leaves $left"
done
[ -e "$product/20250101_12:00/rootfs.squashfs" ] || fail "purge removed images"
ok "purge leaves images alone, and nothing else"

# Port 8443 is taken.
free() {
    ! curl -sSk -o /dev/null https://localhost:8443/
}
until_true "nothing listens on port 8443 any more" free
printf 'server { listen 8443; return 200 taken; }\n' > /etc/nginx/conf.d/taken.conf
nginx -s reload
taken() {
    curl -sSf http://localhost:8443/ | grep taken > /dev/null
}
until_true "port 8443 is taken" taken
dpkg -i "$command" 2>&1 | tee installed.log
[ ! -e "$site" ] || fail "a site was enabled on a port that is taken"
grep -q 'port 8443 is in use' installed.log || fail "it does not say why there is no site"
same_nginx "command installed, its port taken"

# The command without nginx.
dpkg -P lxd-image-server
nginx -s quit
until_true "nginx quits" gone
dpkg -P --force-depends nginx nginx-common
rm -rf /etc/nginx
[ ! -e /usr/sbin/nginx ] || fail "nginx is still there"
dpkg -i "$command"
lxd-image-server update
grep -q 20250101_12:00 /var/www/simplestreams/streams/v1/images.json || fail "no index file"
ok "the command alone, without nginx, makes index files"
