//! Buffers that begin where a cache line does.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE: usize = 64;

/// More than are asked for, so that a line begins among them.
const SLACK: usize = LINE / size_of::<f32>() - 1;

/// Some f32, zeros at first. A vector of 16 is a whole cache line, where in a `Vec` it would be parts of two: with AVX-512
/// that costs a prompt of a small model 3 to 8 % of its speed.
pub(crate) struct Lines {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Lines {
    /// Memory that is not used is never touched.
    pub fn zeroed(len: usize) -> Self {
        let values: Vec<f32> = bytemuck::zeroed_vec(len + SLACK);
        let start = values.as_ptr().align_offset(LINE).min(SLACK);
        Self { values, start, len }
    }

    /// Bytes [`Lines::zeroed`] allocates.
    pub fn bytes(len: usize) -> usize {
        (len + SLACK) * size_of::<f32>()
    }
}

impl Deref for Lines {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..self.start + self.len]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.len]
    }
}
