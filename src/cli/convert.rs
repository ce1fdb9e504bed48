//! `torchless convert`: a model from elsewhere, or of random weights, to a `.bin` file.

use std::path::PathBuf;

use anyhow::bail;
use torchless::Model;
use torchless::arch::{SHAPES, shape};
use torchless::format::convert::{Progress, Quant, convert};
use torchless::format::synthetic::write_synthetic;

use super::model::note_chat_template;
use super::output;
use super::progress;

/// Convert a Hugging Face folder or a GGUF file to a model file
///
/// The result is written beside DST and renamed when it is complete; an existing DST is replaced.
#[derive(clap::Args)]
#[command(
    allow_missing_positional = true,
    after_help = "Examples:\n  \
    torchless convert ./Mistral-7B-v0.1 mistral.bin\n  \
    torchless convert SmolLM2-135M-Instruct.Q4_1.gguf smol.bin --quant f32\n  \
    torchless convert --synthetic mistral-7b random-7b.bin\n\n\
    SRC: a folder with config.json, tokenizer.json and safetensors (f32, f16, bf16), or a GGUF \
    file of a Llama, Mistral or Qwen model (F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K to Q6_K)."
)]
pub struct Args {
    /// A Hugging Face folder, or a GGUF file
    #[arg(required_unless_present = "synthetic", conflicts_with = "synthetic")]
    src: Option<PathBuf>,
    /// The model file to write
    dst: PathBuf,
    /// int8: every matrix; int8-proj: the MLP's gate and up only, which the original readers take; f32: none
    #[arg(long, value_name = "KIND", default_value = "int8")]
    quant: Quant,
    /// No SRC: a model of this shape with random weights, always the same, to measure speed with
    #[arg(long, value_name = "SHAPE", value_parser = SHAPES)]
    synthetic: Option<String>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let bar = progress::Bytes::new();
    let progress = &mut |at: Progress<'_>| bar.show(at);
    let report = match (&args.src, args.synthetic.as_deref().and_then(shape)) {
        (Some(src), _) => convert(src, &args.dst, args.quant, progress)?,
        (None, Some(config)) => write_synthetic(&config, args.quant, &args.dst, progress)?,
        (None, None) => bail!("no source given"),
    };
    drop(bar);
    for note in &report.notes {
        output::note(format_args!("note: {note}"));
    }
    // What was written is whole, whether or not it can be opened here.
    if let Ok(model) = Model::open(&args.dst) {
        note_chat_template(&model);
    }
    let size = output::bytes(report.bytes as usize);
    output::note(format_args!("{}: {} tensors, {size}", args.dst.display(), report.tensors));
    Ok(())
}
