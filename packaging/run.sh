#!/usr/bin/env bash
# Serves a tree of images in the foreground until Ctrl-C, with nginx-conf/site.conf and everything
# that it writes under run/. `make run` builds the module and calls this.
#
#   run.sh MODULE     with MODULE the module's .so; in the environment, all optional:
#
#   PORT=8443         the port of https
#   ROOT=/path        a tree of your own, which is only read; default is a demonstration
#   LISTEN=0.0.0.0    the address to listen on; default is this machine alone
set -euo pipefail
umask 022

fail() {
    echo "run.sh: $*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: packaging/run.sh MODULE"
[ -f "$1" ] || fail "no module at \"$1\"; make module builds it"
module=$(realpath "$1")
port=${PORT:-8443}
[[ $port =~ ^[1-9][0-9]{0,4}$ ]] && ((port < 65536)) || fail "PORT=$port is no port"
root=
if [ -n "${ROOT:-}" ]; then
    [ -d "$ROOT" ] || fail "ROOT=$ROOT is no directory"
    root=$(realpath "$ROOT")
fi
cd "$(dirname "$(realpath "$0")")/.."
repository=$PWD run=$PWD/run
PATH=$PATH:/usr/sbin:/sbin
command -v nginx > /dev/null || fail "nginx is missing"

if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
    fail "port $port is in use; take another: make run PORT=$((port < 65535 ? port + 1 : 8443))"
fi

mkdir -p "$run/nginx" "$run/tls"

# The tree.
if [ -z "$root" ]; then
    root=$run/tree
    arch=$(dpkg --print-architecture)
    release=$(busybox | sed -n '1s/^BusyBox v\([0-9]*\.[0-9]*\).*/\1/p')
    product=$root/images/busybox/$release/$arch/default
    packaging/demo-image.sh "$product" 20250101_12:00
    packaging/demo-image.sh "$product" 20250201_12:00
else
    product=
    [ -d "$root/images" ] || echo "Note: $root has no directory \"images\" yet; nothing is listed."
fi
for path in "$root" "$run" "$module"; do
    # These would have to be escaped in nginx's configuration, and "$" cannot be.
    [[ $path != *[\"\\\$[:cntrl:]]* ]] || fail "a path with one of \" \\ \$ in it cannot be served: $path"
done

# The certificate: made once, kept as long as it is good for a day and for this host's name.
crt=$run/tls/localhost.crt key=$run/tls/localhost.key host=$(uname -n)
good() {
    [ -s "$crt" ] && [ -s "$key" ] &&
        openssl x509 -in "$crt" -noout -checkend 86400 > /dev/null &&
        openssl x509 -in "$crt" -noout -checkhost "$host" | grep 'does match' > /dev/null
}
if ! good; then
    (
        umask 077
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 825 \
            -keyout "$key" -out "$crt" -subj /CN=localhost \
            -addext "subjectAltName=DNS:localhost,DNS:$host,IP:127.0.0.1,IP:::1" \
            -addext basicConstraints=critical,CA:FALSE 2> "$run/tls/openssl.log"
    ) || fail "openssl made no certificate: $(cat "$run/tls/openssl.log")"
    chmod 0644 "$crt"
fi

# Workers of a master that runs as root give root up, if what they serve can be read without it.
user=
if [ "$(id -u)" -eq 0 ]; then
    user='user www-data;'
    for path in "$root" "$run"; do
        if ! setpriv --reuid=www-data --regid=www-data --clear-groups test -r "$path" -a -x "$path"; then
            echo "Note: www-data cannot read $path, so nginx's workers run as root."
            user='user root;'
            break
        fi
    done
fi

# The site, with its names and places replaced; of its two servers the first, for the second only
# serves port 80.
site=$(awk '/^server \{/ { n++ } n < 2' nginx-conf/site.conf)
replace() {
    [[ $site == *"$1"* ]] || fail "nginx-conf/site.conf has no \"$1\" any more"
    site=${site//"$1"/"$2"}
}
listen6=
if [ -n "${LISTEN:-}" ]; then
    listen=$LISTEN:$port
else
    listen=127.0.0.1:$port
    if grep -qs '^0\{31\}1 ' /proc/net/if_inet6; then
        listen6="listen [::1]:$port ssl http2;"
    fi
fi
replace 'listen 443 ssl http2;' "listen $listen ssl http2;"
replace 'listen [::]:443 ssl http2;' "$listen6"
replace 'server_name images.example.org;' 'server_name localhost;'
replace /etc/ssl/certs/images.example.org.pem "\"$crt\""
replace /etc/ssl/private/images.example.org.key "\"$key\""
replace 'root /var/www/simplestreams;' "root \"$root\";"

cat > "$run/nginx/nginx.conf" <<CONF
# Written by packaging/run.sh at every start.
$user
load_module "$module";
worker_processes auto;
daemon off;
pid nginx.pid;
error_log stderr notice;
events {
    worker_connections 1024;
}
http {
    log_format clients '\$remote_addr \$scheme \$request_method \$uri \$status \$body_bytes_sent "\$http_user_agent"';
    access_log access.log clients;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    simplestreams_state_path state;
$site
}
CONF
nginx=(nginx -p "$run/nginx/" -e stderr -c "$run/nginx/nginx.conf")
"${nginx[@]}" -t -q || fail "nginx refuses the configuration above"

url=https://localhost:$port
for client in lxc incus; do
    case $client in
        lxc) title=LXD conf='${LXD_CONF:-$HOME/.config/lxc}' ;;
        incus) title=Incus conf='${INCUS_CONF:-$HOME/.config/incus}' ;;
    esac
    cat <<TEXT

With $title (the certificate is what makes $client trust this server):

    mkdir -p "$conf/servercerts"
    cp '$crt' "$conf/servercerts/demo.crt"
    $client remote add demo $url --protocol=simplestreams
    $client image list demo:
TEXT
    [ -z "$product" ] || cat <<TEXT
    $client launch demo:busybox/$release b1
    $client exec b1 -- cat /etc/image-serial
TEXT
done
[ -z "$product" ] || cat <<TEXT

Then make a newer version and list again; the index follows at once (incus asks again after five
minutes, the daemons after an hour):

    '$repository/packaging/demo-image.sh' '$product' "\$(date -u +%Y%m%d_%H:%M)"
TEXT
cat <<TEXT

Serving $root
as $url; Ctrl-C ends it. Who asked for what: $run/nginx/access.log

TEXT
# A terminal that is closed sends HUP, which nginx would take for a wish to read its configuration
# again, and go on without a terminal.
"${nginx[@]}" &
pid=$!
trap 'kill -TERM "$pid"' INT TERM HUP
while kill -0 "$pid" 2> /dev/null; do
    code=0
    wait "$pid" || code=$?
done
exit "$code"
