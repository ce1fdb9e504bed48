//! Continues several prompts at once: a pass of the model makes a token of each.
//!
//!     cargo run --release --example batch -- model.bin "The sky is" "The sea is" "The earth is"

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use torchless::Model;
use torchless::runtime::{BatchOptions, Event, GenerateOptions, Request, Scheduler};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next() else { anyhow::bail!("usage: batch MODEL PROMPT…") };

    let model = Arc::new(Model::open(path)?);
    let mut options = BatchOptions::new(&model);
    options.session.ctx = 256.min(options.session.ctx);
    let mut scheduler = Scheduler::new(&model, &options)?;

    // Any number of prompts: those that do not fit into the batch wait for their turn.
    let mut answers = BTreeMap::new();
    for prompt in arguments {
        let tokens = model.tokenizer().encode(&prompt, Default::default());
        let generate = GenerateOptions { max_tokens: 40, ..GenerateOptions::default() };
        let request = Request::new(&model, &options, tokens, &generate, &mut || ControlFlow::Continue(()))?;
        answers.insert(scheduler.submit(request), Ok(prompt));
    }
    while scheduler.step(&mut |id, event| match (event, answers.get_mut(&id)) {
        (Event::Piece(piece), Some(Ok(text))) => text.push_str(&piece.text),
        (Event::Failed(error), Some(answer)) => *answer = Err(error),
        _ => {}
    }) {}
    for answer in answers.into_values() {
        println!("{}\n", answer?);
    }
    Ok(())
}
