//! A conversation with a model.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use super::message::{Message, Role};
use super::template::ChatTemplate;
use crate::Error;
use crate::runtime::{ChunkProgress, FinishReason, GenerateOptions, Generated, Piece, Session};
use crate::tokenizer::{Kind, Tokenizer};

/// A conversation: its messages, and the session whose cache holds them.
///
/// Each turn renders the whole conversation anew, as the template wants it, and feeds only what the session does not hold
/// yet: normally the new message.
///
/// ```
/// use std::ops::ControlFlow;
/// use std::sync::Arc;
/// use torchless::Model;
/// use torchless::chat::{Chat, ChatTemplate};
/// use torchless::runtime::GenerateOptions;
/// use torchless::runtime::{Session, SessionOptions};
///
/// # let model_path = "tests/fixtures/models/llama-int8.bin";
/// let model = Arc::new(Model::open(model_path)?);
/// let session = Session::new(&model, &SessionOptions::new(&model))?;
/// // Or `ChatTemplate::of`: the one that the model brings.
/// let mut chat = Chat::new(session, ChatTemplate::named("chatml", model.tokenizer())?);
/// chat.set_system("Be brief.");
/// let options = GenerateOptions { max_tokens: 20, ..GenerateOptions::default() };
/// for question in ["A tensor?", "A matrix?"] {
///     let reply = chat.send(question, &options, |piece| {
///         print!("{}", piece.text);
///         ControlFlow::Continue(())
///     })?;
///     println!("\n({} tokens were there already)", reply.cached_tokens);
/// }
/// # Ok::<(), torchless::Error>(())
/// ```
pub struct Chat {
    session: Session,
    template: ChatTemplate,
    /// What the template ends the model's turns with.
    end_of_turn: Option<u32>,
    messages: Vec<Message>,
    /// The tokens whose keys and values the session holds.
    cached: Vec<u32>,
}

/// The model's side of a turn.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The answer, as [`Chat::messages`] has it.
    pub content: String,
    /// Tokens of the conversation that the session held already.
    pub cached_tokens: usize,
    /// Tokens that were new to it, before the answer.
    pub prompt_tokens: Vec<u32>,
    /// How the answer came about.
    pub generated: Generated,
    /// The context is full: there was no room for more of an answer, and there is none for another turn.
    pub context_full: bool,
}

impl Chat {
    /// An empty conversation. What the session holds is forgotten.
    pub fn new(mut session: Session, template: ChatTemplate) -> Self {
        session.reset();
        let end_of_turn = template.end_of_turn(session.model().tokenizer());
        Self { session, template, end_of_turn, messages: Vec::new(), cached: Vec::new() }
    }

    /// Has `observer` called as [`Session::observe`] says. It may break off a turn, while the message is read or while it is
    /// answered.
    pub fn observe(&mut self, observer: impl FnMut(ChunkProgress) -> ControlFlow<()> + Send + 'static) {
        self.session.observe(observer);
    }

    /// The session, to look at.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The conversation so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Replaces the conversation, as one that was saved. What the session holds of it is used again.
    pub fn set_messages(&mut self, messages: Vec<Message>) {
        self.messages = messages;
    }

    /// Forgets the conversation, except what the system says.
    pub fn reset(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
    }

    /// Sets what the system says before all else; nothing, if `text` is empty.
    pub fn set_system(&mut self, text: &str) {
        self.messages.retain(|message| message.role != Role::System);
        if !text.is_empty() {
            self.messages.insert(0, Message::new(Role::System, text));
        }
    }

    /// Says `text` and has the model answer, calling `on_piece` with each of its tokens.
    ///
    /// An answer that `on_piece` breaks off stays in the conversation as far as it came; without any text the turn is
    /// forgotten.
    ///
    /// # Errors
    /// If the template refuses the conversation, the context has no room for it, a setting is out of range, or the
    /// model computes NaN. The conversation is then as it was before.
    pub fn send(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_piece: impl FnMut(&Piece) -> ControlFlow<()> + Send,
    ) -> Result<Reply, Error> {
        self.messages.push(Message::new(Role::User, text));
        let reply = self.answer(options, on_piece);
        match &reply {
            Ok(reply) if !reply.content.is_empty() || reply.generated.finish_reason == FinishReason::Stop => {
                self.messages.push(Message::new(Role::Assistant, reply.content.clone()));
            }
            _ => drop(self.messages.pop()),
        }
        reply
    }

    fn answer(
        &mut self,
        options: &GenerateOptions,
        mut on_piece: impl FnMut(&Piece) -> ControlFlow<()> + Send,
    ) -> Result<Reply, Error> {
        let model = Arc::clone(self.session.model());
        let tokenizer = model.tokenizer();
        let tokens = self.template.encode(tokenizer, &self.messages, true)?;
        let (mut keep, mut known) = same_text(tokenizer, &self.cached, &tokens);
        if self.session.truncate(keep).is_err() {
            self.session.reset();
            (keep, known) = (0, 0);
        }
        self.cached.truncate(keep);
        let prompt_tokens: Vec<u32> = tokens.into_iter().skip(known).collect();
        let context = [&self.cached[..], &prompt_tokens].concat();
        self.check_room(context.len())?;
        let start = Instant::now();
        let mut reply = Reply {
            content: String::new(),
            cached_tokens: keep,
            prompt_tokens,
            generated: Generated::cancelled(),
            context_full: false,
        };
        if self.feed_beginning(&context)?.is_break() {
            return Ok(reply);
        }

        let beginning = start.elapsed();
        let fed = self.cached.len();
        let mut options = options.clone();
        options.stop_tokens.extend(self.end_of_turn);
        // SentencePiece writes a space before the first word, which belongs to no one.
        let mut drop_space = tokenizer.spec().kind == Kind::Metaspace;
        let cached = &mut self.cached;
        reply.generated = self.session.install(|session| {
            let mut generation = match session.generate_after(context, fed, &options) {
                // While its grammar was read.
                Err(Error::Interrupted) => return Ok(Generated::cancelled()),
                generation => generation?,
            };
            let mut failed = None;
            for piece in generation.by_ref() {
                let result = piece.map(|mut piece| {
                    if !piece.text.is_empty() && std::mem::take(&mut drop_space) {
                        piece.text = piece.text.strip_prefix(' ').unwrap_or(&piece.text).to_owned();
                    }
                    reply.content.push_str(&piece.text);
                    on_piece(&piece)
                });
                match result {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => break,
                    Err(error) => failed = Some(error),
                }
            }
            *cached = generation.fed().to_vec();
            match failed {
                Some(error) => Err(error),
                None => Ok(generation.finish()),
            }
        })?;
        let timings = &mut reply.generated.timings;
        timings.prompt_tokens = reply.prompt_tokens.len();
        timings.prompt += beginning;
        timings.first_token += beginning;
        let is_full = self.session.position() == self.session.ctx();
        reply.context_full = is_full && reply.generated.finish_reason == FinishReason::Length;
        Ok(reply)
    }

    /// Feeds all but the last chunk of `context`.
    fn feed_beginning(&mut self, context: &[u32]) -> Result<ControlFlow<()>, Error> {
        let mut rest = context.get(self.cached.len()..).unwrap_or_default();
        let chunk = self.session.chunk();
        while let Some((piece, after)) = rest.split_at_checked(chunk).filter(|(_, after)| !after.is_empty()) {
            match self.session.feed(piece) {
                Err(Error::Interrupted) => return Ok(ControlFlow::Break(())),
                fed => fed?,
            };
            self.cached.extend(piece);
            rest = after;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn check_room(&self, tokens: usize) -> Result<(), Error> {
        let ctx = self.session.ctx();
        if tokens < ctx {
            return Ok(());
        }
        let max = self.session.model().config().max_position_embeddings;
        Err(Error::ContextFull { tokens, ctx, max })
    }
}

/// How many of the tokens `old` spell the same text as how many of the tokens `new`, at least one of which remains.
///
/// The two need not be cut alike: a model does not always spell its answer as the tokenizer would.
fn same_text(tokenizer: &Tokenizer, old: &[u32], new: &[u32]) -> (usize, usize) {
    let (mut i, mut j, mut common) = (0, 0, (0, 0));
    // What one side spells beyond the other.
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        if left.is_empty() && right.is_empty() {
            if j < new.len() {
                common = (i, j);
            }
            let (Some(a), Some(b)) = (old.get(i), new.get(j)) else { return common };
            (i, j) = (i + 1, j + 1);
            if a == b {
                continue;
            }
            if !tokenizer.push_text(*a, &mut left) || !tokenizer.push_text(*b, &mut right) {
                return common;
            }
        } else {
            let (tokens, at, text) = match left.is_empty() {
                true => (old, &mut i, &mut left),
                false => (new, &mut j, &mut right),
            };
            let pushed = tokens.get(*at).is_some_and(|id| tokenizer.push_text(*id, text));
            if !pushed {
                return common;
            }
            *at += 1;
        }
        let n = left.len().min(right.len());
        if left.iter().zip(&right).any(|(a, b)| a != b) {
            return common;
        }
        left.drain(..n);
        right.drain(..n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Spec;

    #[test]
    fn tokens_that_spell_the_same_text_are_the_same_text() {
        const VOCAB: [&str; 8] = ["<s>", "a", "b", "c", "ab", "bc", "abc", "▁"];
        let vocab = VOCAB.iter().zip(0..).map(|(piece, id)| ((*piece).to_owned(), id)).collect();
        let tokenizer = Tokenizer::new(Spec { vocab, ..Spec::default() }).unwrap();
        let ids = |text: &str| -> Vec<u32> {
            text.split_whitespace().map(|piece| tokenizer.id_of(piece).unwrap()).collect()
        };
        for (old, new, common) in [
            ("<s> a b", "<s> a b c", (3, 3)),
            ("<s> a b", "<s> ab c", (3, 2)),
            ("<s> ab c a", "<s> a bc <s> b", (3, 3)),
            ("<s> abc b", "<s> a b c c", (2, 4)),
            // Not at a border of both.
            ("a b", "a bc a", (1, 1)),
            ("ab", "a", (0, 0)),
            // A special token is no text.
            ("a <s> b", "a b c", (1, 1)),
            // One token at least is left to feed.
            ("a b", "a b", (1, 1)),
            ("a b", "ab", (0, 0)),
            ("", "a", (0, 0)),
        ] {
            assert_eq!(same_text(&tokenizer, &ids(old), &ids(new)), common, "{old:?} and {new:?}");
        }
    }
}
