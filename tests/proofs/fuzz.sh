#!/usr/bin/env bash
# Fuzzes what reads other people's bytes, with libFuzzer and AddressSanitizer, each target for some
# seconds:
#
#   fuzz.sh SECONDS [TARGET]...
#
# Needs cargo-fuzz (cargo install cargo-fuzz). The sanitizer is an unstable option of rustc, which
# RUSTC_BOOTSTRAP=1 lets the stable one take: for this build alone, nothing of it is shipped. New
# inputs go to fuzz/corpus, which is not committed; what fails goes to fuzz/artifacts: once it is
# understood, copy it to fuzz/seeds, and `cargo test` runs it for ever.
set -euo pipefail

[ $# -ge 1 ] || { sed -nE '2,5s/^# ?//p' "$0" >&2; exit 2; }
seconds=$1
shift
cd "$(dirname "$0")/../.."
cargo fuzz --version > /dev/null 2>&1 || {
    echo "$0: cargo-fuzz is missing; install it with: cargo install cargo-fuzz" >&2
    exit 1
}
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
export RUSTC_BOOTSTRAP=1
cargo fuzz build
for target in "${targets[@]}"; do
    echo "--- $target"
    mkdir -p "fuzz/corpus/$target"
    cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=20 -rss_limit_mb=3000 -print_final_stats=1
done
