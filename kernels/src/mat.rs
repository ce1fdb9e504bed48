//! A rectangle of a row-major matrix that can be split by columns as well as by rows, so that threads can each write
//! their own output features of all tokens without copying and without `unsafe` on their side.

use std::marker::PhantomData;

/// A mutable `rows × cols` rectangle of a row-major matrix whose rows are `stride` elements apart.
pub struct MatMut<'a, T> {
    data: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a rectangle is an exclusive borrow of its elements, as `&mut [T]` is; rectangles made by splitting are disjoint.
unsafe impl<T: Send> Send for MatMut<'_, T> {}

impl<'a, T> MatMut<'a, T> {
    /// The whole of `data` as a matrix.
    ///
    /// # Panics
    /// If `data` is not `rows·cols` long.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(cols), "elements of a {rows}×{cols} matrix");
        Self { data: data.as_mut_ptr(), rows, cols, stride: cols, borrow: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row's start to the next row's.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The first element, for kernels; element `(r, c)` is at `r·stride + c`.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.data
    }

    /// One row of the rectangle.
    ///
    /// # Panics
    /// If `row` is out of range.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row lies inside the slice the matrix was made from (`new` checked its length, splits only shrink
        // the rectangle), the rectangle is exclusive, and the result borrows `self`.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride), self.cols) }
    }

    /// The same rectangle, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut { borrow: PhantomData, ..*self }
    }

    /// The columns before `col`, and the rest.
    ///
    /// # Panics
    /// If `col > cols`.
    pub fn split_cols(self, col: usize) -> (Self, Self) {
        assert!(col <= self.cols, "a split at column {col} of {}", self.cols);
        // The empty half of an empty rectangle may point one past the slice: wrapping_add keeps that defined.
        let right = Self { data: self.data.wrapping_add(col), cols: self.cols - col, ..self };
        (Self { cols: col, ..self }, right)
    }

    /// The rows before `row`, and the rest.
    ///
    /// # Panics
    /// If `row > rows`.
    pub fn split_rows(self, row: usize) -> (Self, Self) {
        assert!(row <= self.rows, "a split at row {row} of {}", self.rows);
        let below = Self { data: self.data.wrapping_add(row * self.stride), rows: self.rows - row, ..self };
        (Self { rows: row, ..self }, below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_partition_the_matrix() {
        let mut data = vec![0u8; 5 * 7];
        let (mut left, mut right) = MatMut::new(&mut data, 5, 7).split_cols(3);
        for r in 0..5 {
            left.row(r).fill(1);
            right.row(r).fill(2);
        }
        let (_, mut below) = right.split_rows(4);
        assert_eq!((below.rows(), below.cols(), below.stride()), (1, 4, 7));
        below.row(0).fill(3);
        for (r, row) in data.chunks(7).enumerate() {
            assert_eq!(row, if r == 4 { [1, 1, 1, 3, 3, 3, 3] } else { [1, 1, 1, 2, 2, 2, 2] });
        }
    }

    #[test]
    #[should_panic(expected = "column 4 of 3")]
    fn a_split_outside_panics() {
        MatMut::new(&mut [0u8; 6], 2, 3).split_cols(4);
    }
}
