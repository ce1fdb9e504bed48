//! Chooses tokens by a rule of one's own: the most probable one that has no letter e.
//!
//!     cargo run --release --example custom_sampler -- model.bin "A lipogram is"

use std::sync::Arc;

use torchless::Model;
use torchless::runtime::{Session, SessionOptions};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, prompt] = &arguments[..] else { anyhow::bail!("usage: custom_sampler MODEL PROMPT") };

    let model = Arc::new(Model::open(path)?);
    let tokenizer = model.tokenizer();
    let allowed = |id: u32| tokenizer.piece(id).is_some_and(|piece| !piece.to_lowercase().contains('e'));

    let mut session = Session::new(&model, &SessionOptions::new(&model))?;
    let mut tokens = tokenizer.encode(prompt, Default::default());
    let prompt = tokens.len();
    let mut fed = 0;
    while tokens.len() < prompt + 40 && tokens.len() <= session.ctx() {
        // The logits after the last token, one for each token of the vocabulary.
        let logits = session.feed(&tokens[fed..])?;
        fed = tokens.len();
        let candidates = (0u32..).zip(logits).filter(|&(id, _)| allowed(id));
        let Some((best, _)) = candidates.max_by(|a, b| a.1.total_cmp(b.1)) else { break };
        tokens.push(best);
        if tokenizer.eos_ids().contains(&best) {
            break;
        }
    }
    println!("{}", tokenizer.decode(&tokens));
    Ok(())
}
