//! Conversions that are kept: a model that is no model file is converted once, and opens at once after that.
//!
//! Each is a folder in `converted`, with the model file in it and a record of what it was made from: which files, how large and how
//! old they were. Where that is no longer so it is made anew, and takes the old one's place.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hub::Reference;
use super::{cache_folder, hexadecimal};
use crate::Error;
use crate::format::convert::{Convertible, OnProgress, Progress, Quant, Report, report};
use crate::format::fs::{folder_of, temporary};
use crate::format::gguf::parts::{first_part, part_of};

/// Who converts. The number is raised where the same source becomes another file within a version.
const CONVERTER: &str = concat!(env!("CARGO_PKG_VERSION"), "/1");

/// The record's name, in a conversion's folder.
const RECORD: &str = "record.json";

/// How the names of temporary folders begin.
const PREFIX: &str = ".converting.";

/// Bytes of a record that are read at most, and of a name.
const MAX_RECORD: u64 = 1 << 20;
const MAX_NAME: usize = 100;

/// A model to convert: where it is, and what it stays the same by when its files change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its path, in full, or what it is called on the hub.
    name: String,
    /// What its model file is called.
    stem: String,
    path: PathBuf,
}

impl Origin {
    /// A GGUF file, or a folder.
    ///
    /// # Errors
    /// When it is not there.
    pub fn of_path(path: &Path) -> Result<Self, Error> {
        let path = first_of(path);
        fs::metadata(&path).map_err(Error::io(&path))?;
        let whole = full_name(&path).map_err(Error::io(&path))?;
        Ok(Self { name: whole.display().to_string(), stem: stem_of(&whole), path })
    }

    /// What was [fetched](super::Hub::fetch) from the hub.
    pub fn of_hub(reference: &Reference, path: PathBuf) -> Self {
        let is_file = path.is_file();
        let stem = if is_file { stem_of(&path) } else { reference.name().to_owned() };
        // Behind `snapshots` and the commit: it may lie in a folder of the repository.
        let inside: Vec<_> = path.iter().rev().take_while(|part| *part != "snapshots").collect();
        let file: PathBuf = inside.iter().rev().skip(1).collect();
        let file = is_file.then(|| file.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/"));
        Self { name: Reference { file, ..reference.clone() }.to_string(), stem, path }
    }

    /// What it is called: a path, in full, or `hf:org/name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its name becomes in the cache of conversions.
    fn entry(&self, quant: Quant) -> String {
        let hash = Sha256::digest(format!("{}\0{quant}", self.name));
        let hash = hexadecimal(&hash);
        let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let mut stem: String = self.stem.trim_start_matches('.').chars().map(plain).collect();
        stem.truncate(stem.floor_char_boundary(MAX_NAME));
        format!("{stem}-{}-{}", quant.to_string().replace(':', "_"), hash.get(..10).unwrap_or(&hash))
    }

    /// The folder that its files are in.
    fn folder(&self) -> &Path {
        if self.path.is_dir() { &self.path } else { folder_of(&self.path) }
    }
}

/// A path from the root on. The last name stays as it is: it may be a link, to one that says nothing.
fn full_name(path: &Path) -> io::Result<PathBuf> {
    match path.file_name() {
        Some(name) => Ok(folder_of(path).canonicalize()?.join(name)),
        None => path.canonicalize(),
    }
}

/// A name without the ending of a GGUF file, and the number of a part.
fn stem_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or(OsStr::new("model")).to_string_lossy();
    match name.strip_suffix(".gguf") {
        Some(stem) => part_of(stem).map_or(stem, |(base, _)| base).to_owned(),
        None => name.into_owned(),
    }
}

/// The first part of a model of which this is another: whichever is named, it is the same model.
fn first_of(path: &Path) -> PathBuf {
    let stem = path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_suffix(".gguf"));
    let first = stem.and_then(first_part).map(|stem| path.with_file_name(format!("{stem}.gguf")));
    first.filter(|first| first.is_file()).unwrap_or_else(|| path.to_owned())
}

/// What a conversion was made from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    converter: String,
    source: String,
    quant: String,
    /// The model file's name.
    model: String,
    files: Vec<Input>,
}

/// A file that was read, or would have been if it had been there.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Input {
    name: String,
    #[serde(flatten)]
    state: Option<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    bytes: u64,
    /// Since 1970.
    modified: Duration,
}

impl State {
    /// Of a file that is there.
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let modified = found.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Self { bytes: found.len(), modified })
    }
}

impl Record {
    fn read(entry: &Path) -> Option<Self> {
        let path = entry.join(RECORD);
        if fs::metadata(&path).ok()?.len() > MAX_RECORD {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Whether a conversion would be made of the same files, in the same way.
    fn is_current(&self, origin: &Origin, quant: Quant) -> bool {
        let folder = origin.folder();
        self.converter == CONVERTER
            && self.source == origin.name
            && self.quant == quant.to_string()
            && self.files.iter().any(|file| file.state.is_some())
            && self.files.iter().all(|file| State::of(&folder.join(&file.name)) == file.state)
    }
}

/// A conversion that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversion {
    /// What it is called in the cache.
    pub name: String,
    /// What it was made from: a path, in full, or `hf:org/name`.
    pub source: String,
    /// How its weights are stored, as [`Quant`] is written.
    pub quant: String,
    /// The model file.
    pub model: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was last found.
    pub used: SystemTime,
}

/// The conversions in a folder.
#[derive(Debug, Clone)]
pub struct Conversions {
    folder: PathBuf,
}

impl Conversions {
    /// Those in the [cache folder](cache_folder).
    ///
    /// # Errors
    /// When the environment names none.
    pub fn in_cache_folder() -> Result<Self, Error> {
        Ok(Self::in_folder(cache_folder()?.join("converted")))
    }

    /// Those in this folder, which is made when it is needed.
    pub fn in_folder(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The model file that a model has been converted into, unless it has changed since.
    pub fn find(&self, origin: &Origin, quant: Quant) -> Option<PathBuf> {
        let entry = self.folder.join(origin.entry(quant));
        let record = Record::read(&entry)?;
        let model = entry.join(Path::new(&record.model).file_name()?);
        if !record.is_current(origin, quant) || !model.is_file() {
            return None;
        }
        // Another process may have been killed on its last step.
        temporary::remove_abandoned(&self.folder, OsStr::new(PREFIX));
        // For those who ask what was used last; a cache that cannot be written to does without.
        let touched = File::options().append(true).open(entry.join(RECORD));
        let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
        Some(model)
    }

    /// What a model of the hub was converted into that is no longer in the hub's cache: what can be had again is as good as there.
    pub fn of_hub(&self, reference: &Reference, quant: Quant) -> Option<PathBuf> {
        let quant = quant.to_string();
        let is_meant = |kept: &Conversion| {
            kept.quant == quant && kept.source.parse().is_ok_and(|source| reference.covers(&source))
        };
        let mut found = self.list().into_iter().filter(is_meant);
        let (kept, other) = (found.next()?, found.next());
        let record = Record::read(&self.folder.join(&kept.name))?;
        (other.is_none() && record.converter == CONVERTER && kept.model.is_file()).then_some(kept.model)
    }

    /// What a model was converted into that is no longer there itself.
    pub fn left_of(&self, path: &Path) -> Option<PathBuf> {
        let source = full_name(path).ok()?.display().to_string();
        self.list().into_iter().find(|kept| kept.source == source).map(|kept| kept.model)
    }

    /// Converts a model, unless another process just did, and removes whatever it was converted into before it changed. One
    /// conversion is made at a time: others wait.
    ///
    /// # Errors
    /// When it is not supported, or the folder cannot be written to, or the disk is full; when `progress` breaks off. Nothing
    /// is left then.
    pub fn convert(
        &self,
        origin: &Origin,
        quant: Quant,
        progress: &mut OnProgress,
    ) -> Result<(PathBuf, Option<Report>), Error> {
        let source = Convertible::open(&origin.path)?;
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        let _lock = self.lock(progress)?;
        if let Some(model) = self.find(origin, quant) {
            return Ok((model, None));
        }
        temporary::remove_abandoned(&self.folder, OsStr::new(PREFIX));
        let folder = self.temporary()?;
        let record = self.record(origin, quant, source.files());
        let report =
            source.write(&folder.path().join(&record.model), quant, progress).map_err(
                |error| match error {
                    // By the folder that is full, not the temporary that is gone by then.
                    Error::Io { path, error } if path.starts_with(folder.path()) => {
                        Error::io(&self.folder)(error)
                    }
                    error => error,
                },
            )?;
        let text = serde_json::to_vec(&record).map_err(|problem| Error::Request(problem.to_string()))?;
        fs::write(folder.path().join(RECORD), text).map_err(Error::io(&self.folder))?;
        let entry = self.folder.join(origin.entry(quant));
        let superseded = self.temporary()?;
        if entry.exists() {
            fs::rename(&entry, superseded.path().join("superseded")).map_err(Error::io(&entry))?;
        }
        folder.rename(&entry).map_err(Error::io(&entry))?;
        self.remove_outdated(origin);
        Ok((entry.join(&record.model), Some(report)))
    }

    /// Removes what a model was converted into, in whatever way, before it changed.
    fn remove_outdated(&self, origin: &Origin) {
        for kept in self.list().into_iter().filter(|kept| kept.source == origin.name) {
            let record = Record::read(&self.folder.join(&kept.name));
            let is_current =
                |record: Record| kept.quant.parse().is_ok_and(|quant| record.is_current(origin, quant));
            if !record.is_some_and(is_current) {
                // It takes room, and does no other harm.
                let _ = self.remove(&kept);
            }
        }
    }

    fn temporary(&self) -> Result<temporary::Folder, Error> {
        temporary::Folder::new(&self.folder, OsStr::new(PREFIX)).map_err(Error::io(&self.folder))
    }

    fn record(&self, origin: &Origin, quant: Quant, files: &[PathBuf]) -> Record {
        let folder = origin.folder();
        let input = |path: &PathBuf| Input {
            name: path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned(),
            state: State::of(path),
        };
        Record {
            converter: CONVERTER.to_owned(),
            source: origin.name.clone(),
            quant: quant.to_string(),
            model: format!("{}.bin", origin.stem),
            files: files.iter().map(input).collect(),
        }
    }

    /// Waits until no other process converts into this folder. The lock ends with what is returned.
    fn lock(&self, progress: &mut OnProgress) -> Result<Option<File>, Error> {
        // Where folders cannot be opened (Windows) all convert at the same time, each for itself.
        let Ok(folder) = File::open(&self.folder) else { return Ok(None) };
        while matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) {
            report(progress, Progress { step: "another process converts", done: 0, total: 0 })?;
            thread::sleep(Duration::from_millis(100));
        }
        Ok(Some(folder))
    }

    /// All of them, those used last first.
    pub fn list(&self) -> Vec<Conversion> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut kept: Vec<_> = entries.filter_map(|entry| conversion(&entry.path())).collect();
        kept.sort_by(|a, b| (b.used, &a.name).cmp(&(a.used, &b.name)));
        kept
    }

    /// Removes one.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, kept: &Conversion) -> Result<(), Error> {
        let entry = self.folder.join(&kept.name);
        temporary::remove_abandoned(&self.folder, OsStr::new(PREFIX));
        let gone = self.temporary()?;
        // At once for those who look for it, however long it takes.
        fs::rename(&entry, gone.path().join("removed")).map_err(Error::io(&entry))?;
        gone.remove().map_err(Error::io(&entry))
    }
}

/// What a folder of the cache holds, if it is a conversion.
fn conversion(entry: &Path) -> Option<Conversion> {
    let name = entry.file_name()?.to_str().filter(|name| !name.starts_with('.'))?.to_owned();
    let record = Record::read(entry)?;
    let model = entry.join(Path::new(&record.model).file_name()?);
    let used = fs::metadata(entry.join(RECORD)).ok()?.modified().ok()?;
    let bytes = fs::metadata(&model).map_or(0, |found| found.len());
    Some(Conversion { name, source: record.source, quant: record.quant, model, bytes, used })
}
