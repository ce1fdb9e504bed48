//! An answer taken apart as it comes: reasoning, text, and calls of tools.

mod call;
mod ids;

use std::mem;

use self::call::{CallReader, Step};
use self::ids::Ids;
use super::reasoning::THINK;
use super::tool::Tool;
use super::tool_form::{ARGS, ToolForm};
use crate::runtime::Piece;
use crate::tokenizer::Tokenizer;

/// The longest white space beside a mark that goes with it, in bytes.
const MOST_SPACE: usize = 64;

/// A part of an answer. Parts of one kind that follow each other belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerPart {
    /// What the model says to itself, between `<think>` and `</think>`.
    Reasoning(String),
    /// What it says.
    Content(String),
    /// It calls a tool: said once, before the arguments.
    ToolCall {
        /// Which call of the answer it is, from 0.
        index: usize,
        /// What its answer shall refer to it by. The same prompt and the same calls give the same ids.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// More of the arguments of a call, as the model writes them.
    Arguments {
        /// Which call.
        index: usize,
        /// The next piece of a JSON object's text.
        text: String,
    },
}

/// Takes an answer apart as it comes.
///
/// Marks are recognised as special tokens and as text, wherever the borders of tokens are. White space beside a mark goes
/// with it. What begins like a call and is none comes as text, and nothing of it is lost; an answer without marks stays
/// as it is.
///
/// ```
/// # use torchless::chat::{AnswerParser, AnswerPart, ToolForm};
/// # use torchless::runtime::Piece;
/// # let model = torchless::Model::open("tests/fixtures/models/llama-int8.bin")?;
/// let mut parser = AnswerParser::new(model.tokenizer(), &[1, 2, 3], Some(ToolForm::Hermes), &[]);
/// let text = "<think>Easy.</think>\n\nIt is four.".to_owned();
/// let parts = parser.push(&Piece { token: 0, text, logprobs: None });
/// let expected = [AnswerPart::Reasoning("Easy.".to_owned()), AnswerPart::Content("It is four.".to_owned())];
/// assert_eq!(parts, expected);
/// # Ok::<(), torchless::Error>(())
/// ```
#[derive(Debug)]
pub struct AnswerParser {
    form: Option<ToolForm>,
    /// The tools' names.
    names: Vec<String>,
    /// The marks that are special tokens.
    marks: Vec<(u32, Mark)>,
    state: State,
    /// What has come and may be part of a mark, or of a call that may turn out to be none.
    held: String,
    calls: usize,
    ids: Ids,
    out: Vec<AnswerPart>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Think,
    EndOfThink,
    Call,
    EndOfCall,
    /// Between a call's name and its arguments.
    Args,
}

#[derive(Debug)]
enum State {
    /// Before any text, at the beginning or after the reasoning.
    Beginning {
        reasoned: bool,
    },
    Reasoning {
        begun: bool,
    },
    Text,
    /// In what may be a call, and in one that has `begun` certainly is.
    Call {
        reader: CallReader,
        begun: bool,
    },
    /// After a call.
    Called {
        in_list: bool,
    },
}

impl AnswerParser {
    /// For the answer to `prompt`, in which calls of `tools` are written in `form`, if they are looked for at all.
    pub fn new(tokenizer: &Tokenizer, prompt: &[u32], form: Option<ToolForm>, tools: &[Tool]) -> Self {
        let [think, end_of_think] = THINK;
        let spelled = [
            (Some(think), Mark::Think),
            (Some(end_of_think), Mark::EndOfThink),
            (form.and_then(ToolForm::opening), Mark::Call),
            (form.and_then(ToolForm::closing), Mark::EndOfCall),
            (form.filter(|form| *form == ToolForm::MistralNamed).map(|_| ARGS), Mark::Args),
        ];
        let special = |text: Option<&str>| tokenizer.id_of(text?).filter(|&id| tokenizer.is_special(id));
        let end = prompt.get(prompt.len().saturating_sub(32)..).unwrap_or_default();
        let in_reasoning = tokenizer.decode_with_special(end).trim_end().ends_with(think);
        Self {
            form,
            names: tools.iter().map(|tool| tool.name.clone()).collect(),
            marks: spelled.iter().filter_map(|(text, mark)| Some((special(*text)?, *mark))).collect(),
            state: match in_reasoning {
                true => State::Reasoning { begun: false },
                false => State::Beginning { reasoned: false },
            },
            held: String::new(),
            calls: 0,
            ids: Ids::new(prompt, form),
            out: Vec::new(),
        }
    }

    /// Whether what comes next is reasoning, as it is where the prompt ends with `<think>`.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning { .. })
    }

    /// Takes the next piece; gives what is certain now.
    pub fn push(&mut self, piece: &Piece) -> Vec<AnswerPart> {
        for c in piece.text.chars() {
            self.take(c);
        }
        // A special token has no text: what comes with it was held back before it.
        if let Some(&(_, mark)) = self.marks.iter().find(|(id, _)| *id == piece.token) {
            self.mark(mark);
        }
        mem::take(&mut self.out)
    }

    /// The rest, when nothing more comes.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        let held = mem::take(&mut self.held);
        match mem::replace(&mut self.state, State::Text) {
            State::Reasoning { .. } => self.give(AnswerPart::Reasoning(held)),
            State::Beginning { reasoned: true } | State::Called { .. } => self.content(held.trim_start()),
            _ => self.content(&held),
        }
        mem::take(&mut self.out)
    }

    fn take(&mut self, c: char) {
        match self.state {
            State::Beginning { reasoned } => self.beginning(c, reasoned),
            State::Reasoning { begun } => self.reasoning(c, begun),
            State::Text => self.text(c),
            State::Call { .. } => self.call(c),
            State::Called { in_list } => self.called(c, in_list),
        }
    }

    fn beginning(&mut self, c: char, reasoned: bool) {
        self.held.push(c);
        let rest = self.held.trim_start();
        let think = (!reasoned).then_some(THINK[0]);
        if rest.is_empty() && reasoned {
            self.held.clear();
        } else if Some(rest) == think {
            self.held.clear();
            self.state = State::Reasoning { begun: false };
        } else if Some(rest) == self.opening() {
            self.begin_call(self.marked());
        } else if rest == "{" && self.form == Some(ToolForm::Llama3) {
            self.begin_object(CallReader::unmarked());
        } else if self.held.len() - rest.len() > MOST_SPACE
            || !(starts(think, rest) || starts(self.opening(), rest))
        {
            self.resume_as_text();
        }
    }

    fn reasoning(&mut self, c: char, begun: bool) {
        if !begun && c.is_whitespace() {
            return;
        }
        self.state = State::Reasoning { begun: true };
        if self.hold(c, THINK[1], AnswerPart::Reasoning) {
            self.held.clear();
            self.state = State::Beginning { reasoned: true };
        }
    }

    fn text(&mut self, c: char) {
        match self.opening() {
            None => self.content(c.encode_utf8(&mut [0; 4])),
            Some(mark) => {
                if self.hold(c, mark, AnswerPart::Content) {
                    self.begin_call(self.marked());
                }
            }
        }
    }

    fn call(&mut self, c: char) {
        let State::Call { reader, begun } = &mut self.state else { return };
        let step = reader.push(c);
        if !*begun {
            let other = !reader.is_marked()
                && reader.name().is_some_and(|name| self.names.iter().all(|known| known != name));
            if step == Step::Wrong || other {
                return self.give_back(c);
            }
            self.held.push(c);
            if let Some(name) = reader.name().filter(|_| reader.has_arguments()) {
                *begun = true;
                self.held.clear();
                let (index, id) = (self.calls, self.ids.next(name));
                self.out.push(AnswerPart::ToolCall { index, id, name: name.to_owned() });
                self.calls += 1;
            }
        }
        let in_list = reader.in_list();
        if *begun {
            let (index, text) = (self.calls - 1, reader.arguments());
            self.give(AnswerPart::Arguments { index, text });
        }
        match step {
            Step::More => {}
            Step::Done => self.state = State::Called { in_list },
            Step::Wrong => {
                self.state = State::Called { in_list };
                self.take(c);
            }
        }
    }

    /// What looked like a call up to `c` is none.
    fn give_back(&mut self, c: char) {
        let held = mem::take(&mut self.held);
        self.content(&held);
        self.state = State::Text;
        self.take(c);
    }

    fn called(&mut self, c: char, in_list: bool) {
        self.held.push(c);
        let separator = match self.form {
            _ if in_list => Some(','),
            Some(ToolForm::Llama3) => Some(';'),
            _ => None,
        };
        let rest = self.held.trim_start();
        let next = separator.and_then(|c| rest.strip_prefix(c)).map_or(rest, str::trim_start);
        let closing = self.form.and_then(ToolForm::closing);
        if rest.is_empty() {
            self.held.clear();
        } else if (in_list && next == "]") || Some(next) == closing {
            self.held.clear();
            self.state = State::Called { in_list: false };
        } else if Some(next) == self.opening() {
            self.begin_call(self.marked());
        } else if in_list && next == "{" {
            self.begin_object(CallReader::listed());
        } else if next == "{" && self.form == Some(ToolForm::Llama3) {
            self.begin_object(CallReader::unmarked());
        } else if self.held.len() > MOST_SPACE || !(starts(closing, next) || starts(self.opening(), next)) {
            self.held = rest.to_owned();
            self.resume_as_text();
        }
    }

    /// Takes a special token. What has been held stands before it.
    fn mark(&mut self, mark: Mark) {
        match (mark, &self.state) {
            (Mark::Think, State::Beginning { reasoned: false }) if self.held.trim().is_empty() => {
                self.held.clear();
                self.state = State::Reasoning { begun: false };
            }
            (Mark::EndOfThink, State::Reasoning { .. }) => {
                let held = mem::take(&mut self.held);
                self.give(AnswerPart::Reasoning(held.trim_end().to_owned()));
                self.state = State::Beginning { reasoned: true };
            }
            (Mark::Call, state) if !matches!(state, State::Reasoning { .. }) => {
                let space = self.held.split_off(self.held.trim_end().len());
                let held = mem::replace(&mut self.held, space);
                self.content(&held);
                self.begin_call(self.marked());
            }
            (Mark::Args, State::Call { begun: false, .. }) => {
                let State::Call { reader, .. } = &mut self.state else { return };
                if reader.args() == Step::Wrong {
                    let held = mem::take(&mut self.held);
                    self.content(&held);
                    self.state = State::Text;
                }
            }
            (Mark::EndOfCall, State::Call { begun: true, .. }) => {
                self.state = State::Called { in_list: false };
            }
            (Mark::EndOfCall, State::Call { begun: false, .. }) => {
                let held = mem::take(&mut self.held);
                self.content(&held);
                self.state = State::Text;
            }
            _ => {}
        }
    }

    fn opening(&self) -> Option<&'static str> {
        self.form.and_then(ToolForm::opening)
    }

    /// What reads a call behind a mark.
    fn marked(&self) -> CallReader {
        if self.form == Some(ToolForm::MistralNamed) { CallReader::named() } else { CallReader::marked() }
    }

    fn begin_call(&mut self, reader: CallReader) {
        self.state = State::Call { reader, begun: false };
    }

    /// Begins a call whose first character has been taken.
    fn begin_object(&mut self, mut reader: CallReader) {
        reader.push('{');
        self.begin_call(reader);
    }

    fn resume_as_text(&mut self) {
        self.state = State::Text;
        for c in mem::take(&mut self.held).chars() {
            self.take(c);
        }
    }

    /// Takes a character of text that `mark` may end, and gives what cannot belong to the mark; true where it is complete.
    fn hold(&mut self, c: char, mark: &str, part: fn(String) -> AnswerPart) -> bool {
        self.held.push(c);
        if self.held.ends_with(mark) {
            return true;
        }
        let begun = |n: &usize| mark.get(..*n).is_some_and(|beginning| self.held.ends_with(beginning));
        let before = self.held.len() - (1..mark.len()).rev().find(begun).unwrap_or(0);
        let text = self.held.get(..before).map_or(0, |before| before.trim_end().len());
        let rest = self.held.split_off(if before - text > MOST_SPACE { before } else { text });
        let text = mem::replace(&mut self.held, rest);
        self.give(part(text));
        false
    }

    fn content(&mut self, text: &str) {
        self.give(AnswerPart::Content(text.to_owned()));
    }

    /// Gives a part, together with the one before where that is of its kind.
    fn give(&mut self, part: AnswerPart) {
        match (self.out.last_mut(), part) {
            (Some(AnswerPart::Content(text)), AnswerPart::Content(more))
            | (Some(AnswerPart::Reasoning(text)), AnswerPart::Reasoning(more)) => text.push_str(&more),
            (
                Some(AnswerPart::Arguments { index, text }),
                AnswerPart::Arguments { index: same, text: more },
            ) if *index == same => {
                text.push_str(&more);
            }
            (
                _,
                AnswerPart::Content(text) | AnswerPart::Reasoning(text) | AnswerPart::Arguments { text, .. },
            ) if text.is_empty() => {}
            (_, part) => self.out.push(part),
        }
    }
}

/// Whether `mark` begins with `text`.
fn starts(mark: Option<&str>, text: &str) -> bool {
    mark.is_some_and(|mark| mark.starts_with(text))
}

#[cfg(test)]
mod tests;
