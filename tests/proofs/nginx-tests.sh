#!/usr/bin/env bash
# Runs nginx's own test suite without and with the module, and compares what every file says.
#
#   nginx-tests.sh MODULE.so CHECKOUT [FILE.t]...
#
# CHECKOUT is a checkout of nginx's tests of the age of the nginx that is installed (for 1.22.1: of
# August 2022). Nothing is fetched and nothing in it is changed. The second time the module is not
# merely loaded: `simplestreams` stands in every `http` block, so its handler sees each request of the
# suite, and builder and followers run beside each test. A probe makes sure of that first.
#
# Results are the lines "ok", "not ok" and "skip" of each file, and how it ended. Some of nginx's tests
# depend on time: a file that differs is run again, alone, both ways, up to three times. What differs
# every time makes this fail. Tests that fail both ways are named, and are the machine's, not ours.
set -euo pipefail

[ $# -ge 2 ] || { sed -nE '2,4s/^# ?//p' "$0" >&2; exit 2; }
module=$(realpath -e "$1")
suite=$(realpath -e "$2")
shift 2
[ -f "$suite/lib/Test/Nginx.pm" ] || { echo "$0: \"$suite\" has no lib/Test/Nginx.pm" >&2; exit 2; }

work=$(mktemp -d "${TMPDIR:-/tmp}/nginx-tests-XXXXXX")
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
# A whole image: one that is not would be an [error] in the log, which some tests look at.
image=$work/tree/images/os/1/amd64/default/20260101_0000
mkdir -p "$image" "$work"/{without,with}
echo metadata | xz > "$image/lxd.tar.xz"
echo root | xz > "$image/rootfs.tar.xz"

nginx=$(command -v nginx || echo /usr/sbin/nginx)
export TEST_NGINX_BINARY=$nginx
TEST_NGINX_MODULES=$("$nginx" -V 2>&1 | sed -nE 's/.*--modules-path=([^ ]+).*/\1/p')
export TEST_NGINX_MODULES
# Workers of root's nginx are of another user, who must get at the tests' directories.
user=
[ "$(id -u)" -ne 0 ] || user='user root; '

# run without|with FILE [TAG]: runs one file; its results go to $work/KIND/FILE
run() {
    local globals=$user http= out=$work/$1/$2 ended=0
    if [ "$1" = with ]; then
        globals+="load_module $module; "
        http="simplestreams_state_path simplestreams; simplestreams $work/tree; "
        http+="simplestreams_settle 0; "
    fi
    (
        cd "$suite"
        # Some clean up by killing their process group: each has its own.
        TEST_NGINX_GLOBALS=$globals TEST_NGINX_GLOBALS_HTTP=$http \
            timeout -k 10 300 setsid --wait perl -Ilib "${probe:-$2}"
    ) < /dev/null > "$out.out" 2> "$out.err" || ended=$?
    { sed -nE 's/[[:space:]]+$//; /^(not )?ok |^1\.\.|^Bail out/p' "$out.out"; echo "ended: $ended"; } > "$out"
}
export -f run
export work module suite user

cat > "$work/probe.t" <<'PROBE'
use Test::More; use Test::Nginx;
my $t = Test::Nginx->new()->write_file_expand('nginx.conf', <<'EOF');
%%TEST_GLOBALS%%
daemon off;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    server { listen 127.0.0.1:8080; location / {} }
}
EOF
$t->run()->plan(1);
my $answer = '';
for (1 .. 300) {
    $answer = http_get('/streams/v1/index.json');
    last if $answer !~ / 503 / && $answer !~ /"products":\[\]/;
    select undef, undef, undef, 0.1;
}
like($answer, qr/ 200 .*"index:1.0".*"os:1:amd64:default"/s, 'the index');
PROBE
for kind in without with; do
    probe=$work/probe.t run "$kind" probe
done
grep -q '^not ok 1 - the index' "$work/without/probe" || { cat "$work"/without/probe*; exit 1; }
if ! grep -q '^ok 1 - the index' "$work/with/probe"; then
    echo "$0: the module is not active in the tests:" >&2
    cat "$work"/with/probe* >&2
    exit 1
fi

cd "$suite"
files=("$@")
[ $# -gt 0 ] || files=(*.t)
for file in "${files[@]}"; do
    [ -f "$file" ] || { echo "$0: no \"$file\" in \"$suite\"" >&2; exit 2; }
done
jobs=${JOBS:-$(nproc)}
for kind in without with; do
    echo "$kind the module: ${#files[@]} files, $jobs at a time"
    printf '%s\n' "${files[@]}" | xargs -P "$jobs" -I '{}' bash -c 'run "$@"' - "$kind" '{}'
done

different=()
again=()
for file in "${files[@]}"; do
    for round in 1 2 3 stop; do
        if cmp -s "$work/without/$file" "$work/with/$file"; then
            [ "$round" = 1 ] || again+=("$file")
            break
        fi
        if [ "$round" = stop ]; then
            different+=("$file")
            break
        fi
        run without "$file"
        run with "$file"
    done
done

count() { cat "${files[@]/#/$work/$1/}" | grep -cE "$2" || true; }
failed_both=()
for file in "${files[@]}"; do
    ! grep -qvE '^1\.\.|^ok |# TODO|^ended: 0' "$work/with/$file" || failed_both+=("$file")
done
echo
for kind in without with; do
    echo "$kind: $(count $kind '^ok ') ok, $(count $kind '^not ok .*# TODO') known by nginx to fail," \
        "$(cat "${files[@]/#/$work/$kind/}" | grep -E '^not ok' | grep -vc '# TODO' || true) not ok," \
        "$(count $kind '^1\.\.0') files skipped"
done
echo "the same only when run again, alone: ${again[*]:-none}"
echo "fail with and without the module: $(printf '%s\n' "${failed_both[@]}" "${different[@]}" "${different[@]}" |
    sort | uniq -u | xargs)"
if [ ${#different[@]} -gt 0 ]; then
    for file in "${different[@]}"; do
        echo "--- $file"
        diff "$work/without/$file" "$work/with/$file" || true
        tail -n 5 "$work/with/$file.err"
    done
    echo "different with the module: ${different[*]}"
    exit 1
fi
echo "every file says the same with the module as without"
