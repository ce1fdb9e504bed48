//! Which files of a repository make up the model that is asked for.

use super::Remote;
use super::reference::{Reference, has_part};
use crate::Error;
use crate::format::gguf::parts::part_of;
use crate::format::hf::{BESIDE_WEIGHTS, INDEX, SINGLE};

/// The files to fetch.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// A folder with weights in safetensors: these of its files, and those that the last of them, an index, names.
    Folder(Vec<String>),
    /// A GGUF file, in as many parts.
    Gguf(Vec<String>),
}

/// Chooses among the files of a repository: safetensors, unless a GGUF file is named or there are none.
///
/// # Errors
/// When there is no such file, nothing that is supported, or more than one model.
pub fn choose(files: &[Remote], reference: &Reference) -> Result<Choice, Error> {
    let mut models = models(files);
    match &reference.file {
        None => {
            let folder = folder(files);
            if !folder.is_empty() {
                return Ok(Choice::Folder(folder));
            }
            models.retain(|model| !model.is_accessory());
            if models.is_empty() {
                return Err(
                    reference.error(format!("holds neither {SINGLE} nor a GGUF file, but {}", held(files)))
                );
            }
        }
        Some(asked) => {
            let of_that_name = |model: &Model| model.files.iter().any(|file| file.name == *asked);
            if let Some(model) = models.iter().find(|model| of_that_name(model)) {
                return model.whole(reference);
            }
            models.retain(|model| !model.is_accessory());
            let (all, common) = (listed(&models), common(&models));
            models.retain(|model| has_part(model.base, asked));
            if let Some(model) =
                models.iter().find(|model| part(model.base, &common).eq_ignore_ascii_case(asked))
            {
                return model.whole(reference);
            }
            if models.is_empty() {
                let there_are = if all.is_empty() { String::new() } else { format!(", but {all}") };
                return Err(reference.error(format!("holds no such GGUF file{there_are}")));
            }
        }
    }
    match models.as_slice() {
        [model] => model.whole(reference),
        models => {
            let first = models.first().map_or("FILE", |model| model.base);
            let short = part(first, &common(models));
            let repository = &reference.repository;
            Err(reference.error(format!(
                "holds {} models, {}: name one, such as hf:{repository}:{short}",
                models.len(),
                listed(models)
            )))
        }
    }
}

/// The files of a Hugging Face folder that are read; none where there is no such.
fn folder(files: &[Remote]) -> Vec<String> {
    let has = |name: &str| files.iter().any(|file| file.name == name);
    let weights = [SINGLE, INDEX].into_iter().find(|name| has(name));
    let Some(weights) = weights.filter(|_| has("config.json")) else { return Vec::new() };
    // One tokenizer is enough, and the first is the one that is read.
    let unread = |name: &str| name == INDEX || name == "tekken.json" && has("tokenizer.json");
    let beside = BESIDE_WEIGHTS.into_iter().filter(|name| has(name) && !unread(name));
    beside.chain([weights]).map(str::to_owned).collect()
}

/// What a repository holds instead of a model, in a few words.
fn held(files: &[Remote]) -> String {
    let weights = files.iter().find(|file| {
        [".bin", ".pth", ".pt", ".onnx", ".safetensors", ".npz"]
            .iter()
            .any(|ending| file.name.ends_with(ending))
    });
    match weights {
        Some(file) => format!("{}, which is not supported", file.name),
        None => "no weights".to_owned(),
    }
}

/// A GGUF file, in its parts.
struct Model<'a> {
    /// Its name without `.gguf`, and without the number of a part.
    base: &'a str,
    /// How many parts there must be.
    parts: usize,
    files: Vec<&'a Remote>,
}

impl Model<'_> {
    /// Whether it goes with a model, and is none: the eyes of one that sees, or what its importance was measured as.
    fn is_accessory(&self) -> bool {
        let name = file_name(self.base).to_ascii_lowercase();
        name.contains("mmproj") || name.contains("imatrix")
    }

    fn whole(&self, reference: &Reference) -> Result<Choice, Error> {
        if self.files.len() != self.parts {
            let (found, parts, base) = (self.files.len(), self.parts, self.base);
            return Err(reference.error(format!("holds {found} of the {parts} parts of {base}")));
        }
        Ok(Choice::Gguf(self.files.iter().map(|file| file.name.clone()).collect()))
    }
}

/// The GGUF files, by name.
fn models(files: &[Remote]) -> Vec<Model<'_>> {
    let mut models: Vec<Model<'_>> = Vec::new();
    let mut sorted: Vec<_> = files.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for file in sorted {
        let Some(stem) = file.name.strip_suffix(".gguf") else { continue };
        let (base, parts) = part_of(stem).unwrap_or((stem, 1));
        match models.iter_mut().find(|model| model.base == base && model.parts == parts && parts > 1) {
            Some(model) => model.files.push(file),
            None => models.push(Model { base, parts, files: vec![file] }),
        }
    }
    models
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What all their names begin with, up to a separator.
fn common(models: &[Model]) -> String {
    let mut names = models.iter().map(|model| file_name(model.base));
    let mut common = names.next().unwrap_or_default();
    for name in names {
        let same = common.char_indices().zip(name.chars()).take_while(|((_, a), b)| a == b).last();
        common = common.get(..same.map_or(0, |((at, c), _)| at + c.len_utf8())).unwrap_or_default();
    }
    let end = common.rfind(['-', '.']).map_or(0, |at| at + 1);
    common.get(..end).unwrap_or_default().to_owned()
}

/// A model's name without what others have in common with it.
fn part<'a>(base: &'a str, common: &str) -> &'a str {
    file_name(base).strip_prefix(common).filter(|rest| !rest.is_empty()).unwrap_or(base)
}

/// Their names in short, and their sizes.
fn listed(models: &[Model]) -> String {
    let common = if models.len() > 1 { common(models) } else { String::new() };
    let one = |model: &Model| {
        let size = model.files.iter().try_fold(0, |sum: u64, file| Some(sum.saturating_add(file.size?)));
        let size = size.map_or(String::new(), |size| format!(" ({:.2} GB)", size as f64 / 1e9));
        format!("{}{size}", part(model.base, &common))
    };
    models.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], reference: &str) -> Result<Vec<String>, String> {
        let remote =
            |name: &&str| Remote { name: (*name).to_owned(), size: Some(1_500_000_000), digest: None };
        let files: Vec<_> = files.iter().map(remote).collect();
        match choose(&files, &reference.parse().unwrap()) {
            Ok(Choice::Folder(files) | Choice::Gguf(files)) => Ok(files),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn only_what_is_read_is_fetched() {
        let files = [
            ".gitattributes",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "original/params.json",
            "pytorch_model.bin",
            "tekken.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model-q8_0.gguf",
        ];
        let expected =
            ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX];
        assert_eq!(chosen(&files, "hf:o/n").unwrap(), expected);
        assert_eq!(chosen(&["config.json", SINGLE, INDEX], "hf:o/n").unwrap(), ["config.json", SINGLE]);
        let mistrals = ["config.json", "tekken.json", SINGLE];
        assert_eq!(chosen(&mistrals, "hf:o/n").unwrap(), mistrals);
        assert_eq!(chosen(&files, "hf:o/n:model-q8_0.gguf").unwrap(), ["model-q8_0.gguf"]);
        assert_eq!(chosen(&files, "hf:o/n:Q8_0").unwrap(), ["model-q8_0.gguf"]);
        let error = chosen(&["config.json", "pytorch_model.bin"], "hf:o/n").unwrap_err();
        assert!(
            error.contains("hf:o/n: holds neither model.safetensors nor a GGUF file, but pytorch_model.bin"),
            "{error}"
        );
    }

    #[test]
    fn a_gguf_file_is_named_by_how_it_is_quantised() {
        let files = [
            "M-1B-Q4_K.gguf",
            "M-1B-Q4_K_M.gguf",
            "M-1B-UD-Q4_K_M.gguf",
            "BF16/M-1B-BF16-00002-of-00002.gguf",
            "BF16/M-1B-BF16-00001-of-00002.gguf",
            "mmproj-M-1B-F16.gguf",
            "imatrix.gguf",
            "README.md",
        ];
        let both = ["BF16/M-1B-BF16-00001-of-00002.gguf", "BF16/M-1B-BF16-00002-of-00002.gguf"];
        assert_eq!(chosen(&files, "hf:o/n:Q4_K").unwrap(), ["M-1B-Q4_K.gguf"]);
        assert_eq!(chosen(&files, "hf:o/n:ud-q4_k_m").unwrap(), ["M-1B-UD-Q4_K_M.gguf"]);
        assert_eq!(chosen(&files, "hf:o/n:bf16").unwrap(), both);
        assert_eq!(chosen(&files, &format!("hf:o/n:{}", both[1])).unwrap(), both);
        assert_eq!(chosen(&files, "hf:o/n:mmproj-M-1B-F16.gguf").unwrap(), ["mmproj-M-1B-F16.gguf"]);
        let error = chosen(&files, "hf:o/n").unwrap_err();
        let expected = "hf:o/n: holds 4 models, BF16 (3.00 GB), Q4_K (1.50 GB), Q4_K_M (1.50 GB), UD-Q4_K_M (1.50 GB): name \
                        one, such as hf:o/n:BF16";
        assert_eq!(error, expected);
        assert_eq!(chosen(&files, "hf:o/n:Q4_K_M").unwrap(), ["M-1B-Q4_K_M.gguf"]);
        let error = chosen(&files, "hf:o/n:1B").unwrap_err();
        assert!(error.contains("holds 4 models, BF16 (3.00 GB), Q4_K"), "{error}");
        let error = chosen(&files, "hf:o/n:Q9").unwrap_err();
        assert!(error.contains("holds no such GGUF file, but BF16 (3.00 GB), Q4_K"), "{error}");
        let error = chosen(&files[4..5], "hf:o/n:BF16").unwrap_err();
        assert!(error.contains("holds 1 of the 2 parts of BF16/M-1B-BF16"), "{error}");
        assert_eq!(chosen(&["only.gguf"], "hf:o/n").unwrap(), ["only.gguf"]);
    }
}
