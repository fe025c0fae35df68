#!/usr/bin/env bash
# Runs nginx in one process with the module in it, under valgrind or AddressSanitizer, and lets it do
# all that it does in one process: every kind of answer, changes of the tree, the end. Reloads are the
# soak's part.
#
#   memory.sh valgrind MODULE.so
#   memory.sh asan MODULE.so        a module that `make asan` instrumented
#
# Fails on any error that is found, on definite leaks, and on an answer that is not as expected.
# valgrind: tests/proofs/valgrind.supp holds what is nginx's own, each with its reason.
# AddressSanitizer: its runtime comes with the Rust toolchain, as a library for static linking. The
# nginx of the distribution is not built with it, so that library is made into a shared one and
# preloaded; memory of nginx itself, which it takes in pools, is checked by the pool alone.
set -euo pipefail

[ $# -eq 2 ] || { sed -nE '2,7s/^# ?//p' "$0" >&2; exit 2; }
kind=$1
module=$(realpath -e "$2")
here=$(dirname "$(realpath "$0")")

work=$(mktemp -d "${TMPDIR:-/tmp}/nginx-memory-XXXXXX")
pid=
finish() {
    [ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

fail() {
    echo "$0: $*" >&2
    tail -n 60 "$work"/report* "$work/error.log" >&2 2>/dev/null || true
    exit 1
}

# until_ok WHAT COMMAND...: as often as it takes, for two minutes.
until_ok() {
    local what=$1 end=$((SECONDS + 120))
    shift
    until "$@"; do
        kill -0 "$pid" 2>/dev/null || fail "nginx ended, while waiting for: $what"
        [ $SECONDS -lt $end ] || fail "waited in vain for: $what"
        read -rt 0.1 < <(:) || true
    done
}

image() { # PATH CONTENT
    mkdir -p "$work/tree/$1"
    echo metadata | xz > "$work/tree/$1/lxd.tar.xz"
    echo "$2" | xz > "$work/tree/$1/rootfs.tar.xz"
}
product=images/os/1/amd64/default
image $product/20260101_0000 first
image $product/20260102_0000 second
echo '{"os": "OS", "aliases": "x,y"}' > "$work/tree/$product/metadata.json"
mkdir -p "$work/tree/images/bad/1/amd64/default/20260101_0000"
echo x > "$work/tree/images/bad/1/amd64/default/20260101_0000/rootfs.squashfs"

# A port of the kernel's choice.
port=$(perl -MIO::Socket::INET -e \
    'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1:0")->sockport')
cat > "$work/nginx.conf" <<EOF
load_module $module;
daemon off;
master_process off;
pid $work/nginx.pid;
error_log $work/error.log info;
events {}
http {
    client_body_temp_path $work/body;
    proxy_temp_path $work/proxy;
    fastcgi_temp_path $work/fastcgi;
    uwsgi_temp_path $work/uwsgi;
    scgi_temp_path $work/scgi;
    simplestreams_state_path $work/state;
    access_log off;
    server {
        listen 127.0.0.1:$port;
        root $work/tree;
        location / {
            simplestreams on;
            simplestreams_settle 100ms;
        }
        location /off/ {
        }
    }
}
EOF

nginx=$(command -v nginx || echo /usr/sbin/nginx)
nginx=("$nginx" -p "$work" -e "$work/error.log" -c "$work/nginx.conf")
case $kind in
    valgrind)
        valgrind --fair-sched=yes --leak-check=full --show-leak-kinds=definite \
            --errors-for-leak-kinds=definite --error-exitcode=99 --num-callers=30 \
            --suppressions="$here/valgrind.supp" --log-file="$work/report" \
            "${nginx[@]}" 2> "$work/output" &
        ;;
    asan)
        nm -D --undefined-only "$module" | grep '__asan_report_load' > /dev/null ||
            fail "\"$module\" is not instrumented, make it with: make asan"
        runtime=$(rustc --print target-libdir)
        runtime=("$runtime"/librustc-*_rt.asan.a)
        cp "${runtime[0]}" "$work/rt.a"
        # What only an executable may have.
        ar d "$work/rt.a" asan_preinit.cpp.o
        # Its name must not be that of the runtime of a compiler, or it takes itself for a second one.
        gcc -shared -o "$work/sanitizer.so" -Wl,--whole-archive "$work/rt.a" \
            -Wl,--no-whole-archive -lstdc++ -lpthread -ldl -lm -lrt
        # See that it sees.
        cat > "$work/bad.c" <<'EOF'
#include <stdlib.h>
int main(int argc, char **argv) { char *p = malloc(4); p[3 + argc] = 1; return p[argc] + (argv == 0); }
EOF
        gcc -g -fsanitize=address -c -o "$work/bad.o" "$work/bad.c"
        gcc -o "$work/bad" "$work/bad.o" "$work/sanitizer.so"
        ! "$work/bad" 2> "$work/report" || fail "it finds no error where there is one"
        grep -q heap-buffer-overflow "$work/report" || fail "it did not find the error"
        : > "$work/report"
        # Leaks are valgrind's part: nginx keeps pools for its whole life that this one counts.
        ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:exitcode=99:log_path=$work/report \
            LD_PRELOAD=$work/sanitizer.so "${nginx[@]}" 2> "$work/output" &
        ;;
    *) fail "neither valgrind nor asan: $kind" ;;
esac
pid=$!

base=http://127.0.0.1:$port
asked=0
ask() { # STATUS CURL-ARGUMENTS...
    local want=$1 status
    shift
    status=$(curl -s -m 60 -o "$work/body.out" -D "$work/head.out" -w '%{http_code}' "$@") || true
    asked=$((asked + 1))
    [ "$status" = "$want" ] || { head -c 300 "$work/head.out" "$work/body.out"; fail "$*: status $status, expected $want"; }
}
lists() { # COUNT
    [ "$(curl -s -m 60 "$base/streams/v1/images.json" | grep -o '"combined_rootxz_sha256"' | wc -l)" = "$(($1 * 2))" ]
}
every_kind_of_answer() {
    local document url etag
    for document in index.json images.json; do
        url=$base/streams/v1/$document
        ask 200 "$url"
        etag=$(sed -nE 's/^etag: (.*)\r$/\1/ip' "$work/head.out")
        ask 200 -I "$url"
        ask 200 --compressed "$url"
        ask 200 -I --compressed "$url"
        ask 304 -H "If-None-Match: $etag" "$url"
        ask 200 -H 'If-None-Match: "other"' "$url"
        ask 412 -H 'If-Match: "other"' "$url"
        ask 206 -r 0-9 "$url"
        ask 206 -r 0-4,10-14 "$url"
        ask 206 --compressed -H 'Accept-Encoding: gzip' -r 0-0 --raw "$url"
        ask 206 -H "If-Range: $etag" -r -5 "$url"
        ask 200 -H 'If-Range: "other"' -r 0-4 "$url"
        ask 416 -r 100000000- "$url"
        ask 405 -d x "$url"
        ask 405 -X DELETE "$url"
        ask 200 --http1.0 "$url"
        ask 200 -H 'Expect:' -H 'Content-Length: 3' -X GET -d abc "$url"
    done
    ask 404 "$base/streams/v1/none.json"
    # The directory is the index.
    ask 200 "$base/streams/v1/"
    ask 404 "$base/off/streams/v1/index.json"
    ask 200 "$base/$product/20260101_0000/rootfs.tar.xz"
}

until_ok "nginx listens" curl -s -m 60 -o /dev/null "$base/"
until_ok "both versions" lists 2
every_kind_of_answer
image $product/20260103_0000 third
until_ok "the third version" lists 3
echo replaced | xz > "$work/tree/$product/20260103_0000/rootfs.tar.xz"
rm -r "$work/tree/$product/20260101_0000"
until_ok "two versions again" lists 2
image $product/20260101_0000 first
until_ok "three versions again" lists 3
every_kind_of_answer
kill -QUIT "$pid"
ended=0
wait "$pid" || ended=$?
pid=
[ "$ended" = 0 ] || fail "nginx ended with $ended"
alarms=$(grep -E '\[(alert|emerg)\]|panicked' "$work/error.log" || true)
[ -z "$alarms" ] || fail "alarms in the error log: $alarms"
case $kind in
    valgrind)
        grep -q 'ERROR SUMMARY: 0 errors' "$work/report" || fail "errors, or no report"
        echo "$asked requests"
        grep -E 'definitely lost|ERROR SUMMARY|no leaks' "$work/report" | sed -E 's/^==[0-9]+== *//'
        ;;
    asan)
        # Reports have the process id in their name.
        [ -z "$(cat "$work"/report.* 2>/dev/null)" ] || fail "reports"
        echo "$asked requests, no report"
        ;;
esac
