#!/bin/sh
# Compiles the workspace's own crates with the counters that libFuzzer is led by; cargo calls it as
# RUSTC_WORKSPACE_WRAPPER. Dependencies keep the build that they have. Works with stable Rust: the flags are
# those that `cargo fuzz` passes, but for the address sanitizer, which forbidden `unsafe` leaves nothing to find.
exec "$@" \
    -Copt-level=1 \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
