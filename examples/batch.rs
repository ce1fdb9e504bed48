//! Continues several prompts at once: one model, a thread and a session for each.
//!
//!     cargo run --release --example batch -- model.bin "The sky is" "The sea is" "The earth is"

use std::sync::Arc;
use std::thread;

use torchless::runtime::{GenerateOptions, Session, SessionOptions};
use torchless::{Error, Model};

fn answer(model: &Arc<Model>, prompt: &str) -> Result<String, Error> {
    let options = SessionOptions { threads: 1, ctx: 256, ..SessionOptions::new(model) };
    let mut session = Session::new(model, &options)?;
    let prompt = model.tokenizer().encode(prompt, Default::default());
    let options = GenerateOptions { max_tokens: 40, ..GenerateOptions::default() };
    session.generate(&prompt, &options)?.map(|piece| piece.map(|piece| piece.text)).collect()
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next() else { anyhow::bail!("usage: batch MODEL PROMPT…") };
    let prompts: Vec<String> = arguments.collect();

    // The weights are mapped once, and shared.
    let model = Arc::new(Model::open(path)?);
    let answers: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = prompts.iter().map(|prompt| scope.spawn(|| answer(&model, prompt))).collect();
        threads.into_iter().map(|thread| thread.join().expect("answer does not panic")).collect()
    });
    for (prompt, answer) in prompts.iter().zip(answers) {
        println!("{prompt}{}\n", answer?);
    }
    Ok(())
}
