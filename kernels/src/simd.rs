//! Sixteen lanes, whatever the registers of the CPU: what the float kernels are written in.
//!
//! An instruction set is a token of zero size that can only be made where the CPU has it; every operation is a method
//! of the token, so the operations themselves are safe to call. The methods are `#[inline(always)]`: they, and the
//! kernels in [`crate::float`] that use them, end up inside a function compiled for the instruction set.

use crate::half::f16;
use crate::scalar::{self, LANES};

/// One instruction set's operations on 16 lanes. Each lane does what the scalar expression in its comment does.
pub(crate) trait Simd: Copy {
    /// 16 f32.
    type F32: Copy;
    /// 16 i32.
    type I32: Copy;

    /// How many accumulators an attention tile may keep in registers.
    const ACCUMULATORS: usize;

    /// Asks for the memory at `at`, which is needed soon; any address will do.
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}

    /// All lanes `v`.
    fn splat(self, v: f32) -> Self::F32;
    fn load(self, x: &[f32; LANES]) -> Self::F32;
    /// Widens f16, exactly.
    fn load_f16(self, x: &[f16; LANES]) -> Self::F32;
    /// Widens i8, exactly.
    fn load_i8(self, x: &[i8; LANES]) -> Self::F32;
    fn store(self, v: Self::F32, out: &mut [f32; LANES]);
    /// Rounds to f16, ties to even.
    fn store_f16(self, v: Self::F32, out: &mut [f16; LANES]);

    /// `a + b`
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { a } else { b }`
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if x >= bound { v } else { 0.0 }`
    fn keep_where_ge(self, v: Self::F32, x: Self::F32, bound: Self::F32) -> Self::F32;
    /// Bit `i`: whether `a > b` in lane `i`.
    fn mask_gt(self, a: Self::F32, b: Self::F32) -> u16;
    /// Whether `a == b` in any lane.
    fn any_eq(self, a: Self::F32, b: Self::F32) -> bool;
    /// `f32::from_bits((v.to_bits() + bias) << 23)`, wrapping.
    fn exponent(self, v: Self::F32, bias: i32) -> Self::F32;
    /// Lane `i` takes lane `i + 8`, then `i + 4`, `i + 2`, `i + 1`, by `a + b`.
    fn fold_add(self, v: Self::F32) -> f32;

    /// Lane `i` takes lane `i + 8`, then `i + 4`, `i + 2`, `i + 1`, by `max(a, b)`.
    #[inline(always)]
    fn fold_max(self, v: Self::F32) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        scalar::fold(lanes, scalar::max)
    }

    /// `v.to_bits() & 0x7fff_ffff`
    fn abs_bits(self, v: Self::F32) -> Self::I32;
    /// `v.round_ties_even() as i32`, for `|v| < 2²²`.
    fn round(self, v: Self::F32) -> Self::I32;
    /// `v as f32`
    fn to_f32(self, v: Self::I32) -> Self::F32;
    /// `a.max(b)`
    fn max_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The sum of all lanes, wrapping.
    fn sum_i32(self, v: Self::I32) -> i32;
    /// The largest lane.
    fn largest_i32(self, v: Self::I32) -> i32;
    fn store_i32(self, v: Self::I32, out: &mut [i32; LANES]);
    /// Stores lanes that lie in −128..=127; others are stored as any value.
    fn store_i8(self, v: Self::I32, out: &mut [i8; LANES]);
}

/// Runs intrinsics.
macro_rules! isa {
    ($($body:tt)*) => {
        // SAFETY: the token proves that the CPU has the features; pointers come from references to whole arrays.
        unsafe { $($body)* }
    };
}

#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(unused_imports))]
pub(crate) use isa;
