#!/usr/bin/env bash
# Builds the module by nginx's own configure, as docs/install.md says for other nginx than Debian's, with
# the source that nginx-dev has, and tries it in the nginx that is installed.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
repository=$PWD
PATH=$PATH:/usr/sbin

fail() {
    echo "addon.sh: $*" >&2
    exit 1
}

packaging/deps.sh build
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
mkdir -p "$target"
work=$(mktemp -d "$target/addon.XXXXXX")
trap 'rm -rf "$work"' EXIT
cp -rT "${NGINX_SOURCE_DIR:-/usr/share/nginx/src}" "$work/nginx"
cd "$work/nginx"
NGX_CONF_FLAGS=(--with-compat)
# shellcheck source=/dev/null
[ ! -e conf_flags ] || . ./conf_flags
# Kept between runs, and apart from what `make module` builds, for another nginx maybe.
export CARGO_TARGET_DIR=$target/addon

# Linked into nginx itself it is refused with a reason, not broken.
! ./configure "${NGX_CONF_FLAGS[@]}" --add-module="$repository/ngx-module" > "$work/log" 2>&1 ||
    fail "--add-module is taken"
grep -q 'use --add-dynamic-module' "$work/log" || fail "it does not say why: $(tail -n 3 "$work/log")"

./configure "${NGX_CONF_FLAGS[@]}" --add-dynamic-module="$repository/ngx-module" > "$work/log" 2>&1 ||
    fail "configure failed: $(tail -n 20 "$work/log")"
# Debian's copy makes no Makefile beside the sources.
make --no-print-directory -f objs/Makefile modules
make --no-print-directory -f objs/Makefile DESTDIR="$work/installed" simplestreams_install

module=$(find "$work/installed" -name '*.so')
cmp "$module" objs/ngx_http_simplestreams_module.so
printf 'load_module %s;\nevents {}\nhttp {\n    simplestreams_state_path %s;\n    simplestreams %s;\n}\n' \
    "$module" "$work/state" "$work" > "$work/nginx.conf"
nginx -e stderr -g "pid $work/pid;" -t -q -c "$work/nginx.conf" || fail "nginx does not take it"
echo "nginx's own configure and make build a module that $(nginx -v 2>&1 | sed 's/.*: //') takes."
