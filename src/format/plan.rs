//! Which number format each tensor of a model file gets.

use std::fmt;
use std::str::FromStr;

use torchless_kernels::GROUP;

use super::encoding::Dtype;
use super::source::Held;
use crate::arch::tensors::HEAD;

/// Which tensors get fewer bits than f32 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Quant {
    /// What the source holds in 4 bits keeps them, on its grid, and all other matrices become int8: nothing that shows is lost.
    #[default]
    Auto,
    /// Every matrix int8, the embedding and the head included. Norms stay f32.
    Int8,
    /// Only `mlp.gate_proj` and `mlp.up_proj` int8, which is what the original readers can read.
    Int8Proj,
    /// Matrices int4, but for those that pay most for eight bits: the values' projections, the embedding and the head. What
    /// a source holds in 4 bits keeps its grid, and what it holds in 5 to 8 becomes int8.
    Int4,
    /// As many matrices int4 as it takes for this average, of the matrices' weights; those that pay most stay int8. Where
    /// that is less than all of them take, all are int4.
    Int4Of(Bits),
    /// None.
    F32,
}

/// Bits a weight, scales included, in hundredths: from 4.5, where all is int4, to 8.25, where all is int8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bits(u16);

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(bits) if (4.5..=8.25).contains(&bits) => Ok(Self((bits * 100.0).round() as u16)),
            _ => Err(format!("{text:?} is no number of bits between 4.5 and 8.25")),
        }
    }
}

impl FromStr for Quant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "int8" => Ok(Self::Int8),
            "int8-proj" => Ok(Self::Int8Proj),
            "int4" => Ok(Self::Int4),
            "f32" => Ok(Self::F32),
            _ => match name.strip_prefix("int4:") {
                Some(bits) => bits.parse().map(Self::Int4Of),
                None => Err(format!("{name:?} is not one of auto, int8, int8-proj, int4, int4:BITS, f32")),
            },
        }
    }
}

/// As it is parsed.
impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Int8 => f.write_str("int8"),
            Self::Int8Proj => f.write_str("int8-proj"),
            Self::Int4 => f.write_str("int4"),
            Self::Int4Of(Bits(hundredths)) => write!(f, "int4:{}", f64::from(*hundredths) / 100.0),
            Self::F32 => f.write_str("f32"),
        }
    }
}

impl Quant {
    /// These tensors in this layout.
    pub fn laid_out(self, layout: RowLayout) -> Storage {
        Storage { quant: self, layout }
    }
}

/// How the rows of an int8 matrix lie in the file. Those of int4 always lie in panels.
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
            _ if !whole_groups => int8,
            (_, Held::Grid(dtype)) if self.layout == RowLayout::Panels => dtype,
            (Quant::Auto, _) | (_, Held::Grid(_) | Held::FiveToEight) => int8,
            (Quant::Int4, Held::Wide) => match Kind::of(name) {
                Kind::V | Kind::Outer => int8,
                _ => Dtype::Int4,
            },
            (Quant::Int4Of(_), Held::Wide) => Dtype::Int4,
        }
    }
}

/// What a matrix is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
    /// The embedding and the head.
    Outer,
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

impl Kind {
    /// What eight bits for a weight are worth: how much divergence they take off a million weights, found by quantising one kind
    /// at a time (docs/performance.md has how).
    fn worth(self) -> f64 {
        match self {
            Kind::V => 0.0107,
            Kind::K => 0.0020,
            Kind::Outer => 0.0015,
            Kind::Down => 0.00105,
            Kind::Up => 0.0008,
            Kind::Q => 0.0007,
            Kind::O => 0.00065,
            Kind::Gate => 0.0005,
        }
    }
}

fn weights(tensor: &Planned) -> f64 {
    tensor.shape.iter().map(|n| *n as f64).product()
}

/// Makes int4 matrices int8 for as long as the matrices' average stays within `bits` a weight.
fn spend(bits: f64, tensors: &[Planned], plan: &mut Vec<Dtype>) {
    // A large embedding may not fit behind what is worth more by the weight, and still be worth more than what would.
    let plans = [false, true].map(|outer_first| spent(bits, tensors, plan, outer_first));
    let [(worth, one), (other_worth, other)] = plans;
    *plan = if other_worth > worth { other } else { one };
}

/// A plan in which those matrices are int8 that are worth most, of a kind the last layers'; and what that is worth.
fn spent(bits: f64, tensors: &[Planned], plan: &[Dtype], outer_first: bool) -> (f64, Vec<Dtype>) {
    let bytes = |tensor: &Planned, dtype: Dtype| match *tensor.shape {
        [rows, cols] => {
            let sizes = dtype.encoding().sizes(rows, cols).ok();
            sizes.and_then(|sizes| sizes.bytes()).unwrap_or(0) as f64
        }
        _ => 0.0,
    };
    let mut plan = plan.to_vec();
    let matrices = || tensors.iter().filter(|tensor| tensor.shape.len() == 2);
    let mut left = bits / 8.0 * matrices().map(weights).sum::<f64>();
    left -= tensors.iter().zip(&plan).map(|(tensor, dtype)| bytes(tensor, *dtype)).sum::<f64>();
    let mut candidates: Vec<_> =
        tensors.iter().zip(&mut plan).filter(|(_, dtype)| **dtype == Dtype::Int4).collect();
    candidates.reverse();
    let rank = |kind: Kind| if outer_first && kind == Kind::Outer { f64::INFINITY } else { kind.worth() };
    candidates.sort_by(|(a, _), (b, _)| rank(Kind::of(b.name)).total_cmp(&rank(Kind::of(a.name))));
    let mut worth = 0.0;
    for (tensor, dtype) in candidates {
        let more = bytes(tensor, Dtype::Int8Panels) - bytes(tensor, Dtype::Int4);
        if more <= left {
            left -= more;
            worth += Kind::of(tensor.name).worth() * weights(tensor);
            *dtype = Dtype::Int8Panels;
        }
    }
    (worth, plan)
}
