//! Something to feed a model.

/// Pseudo-random token ids.
pub fn tokens(n: usize, vocab_size: usize) -> Vec<u32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocab_size as u32
    };
    (0..n).map(|_| next()).collect()
}
