//! The f32 matrix product for those who want speed before reproducibility.

use crate::mat::MatMut;

/// `out[t][i] = w[i] · x[t]` for f32 weights `[out.cols][cols]` and activations `[out.rows][cols]`, by the
/// `matrixmultiply` crate: fast for many tokens, but rounded as the CPU's fused multiply-adds have it.
///
/// # Panics
/// If lengths disagree.
pub(crate) fn sgemm(w: &[f32], x: &[f32], cols: usize, mut out: MatMut<f32>) {
    assert_eq!(Some(w.len()), out.cols().checked_mul(cols), "f32 weights");
    assert_eq!(Some(x.len()), out.rows().checked_mul(cols), "f32 activations");
    let (tokens, features) = (out.rows(), out.cols());
    let (step, out_step) = (cols as isize, out.stride() as isize);
    let (x, w, out) = (x.as_ptr(), w.as_ptr(), out.as_mut_ptr());
    // SAFETY: x is tokens×cols, w is features×cols and read transposed, out is tokens×features with its rows `out_step`
    // apart: checked above, and by `MatMut`.
    unsafe {
        matrixmultiply::sgemm(tokens, cols, features, 1.0, x, step, 1, w, 1, step, 0.0, out, out_step, 1);
    }
}

/// An f32 matrix for reading whose rows, or columns, lie apart.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    values: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> Strided<'a> {
    /// `rows × cols` values: `[r][c]` is `values[r · strides[0] + c · strides[1]]`.
    ///
    /// # Panics
    /// If the last lies outside of `values`.
    pub fn new(values: &'a [f32], shape: [usize; 2], strides: [usize; 2]) -> Self {
        let last = (0..2)
            .try_fold(0usize, |at, i| at.checked_add(shape[i].checked_sub(1)?.checked_mul(strides[i])?));
        assert!(
            shape.contains(&0) || last.is_some_and(|last| last < values.len()),
            "{shape:?} by {strides:?}"
        );
        Self { values, shape, strides }
    }

    /// The first `cols` columns.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn cols(self, cols: usize) -> Self {
        assert!(cols <= self.shape[1], "{cols} columns of {:?}", self.shape);
        Self { shape: [self.shape[0], cols], ..self }
    }

    /// Rows become columns.
    pub fn transposed(self) -> Self {
        let ([rows, cols], [row_stride, col_stride]) = (self.shape, self.strides);
        Self { shape: [cols, rows], strides: [col_stride, row_stride], ..self }
    }
}

/// `out += factor · a · b`, rounded as the CPU's fused multiply-adds have it: for what no promise of the same bits goes with.
///
/// # Panics
/// If shapes disagree.
pub fn add_product(factor: f32, a: Strided, b: Strided, mut out: MatMut<f32>) {
    let ([m, k], [b_rows, n]) = (a.shape, b.shape);
    assert_eq!((b_rows, out.rows(), out.cols()), (k, m, n), "shapes of a product");
    let [a_rows, a_cols, b_rows, b_cols] =
        [a.strides[0], a.strides[1], b.strides[0], b.strides[1]].map(|stride| stride as isize);
    let (out_stride, out) = (out.stride() as isize, out.as_mut_ptr());
    let (a, b) = (a.values.as_ptr(), b.values.as_ptr());
    // SAFETY: `Strided::new` has seen that all of a and b is there, `MatMut` vouches for out, and the shapes agree.
    unsafe {
        matrixmultiply::sgemm(m, k, n, factor, a, a_rows, a_cols, b, b_rows, b_cols, 1.0, out, out_stride, 1);
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::scalar;

    #[test]
    fn strided_products_are_added() {
        // a = [[1, 2], [3, 4]] in every other value, b = [[5, 6], [7, 8]] stored by columns.
        let a = Strided::new(&[1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0], [2, 2], [4, 2]);
        let b = Strided::new(&[5.0, 7.0, 6.0, 8.0], [2, 2], [2, 1]).transposed();
        let mut out = [1.0, 1.0, -9.0, 1.0, 1.0, -9.0];
        add_product(-2.0, a, b, MatMut::new(&mut out, 2, 3).split_cols(2).0);
        assert_eq!(out, [1.0 - 38.0, 1.0 - 44.0, -9.0, 1.0 - 86.0, 1.0 - 100.0, -9.0]);
    }

    #[test]
    #[should_panic(expected = "[2, 2] by [4, 2]")]
    fn a_strided_matrix_ends_in_its_values() {
        Strided::new(&[0.0; 6], [2, 2], [4, 2]);
    }

    /// The product is left to another library: up to its rounding it is the same.
    #[test]
    fn agrees_with_the_reference() {
        let (rows, cols, tokens) = (19, 70, 8);
        let w: Vec<f32> = (0..rows * cols).map(|i| (i as f32).sin()).collect();
        let x: Vec<f32> = (0..tokens * cols).map(|i| (i as f32 * 0.3).cos()).collect();
        let mut many = vec![0.0; tokens * (rows + 1)];
        let (_, inner) = MatMut::new(&mut many, tokens, rows + 1).split_cols(1);
        sgemm(&w, &x, cols, inner);
        for t in 0..tokens {
            let mut one = vec![0.0; rows];
            scalar::matmul_f32(&w, &x[t * cols..][..cols], cols, MatMut::new(&mut one, 1, rows));
            assert_abs_diff_eq!(many[t * (rows + 1) + 1..][..rows], one[..], epsilon = 1e-4);
            assert_eq!(many[t * (rows + 1)], 0.0);
        }
    }
}
