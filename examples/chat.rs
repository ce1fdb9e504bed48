//! Answers each line of stdin. The conversation stays in the session: a turn costs only its new tokens.
//!
//!     cargo run --release --example chat -- model.bin

use std::io::{Write, stdin, stdout};
use std::ops::ControlFlow;
use std::sync::Arc;

use torchless::Model;
use torchless::chat::{Chat, ChatTemplate};
use torchless::runtime::{GenerateOptions, Session, SessionOptions};

fn main() -> anyhow::Result<()> {
    let Some(path) = std::env::args().nth(1) else { anyhow::bail!("usage: chat MODEL") };

    let model = Arc::new(Model::open(path)?);
    let template = ChatTemplate::of(model.tokenizer())?;
    let session = Session::new(&model, &SessionOptions::new(&model))?;
    let mut chat = Chat::new(session, template);
    chat.set_system("You answer in one sentence.");

    for line in stdin().lines() {
        let reply = chat.send(&line?, &GenerateOptions::default(), |piece| {
            print!("{}", piece.text);
            // Break where the reader is gone, or has had enough: the answer stays as far as it came.
            match stdout().flush() {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        println!("\n[{} new tokens, {} known]", reply.prompt_tokens.len(), reply.cached_tokens);
    }
    Ok(())
}
