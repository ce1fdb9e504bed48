//! One call of a tool, read character by character.

use serde_json::{Map, Value};

use crate::chat::tool_form::ARGS;

/// Bytes of a name before its mark.
const MOST_NAME: usize = 256;

/// `{"name": "…", "arguments": {…}}`, in any order and with members that mean nothing here, perhaps in a list.
#[derive(Debug, Default)]
pub(super) struct CallReader {
    at: At,
    /// A list may begin before it.
    may_list: bool,
    in_list: bool,
    /// Without arguments it is a call, too.
    marked: bool,
    name: Option<String>,
    /// What is known of the arguments and has not been taken.
    arguments: String,
    has_arguments: bool,
    /// The string being read, as it is written.
    string: String,
    value: Depth,
    /// Only the arguments are JSON.
    named: bool,
}

/// What a character does to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// More must come.
    More,
    /// The call is complete.
    Done,
    /// It is none.
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    #[default]
    Opening,
    /// A name, up to `[ARGS]`.
    Naming,
    Member,
    Key,
    Colon(Member),
    Value(Member),
    Name,
    Arguments,
    /// Arguments as a string that holds JSON.
    Quoted,
    Other,
    After,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    Name,
    Arguments,
    Other,
}

impl CallReader {
    /// A call after a mark: it may stand in a list.
    pub fn marked() -> Self {
        Self { may_list: true, marked: true, ..Self::default() }
    }

    /// A call within a list.
    pub fn listed() -> Self {
        Self { in_list: true, marked: true, ..Self::default() }
    }

    /// A call after a mark: a name, `[ARGS]` and the arguments.
    pub fn named() -> Self {
        Self { at: At::Naming, named: true, marked: true, ..Self::default() }
    }

    /// A call that nothing marks: it has arguments.
    pub fn unmarked() -> Self {
        Self::default()
    }

    /// The tool's name, once it is known.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether the arguments have begun: with a name, it is a call.
    pub fn has_arguments(&self) -> bool {
        self.has_arguments
    }

    /// Whether it is a call by what stands before it, whatever its name is.
    pub fn is_marked(&self) -> bool {
        self.marked
    }

    /// What has come of the arguments since this was last asked.
    pub fn arguments(&mut self) -> String {
        std::mem::take(&mut self.arguments)
    }

    /// Whether it stands in a list.
    pub fn in_list(&self) -> bool {
        self.in_list
    }

    /// Takes `[ARGS]`, where it is a special token.
    pub fn args(&mut self) -> Step {
        if self.at != At::Naming {
            return Step::Wrong;
        }
        // Some name the call as well.
        let name = self.string.split("[CALL_ID]").next().unwrap_or_default().trim();
        if name.is_empty() {
            return Step::Wrong;
        }
        self.name = Some(name.to_owned());
        self.go(At::Value(Member::Arguments))
    }

    /// Takes the next character.
    pub fn push(&mut self, c: char) -> Step {
        let is_space = c.is_ascii_whitespace();
        match (self.at, c) {
            (At::Opening | At::Member | At::Colon(_) | At::Value(_) | At::After, _) if is_space => Step::More,
            (At::Naming, _) => {
                self.string.push(c);
                if let Some(name) = self.string.strip_suffix(ARGS) {
                    self.string.truncate(name.len());
                    return self.args();
                }
                if self.string.len() > MOST_NAME { Step::Wrong } else { Step::More }
            }
            (At::Opening, '[') if self.may_list => {
                self.may_list = false;
                self.in_list = true;
                Step::More
            }
            (At::Opening, '{') => self.go(At::Member),
            (At::Member, '"') => self.begin_string(At::Key),
            (At::Colon(member), ':') => self.go(At::Value(member)),
            (At::Value(member), _) => self.begin(member, c),
            (At::Key | At::Name | At::Quoted, _) => self.string(c),
            (At::Arguments, _) => {
                self.arguments.push(c);
                match self.value.push(c) {
                    true if self.named => Step::Done,
                    true => self.go(At::After),
                    false => Step::More,
                }
            }
            // A number or a word ends where what follows begins.
            (At::Other, ',' | '}') if self.value.is_word() => self.after(c),
            (At::Other, _) if self.value.is_word() && is_space => self.go(At::After),
            (At::Other, _) => {
                if self.value.push(c) {
                    self.go(At::After)
                } else {
                    Step::More
                }
            }
            (At::After, _) => self.after(c),
            _ => Step::Wrong,
        }
    }

    fn go(&mut self, at: At) -> Step {
        self.at = at;
        Step::More
    }

    /// The first character of a member's value.
    fn begin(&mut self, member: Member, c: char) -> Step {
        self.value = Depth::default();
        match (member, c) {
            (Member::Name, '"') if self.name.is_none() => self.begin_string(At::Name),
            (Member::Arguments, '{') if !self.has_arguments => {
                self.value.push(c);
                self.arguments.push(c);
                self.has_arguments = true;
                self.go(At::Arguments)
            }
            (Member::Arguments, '"') if !self.has_arguments && !self.named => self.begin_string(At::Quoted),
            (Member::Other, ',' | '}' | ']') => Step::Wrong,
            (Member::Other, _) => {
                if self.value.push(c) {
                    self.go(At::After)
                } else {
                    self.go(At::Other)
                }
            }
            _ => Step::Wrong,
        }
    }

    fn begin_string(&mut self, at: At) -> Step {
        self.string.clear();
        self.value = Depth { in_string: true, ..Depth::default() };
        self.go(at)
    }

    /// A character of a string whose value matters.
    fn string(&mut self, c: char) -> Step {
        if !self.value.push(c) {
            self.string.push(c);
            return Step::More;
        }
        let Ok(text) = serde_json::from_str::<String>(&format!("\"{}\"", self.string)) else {
            return Step::Wrong;
        };
        match self.at {
            At::Key => match &*text {
                "name" => self.go(At::Colon(Member::Name)),
                "arguments" | "parameters" => self.go(At::Colon(Member::Arguments)),
                // What is no call for certain need not be held back.
                key if !self.marked && !["id", "type"].contains(&key) => Step::Wrong,
                _ => self.go(At::Colon(Member::Other)),
            },
            At::Name => {
                self.name = Some(text);
                self.go(At::After)
            }
            _ if serde_json::from_str::<Map<String, Value>>(&text).is_ok() => {
                self.arguments = text;
                self.has_arguments = true;
                self.go(At::After)
            }
            _ => Step::Wrong,
        }
    }

    /// What follows a member.
    fn after(&mut self, c: char) -> Step {
        match c {
            ',' => self.go(At::Member),
            '}' if self.name.is_none() => Step::Wrong,
            '}' if self.has_arguments => Step::Done,
            '}' if self.marked => {
                self.arguments = "{}".to_owned();
                self.has_arguments = true;
                Step::Done
            }
            _ => Step::Wrong,
        }
    }
}

/// How deep in a JSON value its text is.
#[derive(Debug, Default)]
struct Depth {
    open: usize,
    in_string: bool,
    escaped: bool,
}

impl Depth {
    /// Takes the next character; true where it closes the value. A number or a word closes with what follows it.
    fn push(&mut self, c: char) -> bool {
        if self.in_string {
            let ends = c == '"' && !self.escaped;
            self.escaped = c == '\\' && !self.escaped;
            self.in_string = !ends;
            return ends && self.open == 0;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.open += 1,
            '}' | ']' => {
                self.open = self.open.saturating_sub(1);
                return self.open == 0;
            }
            _ => {}
        }
        false
    }

    /// Whether it is a number or a word.
    fn is_word(&self) -> bool {
        self.open == 0 && !self.in_string
    }
}
