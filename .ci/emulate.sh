#!/usr/bin/env bash
# Proves the kernels and a small model on CPUs this machine is not: the same tests, under qemu, with the instruction sets
# each CPU must have named, so that a missing one fails. The hashes of the logits are written down in the test: equal here
# means equal everywhere.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v qemu-x86_64 >/dev/null || {
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends qemu-user
} >&2

# binary PACKAGE TEST CARGO-ARGUMENTS...: the path of a test's executable.
binary() {
  cargo test -q --locked -p "$1" --test "$2" --no-run --message-format=json "${@:3}" |
    sed -nE 's/.*"name":"'"$2"'".*"executable":"([^"]+)".*/\1/p' | tail -1
}

# on NAME EXPECTED-ISAS KERNELS-TEST MODEL-TEST EMULATOR...
on() {
  echo "== $1: $2"
  TORCHLESS_EXPECT_ISAS=$2 "${@:5}" "$3"
  TORCHLESS_ISA=portable "${@:5}" "$3" a_choice_is_never_replaced
  "${@:5}" "$4"
}

tests=("$(binary torchless-kernels equal)" "$(binary torchless golden_logits)")
on "Nehalem, x86-64 without AVX2" scalar,portable "${tests[@]}" qemu-x86_64 -cpu Nehalem
on "Haswell, x86-64 without AVX-512" scalar,portable,avx2 "${tests[@]}" qemu-x86_64 -cpu Haswell

eval "$(.ci/aarch64.sh)"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/aarch64"
# The tests need no command line, and what it needs takes long to build.
target=(--target aarch64-unknown-linux-gnu --no-default-features)
tests=("$(binary torchless-kernels equal "${target[@]}")" "$(binary torchless golden_logits "${target[@]}")")
qemu=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
on "Cortex-A53, aarch64 without dot product" scalar,portable,neon "${tests[@]}" "${qemu[@]}" -cpu cortex-a53
on "aarch64 with everything" scalar,portable,neon,dotprod "${tests[@]}" "${qemu[@]}" -cpu max
