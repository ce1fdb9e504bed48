//! Asking the hub over HTTP: whom the token is shown to, which answers are waited out, and which are final.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::{Request, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::{Hub, Reference};
use crate::Error;
use crate::format::convert::{OnProgress, Progress, report};

/// How often something is asked for before it is given up.
const TRIES: u32 = 5;

/// The longest that a server may ask to be left alone for. The hub counts requests over five minutes.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Addresses that one leads to, at most.
const REDIRECTS: usize = 8;

/// Bytes of JSON that are read at most. The list of a repository of thousands of files has some.
const MAX_JSON: u64 = 32 << 20;

/// Why there is no answer.
pub enum Failure {
    /// Nobody answers.
    Unreachable(String),
    /// It was cut off, or the server has no time: worth another try.
    Later { why: String, after: Option<Duration> },
    /// The server refuses, with this status and, where it is the hub, its word for the reason.
    Refused { status: u16, code: String },
    /// What came makes no sense.
    Broken(String),
    /// It failed here.
    Here(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Here(error)
    }
}

impl Failure {
    /// One line on `reference` (where something else is meant, `what` of it), and what to do.
    pub fn explain(self, hub: &Hub, reference: &Reference, what: Option<&str>) -> Error {
        let (of, endpoint) = (what.map_or(String::new(), |what| format!("{what}: ")), &hub.endpoint);
        let page = format!("{endpoint}/{}", reference.repository);
        let problem = match self {
            Self::Here(error) => return error,
            Self::Unreachable(why) => {
                format!(
                    "{endpoint} is out of reach ({why}), and the model is not here: check the network, the proxy, or the certificates (SSL_CERT_FILE)"
                )
            }
            Self::Later { why, after: Some(time) } => {
                format!("{why}; try again in {} s, or with a token (HF_TOKEN)", time.as_secs())
            }
            Self::Later { why, after: None } => {
                format!("{why}, {TRIES} times: try again later, it goes on where it was")
            }
            Self::Broken(why) => format!("{why}: try again, or another HF_ENDPOINT"),
            Self::Refused { status, code } => match (status, code.as_str()) {
                (_, "GatedRepo") | (403, "") => {
                    format!(
                        "is only for those who were let in: ask at {page}, and set HF_TOKEN to your token"
                    )
                }
                (_, "RevisionNotFound") => format!("there is no revision {} at {page}", reference.revision),
                (_, "EntryNotFound") => format!("is no longer at {page}"),
                (401, _) if hub.token.is_some() => {
                    format!("there is none, or your token (HF_TOKEN) does not open it: see {page}")
                }
                (401 | 404, _) => format!(
                    "there is none, or it is private: check the name, or set HF_TOKEN to a token that opens it ({page})"
                ),
                (status, _) => format!("{endpoint} refuses, with status {status}"),
            },
        };
        reference.error(of + &problem)
    }
}

/// An answer that went well.
pub struct Answer {
    pub response: Response<Body>,
    /// What the hub itself, not whoever it leads to, says of the file: its checksum and its size in bytes.
    pub etag: Option<String>,
    pub size: Option<u64>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.response, name)
    }
}

/// Asks one hub.
pub struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
}

impl<'a> Client<'a> {
    /// # Errors
    /// When the certificates cannot be read.
    pub fn new(hub: &'a Hub) -> Result<Self, Error> {
        let roots = match &hub.certificates {
            Some(file) => roots(file)?,
            None => RootCerts::WebPki,
        };
        let seconds = |n| Some(Duration::from_secs(n));
        let config = Agent::config_builder()
            .user_agent(concat!("torchless/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .http_status_as_error(false)
            // Followed here, where it is known whom the token is for.
            .max_redirects(0)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_resolve(seconds(15))
            .timeout_connect(seconds(15))
            .timeout_recv_response(seconds(60))
            .timeout_per_read(seconds(30));
        Ok(Self { hub, agent: config.build().into() })
    }

    /// Asks for a file from byte `from` on, or for nothing but its headers.
    pub fn get(&self, address: &str, from: u64, only_headers: bool) -> Result<Answer, Failure> {
        let mut url = address.to_owned();
        let (mut etag, mut size) = (None, None);
        for _ in 0..=REDIRECTS {
            let of_hub = origin(&url) == origin(&self.hub.endpoint);
            let response = self.ask(&url, from, only_headers, of_hub)?;
            let said = |names: [&str; 2]| names.into_iter().find_map(|name| header(&response, name));
            if of_hub {
                etag = said(["x-linked-etag", "etag"]).map(unquoted).or(etag);
            }
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if of_hub && only_headers {
                let length = if is_redirect { "x-linked-size" } else { "content-length" };
                size = said(["x-linked-size", length]).and_then(|size| size.parse().ok()).or(size);
            }
            if !is_redirect {
                return judged(response, etag, size);
            }
            let next = next(&url, header(&response, "location").unwrap_or_default())?;
            if only_headers && origin(&next) != origin(&self.hub.endpoint) {
                return Ok(Answer { response, etag, size });
            }
            url = next;
        }
        Err(Failure::Broken("it leads from one address to another without end".to_owned()))
    }

    fn ask(&self, url: &str, from: u64, only_headers: bool, of_hub: bool) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(if only_headers { "HEAD" } else { "GET" }).uri(url);
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let (true, Some(token)) = (of_hub, &self.hub.token) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let wrong = |problem: String| Failure::Broken(format!("{url}: {problem}"));
        let request = request.body(()).map_err(|problem| wrong(problem.to_string()))?;
        self.agent.run(request).map_err(|problem| match problem {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Protocol(_) => {
                wrong(problem.to_string())
            }
            ureq::Error::Io(problem) => Failure::Unreachable(problem.to_string()),
            problem => Failure::Unreachable(problem.to_string()),
        })
    }

    /// The JSON at an address.
    pub fn json<T: serde::de::DeserializeOwned>(
        &self,
        address: &str,
        progress: &mut OnProgress,
    ) -> Result<T, Failure> {
        let at = Progress { step: "asking the hub", done: 0, total: 0 };
        let answer = self.patiently(progress, at, || self.get(address, 0, false))?;
        let mut bytes = Vec::new();
        let body = answer.response.into_body().into_reader();
        body.take(MAX_JSON)
            .read_to_end(&mut bytes)
            .map_err(|problem| Failure::Unreachable(problem.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|problem| Failure::Broken(format!("{address}: {problem}")))
    }

    /// Asks again, some times, while the server has no time.
    pub fn patiently<T>(
        &self,
        progress: &mut OnProgress,
        at: Progress<'_>,
        mut ask: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut tries = Tries::new(self.hub.pause);
        loop {
            match ask() {
                Err(failure) => tries.wait(failure, progress, at)?,
                Ok(answer) => return Ok(answer),
            }
        }
    }
}

/// The certificates in a file of PEM.
fn roots(file: &Path) -> Result<RootCerts, Error> {
    let pem = fs::read(file).map_err(Error::io(file))?;
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = certificates.collect();
    if certificates.is_empty() {
        return Err(Error::file(file, "holds no certificates in PEM: SSL_CERT_FILE names a file that does"));
    }
    Ok(certificates.into())
}

/// How often something failed, and how long to wait before it is tried again.
pub struct Tries {
    failed: u32,
    pause: Duration,
}

impl Tries {
    pub fn new(pause: Duration) -> Self {
        Self { failed: 0, pause }
    }

    /// Waits, longer each time, or as long as the server asks; gives `failure` back where that is no use.
    pub fn wait(
        &mut self,
        failure: Failure,
        progress: &mut OnProgress,
        at: Progress<'_>,
    ) -> Result<(), Failure> {
        let Failure::Later { after, .. } = &failure else { return Err(failure) };
        self.failed += 1;
        let time = after.unwrap_or_else(|| self.pause * (1 << self.failed.min(5)));
        if self.failed >= TRIES || time > LONGEST_WAIT {
            return Err(failure);
        }
        let end = Instant::now() + time;
        loop {
            report(progress, at)?;
            match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Ok(()),
                left => thread::sleep(left.min(Duration::from_millis(100))),
            }
        }
    }

    /// It came some way.
    pub fn forget(&mut self) {
        self.failed = 0;
    }
}

/// An answer by its status.
fn judged(response: Response<Body>, etag: Option<String>, size: Option<u64>) -> Result<Answer, Failure> {
    match response.status().as_u16() {
        200 | 206 => Ok(Answer { response, etag, size }),
        status @ (408 | 429 | 500 | 502 | 503 | 504) => {
            let after = header(&response, "retry-after").and_then(|seconds| seconds.parse().ok());
            Err(Failure::Later {
                why: format!("the server answers with status {status}"),
                after: after.map(Duration::from_secs),
            })
        }
        status => {
            let code = header(&response, "x-error-code").unwrap_or_default().to_owned();
            Err(Failure::Refused { status, code })
        }
    }
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// An etag without what HTTP puts around it.
fn unquoted(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> String {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let rest = url.get(after_scheme..).unwrap_or_default();
    let end = rest.find(['/', '?', '#']).map_or(url.len(), |at| after_scheme + at);
    url.get(..end).unwrap_or(url).to_ascii_lowercase()
}

/// Where a redirect leads.
fn next(url: &str, location: &str) -> Result<String, Failure> {
    let is_whole = location.starts_with("https://") || location.starts_with("http://");
    let next = match location {
        whole if is_whole => whole.to_owned(),
        path if path.starts_with('/') && !path.starts_with("//") => origin(url) + path,
        _ => return Err(Failure::Broken(format!("{url} leads to {location:?}"))),
    };
    if url.starts_with("https:") && !next.starts_with("https:") {
        return Err(Failure::Broken(format!("{url} leads to {next}, where nothing is encrypted")));
    }
    Ok(next)
}

/// A part of an address, with what has a meaning there escaped; slashes too, unless they are `kept`.
pub fn escaped(text: &str, kept: char) -> String {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || char::from(byte) == kept;
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart_by_their_origin() {
        assert_eq!(origin("https://Hub.example:8080/a/b?c"), "https://hub.example:8080");
        assert_ne!(origin("https://hub.example"), origin("https://hub.example.evil.example/"));
        assert_ne!(origin("https://hub.example"), origin("https://hub.example@evil.example/"));
        assert_ne!(origin("https://hub.example"), origin("http://hub.example"));
        let leads = |from, to| next(from, to).ok();
        assert_eq!(leads("https://a.example/x/y", "/z?q").as_deref(), Some("https://a.example/z?q"));
        assert_eq!(
            leads("http://a.example/x", "https://b.example/z").as_deref(),
            Some("https://b.example/z")
        );
        for to in ["http://a.example/x", "//b.example/x", "x", "", "file:///etc/passwd"] {
            assert_eq!(leads("https://a.example/x", to), None, "{to}");
        }
        assert_eq!(escaped("refs/pr/1", '\0'), "refs%2Fpr%2F1");
        assert_eq!(escaped("a b/c#?%é.gguf", '/'), "a%20b/c%23%3F%25%C3%A9.gguf");
        assert_eq!(unquoted("W/\"abc\""), "abc");
    }
}
