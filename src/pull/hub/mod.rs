//! Models of the Hugging Face hub, or a mirror of it: only the files that are read, checked, in the cache that other tools have
//! in common, where what they fetched is found.

mod choose;
mod digest;
mod download;
mod http;
mod reference;
mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use self::choose::{Choice, choose};
use self::digest::Digest;
use self::download::{Partial, Wanted, rename};
use self::http::{Client, Failure, Tries, escaped};
pub use self::reference::Reference;
use self::reference::is_inside;
use self::store::{Store, is_commit};
use super::variable;
use crate::Error;
use crate::format::convert::{OnProgress, Progress};
use crate::format::hf;

/// Files that hold a tokenizer, each in its own way.
const TOKENIZERS: [&str; 3] = ["tokenizer.json", "tokenizer.model", "tekken.json"];

/// Where models come from, and where they are kept.
#[derive(Clone)]
pub struct Hub {
    /// The address of the hub, without a slash at its end.
    pub endpoint: String,
    /// The cache that all tools for the hub share.
    pub cache: PathBuf,
    /// Who asks. Only the hub itself is told.
    pub token: Option<String>,
    /// A file with the certificates to trust (PEM); `None`: those that Mozilla trusts.
    pub certificates: Option<PathBuf>,
    /// Whether to do with what is in the cache.
    pub offline: bool,
    /// What is waited, at first, before something that failed is tried again.
    pub pause: Duration,
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// A folder, or a GGUF file; the first, where it has parts.
    pub path: PathBuf,
    /// Why the hub was not asked whether there is anything newer; `None` where it was.
    pub not_asked: Option<String>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Remote {
    /// With the folders it is in.
    name: String,
    /// In bytes, where that is known.
    size: Option<u64>,
    digest: Option<Digest>,
}

/// What the hub says of a repository.
#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl From<Sibling> for Remote {
    fn from(file: Sibling) -> Self {
        let (sha256, size) = file.lfs.map_or((file.blob_id, None), |lfs| (lfs.sha256, lfs.size));
        let digest = sha256.as_deref().and_then(Digest::of_etag);
        Self { name: file.rfilename, size: size.or(file.size), digest }
    }
}

impl Hub {
    /// As the variables say that all tools for the hub know: `HF_ENDPOINT`, `HF_TOKEN` (or `HF_TOKEN_PATH`, or `token` in `HF_HOME`),
    /// `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE`; and `SSL_CERT_FILE`, or `REQUESTS_CA_BUNDLE`.
    ///
    /// # Errors
    /// When they name no cache, or a token that is none.
    pub fn from_environment() -> Result<Self, Error> {
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let caches =
            variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(dirs::home_dir()?.join(".cache")));
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| Some(caches?.join("huggingface")));
        let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let Some(cache) = cache.or_else(|| Some(home.as_ref()?.join("hub"))) else {
            return Err(Error::Request("no folder to keep the hub's models in: set HOME or HF_HOME".into()));
        };
        let file = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home?.join("token")));
        let token = text("HF_TOKEN").or_else(|| fs::read_to_string(file?).ok());
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::Request("HF_TOKEN: holds what no token does: copy it again".into()));
        }
        let is_set =
            |value: String| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache,
            token,
            certificates: variable("SSL_CERT_FILE")
                .or_else(|| variable("REQUESTS_CA_BUNDLE"))
                .map(PathBuf::from),
            offline: text("HF_HUB_OFFLINE").is_some_and(is_set),
            pause: Duration::from_secs(1),
        })
    }

    /// What is in the cache of a model, without asking the hub.
    ///
    /// # Errors
    /// When nothing is, or not all of it, or it does not say which file is meant.
    pub fn find(&self, reference: &Reference) -> Result<PathBuf, Error> {
        let store = Store::new(&self.cache, &reference.repository);
        let missing = || {
            let (cache, endpoint) = (self.cache.display(), &self.endpoint);
            reference.error(format!(
                "is not in {cache}, or not all of it: fetch it from {endpoint}, without HF_HUB_OFFLINE"
            ))
        };
        let commit = store.commit_of(&reference.revision).ok_or_else(missing)?;
        let names = store.files_of(&commit);
        if names.is_empty() {
            return Err(missing());
        }
        let files = names.into_iter().map(|name| Remote { name, size: None, digest: None });
        let choice = choose(&files.collect::<Vec<_>>(), reference)?;
        let snapshot = store.snapshot(&commit);
        match &choice {
            Choice::Folder(_) => {
                let weights = hf::weights(&snapshot).map_err(|_| missing())?;
                let is_here = |name: &str| snapshot.join(name).is_file();
                let whole = weights.iter().all(|name| is_here(name)) && TOKENIZERS.into_iter().any(is_here);
                if whole { Ok(snapshot) } else { Err(missing()) }
            }
            Choice::Gguf(files) => Ok(first(&snapshot, files)),
        }
    }

    /// Fetches the newest of a model, as far as it is not here. Where nobody can be asked, what is here will do.
    ///
    /// # Errors
    /// When the hub does not have it, or does not give it to whoever asks; when it is neither in reach nor here, or what it sends is
    /// not what it says; when the disk is full; when `progress` breaks off. What has come by then is kept, and not fetched again.
    pub fn fetch(&self, reference: &Reference, progress: &mut OnProgress) -> Result<Fetched, Error> {
        if self.offline {
            let not_asked = Some("HF_HUB_OFFLINE is set".to_owned());
            return Ok(Fetched { path: self.find(reference)?, not_asked });
        }
        let client = Client::new(self)?;
        let revision = escaped(&reference.revision, '\0');
        let address =
            format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, reference.repository);
        let info = match client.json::<Info>(&address, progress) {
            Err(Failure::Unreachable(why)) => {
                return match self.find(reference) {
                    Ok(path) => Ok(Fetched { path, not_asked: Some(why) }),
                    Err(_) => Err(Failure::Unreachable(why).explain(self, reference, None)),
                };
            }
            answer => answer.map_err(|failure| failure.explain(self, reference, None))?,
        };
        if !is_commit(&info.sha) {
            return Err(reference.error(format!("{} names no commit of it", self.endpoint)));
        }
        let named = info.siblings.into_iter().filter(|file| is_inside(&file.rfilename));
        let files: Vec<Remote> = named.map(Remote::from).collect();
        let work = Fetching { hub: self, reference, client, commit: info.sha, files };
        Ok(Fetched { path: work.fetch(progress)?, not_asked: None })
    }
}

/// The first of some files.
fn first(snapshot: &Path, files: &[String]) -> PathBuf {
    snapshot.join(files.first().map_or("", String::as_str))
}

/// A commit that is being fetched.
struct Fetching<'a> {
    hub: &'a Hub,
    reference: &'a Reference,
    client: Client<'a>,
    commit: String,
    files: Vec<Remote>,
}

impl Fetching<'_> {
    fn fetch(&self, progress: &mut OnProgress) -> Result<PathBuf, Error> {
        let store = Store::new(&self.hub.cache, &self.reference.repository);
        let snapshot = store.snapshot(&self.commit);
        let path = match choose(&self.files, self.reference)? {
            Choice::Folder(files) => {
                self.all(&store, &files, progress)?;
                let weights = hf::weights(&snapshot)?;
                self.all(&store, &weights.into_iter().collect::<Vec<_>>(), progress)?;
                snapshot
            }
            Choice::Gguf(files) => {
                self.all(&store, &files, progress)?;
                first(&snapshot, &files)
            }
        };
        // Only now: until then what was there before is what is whole.
        store.set_commit(&self.reference.revision, &self.commit)?;
        Ok(path)
    }

    /// Fetches those of these files that are not here yet.
    fn all(&self, store: &Store, names: &[String], progress: &mut OnProgress) -> Result<(), Error> {
        let snapshot = store.snapshot(&self.commit);
        let missing = names.iter().filter(|name| !snapshot.join(name).is_file());
        let missing: Vec<&Remote> = missing
            .map(|name| {
                let file = self.files.iter().find(|file| file.name == *name);
                file.ok_or_else(|| {
                    self.reference.error(format!("its index names {name}, which is not in it"))
                })
            })
            .collect::<Result<_, _>>()?;
        let total = missing.iter().map(|file| file.size.unwrap_or(0)).fold(0, u64::saturating_add);
        let mut before = 0;
        for file in missing {
            let explain = |failure: Failure| failure.explain(self.hub, self.reference, Some(&file.name));
            before += self.one(store, file, (before, total), progress).map_err(explain)?;
        }
        Ok(())
    }

    /// Fetches one file, unless its content is here already; returns its size.
    fn one(
        &self,
        store: &Store,
        file: &Remote,
        (before, total): (u64, u64),
        progress: &mut OnProgress,
    ) -> Result<u64, Failure> {
        let Remote { name, .. } = file;
        let (repository, commit) = (&self.reference.repository, &self.commit);
        let address = format!("{}/{repository}/resolve/{commit}/{}", self.hub.endpoint, escaped(name, '/'));
        let (digest, size) = match (&file.digest, file.size) {
            (Some(digest), Some(size)) => (digest.clone(), size),
            _ => self.ask(&address, name, progress)?,
        };
        let wanted = Wanted { name, address, digest, size, before, total: total.max(size) };
        let blob = store.blob(&wanted.digest);
        let is_here = || fs::metadata(&blob).is_ok_and(|found| found.len() == size);
        if !is_here() {
            let _lock = store.lock(&wanted.digest, progress)?;
            if !is_here() {
                let incomplete = store.incomplete(&wanted.digest)?;
                let partial = Partial::open(incomplete, &wanted, progress)?;
                rename(&partial.complete(&self.client, Tries::new(self.hub.pause), progress)?, &blob)?;
            }
        }
        store.link(&wanted.digest, commit, name)?;
        Ok(size)
    }

    /// Asks for a file's checksum and size, where the list of files does not say them.
    fn ask(&self, address: &str, name: &str, progress: &mut OnProgress) -> Result<(Digest, u64), Failure> {
        let at = Progress { step: name, done: 0, total: 0 };
        let answer = self.client.patiently(progress, at, || self.client.get(address, 0, true))?;
        let digest = answer.etag.as_deref().and_then(Digest::of_etag);
        digest
            .zip(answer.size)
            .ok_or_else(|| Failure::Broken("the server tells no checksum of it".to_owned()))
    }
}
