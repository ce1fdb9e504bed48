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
    /// A progress callback asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A logit or a probability came out as NaN.
    #[error("the model computed NaN: its weights are damaged or overflow")]
    NotANumber,
    /// A request that cannot be met: a prompt longer than the context, an unknown token id, …
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
