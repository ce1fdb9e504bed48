//! Zeroed memory that begins at cache lines, and how much of it something takes.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Where buffers take their memory from. One that only counts gives none: so the code that allocates a buffer also says
/// how large it is.
///
/// ```
/// use torchless_kernels::{Allocator, QuantizedBuf};
/// let bytes = Allocator::count(|memory| QuantizedBuf::new(memory, 512, 4096));
/// assert!(bytes > 512 * 4096);
/// ```
#[derive(Debug)]
pub struct Allocator {
    counts_only: bool,
    bytes: usize,
}

impl Allocator {
    /// Memory from the heap.
    pub fn heap() -> Self {
        Self { counts_only: false, bytes: 0 }
    }

    /// Bytes that `build` asks for; what it builds is empty, and dropped.
    pub fn count<T>(build: impl FnOnce(&mut Self) -> T) -> usize {
        let mut memory = Self { counts_only: true, bytes: 0 };
        build(&mut memory);
        memory.bytes
    }

    /// `len` default values. Those whose bits are all zeros cost nothing before they are first written to.
    pub fn aligned<T: Clone + Default>(&mut self, len: usize) -> Aligned<T> {
        let slack = LINE / size_of::<T>() - 1;
        self.bytes = self.bytes.saturating_add((len.saturating_add(slack)).saturating_mul(size_of::<T>()));
        if self.counts_only {
            return Aligned { values: Vec::new(), start: 0, len: 0 };
        }
        let values = vec![T::default(); len + slack];
        let start = values.as_ptr().align_offset(LINE).min(slack);
        Aligned { values, start, len }
    }
}

/// A fixed number of values, the first of which begins a cache line. A vector of 16 f32 is then one line, where in a `Vec`
/// it would be parts of two: with AVX-512 that costs a prompt of a small model 3 to 8 % of its speed.
#[derive(Clone, Debug)]
pub struct Aligned<T> {
    /// More than are asked for, so that a line begins among the first.
    values: Vec<T>,
    start: usize,
    len: usize,
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_begin_a_line_and_are_counted() {
        let mut memory = Allocator::heap();
        for len in [0, 1, 15, 16, 1000] {
            let (bytes, floats) = (memory.aligned::<i8>(len), memory.aligned::<f32>(len));
            assert_eq!((bytes.len(), floats.len()), (len, len));
            assert!(bytes.iter().all(|&x| x == 0) && floats.iter().all(|&x| x == 0.0));
            assert!(len == 0 || bytes.as_ptr().addr().is_multiple_of(LINE));
            assert!(len == 0 || floats.as_ptr().addr().is_multiple_of(LINE));
        }
        let build = |memory: &mut Allocator| (memory.aligned::<f32>(10), memory.aligned::<i8>(7));
        let bytes = Allocator::count(build);
        let mut memory = Allocator::heap();
        let (floats, small) = build(&mut memory);
        assert_eq!(bytes, floats.values.len() * 4 + small.values.len());
        assert_eq!(memory.bytes, bytes);
    }
}
