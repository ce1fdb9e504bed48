#!/usr/bin/env bash
# Makes this x86-64 Debian machine able to build for aarch64 and to run the result under qemu. Needs root for apt-get
# and nothing where all is there already. Prints shell lines that point cargo at what it found:
#
#     eval "$(.ci/aarch64.sh)"; cargo test --target aarch64-unknown-linux-gnu
#
# AARCH64_CPU chooses the emulated CPU (default max; cortex-a53 has no dot product).
# The standard library comes from rustup. Where rustup cannot be reached, Debian's own Rust is unpacked beside the
# system (nothing is installed over the toolchain), since it has a standard library for both architectures.
set -euo pipefail
target=aarch64-unknown-linux-gnu
prefix=${AARCH64_PREFIX:-/opt/torchless-aarch64}
say() { echo "aarch64.sh: $*" >&2; }

apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >&2; }

tools() {
  command -v qemu-aarch64 aarch64-linux-gnu-gcc >/dev/null && [ -d /usr/aarch64-linux-gnu/include ] && return
  say "installing the cross compiler and qemu"
  apt update
  apt install -y --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
}

# A standard library for the target in the toolchain that cargo uses.
by_rustup() {
  command -v rustup >/dev/null && timeout 300 rustup target add $target >&2
}

# Debian's rustc-web: the compiler for this machine, and the standard library of both architectures.
by_debian() {
  [ -x "$prefix/rustc" ] && return
  say "unpacking Debian's Rust into $prefix"
  local state version driver
  state=$(mktemp -d)
  trap 'rm -rf "$state"' RETURN
  mkdir -p "$state"/{lists,archives}/partial "$state/deb" "$prefix"
  touch "$state/status"
  chmod -R a+rx "$state"
  # A private view of the archive that knows arm64 alone: the system keeps its single architecture.
  local arm64=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$state"
    -o Dir::State::Lists="$state/lists" -o Dir::State::status="$state/status" -o Dir::Cache="$state"
    -o APT::Sandbox::User=root)
  apt update
  apt "${arm64[@]}" update
  version=$(apt-cache madison libstd-rust-web-dev | cut -d'|' -f2 | tr -d ' ' | sort -V | tail -1)
  driver=$(apt-cache show "libstd-rust-web-dev=$version" | grep -oE 'libstd-rust-web-[0-9][0-9.]*' | head -1)
  apt install -y --no-install-recommends \
    "$(apt-cache show "$driver=$version" | grep -oE 'libllvm[0-9]+' | head -1)"
  (
    cd "$state/deb"
    apt -o APT::Sandbox::User=root download "rustc-web=$version" "$driver=$version" "libstd-rust-web-dev=$version"
    apt "${arm64[@]}" download "libstd-rust-web-dev=$version"
    for package in *.deb; do dpkg-deb -x "$package" "$prefix"; done
  )
  local tool
  for tool in rustc rustdoc; do
    cat >"$prefix/$tool" <<SH
#!/bin/sh
export LD_LIBRARY_PATH="$prefix/usr/lib/x86_64-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$prefix/usr/bin/$tool" "\$@"
SH
    chmod +x "$prefix/$tool"
  done
}

tools
if by_rustup; then
  say "standard library from rustup"
else
  by_debian
  echo "export RUSTC='$prefix/rustc' RUSTDOC='$prefix/rustdoc'"
fi
echo "export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc"
echo "export AARCH64_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu ${AARCH64_CPU:-max}'"
echo 'export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$AARCH64_RUNNER"'
