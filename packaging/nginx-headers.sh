#!/bin/bash
# Configures the installed nginx's headers, which the module is compiled against, into
# <target>/nginx/objs, or into $NGINX_BUILD_DIR.
#
#     packaging/nginx-headers.sh <target>
#
# $NGINX_SOURCE_DIR is where nginx's source or headers are; without it, where Debian's package
# nginx-dev puts them. A module fits exactly one version of nginx, so what was configured for
# another version, or with other options, is made again.
#
# Prints nothing but errors.
set -euo pipefail

fail() {
    echo "nginx-headers.sh: $*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: packaging/nginx-headers.sh <target folder>"

source_dir=${NGINX_SOURCE_DIR:-/usr/share/nginx/src}
build_dir=${NGINX_BUILD_DIR:-$1/nginx/objs}

[ -f "$source_dir/src/core/nginx.h" ] ||
    fail "no nginx source in \"$source_dir\"; on Debian: apt-get install nginx-dev"

# Releases have it at the top, a checkout of the repository in auto/.
configure=./configure
[ -x "$source_dir/configure" ] || configure=auto/configure

# Debian says with which options its nginx was built; another source is taken as it comes, with
# the one option that makes its modules fit the binaries of nginx.org.
NGX_CONF_FLAGS=(--with-compat)
if [ -f "$source_dir/conf_flags" ]; then
    # shellcheck source=/dev/null
    . "$source_dir/conf_flags"
fi

# Everything that the outcome hangs on, to tell whether it must be made again.
want=$(
    grep -E '^#define (nginx_version|NGINX_VERSION) ' "$source_dir/src/core/nginx.h"
    echo "$source_dir"
    printf '%s\n' "${NGX_CONF_FLAGS[@]}"
)

mkdir -p "$build_dir"
build_dir=$(cd "$build_dir" && pwd)
stamp=$build_dir/.configured-for

# Two builds at once must not configure into one folder.
exec 9>"$build_dir/.lock"
flock 9

if [ -f "$build_dir/ngx_auto_config.h" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    exit 0
fi

rm -f "$stamp"
cd "$source_dir"
log=$build_dir/configure.log
"$configure" --builddir="$build_dir" "${NGX_CONF_FLAGS[@]}" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    fail "nginx's configure failed; all of it: \"$log\""
}
printf '%s\n' "$want" >"$stamp"
