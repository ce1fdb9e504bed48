//! The hash of logits.

use super::hash::fnv;

/// FNV-1a of the bits, on any CPU.
pub fn hash(bits: &[u32]) -> u64 {
    fnv(bits.iter().flat_map(|bits| bits.to_le_bytes()))
}
