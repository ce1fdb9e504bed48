//! Completions of either kind: whole, or as a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::access::Tally;
use super::answer::{Answers, Asked, Kind, Said, ask};
use super::body;
use super::problem::{Problem, json_response};
use super::service::{Service, now};
use crate::runtime::Finished;

/// After so long without a token a stream carries a comment, so that nobody in between takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers a request for completions.
pub async fn complete<K: Kind>(
    State(service): State<Arc<Service>>,
    Extension(tally): Extension<Tally>,
    request: Request,
) -> Result<Response, Problem> {
    let body = body::read(request, &service).await?;
    let asked = ask::<K>(service, tally, body).await?;
    let head = Head::new::<K>(&asked);
    if asked.settings.stream { stream(asked, head).await } else { whole(asked, head).await }
}

/// What all of an answer's objects begin with.
struct Head {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    seed: u64,
}

impl Head {
    fn new<K: Kind>(asked: &Asked<K>) -> Self {
        // Keys of a hash map are another each time.
        let random = || RandomState::new().hash_one(0);
        Self {
            id: format!("{}-{:016x}{:016x}", K::ID, random(), random()),
            created: now(),
            model: asked.answers.loaded.name.clone(),
            fingerprint: asked.answers.loaded.fingerprint.clone(),
            seed: asked.settings.generate.sampling.seed,
        }
    }

    /// An object of this kind; `usage` is left out, null, or what it is.
    fn object(&self, kind: &str, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "seed": self.seed,
            "choices": choices,
        });
        if let (Some(usage), Some(fields)) = (usage, object.as_object_mut()) {
            fields.insert("usage".to_owned(), usage);
        }
        object
    }
}

/// What the answers took.
struct Usage {
    prompt: usize,
    cached: usize,
    completion: usize,
    /// Answers to one prompt, which counts once.
    n: usize,
}

impl Usage {
    fn new<K: Kind>(asked: &Asked<K>) -> Self {
        Self { prompt: asked.answers.prompt_tokens, cached: 0, completion: 0, n: asked.settings.n }
    }

    fn add(&mut self, index: usize, finished: &Finished) {
        self.completion += finished.generated.tokens.len();
        if index.is_multiple_of(self.n) {
            self.cached += finished.cached_tokens;
        }
    }

    fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

async fn whole<K: Kind>(mut asked: Asked<K>, head: Head) -> Result<Response, Problem> {
    let mut usage = Usage::new(&asked);
    while let Some(said) = asked.answers.next().await {
        match said? {
            Said::Piece(index, piece) => drop(asked.kind.piece(index, &piece, &asked.answers.loaded)),
            Said::Finished(index, finished) => {
                usage.add(index, &finished);
                drop(asked.kind.end(index, &finished));
            }
        }
    }
    let object = head.object(K::OBJECT, asked.kind.whole(), Some(usage.json()));
    Ok(json_response(StatusCode::OK, &object))
}

/// Begins with the first token, so that what fails before has its own status; or, where that takes long, without.
async fn stream<K: Kind>(asked: Asked<K>, head: Head) -> Result<Response, Problem> {
    let usage = Usage::new(&asked);
    let Asked { kind, settings, answers } = asked;
    let mut frames = Frames {
        kind,
        answers,
        head,
        usage,
        include_usage: settings.include_usage,
        ready: VecDeque::new(),
        done: false,
    };
    frames.open();
    if let Ok(Some(first)) = timeout(KEEP_ALIVE, frames.answers.next()).await {
        frames.say(first?);
    }
    let frames = stream::unfold(frames, |mut frames| async move {
        let frame = frames.next().await?;
        Some((Ok::<_, Infallible>(frame), frames))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect frames otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// The frames of a stream.
struct Frames<K> {
    kind: K,
    answers: Answers,
    head: Head,
    usage: Usage,
    include_usage: bool,
    ready: VecDeque<Bytes>,
    done: bool,
}

impl<K: Kind> Frames<K> {
    /// What each answer's stream begins with.
    fn open(&mut self) {
        for index in 0..self.answers.count() {
            if let Some(choice) = self.kind.opening(index) {
                self.push(choice);
            }
        }
    }

    /// A frame with one choice.
    fn push(&mut self, choice: Value) {
        let usage = self.include_usage.then_some(Value::Null);
        self.ready.push_back(frame(&self.head.object(K::CHUNK, vec![choice], usage)));
    }

    fn say(&mut self, said: Said) {
        let choices = match said {
            Said::Piece(index, piece) => self.kind.piece(index, &piece, &self.answers.loaded),
            Said::Finished(index, finished) => {
                self.usage.add(index, &finished);
                self.kind.end(index, &finished)
            }
        };
        choices.into_iter().for_each(|choice| self.push(choice));
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            if self.done {
                return None;
            }
            match timeout(KEEP_ALIVE, self.answers.next()).await {
                Err(_) => return Some(Bytes::from_static(b": still at it\n\n")),
                Ok(Some(Ok(said))) => self.say(said),
                Ok(Some(Err(problem))) => {
                    self.answers.fail();
                    self.ready.push_back(frame(&problem.body()));
                    self.done = true;
                }
                Ok(None) => self.close(),
            }
        }
    }

    fn close(&mut self) {
        if self.include_usage {
            let last = self.head.object(K::CHUNK, Vec::new(), Some(self.usage.json()));
            self.ready.push_back(frame(&last));
        }
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.done = true;
    }
}

fn frame(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}
