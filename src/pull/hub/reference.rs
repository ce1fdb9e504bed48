//! What a model on the hub is called.

use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use crate::Error;

/// A model on the Hugging Face hub: `hf:org/name[:file][@revision]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `org/name`.
    pub repository: String,
    /// A GGUF file in it, or the part of its name that says how it is quantised (`Q4_K_M`).
    pub file: Option<String>,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl Reference {
    /// How every reference begins.
    pub const PREFIX: &str = "hf:";

    /// The revision that is meant where none is named.
    pub const MAIN: &str = "main";

    /// The repository's own name, without its owner's.
    pub fn name(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or(&self.repository)
    }

    /// Whether this names a model that is called `whole` with its file's whole name.
    pub(in crate::pull) fn covers(&self, whole: &Reference) -> bool {
        let is_file = match (&self.file, &whole.file) {
            (None, None) => true,
            (Some(asked), Some(file)) => asked == file || has_part(file, asked),
            _ => false,
        };
        is_file && self.repository == whole.repository && self.revision == whole.revision
    }

    /// An error about what this names.
    pub(super) fn error(&self, problem: impl Into<String>) -> Error {
        Error::Hub { reference: self.to_string(), problem: problem.into() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, self.repository)?;
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        match self.revision.as_str() {
            Self::MAIN => Ok(()),
            revision => write!(f, "@{revision}"),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let rest = text.strip_prefix(Self::PREFIX)?;
            let (rest, revision) = rest.rsplit_once('@').unwrap_or((rest, Self::MAIN));
            let (repository, file) = match rest.split_once(':') {
                Some((repository, file)) => (repository, Some(file)),
                None => (rest, None),
            };
            let (owner, name) = repository.split_once('/')?;
            let good = is_name(owner)
                && is_name(name)
                && !repository.contains("--")
                && is_inside(revision)
                && file.is_none_or(is_inside);
            good.then(|| Self {
                repository: repository.to_owned(),
                file: file.map(str::to_owned),
                revision: revision.to_owned(),
            })
        };
        parse().ok_or_else(|| Error::Hub {
            reference: text.to_owned(),
            problem: "is no name on the hub: write hf:ORG/NAME, hf:ORG/NAME:FILE or hf:ORG/NAME:QUANT, and @REVISION \
                      behind them where it is not main"
                .to_owned(),
        })
    }
}

/// Whether the hub allows this as the name of an owner or a repository.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.len() <= 96 && text.chars().all(allowed) && !text.starts_with('.')
}

/// Whether this names a file in a folder, or in one of its folders: nothing that leads out of it, nor to another disk.
pub(super) fn is_inside(name: &str) -> bool {
    let path = Path::new(name);
    let normal = path.components().all(|part| matches!(part, Component::Normal(_)));
    // What the components leave out: `a//b`, `a/.`, `a/`.
    let as_written =
        path.components().map(|part| part.as_os_str().len() + 1).sum::<usize>() == name.len() + 1;
    let plain = !name.contains(|c: char| c.is_control() || matches!(c, '\\' | ':'));
    !name.is_empty() && name.len() <= 500 && normal && as_written && plain
}

/// Whether `part`, in whatever case, stands in `name` between what separates words there. `Q4_K` is no part of `Q4_K_M`.
pub(super) fn has_part(name: &str, part: &str) -> bool {
    let (name, part) = (name.to_ascii_lowercase(), part.to_ascii_lowercase());
    let ends = |c: Option<char>| c.is_none_or(|c| "-./".contains(c));
    name.match_indices(&part).any(|(at, _)| {
        let (before, after) =
            (name.get(..at).unwrap_or_default(), name.get(at + part.len()..).unwrap_or_default());
        ends(before.chars().next_back()) && ends(after.chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_written() {
        for (text, repository, file, revision) in [
            ("hf:org/name", "org/name", None, "main"),
            ("hf:o-r.g/n_a.me:Q4_K_M", "o-r.g/n_a.me", Some("Q4_K_M"), "main"),
            (
                "hf:org/name:sub/m-00001-of-00002.gguf@v1.0",
                "org/name",
                Some("sub/m-00001-of-00002.gguf"),
                "v1.0",
            ),
            ("hf:org/name@refs/pr/1", "org/name", None, "refs/pr/1"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
            assert_eq!((&*reference.repository, reference.file.as_deref()), (repository, file));
            assert_eq!(reference.revision, revision);
        }
        assert_eq!("hf:org/name@main".parse::<Reference>().unwrap().to_string(), "hf:org/name");
        for wrong in [
            "org/name",
            "hf:",
            "hf:name",
            "hf:/name",
            "hf:org/",
            "hf:a/b/c",
            "hf:../name",
            "hf:org/..",
            "hf:org/na me",
            "hf:org/name:",
            "hf:org/name@",
            "hf:org/name:../x",
            "hf:org/name:/x",
            "hf:org/name:a//b",
            "hf:org/name:a/",
            "hf:org/name:a\\b",
            "hf:org/name@../../x",
            "hf:org/na--me",
            "hf:org/name?x",
            "hf:org/name:a\nb",
        ] {
            let error = wrong.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("write hf:ORG/NAME"), "{wrong}: {error}");
        }
    }
}
