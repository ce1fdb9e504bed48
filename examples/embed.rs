//! Keeps a session in a struct beside its model, as a program that has other things to do would.
//!
//!     cargo run --release --example embed -- model.bin

use std::sync::Arc;

use torchless::runtime::{GenerateOptions, Session, SessionOptions};
use torchless::{Error, Model};

struct Assistant {
    model: Arc<Model>,
    session: Session,
}

impl Assistant {
    fn new(path: &str) -> Result<Self, Error> {
        let model = Arc::new(Model::open(path)?);
        let session = Session::new(&model, &SessionOptions { ctx: 256, ..SessionOptions::new(&model) })?;
        Ok(Self { model, session })
    }

    fn complete(&mut self, text: &str) -> Result<String, Error> {
        let prompt = self.model.tokenizer().encode(text, Default::default());
        self.session.reset();
        let options = GenerateOptions { max_tokens: 20, ..GenerateOptions::default() };
        self.session.generate(&prompt, &options)?.map(|piece| Ok(piece?.text)).collect()
    }
}

fn main() -> Result<(), Error> {
    let path = std::env::args().nth(1).unwrap_or("model.bin".to_owned());
    let mut assistant = Assistant::new(&path)?;
    for text in ["The sky is", "The sea is"] {
        println!("{text}{}", assistant.complete(text)?);
    }
    // A prompt that is too long can be told from one that is wrong.
    match assistant.complete(&"much ".repeat(1000)) {
        Err(Error::ContextFull { tokens, ctx, .. }) => println!("{tokens} tokens are too many for {ctx}"),
        other => println!("{}", other?),
    }
    Ok(())
}
