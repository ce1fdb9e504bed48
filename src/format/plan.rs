//! Which number format each tensor of a model file gets.

use std::str::FromStr;

use torchless_kernels::GROUP;

use super::encoding::Dtype;
use super::source::Held;
use crate::arch::tensors::HEAD;

/// Which tensors get fewer bits than f32 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Quant {
    /// Every matrix int8, the embedding and the head included. Norms stay f32.
    #[default]
    Int8,
    /// Only `mlp.gate_proj` and `mlp.up_proj` int8, which is what the original readers can read.
    Int8Proj,
    /// Matrices int4, but for those that pay most for eight bits: the values' projections, the embedding and the head. What
    /// a source holds in 4 bits keeps its grid, and what it holds in 5 to 8 becomes int8.
    Int4,
    /// As many matrices int4 as it takes for this average, of the matrices' weights; those that pay most stay int8.
    Int4Of(Bits),
    /// None.
    F32,
}

/// Bits a weight, scales included, in hundredths: 4.5 to 8.25 make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bits(u16);

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(bits) if (4.0..=9.0).contains(&bits) => Ok(Self((bits * 100.0).round() as u16)),
            _ => Err(format!("{text:?} is no number of bits between 4.5 and 8.25")),
        }
    }
}

impl FromStr for Quant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "int8" => Ok(Self::Int8),
            "int8-proj" => Ok(Self::Int8Proj),
            "int4" => Ok(Self::Int4),
            "f32" => Ok(Self::F32),
            _ => match name.strip_prefix("int4:") {
                Some(bits) => bits.parse().map(Self::Int4Of),
                None => Err(format!("{name:?} is not one of int8, int8-proj, int4, int4:BITS, f32")),
            },
        }
    }
}

impl Quant {
    /// These tensors in this layout.
    pub fn laid_out(self, layout: RowLayout) -> Storage {
        Storage { quant: self, layout }
    }
}

/// How the rows of an int8 matrix lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowLayout {
    /// 16 side by side, as the kernels read them. Matrices whose columns are no multiple of 64 lie in rows.
    Panels,
    /// One after the other, which is what the original readers can read.
    Rows,
}

impl FromStr for RowLayout {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "panels" => Ok(Self::Panels),
            "rows" => Ok(Self::Rows),
            _ => Err(format!("{name:?} is not one of panels, rows")),
        }
    }
}

/// How a model is stored: which tensors become int8 or int4, and how int8 lies in the file.
///
/// Of a [`Quant`] alone: in panels, but for [`Quant::Int8Proj`], which is for readers that know rows only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    quant: Quant,
    layout: RowLayout,
}

impl From<Quant> for Storage {
    fn from(quant: Quant) -> Self {
        quant.laid_out(if quant == Quant::Int8Proj { RowLayout::Rows } else { RowLayout::Panels })
    }
}

/// A tensor that wants a format.
pub(crate) struct Planned<'a> {
    pub name: &'a str,
    /// `[rows, cols]`, or `[n]`.
    pub shape: &'a [usize],
    pub held: Held,
}

impl Storage {
    /// The format of each tensor.
    pub(crate) fn plan(self, tensors: &[Planned]) -> Vec<Dtype> {
        let mut plan: Vec<_> = tensors.iter().map(|tensor| self.dtype(tensor)).collect();
        if let Quant::Int4Of(Bits(hundredths)) = self.quant {
            spend(f64::from(hundredths) / 100.0, tensors, &mut plan);
        }
        plan
    }

    fn dtype(self, tensor: &Planned) -> Dtype {
        let Planned { name, shape, held } = *tensor;
        let whole_groups = shape.last().is_some_and(|cols| cols.is_multiple_of(GROUP));
        let int8 = match self.layout {
            RowLayout::Panels if whole_groups => Dtype::Int8Panels,
            RowLayout::Panels | RowLayout::Rows => Dtype::Int8,
        };
        match (self.quant, held) {
            (Quant::F32, _) => Dtype::F32,
            _ if shape.len() != 2 => Dtype::F32,
            (Quant::Int8, _) => int8,
            (Quant::Int8Proj, _) => match Kind::of(name) {
                Kind::Gate | Kind::Up => int8,
                _ => Dtype::F32,
            },
            (Quant::Int4 | Quant::Int4Of(_), _) if !whole_groups => int8,
            (Quant::Int4 | Quant::Int4Of(_), Held::Grid(dtype)) => dtype,
            (Quant::Int4 | Quant::Int4Of(_), Held::FiveToEight) => int8,
            (Quant::Int4, Held::Wide) => match Kind::of(name) {
                Kind::V | Kind::Outer => int8,
                _ => Dtype::Int4,
            },
            (Quant::Int4Of(_), Held::Wide) => Dtype::Int4,
        }
    }
}

/// What a matrix is for. In the order of what a weight's eight bits are worth: how much of the divergence they take off, found
/// by quantising one kind at a time (docs/performance.md has the figures).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    V,
    K,
    /// The embedding and the head.
    Outer,
    Down,
    Up,
    Q,
    O,
    Gate,
}

impl Kind {
    fn of(name: &str) -> Self {
        let ends = |end: &str| name.strip_suffix(".weight").is_some_and(|name| name.ends_with(end));
        match name {
            HEAD => Kind::Outer,
            _ if ends("v_proj") => Kind::V,
            _ if ends("k_proj") => Kind::K,
            _ if ends("q_proj") => Kind::Q,
            _ if ends("o_proj") => Kind::O,
            _ if ends("gate_proj") => Kind::Gate,
            _ if ends("up_proj") => Kind::Up,
            _ if ends("down_proj") => Kind::Down,
            _ => Kind::Outer,
        }
    }
}

/// Makes int4 matrices int8 for as long as the matrices' average stays within `bits` a weight, those first that are worth most;
/// of a kind the last layers'.
fn spend(bits: f64, tensors: &[Planned], plan: &mut [Dtype]) {
    let size = |tensor: &Planned, dtype: Dtype| match *tensor.shape {
        [rows, cols] => {
            dtype.encoding().sizes(rows, cols).ok().and_then(|sizes| sizes.bytes()).unwrap_or(0) as f64
        }
        _ => 0.0,
    };
    let weights = tensors.iter().filter(|tensor| tensor.shape.len() == 2);
    let weights: f64 = weights.map(|tensor| tensor.shape.iter().map(|n| *n as f64).product::<f64>()).sum();
    let mut left = bits * weights / 8.0;
    left -= tensors.iter().zip(&*plan).map(|(tensor, dtype)| size(tensor, *dtype)).sum::<f64>();
    let mut candidates: Vec<_> =
        tensors.iter().zip(plan).filter(|(_, dtype)| **dtype == Dtype::Int4).collect();
    candidates.reverse();
    candidates.sort_by_key(|(tensor, _)| Kind::of(tensor.name));
    for (tensor, dtype) in candidates {
        let more = size(tensor, Dtype::Int8Panels) - size(tensor, Dtype::Int4);
        if more <= left {
            left -= more;
            *dtype = Dtype::Int8Panels;
        }
    }
}
