//! `torchless kernels`: every kernel of every instruction set against the reference, for equality and speed.

mod cases;
mod measure;
mod roofline;

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use torchless_kernels::{Isa, Kernels};

use super::output::{emit_json, emit_line};
use super::plot::{self, Picture};
use super::values;
use super::wrong_usage;
use cases::cases;
use measure::{Row, measure};
use roofline::{Roofs, draw};

/// Compare every kernel with the scalar reference: equal or not, and how fast
///
/// All instruction sets of this CPU, on one core: one to three minutes, most of them the scalar reference's, or seconds with a filter
/// that leaves gemm out. The rows named read are a plain loop over the same memory, timed in turns
/// with the kernels.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    torchless kernels\n  \
    torchless kernels --list\n  \
    torchless kernels gemm --only avx2 --json\n  \
    torchless kernels gemv --plot roofline.svg\n\n\
    GB/s counts each byte that a kernel reads or writes once, GMAC/s multiply-adds.")]
pub struct Args {
    /// Only kernels whose name contains this, e.g. gemm or attn
    filter: Option<String>,
    /// Print the kernels' names, and measure nothing
    #[arg(long)]
    list: bool,
    /// Only these instruction sets (comma-separated); the reference is always among them
    #[arg(long, value_delimiter = ',', value_name = "ISA", value_parser = values::kernels)]
    only: Vec<Kernels>,
    /// Batched products of every matrix, not only of three, and all of int4: takes an hour, most of it the reference's
    #[arg(long)]
    all: bool,
    /// Seconds to measure each row for
    #[arg(long, default_value = "0.05", value_name = "SECONDS", allow_negative_numbers = true, value_parser = values::seconds)]
    time: Duration,
    /// Print the rows, or the names, as a JSON array
    #[arg(long)]
    json: bool,
    /// Also draw them: speed over operations a byte (a roofline), beside what memory and cache deliver here
    #[arg(long, value_name = "FILE.svg", value_parser = plot::path)]
    plot: Option<PathBuf>,
}

/// Prints the table, or the rows as JSON.
///
/// # Errors
/// If an instruction set is not to be had here, the results of one differ from the reference, or the picture cannot be
/// written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let kernels = chosen(&args.only)?;
    let mut cases = cases(args.all);
    cases.retain(|(kernel, _)| args.filter.as_ref().is_none_or(|part| kernel.contains(part.as_str())));
    if let (Some(filter), true) = (&args.filter, cases.is_empty()) {
        let problem =
            format!("no kernel's name contains {filter:?}: `torchless kernels --list` shows all of them");
        return Err(wrong_usage("kernels", ErrorKind::InvalidValue, problem));
    }
    if args.list {
        let mut names: Vec<_> = cases.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        return Ok(if args.json { emit_json(&names) } else { emit_line(&names.join("\n")) }?);
    }
    let picture = args.plot.as_deref().map(|path| Picture::create(path, &[])).transpose()?;
    // Before and after, because other programs slow down the one or the other.
    let before = picture.as_ref().map(|_| Roofs::measure());
    if !args.json {
        emit_line(&Row::header())?;
    }
    let mut rows = Vec::new();
    for (kernel, make) in cases {
        for row in measure(kernel, make(), &kernels, args.time) {
            if !args.json {
                emit_line(&row.to_line())?;
            }
            rows.push(row);
        }
    }
    if args.json {
        emit_json(&rows)?;
    }
    if let Some(picture) = picture {
        let roofs = before.unwrap_or_default().max(Roofs::measure());
        picture.write(roofline::SIZE, |area| draw(area, &rows, &roofs))?;
    }
    let wrong = rows.iter().filter(|row| row.max_ulp != 0).count();
    anyhow::ensure!(wrong == 0, "{wrong} of {} results differ from the scalar reference", rows.len());
    Ok(())
}

fn chosen(only: &[Kernels]) -> anyhow::Result<Vec<Kernels>> {
    let mut chosen = vec![Kernels::new(Isa::Scalar)?];
    let others = Isa::ALL.into_iter().filter(|&isa| isa != Isa::Scalar);
    if only.is_empty() {
        chosen.extend(others.filter_map(|isa| Kernels::new(isa).ok()));
    } else {
        chosen.extend(only.iter().filter(|k| k.isa() != Isa::Scalar));
    }
    Ok(chosen)
}
