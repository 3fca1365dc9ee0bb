#!/usr/bin/env bash
# Compares the public interfaces of the crates with their baselines, tests/api/CRATE.txt.
#
#   tests/api/run.sh [check]   fails if something breaks that the version in Cargo.toml does not admit
#   tests/api/run.sh update    makes today's interfaces the baselines: at a release, and at nothing else
set -euo pipefail
cd "$(dirname "$0")/../.."
command=${1:-check}
target=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
crates=(spice-proto tunnel-channel client-glue server-glue)
RUSTDOC="$PWD/tests/api/rustdoc" RUSTDOCFLAGS="-Zunstable-options --output-format json" \
    cargo doc --quiet --lib --no-deps "${crates[@]/#/--package=}"
files=()
for crate in "${crates[@]}"; do files+=("$target/doc/${crate//-/_}.json"); done
manifest=tests/api/Cargo.toml
[ "$command" = update ] || cargo test --quiet --manifest-path "$manifest" --target-dir "$target"
cargo run --quiet --manifest-path "$manifest" --target-dir "$target" -- "$command" "$version" tests/api "${files[@]}"
