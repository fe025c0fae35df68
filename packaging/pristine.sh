#!/usr/bin/env bash
# Does what the README tells newcomers to do, where they do it: clones the project into a clean Debian 12
# that has Rust and nothing else, runs the two commands there, and looks from outside at what is served.
#
#   pristine.sh [PORT]      9443, if none is given
#
# As root. Rust is this machine's own, with its crates, so that they are not fetched each time. Everything
# is made in a directory below target/ and removed; mounts and processes are in namespaces of their own and
# end with them.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
repository=$PWD port=${1:-9443}

fail() {
    echo "pristine.sh: $*" >&2
    [ ! -s "$work/log" ] || { echo "The last lines of the two commands:" >&2; tail -n 30 "$work/log" >&2; }
    exit 1
}
reached() {
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null
}

work=
[ "$(id -u)" -eq 0 ] || fail "only root can make a clean system"
packaging/deps.sh run package
! reached || fail "port $port is in use; give another one: make pristine PORT=$((port + 1))"
rust=$(rustc --print sysroot)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
site=$(packaging/debian-site.sh)
cargo fetch --quiet --locked
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
mkdir -p "$target"
work=$(mktemp -d "$target/pristine.XXXXXX")
running=
end() {
    if [ -n "$running" ]; then
        kill -KILL -- "-$running" 2> /dev/null || true
        wait "$running" 2> /dev/null || true
    fi
    rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT TERM HUP

echo "Making a clean Debian 12"
root=$work/root
# With apt's lists, as an installed Debian has them.
mmdebstrap --quiet --variant=minbase --skip=cleanup/apt/lists bookworm "$root" "$site"
git clone --quiet --no-hardlinks "$repository" "$root/srv/lxd-image-server"
mkdir -p "$root/opt/rust" "$root/opt/cargo"

echo "apt-get install -y make; make run PORT=$port"
start=$SECONDS
# In a session of its own, so that all of it can be interrupted, as a terminal does on Ctrl-C.
# shellcheck disable=SC2016 # expanded inside
setsid env --default-signal=INT unshare --mount --pid --fork --kill-child --propagation private \
    env root="$root" rust="$rust" cargo_home="$cargo_home" port="$port" bash -euc '
        mount -t proc proc "$root/proc"
        mount --bind -o ro "$rust" "$root/opt/rust"
        mount --bind "$cargo_home" "$root/opt/cargo"
        exec chroot "$root" env -i HOME=/root CARGO_HOME=/opt/cargo LC_ALL=C.UTF-8 port="$port" \
            PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -euc "
                cd /srv/lxd-image-server
                apt-get install -y make
                exec make run PORT=\$port
            "' > "$work/log" 2>&1 < /dev/null &
running=$!

crt=$root/srv/lxd-image-server/run/tls/localhost.crt
deadline=$((SECONDS + 1800))
until curl -sSf --cacert "$crt" "https://localhost:$port/streams/v1/images.json" 2> /dev/null |
    grep 20250201_12:00 > /dev/null; do
    kill -0 "$running" 2> /dev/null || fail "make run ended"
    [ $SECONDS -lt $deadline ] || fail "nothing is served after half an hour"
    sleep 0.5
done
echo "It serves the demonstration, $((SECONDS - start)) seconds after the first command"
for client in lxc incus; do
    command -v "$client" > /dev/null || continue
    export LXD_CONF=$work/conf INCUS_CONF=$work/conf LXD_DIR=$work/none INCUS_DIR=$work/none
    mkdir -p "$work/conf/servercerts" "$work/exported"
    cp "$crt" "$work/conf/servercerts/pristine.crt"
    "$client" remote add pristine "https://localhost:$port" --protocol=simplestreams > /dev/null
    release=$("$client" image list pristine: --format csv | sed -nE 's#.*busybox/([0-9.]+).*#\1#p' | head -n 1)
    [ -n "$release" ] || fail "$client lists no busybox"
    "$client" image export "pristine:busybox/$release" "$work/exported/$client" > /dev/null ||
        fail "$client exports nothing"
    rm -rf "$work/conf"
    echo "$client lists and exports from it"
done

kill -INT -- "-$running"
deadline=$((SECONDS + 30))
while kill -0 "$running" 2> /dev/null; do
    [ $SECONDS -lt $deadline ] || fail "Ctrl-C does not end it"
    sleep 0.1
done
running=
! reached || fail "it was ended, and port $port is in use still"
echo "Ctrl-C ends it"
