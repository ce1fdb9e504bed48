//! The input of products, in each number format that the weights at hand want.
//!
//! A weight says which format it is multiplied with ([`Weight::activation`](crate::Weight::activation)). What several
//! weights share is kept once for each format that one of them wants, and whoever writes it (a norm, an activation
//! function) fills all of them.

use crate::mat::MatMut;
use crate::memory::{Aligned, Allocator};
use crate::quant::{Quantized, QuantizedBuf, QuantizedMut, QuantizedRow};
use crate::{GROUP, Gate, Kernels};
use std::ops::Range;

/// A number format of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ActivationFormat {
    /// As they come.
    F32,
    /// Int8 in groups of 64, outliers apart: [`Quantized`].
    Int8,
}

/// A set of [`ActivationFormat`]s: what some weights want together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActivationFormats {
    f32: bool,
    int8: bool,
}

impl ActivationFormats {
    /// This set and `format`.
    pub fn with(mut self, format: ActivationFormat) -> Self {
        match format {
            ActivationFormat::F32 => self.f32 = true,
            ActivationFormat::Int8 => self.int8 = true,
        }
        self
    }

    /// What is in one of two sets.
    pub fn or(self, other: Self) -> Self {
        Self { f32: self.f32 || other.f32, int8: self.int8 || other.int8 }
    }
}

impl FromIterator<ActivationFormat> for ActivationFormats {
    fn from_iter<I: IntoIterator<Item = ActivationFormat>>(formats: I) -> Self {
        formats.into_iter().fold(Self::default(), Self::with)
    }
}

/// Room for the activations of some tokens, allocated once and filled again for every product.
#[derive(Clone, Debug)]
pub struct ActivationBuf {
    /// `[max_tokens][cols]`
    f32: Option<Aligned<f32>>,
    int8: Option<QuantizedBuf>,
    cols: usize,
}

impl ActivationBuf {
    /// Room for `max_tokens` tokens of `cols` values in these formats.
    pub fn new(memory: &mut Allocator, max_tokens: usize, cols: usize, formats: ActivationFormats) -> Self {
        Self {
            f32: formats.f32.then(|| memory.aligned(max_tokens * cols)),
            int8: formats.int8.then(|| QuantizedBuf::new(memory, max_tokens, cols)),
            cols,
        }
    }

    /// The first `tokens` tokens, for reading.
    ///
    /// # Panics
    /// If there is not room for so many.
    pub fn view(&self, tokens: usize) -> Activations<'_> {
        Activations {
            f32: self.f32.as_ref().map(|x| &x[..tokens * self.cols]),
            int8: self.int8.as_ref().map(|x| x.view(tokens)),
            tokens,
            cols: self.cols,
        }
    }

    /// The first `tokens` tokens, for writing them in these formats.
    ///
    /// # Panics
    /// If there is not room for so many, or no room for one of the formats.
    pub fn view_mut(&mut self, tokens: usize, formats: ActivationFormats) -> ActivationsMut<'_> {
        let Self { f32, int8, cols } = self;
        ActivationsMut {
            f32: formats.f32.then(|| {
                let x = f32.as_mut().expect("room for f32 activations");
                MatMut::new(&mut x[..tokens * *cols], tokens, *cols)
            }),
            int8: formats.int8.then(|| int8.as_mut().expect("room for int8 activations").view_mut(tokens)),
            tokens,
        }
    }

    /// The f32 values of the first `tokens` tokens, for writing: `[tokens][cols]`.
    ///
    /// # Panics
    /// If there is not room for so many, or none for f32.
    pub fn f32_mut(&mut self, tokens: usize) -> &mut [f32] {
        &mut self.f32.as_mut().expect("room for f32 activations")[..tokens * self.cols]
    }

    /// The f32 values of the first `tokens` tokens, `[tokens][cols]`, and all other formats there is room for, to be filled
    /// with them by [`Kernels::convert`].
    ///
    /// # Panics
    /// If there is not room for so many, or none for f32.
    pub fn f32_and_others(&mut self, tokens: usize) -> (&[f32], ActivationsMut<'_>) {
        let x = &self.f32.as_ref().expect("room for f32 activations")[..tokens * self.cols];
        let int8 = self.int8.as_mut().map(|int8| int8.view_mut(tokens));
        (x, ActivationsMut { f32: None, int8, tokens })
    }
}

/// Activations of some tokens, for reading.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    /// `[tokens][cols]`
    pub(crate) f32: Option<&'a [f32]>,
    pub(crate) int8: Option<Quantized<'a>>,
    tokens: usize,
    cols: usize,
}

impl Activations<'_> {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Values a token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One token's values in f32: as they came, where they are kept so.
    ///
    /// # Panics
    /// If there is no such token, `out` is not as long as one, or no format has been filled.
    pub fn token(&self, token: usize, out: &mut [f32]) {
        if let Some(x) = self.f32 {
            return out.copy_from_slice(&x[token * self.cols..(token + 1) * self.cols]);
        }
        let x = self.int8.expect("activations in some format");
        let (values, scales, outliers) =
            (x.token_values(token), x.token_scales(token), x.token_outliers(token));
        assert_eq!(out.len(), values.len(), "a token's values");
        for (k, (out, value)) in out.iter_mut().zip(values).enumerate() {
            let whole = i32::from(*value) + outliers[k / GROUP].extra(k % GROUP);
            *out = whole as f32 * scales[k / GROUP];
        }
    }

    /// Only these tokens.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn part(&self, tokens: Range<usize>) -> Self {
        Self {
            f32: self.f32.map(|x| &x[tokens.start * self.cols..tokens.end * self.cols]),
            int8: self.int8.map(|x| x.part(tokens.clone())),
            tokens: tokens.len(),
            cols: self.cols,
        }
    }
}

/// A rectangle of activations to be written: some tokens × some features.
pub struct ActivationsMut<'a> {
    f32: Option<MatMut<'a, f32>>,
    int8: Option<QuantizedMut<'a>>,
    tokens: usize,
}

impl ActivationsMut<'_> {
    /// Features are split between groups of so many.
    pub const FEATURES: usize = GROUP;

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Splits the rectangle into the first `tokens` tokens and the rest.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn split_tokens(self, tokens: usize) -> (Self, Self) {
        let (f0, f1) = self.f32.map(|x| x.split_rows(tokens)).unzip();
        let (q0, q1) = self.int8.map(|x| x.split_tokens(tokens)).unzip();
        let rest = self.tokens - tokens;
        (Self { f32: f0, int8: q0, tokens }, Self { f32: f1, int8: q1, tokens: rest })
    }

    /// Splits the rectangle into the first `features` features and the rest.
    ///
    /// # Panics
    /// If there are not so many, or int8 activations are split inside a group of [`ActivationsMut::FEATURES`].
    pub fn split_features(self, features: usize) -> (Self, Self) {
        let (f0, f1) = self.f32.map(|x| x.split_cols(features)).unzip();
        let (q0, q1) = self.int8.map(|x| x.split_cols(features)).unzip();
        let tokens = self.tokens;
        (Self { f32: f0, int8: q0, tokens }, Self { f32: f1, int8: q1, tokens })
    }

    /// One token's part of the rectangle.
    ///
    /// # Panics
    /// If `token` is out of range.
    pub fn token(&mut self, token: usize) -> ActivationRow<'_> {
        ActivationRow {
            f32: self.f32.as_mut().map(|x| x.row(token)),
            int8: self.int8.as_mut().map(|x| x.token(token)),
        }
    }
}

/// Where one token's activations, or some features of them, are put in each format.
pub struct ActivationRow<'a> {
    f32: Option<&'a mut [f32]>,
    int8: Option<QuantizedRow<'a>>,
}

/// What fills activations, in every format of the row.
impl Kernels {
    /// `x` as it is.
    pub fn convert(self, x: &[f32], out: ActivationRow) {
        if let Some(out) = out.f32 {
            out.copy_from_slice(x);
        }
        if let Some(out) = out.int8 {
            self.quantize(x, out);
        }
    }

    /// RMSNorm of one token: see [`scalar::rms_norm`](crate::scalar::rms_norm).
    pub fn rms_norm_into(self, x: &[f32], weight: &[f32], eps: f32, out: ActivationRow) {
        if let Some(out) = out.f32 {
            self.rms_norm(x, weight, eps, out);
        }
        if let Some(out) = out.int8 {
            self.rms_norm_quantize(x, weight, eps, out);
        }
    }

    /// `f(gate) · up` of one token, or of whole groups of one: see [`scalar::glu`](crate::scalar::glu).
    pub fn glu_into(self, f: Gate, gate: &[f32], up: &[f32], out: ActivationRow) {
        if let Some(out) = out.f32 {
            self.glu(f, gate, up, out);
        }
        if let Some(out) = out.int8 {
            self.glu_quantize(f, gate, up, out);
        }
    }
}
