#!/usr/bin/env bash
# Runs the kernels' tests under Miri: scalar and portable, whose memory accesses the others share through `int8/` and
# `float.rs`. A few minutes. Needs a nightly toolchain with Miri; installs it where rustup can.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo +nightly miri --version >/dev/null 2>&1 ||
  rustup toolchain install nightly --profile minimal --component miri --component rust-src
TORCHLESS_EXPECT_ISAS=scalar,portable cargo +nightly miri test -p torchless-kernels --lib --test equal \
  --target-dir "${CARGO_TARGET_DIR:-target}/miri"
