//! The f32 product of many tokens, left to `matrixmultiply`.

use crate::mat::MatMut;

/// `out[t][i] = Σ_k w[i][k]·x[t][k]`, rounded as `matrixmultiply` does it: with fused multiply-add where the CPU has it.
///
/// # Panics
/// If `w` is not `[out.cols][cols]` or `x` not `[out.rows][cols]`.
pub(crate) fn matmul(w: &[f32], x: &[f32], cols: usize, mut out: MatMut<f32>) {
    let (tokens, rows, stride) = (out.rows(), out.cols(), out.stride());
    assert_eq!((Some(x.len()), Some(w.len())), (tokens.checked_mul(cols), rows.checked_mul(cols)));
    let [cols_step, out_step] = [cols, stride].map(|n| n as isize);
    let (a, b, c) = (x.as_ptr(), w.as_ptr(), out.as_mut_ptr());
    // SAFETY: x is tokens × cols, w is rows × cols and read transposed, out is tokens × rows with `stride` between rows.
    unsafe {
        matrixmultiply::sgemm(tokens, cols, rows, 1.0, a, cols_step, 1, b, 1, cols_step, 0.0, c, out_step, 1);
    }
}
