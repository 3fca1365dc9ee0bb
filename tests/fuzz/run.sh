#!/bin/sh
# Fuzzes every target for a while, on stable Rust and without cargo-fuzz.
#
#   tests/fuzz/run.sh [SECONDS] [TARGET...]    default: 5 s for each of all targets
#
# Needs a C++ compiler, for the fuzzing engine. What a run finds interesting is kept in tests/fuzz/target/corpus and used by the
# next one; what makes a target panic, hang or eat memory goes to tests/fuzz/crashes/TARGET, where the ordinary tests
# replay it. Exit 1 if there was such a thing.
set -eu
cd "$(dirname "$0")"

seconds=5
case "${1-}" in
    '') ;;
    *[!0-9]*) ;;
    *) seconds=$1; shift ;;
esac
targets=${*:-$(sed -n 's|^path = "fuzz_targets/\(.*\)\.rs"$|\1|p' Cargo.toml)}

# An explicit target keeps build scripts and procedural macros free of these flags.
triple=$(rustc -vV | sed -n 's/^host: //p')
level=-Cllvm-args=-sanitizer-coverage
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module $level-level=4 $level-inline-8bit-counters $level-pc-table $level-trace-compares -Ccodegen-units=1"
# Where the system has openssl there is no need to build it.
if pkg-config --exists openssl 2>/dev/null; then export OPENSSL_NO_VENDOR=1; fi
cargo build --release --target "$triple" --quiet --bins

failed=
for target in $targets; do
    found=target/corpus/$target
    mkdir -p "$found" "crashes/$target"
    log=target/$target.log
    echo "fuzzing $target for $seconds s"
    if "target/$triple/release/$target" "$found" "corpus/$target" \
        -artifact_prefix="crashes/$target/" -max_total_time="$seconds" \
        -max_len=8192 -len_control=20 -rss_limit_mb=1024 -malloc_limit_mb=256 -timeout=5 \
        -print_final_stats=1 >"$log" 2>&1
    then
        # A target whose coverage is not counted is not fuzzed.
        if ! grep -E '^#.*INITED cov: [0-9][0-9]+ ' "$log" || ! grep -E '^#.*DONE' "$log"; then
            echo "no coverage seen in $target: $log" >&2
            failed="$failed $target"
        fi
    else
        tail -n 40 "$log"
        failed="$failed $target"
    fi
done
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
