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

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::scalar;

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
