//! `torchless convert`: a model from elsewhere, or of random weights, to a `.bin` file.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::error::ErrorKind;
use torchless::arch::{SHAPES, shape};
use torchless::calibrate;
use torchless::format::convert::{Convertible, Progress, Quant, RowLayout, Storage};
use torchless::format::synthetic::write_synthetic;
use torchless::pull::{Hub, Named};

use super::input::read_text;
use super::model::{fetch, note_chat_template};
use super::output;
use super::progress;
use super::wrong_usage;

/// Convert a Hugging Face folder, a GGUF file, a model of the hub or an older model file to a model file
///
/// The result is written beside DST and renamed when it is complete. An existing DST is replaced where it is named;
/// the name that is chosen where none is given must be free.
#[derive(clap::Args)]
#[command(
    override_usage = "torchless convert [OPTIONS] <SRC> [DST]\n       torchless convert [OPTIONS] --synthetic <SHAPE> [DST]",
    after_help = "Examples:\n  \
    torchless convert ./Mistral-7B-v0.1 mistral.bin\n  \
    torchless convert llama-2-7b.Q4_K_M.gguf          (writes llama-2-7b.Q4_K_M.bin here)\n  \
    torchless convert SmolLM2-135M-Instruct.Q4_1.gguf smol.bin --quant f32\n  \
    torchless convert hf:mistralai/Mistral-7B-v0.1 --quant int4\n  \
    torchless convert old.bin new.bin                 (int8 in panels: faster)\n  \
    torchless convert --synthetic mistral-7b random-7b.bin\n\n\
    SRC: a folder with config.json, tokenizer.json and safetensors (f32, f16, bf16), a GGUF \
    file of a Llama, Mistral or Qwen model (F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K to Q6_K), \
    or a model file, also of the original exporter: what --quant says goes for it as for the others. \
    hf:ORG/NAME[:FILE][@REVISION] is one on the hub, which is fetched first.\n\
    To use a model no conversion need be asked for: -m takes the same, and keeps what it becomes."
)]
pub struct Args {
    /// A Hugging Face folder, a GGUF file, a model file, or hf:ORG/NAME[:FILE][@REVISION]
    #[arg(required_unless_present = "synthetic")]
    src: Option<PathBuf>,
    /// The model file to write [default: the name of SRC or SHAPE with .bin, in the current folder]
    dst: Option<PathBuf>,
    /// How many bits which matrices get: auto, int8, int4, int4:BITS, int8-proj or f32
    ///
    /// auto: what SRC holds in 4 bits keeps them, and every other matrix becomes int8; int8: every matrix; int4: all but those that
    /// pay most for 8 bits (the values' projections, the embedding, the head), less what SRC holds in 5 to 8; int4:BITS: as many int4
    /// as it takes for this average (4.5 to 8.25); int8-proj: the MLP's gate and up, which the original readers take; f32: none.
    #[arg(long, value_name = "KIND", default_value = "auto")]
    quant: Quant,
    /// With int4: a text (UTF-8, a few thousand words) that runs through the model; what it is multiplied with decides how each
    /// matrix is rounded
    ///
    /// Takes a third off what int4 loses. Seconds for a small model, hours for one of 7B, and of memory 4 bytes for each pair of a
    /// matrix's columns (0.8 GB for 14336). Up to 8192 tokens are read.
    #[arg(long, value_name = "FILE", conflicts_with = "synthetic")]
    calibrate: Option<PathBuf>,
    /// panels: int8 as the kernels read it; rows: as the original readers do [default: panels, with int8-proj rows]
    #[arg(long, value_name = "KIND")]
    layout: Option<RowLayout>,
    /// No SRC: a model of this shape with random weights, always the same, to measure speed with
    #[arg(long, value_name = "SHAPE", value_parser = SHAPES)]
    synthetic: Option<String>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let problem = match (args.quant, args.layout) {
        (Quant::F32, Some(RowLayout::Panels)) => {
            Some("--layout panels is for int8, and --quant f32 makes none: leave one out")
        }
        (Quant::Int4 | Quant::Int4Of(_), Some(RowLayout::Rows)) => {
            Some("--layout rows is for int8, and int4 lies in panels: leave one out")
        }
        _ => None,
    };
    if let Some(problem) = problem {
        return Err(wrong_usage("convert", ErrorKind::ArgumentConflict, problem));
    }
    if args.calibrate.is_some() && !matches!(args.quant, Quant::Int4 | Quant::Int4Of(_)) {
        let problem = "--calibrate is for int4: add --quant int4";
        return Err(wrong_usage("convert", ErrorKind::ArgumentConflict, problem));
    }
    let text = args.calibrate.as_deref().map(read_text).transpose()?;
    let storage = args.layout.map_or(Storage::from(args.quant), |layout| args.quant.laid_out(layout));
    let named = args.src.as_deref().map(Named::of).transpose()?;
    // What a model of the hub is called, without the folder of a commit that it lies in.
    let called = match &named {
        Some(Named::Hub(reference)) => Some(reference.clone()),
        _ => None,
    };
    let src = match named {
        Some(Named::Hub(reference)) => Some(fetch(&Hub::from_environment()?, &reference)?),
        Some(Named::Source(path) | Named::ModelFile(path)) => Some(path),
        None => None,
    };
    let (model, dst) = match (args.synthetic.as_deref(), src.clone(), args.dst) {
        (Some(_), Some(_), Some(_)) => {
            let problem = "--synthetic takes no SRC: give DST only";
            return Err(wrong_usage("convert", ErrorKind::ArgumentConflict, problem));
        }
        (Some(_), Some(dst), None) => (None, dst),
        (Some(shape), None, _) => (None, free(format!("{shape}.bin").into())?),
        (None, Some(src), Some(dst)) => (Some(Convertible::open(&src)?), dst),
        (None, Some(src), None) => {
            // What cannot be converted is a better reason than a name that is taken.
            let model = Convertible::open(&src)?;
            let dst = match called {
                Some(reference) if src.is_dir() => format!("{}.bin", reference.name()).into(),
                _ => name_of(&src)?,
            };
            if dst.canonicalize().is_ok_and(|dst| src.canonicalize().is_ok_and(|src| src == dst)) {
                bail!("{}: is SRC itself, which is not replaced: name DST", dst.display());
            }
            (Some(model), free(dst)?)
        }
        (None, None, _) => bail!("no source given"),
    };
    let bar = progress::Bytes::new();
    let progress = &mut |at: Progress<'_>| bar.show(at);
    let report = match (&model, args.synthetic.as_deref().and_then(shape)) {
        (Some(model), _) => match text.as_deref().zip(src.as_deref()) {
            Some((text, src)) => calibrate::convert(src, model, &dst, storage, text, progress)?,
            None => model.write(&dst, storage, progress)?,
        },
        (None, Some(config)) => write_synthetic(&config, storage, &dst, progress)?,
        (None, None) => bail!("no source given"),
    };
    drop(bar);
    for note in &report.notes {
        output::note(format_args!("note: {note}"));
    }
    if let Some(model) = &model {
        note_chat_template(model.tokenizer());
    }
    let size = output::bytes(report.bytes as usize);
    output::note(format_args!("{}: {}, {size}", dst.display(), output::count(report.tensors, "tensor")));
    Ok(())
}

/// The name of a source as a model file in the current folder.
fn name_of(src: &Path) -> anyhow::Result<PathBuf> {
    let whole = src.canonicalize().with_context(|| src.display().to_string())?;
    // As it is called here, not where a link leads; `.` has no name of its own.
    let named = if src.file_name().is_some() { src } else { &whole };
    // What follows a folder's last point is no ending, as in Mistral-7B-v0.1.
    let name = if src.is_dir() { named.file_name() } else { named.file_stem() };
    let mut name = name.context("this source has no name: name DST")?.to_owned();
    name.push(".bin");
    Ok(name.into())
}

/// Refuses a name that nobody gave and that is taken.
fn free(dst: PathBuf) -> anyhow::Result<PathBuf> {
    ensure!(!dst.exists(), "{}: exists already: to replace it name it as DST", dst.display());
    Ok(dst)
}
