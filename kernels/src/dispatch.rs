//! Which instruction set runs: detected once, a table of plain function pointers for each.

use crate::half::f16;
use crate::mat::MatMut;
use crate::quant::{QMatrix, Quantized, QuantizedRow};
use crate::scalar;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// An instruction set the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust: the reference. Slow.
    Scalar,
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: [Isa; 1] = [Isa::Scalar];

    /// The name `--isa` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
        }
    }

    /// Whether this CPU, and this build, can run it.
    pub fn is_available(self) -> bool {
        self.table().is_some()
    }

    fn table(self) -> Option<&'static Table> {
        match self {
            Isa::Scalar => Some(&SCALAR),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(s: &str) -> Result<Self, IsaError> {
        Isa::ALL.into_iter().find(|isa| isa.name() == s).ok_or_else(|| IsaError::Unknown(s.to_owned()))
    }
}

/// Why an instruction set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsaError {
    /// No such name.
    Unknown(String),
    /// The CPU lacks it, or the build is for another architecture.
    Unavailable(Isa),
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let names = |f: &mut fmt::Formatter, keep: fn(Isa) -> bool| {
            let names: Vec<_> = Isa::ALL.into_iter().filter(|&i| keep(i)).map(Isa::name).collect();
            f.write_str(&names.join(", "))
        };
        match self {
            IsaError::Unknown(name) => {
                write!(f, "unknown instruction set {name:?}: choose auto or one of ")?;
                names(f, |_| true)
            }
            IsaError::Unavailable(isa) => {
                write!(f, "this CPU cannot run {isa}: choose auto or one of ")?;
                names(f, Isa::is_available)
            }
        }
    }
}

impl std::error::Error for IsaError {}

/// The kernels of one instruction set: a handle that exists only where the CPU can run them.
#[derive(Clone, Copy)]
pub struct Kernels {
    pub(crate) isa: Isa,
    pub(crate) table: &'static Table,
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Kernels({})", self.isa)
    }
}

impl Kernels {
    /// The kernels of `isa`.
    ///
    /// # Errors
    /// If this CPU cannot run them.
    pub fn new(isa: Isa) -> Result<Self, IsaError> {
        isa.table().map(|table| Self { isa, table }).ok_or(IsaError::Unavailable(isa))
    }

    /// The fastest this CPU can run.
    pub fn detect() -> Self {
        let best = Isa::ALL.into_iter().rev().find_map(|isa| Self::new(isa).ok());
        best.unwrap_or(Self { isa: Isa::Scalar, table: &SCALAR })
    }

    /// What `choice` names; where it is absent or `"auto"`, what the environment variable `TORCHLESS_ISA` names;
    /// where that is absent, empty or `"auto"` too, the fastest.
    ///
    /// # Errors
    /// If the name is unknown or the CPU cannot run it: a choice is never silently replaced.
    pub fn choose(choice: Option<&str>) -> Result<Self, IsaError> {
        let environment = std::env::var("TORCHLESS_ISA").ok();
        let named = |s: &&str| !s.is_empty() && *s != "auto";
        match choice.filter(named).or(environment.as_deref().filter(named)) {
            Some(name) => Self::new(name.parse()?),
            None => Ok(Self::detect()),
        }
    }

    /// The instruction set these kernels are written for.
    pub fn isa(self) -> Isa {
        self.isa
    }
}

/// One instruction set's kernels. The callers in `lib.rs` have checked every length.
///
/// # Safety
/// A table may only be reached (through [`Isa::table`]) on a CPU that has the features its functions are compiled for;
/// and the lengths must agree as the methods of [`Kernels`] assert.
pub(crate) struct Table {
    pub quantize: unsafe fn(&[f32], QuantizedRow),
    pub matmul_i8: unsafe fn(&QMatrix, Range<usize>, &Quantized, MatMut<f32>),
    pub dequantize_row: unsafe fn(&QMatrix, usize, &mut [f32]),
    pub matmul_f32: unsafe fn(&[f32], &[f32], usize, MatMut<f32>),
    pub rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub rms_norm_quantize: unsafe fn(&[f32], &[f32], f32, QuantizedRow),
    pub silu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub silu_mul_quantize: unsafe fn(&[f32], &[f32], QuantizedRow),
    pub rope: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub add: unsafe fn(&mut [f32], &[f32]),
    pub attn_scores_f32: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub attn_scores_f16: unsafe fn(&[f32], &[f16], f32, &mut [f32]),
    pub softmax_block: unsafe fn(&mut [f32]) -> (f32, f32),
    pub attn_accumulate_f32: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub attn_accumulate_f16: unsafe fn(&[f32], &[f16], &mut [f32]),
    pub attn_merge: unsafe fn(&mut [f32], f32, &[f32], f32),
    pub scale: unsafe fn(&mut [f32], f32),
    pub narrow_f16: unsafe fn(&[f32], &mut [f16]),
    pub argmax: unsafe fn(&[f32]) -> usize,
}

static SCALAR: Table = Table {
    quantize: scalar::quantize,
    matmul_i8: scalar::matmul_i8,
    dequantize_row: scalar::dequantize_row,
    matmul_f32: scalar::matmul_f32,
    rms_norm: scalar::rms_norm,
    rms_norm_quantize: scalar::rms_norm_quantize,
    silu_mul: scalar::silu_mul,
    silu_mul_quantize: scalar::silu_mul_quantize,
    rope: scalar::rope,
    add: scalar::add,
    attn_scores_f32: scalar::attn_scores::<f32>,
    attn_scores_f16: scalar::attn_scores::<f16>,
    softmax_block: scalar::softmax_block,
    attn_accumulate_f32: scalar::attn_accumulate::<f32>,
    attn_accumulate_f16: scalar::attn_accumulate::<f16>,
    attn_merge: scalar::attn_merge,
    scale: scalar::scale,
    narrow_f16: scalar::narrow_f16,
    argmax: scalar::argmax,
};
