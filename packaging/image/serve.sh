#!/bin/sh
# Process 1 of the container: makes what is missing, then becomes nginx.
set -eu

fail() {
    echo "serve: $*" >&2
    exit 1
}
ssl=/etc/nginx/ssl
https=${HTTPS_PORT:-8443} http=${HTTP_PORT:-8080}
for port in "$https" "$http"; do
    case $port in '' | *[!0-9]*) fail "\"$port\" is no port (HTTPS_PORT, HTTP_PORT)" ;; esac
done

if [ ! -e $ssl/nginx.crt ] || [ ! -e $ssl/nginx.key ]; then
    set --
    for name in ${NAMES:-}; do
        set -- "$@" --san "$name"
    done
    lxd-image-server init --certificate-only --ssl-dir $ssl "$@" ||
        fail "no certificate: put nginx.crt and nginx.key into a volume at $ssl, or let user $(id -u) write there"
fi

mkdir -p /tmp/nginx
listen() {
    echo "listen $1;"
    [ ! -e /proc/net/if_inet6 ] || echo "listen [::]:$1;"
}
listen "$https ssl http2" > /tmp/nginx/https.conf
listen "$http" > /tmp/nginx/http.conf
exec nginx -e stderr -c /etc/nginx/nginx.conf
