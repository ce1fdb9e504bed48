#!/usr/bin/env bash
# Proves the kernels on CPUs this machine is not: the same test list, under qemu, with the instruction sets each CPU
# must have named, so that a missing one fails. A few seconds a CPU once built.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v qemu-x86_64 >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get -qq install -y qemu-user >&2

# The path of the test binary `equal` for the cargo arguments given.
binary() {
  cargo test -q -p torchless-kernels --test equal --no-run --message-format=json "$@" |
    sed -nE 's/.*"name":"equal".*"executable":"([^"]+)".*/\1/p' | tail -1
}

# on NAME EXPECTED-ISAS COMMAND...
on() {
  echo "== $1: $2"
  TORCHLESS_EXPECT_ISAS=$2 "${@:3}"
  TORCHLESS_ISA=portable "${@:3}" a_choice_is_never_replaced
}

x86=$(binary)
on "Nehalem, x86-64 without AVX2" scalar,portable qemu-x86_64 -cpu Nehalem "$x86"
on "Haswell, x86-64 without AVX-512" scalar,portable,avx2 qemu-x86_64 -cpu Haswell "$x86"

eval "$(.ci/aarch64.sh)"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/aarch64"
arm=$(binary --target aarch64-unknown-linux-gnu)
qemu=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
on "Cortex-A53, aarch64 without dot product" scalar,portable,neon "${qemu[@]}" -cpu cortex-a53 "$arm"
on "aarch64 with everything" scalar,portable,neon,dotprod "${qemu[@]}" -cpu max "$arm"
