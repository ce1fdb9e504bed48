//! A stand-in for the Hugging Face hub, and for the server that it leads to for large files.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The only token that opens what is closed.
pub const TOKEN: &str = "hf_good";

/// What someone asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Whether it was the hub that was asked, and not whom it leads to.
    pub of_hub: bool,
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// A status in place of the answer, and these headers.
    Status(u16, &'static [(&'static str, &'static str)]),
    /// The connection ends after so many bytes of the body.
    Break(usize),
    /// Nothing more comes for a while after so many bytes of the body.
    Stall(usize),
    /// A byte of the body is another.
    Damage,
    /// The whole file comes, whatever range is asked for.
    NoRanges,
    /// The headers say more bytes than the list of files does, and they come.
    Longer,
}

/// What a request meets; `None`: what it asks for.
pub type Faults = dyn Fn(&Asked) -> Option<Fault> + Send + Sync;

/// A repository, and the two servers that have it.
pub struct StandIn {
    pub hub: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    elsewhere: SocketAddr,
    content: Mutex<Content>,
    asked: Mutex<Vec<Asked>>,
}

struct Content {
    commit: String,
    files: Vec<(String, Vec<u8>)>,
    closed: bool,
    tells_blobs: bool,
    faults: Box<Faults>,
}

/// The repository's name.
pub const REPOSITORY: &str = "org/tiny";

impl StandIn {
    /// With these files; those of some size lie elsewhere, as they do at the hub.
    pub fn new(files: Vec<(String, Vec<u8>)>) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, elsewhere) = (listen(), listen());
        let address = hub.local_addr().unwrap();
        let content = Content {
            commit: "1".repeat(40),
            files,
            closed: false,
            tells_blobs: true,
            faults: Box::new(|_| None),
        };
        let shared = Arc::new(Shared {
            elsewhere: elsewhere.local_addr().unwrap(),
            content: Mutex::new(content),
            asked: Mutex::default(),
        });
        for (listener, of_hub) in [(hub, true), (elsewhere, false)] {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let (shared, stream) = (Arc::clone(&shared), stream.unwrap());
                    // Someone who goes away in the middle is no reason to end.
                    thread::spawn(move || shared.serve(stream, of_hub));
                }
            });
        }
        Self { hub: address, shared }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    fn change(&self, change: impl FnOnce(&mut Content)) {
        change(&mut self.shared.content.lock().unwrap());
    }

    /// From now on the repository is closed to those without the [`TOKEN`].
    pub fn close(&self) {
        self.change(|content| content.closed = true);
    }

    /// From now on the list of files says neither sizes nor checksums.
    pub fn tell_no_blobs(&self) {
        self.change(|content| content.tells_blobs = false);
    }

    /// From now on requests meet these faults.
    pub fn meet(&self, faults: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) {
        self.change(|content| content.faults = Box::new(faults));
    }

    /// A new commit, of these files.
    pub fn commit(&self, files: Vec<(String, Vec<u8>)>) {
        self.change(|content| {
            content.commit = "2".repeat(40);
            content.files = files;
        });
    }

    /// What was asked for since this was called last.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The file's name at the hub and in the cache: SHA-256 of what lies elsewhere, git's checksum of the rest.
pub fn etag(name: &str, content: &[u8]) -> String {
    if is_large(name) {
        return hexadecimal(&Sha256::digest(content));
    }
    let mut hash = Sha1::new_with_prefix(format!("blob {}\0", content.len()));
    hash.update(content);
    hexadecimal(&hash.finalize())
}

fn is_large(name: &str) -> bool {
    name.ends_with(".gguf") || name.ends_with(".safetensors")
}

impl Shared {
    fn serve(&self, stream: TcpStream, of_hub: bool) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let asked = Asked { of_hub, method, path, headers };
        self.asked.lock().unwrap().push(asked.clone());
        let fault = (self.content.lock().unwrap().faults)(&asked);
        let (head, body, rest) = self.answer(&asked, fault);
        let mut stream = stream;
        let length = body.len() + rest;
        write!(stream, "HTTP/1.1 {head}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
        if asked.method != "HEAD" {
            stream.write_all(&body)?;
        }
        if matches!(fault, Some(Fault::Stall(_))) {
            thread::sleep(Duration::from_secs(20));
        }
        Ok(())
    }

    /// Status and headers, the body, and how many bytes of it do not come.
    fn answer(&self, asked: &Asked, fault: Option<Fault>) -> (String, Vec<u8>, usize) {
        let content = self.content.lock().unwrap();
        let refused =
            |status: u16, code: &str| (format!("{status} No\r\nX-Error-Code: {code}\r\n"), Vec::new(), 0);
        if let Some(Fault::Status(status, headers)) = fault {
            let headers: String =
                headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            return (format!("{status} No\r\n{headers}"), Vec::new(), 0);
        }
        if !asked.of_hub {
            let found =
                content.files.iter().find(|(name, file)| format!("/{}", etag(name, file)) == asked.path);
            let Some((_, file)) = found else { return refused(404, "") };
            return sent(file, asked, fault, String::new());
        }
        let bearer = asked.headers.get("authorization").map(String::as_str);
        if content.closed && bearer != Some(&format!("Bearer {TOKEN}")) {
            return if bearer.is_some() { refused(403, "GatedRepo") } else { refused(401, "GatedRepo") };
        }
        let commit = &content.commit;
        let api = format!("/api/models/{REPOSITORY}/revision/");
        if let Some(rest) = asked.path.strip_prefix(&api) {
            let revision = rest.trim_end_matches("?blobs=true");
            if revision != "main" && revision != commit && revision != "refs%2Fpr%2F1" {
                return refused(404, "RevisionNotFound");
            }
            let siblings =
                content.files.iter().map(|(name, file)| self.sibling(name, file, content.tells_blobs));
            let info = json!({"id": REPOSITORY, "sha": commit, "siblings": siblings.collect::<Vec<_>>()});
            return ("200 OK\r\n".to_owned(), info.to_string().into_bytes(), 0);
        }
        let (resolve, cached) = (format!("/{REPOSITORY}/resolve/{commit}/"), format!("/cached/{commit}/"));
        let name = asked.path.strip_prefix(&resolve).or_else(|| asked.path.strip_prefix(&cached));
        let Some(name) = name else { return refused(401, "RepoNotFound") };
        let found = content.files.iter().find(|(known, _)| known == name);
        let Some((name, file)) = found else { return refused(404, "EntryNotFound") };
        let tag = etag(name, file);
        if is_large(name) {
            let (size, to) = (file.len(), self.elsewhere);
            let head = format!(
                "302 Found\r\nLocation: http://{to}/{tag}\r\nX-Linked-Etag: \"{tag}\"\r\nX-Linked-Size: {size}\r\n\
                 ETag: \"other\"\r\n"
            );
            return (head, Vec::new(), 0);
        }
        if asked.path.starts_with(&resolve) {
            return (format!("307 Moved\r\nLocation: {cached}{name}\r\n"), Vec::new(), 0);
        }
        sent(file, asked, fault, format!("ETag: \"{tag}\"\r\n"))
    }

    fn sibling(&self, name: &str, file: &[u8], tells_blobs: bool) -> serde_json::Value {
        let tag = etag(name, file);
        match (tells_blobs, is_large(name)) {
            (false, _) => json!({"rfilename": name}),
            (true, true) => json!({"rfilename": name, "size": file.len(), "blobId": "0".repeat(40),
                "lfs": {"sha256": tag, "size": file.len(), "pointerSize": 134}}),
            (true, false) => json!({"rfilename": name, "size": file.len(), "blobId": tag}),
        }
    }
}

/// A file, or the range of it that is asked for, with what goes wrong.
fn sent(file: &[u8], asked: &Asked, fault: Option<Fault>, headers: String) -> (String, Vec<u8>, usize) {
    let mut file = file.to_vec();
    match fault {
        Some(Fault::Damage) => file[0] ^= 1,
        Some(Fault::Longer) => file.push(0),
        _ => {}
    }
    let range = asked.headers.get("range").filter(|_| !matches!(fault, Some(Fault::NoRanges)));
    let from = range.map(|range| range["bytes=".len()..].trim_end_matches('-').parse::<usize>().unwrap());
    let (status, mut body) = match from {
        Some(from) if from >= file.len() => return ("416 No\r\n".to_owned(), Vec::new(), 0),
        Some(from) => {
            let (last, size) = (file.len() - 1, file.len());
            (format!("206 Partial\r\nContent-Range: bytes {from}-{last}/{size}\r\n"), file[from..].to_vec())
        }
        None => ("200 OK\r\n".to_owned(), file),
    };
    let kept = match fault {
        Some(Fault::Break(kept) | Fault::Stall(kept)) => kept.min(body.len()),
        _ => body.len(),
    };
    let rest = body.split_off(kept).len();
    (status + &headers, body, rest)
}
