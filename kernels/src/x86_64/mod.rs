//! x86-64.

pub(crate) mod avx2;
pub(crate) mod avx512vnni;

/// How far ahead of a matrix-vector product the second-level cache is asked to run, in bytes. Less was slower, and so
/// was asking the first-level cache alone: see DESIGN.md.
const PREFETCH: usize = 16384;
