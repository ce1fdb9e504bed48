//! What the user says: lines edited at a terminal, or read from stdin.

use std::io::{BufRead, IsTerminal, Read, stderr, stdin};
use std::path::PathBuf;

use anyhow::Context;
use rustyline::completion::Completer;
use rustyline::config::{Behavior, CompletionType, Config};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Cmd, Editor, Helper, KeyCode, KeyEvent, Modifiers};

use crate::cli::input::{MAX_TEXT, check_size, utf8};
use crate::cli::interrupt;
use crate::cli::output::{note, note_part};

/// One thing that is said.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// `/name argument`.
    Command(String, String),
    /// Anything else; it may have several lines.
    Message(String),
}

/// Where it comes from.
pub enum Input {
    Editor { editor: Box<Editor<Commands, FileHistory>>, history: Option<PathBuf> },
    Stdin,
}

enum Line {
    Text(String),
    /// Ctrl-C: what was begun is dropped.
    Dropped,
    End,
}

impl Input {
    /// A line editor at a terminal, otherwise stdin. With `keep` it knows the lines of other times, and keeps those of this.
    pub fn open(keep: bool) -> anyhow::Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self::Stdin);
        }
        // The prompt goes to the terminal even where stdout does not.
        #[cfg(unix)]
        keep_terminal();
        let config = Config::builder()
            .behavior(Behavior::PreferTerm)
            .auto_add_history(false)
            .completion_type(CompletionType::List)
            .build();
        let mut editor = Editor::with_config(config).context("the terminal")?;
        editor.set_helper(Some(Commands));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        let history = if keep { history_file() } else { None };
        if let Some(file) = &history {
            // There is none the first time.
            let _ = editor.load_history(file);
        }
        Ok(Self::Editor { editor: Box::new(editor), history })
    }

    pub fn is_editor(&self) -> bool {
        matches!(self, Self::Editor { .. })
    }

    /// The next command or message; `None` at the end.
    pub fn next(&mut self) -> anyhow::Result<Option<Said>> {
        let said = assemble(|prompt| self.line(prompt))?;
        if let (Self::Editor { editor, history }, Some(said)) = (self, &said) {
            let text = match said {
                Said::Command(name, argument) => format!("/{name} {argument}").trim_end().to_owned(),
                Said::Message(text) => text.clone(),
            };
            // A history that cannot be kept is no reason to stop talking.
            let _ = editor.add_history_entry(text);
            let _ = history.as_ref().map(|file| editor.append_history(file));
        }
        Ok(said)
    }

    fn line(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match self {
            Self::Editor { editor, .. } => match editor.readline(prompt) {
                Ok(text) => Ok(Line::Text(text)),
                Err(ReadlineError::Interrupted) => {
                    note("Ctrl-D or /quit ends.");
                    Ok(Line::Dropped)
                }
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("the terminal"),
            },
            Self::Stdin => {
                let mut bytes = Vec::new();
                let limit = MAX_TEXT as u64 + 1;
                let n = stdin().lock().take(limit).read_until(b'\n', &mut bytes).context("stdin")?;
                check_size(&bytes, "stdin")?;
                let text = utf8(bytes, "stdin")?;
                Ok(if n == 0 {
                    Line::End
                } else {
                    Line::Text(text.trim_end_matches(['\n', '\r']).to_owned())
                })
            }
        }
    }
}

/// The commands of a chat, to complete on Tab; a space follows those that take something.
const COMMANDS: [&str; 10] =
    ["/help", "/reset", "/system ", "/trim ", "/save ", "/load ", "/stats", "/quit", "/exit", "/bye"];

/// What completes commands.
pub struct Commands;

/// The commands that begin as a line does up to the cursor.
fn completions(typed: &str) -> Vec<&'static str> {
    COMMANDS.into_iter().filter(|name| typed.starts_with('/') && name.starts_with(typed)).collect()
}

impl Completer for Commands {
    type Candidate = &'static str;

    fn complete(
        &self,
        line: &str,
        cursor: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<&'static str>)> {
        Ok((0, completions(line.get(..cursor).unwrap_or(line))))
    }
}

impl Hinter for Commands {
    type Hint = String;
}

impl Highlighter for Commands {}
impl Validator for Commands {}
impl Helper for Commands {}

/// Has a signal that ends the process leave the terminal as it is now: the editor changes it while a line is typed.
#[cfg(unix)]
fn keep_terminal() {
    use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
    const NO_BRACKETED_PASTE: &str = "\x1b[?2004l\n";
    let Ok(before) = tcgetattr(stdin()) else { return };
    interrupt::at_end(move || {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
        if stderr().is_terminal() {
            note_part(NO_BRACKETED_PASTE);
        }
    });
}

/// Where the lines typed are kept for the next time.
fn history_file() -> Option<PathBuf> {
    let folder = dirs::state_dir().or_else(dirs::data_local_dir)?.join("torchless");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("chat-history"))
}

/// Puts lines together until something is said. Empty lines say nothing.
fn assemble(mut line: impl FnMut(&str) -> anyhow::Result<Line>) -> anyhow::Result<Option<Said>> {
    let mut text = String::new();
    let mut open = Open::No;
    loop {
        let prompt = if open == Open::No { ">>> " } else { "... " };
        let next = match line(prompt)? {
            Line::Text(next) => next,
            Line::Dropped => {
                (text, open) = (String::new(), Open::No);
                continue;
            }
            Line::End if open == Open::No => return Ok(None),
            Line::End => return Ok(Some(Said::Message(text))),
        };
        let begins_quote = if open == Open::No { next.trim_start().strip_prefix(QUOTE) } else { None };
        if let Some(next) = begins_quote {
            open = Open::Quote;
            if let Some(whole) = next.trim_end().strip_suffix(QUOTE) {
                return Ok(Some(Said::Message(whole.to_owned())));
            }
            text.push_str(next);
            if !next.is_empty() {
                text.push('\n');
            }
        } else if open == Open::Quote {
            if let Some(last) = next.trim_end().strip_suffix(QUOTE) {
                text.push_str(last);
                return Ok(Some(Said::Message(text.strip_suffix('\n').unwrap_or(&text).to_owned())));
            }
            text.push_str(&next);
            text.push('\n');
        } else if let Some(next) = next.strip_suffix('\\') {
            open = Open::Line;
            text.push_str(next);
            text.push('\n');
        } else if let Some(command) = next.strip_prefix('/').filter(|_| open == Open::No) {
            let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
            return Ok(Some(Said::Command(name.to_owned(), argument.trim().to_owned())));
        } else if open == Open::Line || !next.trim().is_empty() {
            text.push_str(&next);
            return Ok(Some(Said::Message(text)));
        }
    }
}

const QUOTE: &str = "\"\"\"";

/// Whether a message goes on.
#[derive(PartialEq)]
enum Open {
    No,
    /// After a `\`: for one line.
    Line,
    /// To the next `"""`.
    Quote,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Vec<Said> {
        let mut lines = text.lines();
        let mut next = |_: &str| Ok(lines.next().map_or(Line::End, |l| Line::Text(l.to_owned())));
        std::iter::from_fn(|| assemble(&mut next).unwrap()).collect()
    }

    fn message(text: &str) -> Said {
        Said::Message(text.to_owned())
    }

    #[test]
    fn a_line_is_a_message_and_a_slash_a_command() {
        let command = |name: &str, argument: &str| Said::Command(name.to_owned(), argument.to_owned());
        assert_eq!(
            said("hello\n\n  \n/system  be brief \n/stats\n a / b"),
            [message("hello"), command("system", "be brief"), command("stats", ""), message(" a / b")]
        );
    }

    #[test]
    fn messages_of_several_lines() {
        assert_eq!(said("one\\\ntwo\nthree"), [message("one\ntwo"), message("three")]);
        assert_eq!(said("\"\"\"/one\n\n two\"\"\"\nthree"), [message("/one\n\n two"), message("three")]);
        assert_eq!(said("\"\"\"\none\n\"\"\""), [message("one")]);
        assert_eq!(said("\"\"\"one\"\"\""), [message("one")]);
        // The end of the input ends a message too.
        assert_eq!(said("\"\"\"one\ntwo"), [message("one\ntwo\n")]);
    }

    #[test]
    fn commands_are_completed() {
        assert_eq!(completions("/s"), ["/system ", "/save ", "/stats"]);
        assert_eq!(completions("/tr"), ["/trim "]);
        for nothing in ["", "s", "/no", "/save x"] {
            assert_eq!(completions(nothing), [""; 0], "{nothing}");
        }
        for line in crate::cli::chat::HELP.lines().filter(|line| line.starts_with('/')) {
            let name = line.split_whitespace().next().unwrap();
            assert!(COMMANDS.iter().any(|known| known.trim_end() == name), "{name}");
        }
    }

    #[test]
    fn ctrl_c_drops_what_was_begun() {
        let mut lines = [Line::Text("one\\".into()), Line::Dropped, Line::Text("two".into())].into_iter();
        let said = assemble(|_| Ok(lines.next().unwrap_or(Line::End))).unwrap();
        assert_eq!(said, Some(message("two")));
    }
}
