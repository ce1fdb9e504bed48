//! Continues a prompt, token by token.
//!
//!     cargo run --release --example generate -- model.bin "Once upon a time"

use std::io::{Write, stdout};
use std::sync::Arc;

use torchless::Model;
use torchless::runtime::{GenerateOptions, Session, SessionOptions};
use torchless::sampling::Sampling;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, prompt] = &arguments[..] else { anyhow::bail!("usage: generate MODEL PROMPT") };

    let model = Arc::new(Model::open(path)?);
    let mut session = Session::new(&model, &SessionOptions::new(&model))?;
    let prompt = model.tokenizer().encode(prompt, Default::default());
    let options = GenerateOptions {
        max_tokens: 100,
        sampling: Sampling::default().temperature(0.7).seed(1),
        ..GenerateOptions::default()
    };

    let mut generation = session.generate(&prompt, &options)?;
    for piece in generation.by_ref() {
        print!("{}", piece?.text);
        stdout().flush()?;
    }
    let result = generation.finish();
    println!("\n[{:?}, {:.1} tokens/s]", result.finish_reason, result.timings.tokens_per_s());
    Ok(())
}
