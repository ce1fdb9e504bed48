//! Which instruction set runs.

#[cfg(target_arch = "aarch64")]
use crate::aarch64::{dotprod, neon};
use crate::portable;
use crate::table::{SCALAR, Table};
#[cfg(target_arch = "x86_64")]
use crate::x86_64::{amx, avx2, avx512vnni, avxvnni};
use std::fmt;
use std::str::FromStr;

/// An instruction set the kernels are written for.
///
/// All names exist in every build, so that a name is never unknown on one machine and known on another; those of
/// another architecture are not [available](Isa::is_available).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust: the reference. Slow.
    Scalar,
    /// The `wide` crate's vectors: any CPU.
    Portable,
    /// x86-64 with AVX2 and F16C: from Haswell and Zen on.
    Avx2,
    /// That with VNNI on 256 bits: Intel's CPUs without AVX-512 from Alder Lake on, and all that can run
    /// [`Isa::Avx512Vnni`].
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI: from Ice Lake and Zen 4 on.
    Avx512Vnni,
    /// That with AMX's int8 tiles, on Linux: Intel's Xeons from Sapphire Rapids on.
    Amx,
    /// aarch64 as it began: `smull` and `sadalp`.
    Neon,
    /// aarch64 with `sdot`: from Cortex-A76, Neoverse N1 and Apple A11 on.
    DotProd,
}

impl Isa {
    /// Every instruction set; among those of one architecture, slowest first.
    pub const ALL: [Isa; 8] = [
        Isa::Scalar,
        Isa::Portable,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::Amx,
        Isa::Neon,
        Isa::DotProd,
    ];

    /// The name `--isa` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::DotProd => "dotprod",
        }
    }

    /// Whether this CPU, and this build, can run it.
    pub fn is_available(self) -> bool {
        self.table().is_some()
    }

    /// The kernels, where the CPU has the instructions. `std` keeps what it has detected, so this is cheap.
    fn table(self) -> Option<&'static Table> {
        match self {
            Isa::Scalar => Some(&SCALAR),
            Isa::Portable => Some(&portable::TABLE),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::is_available().then_some(&avx2::TABLE),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => avxvnni::table(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512vnni::is_available().then_some(&avx512vnni::TABLE),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => amx::is_available().then_some(&amx::TABLE),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::is_available().then_some(&neon::TABLE),
            #[cfg(target_arch = "aarch64")]
            Isa::DotProd => dotprod::is_available().then_some(&dotprod::TABLE),
            #[allow(unreachable_patterns, reason = "on an architecture without kernels of its own")]
            _ => None,
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
