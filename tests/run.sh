#!/usr/bin/env bash
# The whole test suite: installs what it needs (Debian packages, as root or through sudo), then checks format, lints,
# docs and the purity of the cores, runs every test (real QEMU, real viewers included), the demos and the fuzzers.
#
#   tests/run.sh            everything
#   tests/run.sh STEP...    only these: install fmt clippy doc purity gtk semver test demo soak fuzz
#
# SOAK_SECONDS (default 60) is how long the soak makes trouble; it says its SOAK_SEED, with which it does the same again.
# FUZZ_SECONDS (default 5) is how long each fuzz target runs.
set -euo pipefail
cd "$(dirname "$0")/.."

step_install() { tests/install-prerequisites.sh; }
step_fmt() { cargo fmt --all --check; }
step_clippy() { cargo clippy --workspace --all-targets -- -D warnings; }
step_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet; }
# The cores take bytes and a clock and know no runtime.
step_purity() {
    local crate tree
    for crate in spice-proto tunnel-channel; do
        tree=$(cargo tree -p "$crate" -e normal --no-default-features)
        if grep -qE '^[^a-z]*tokio' <<<"$tree"; then
            echo "$crate depends on tokio without its io feature" >&2
            return 1
        fi
    done
}
# A package of its own, since it needs libspice-client-glib-2.0-dev. A test builds and runs it.
step_gtk() {
    local manifest=examples/beside-spice-gtk/Cargo.toml
    cargo fmt --manifest-path "$manifest" --check
    cargo clippy --manifest-path "$manifest" --target-dir target --all-targets -- -D warnings
}
# What breaks in the crates' public interfaces needs another version.
step_semver() { tests/api/run.sh; }
step_test() { cargo test --workspace --no-fail-fast; }
step_demo() {
    cargo run --release --quiet -- demo
    cargo run --release --quiet -- demo --qemu
}
step_soak() { SOAK_SECONDS="${SOAK_SECONDS:-60}" cargo test --test spice-tunnel soak:: -- --nocapture; }
step_fuzz() { tests/fuzz/run.sh "${FUZZ_SECONDS:-5}"; }

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(install fmt clippy doc purity gtk semver test demo soak fuzz)
for step in "${steps[@]}"; do
    printf '\n==> %s\n' "$step"
    SECONDS=0
    # Not inside a condition: bash would switch off -e within the function.
    "step_$step"
    printf '==> %s: done in %d s\n' "$step" "$SECONDS"
done
