//! One line in the log for each request, and its figures, whichever way it ends.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Body as _, Frame, SizeHint};

use super::service::Service;

/// What is known of a request while it is dealt with; handlers find it among the request's extensions.
#[derive(Clone)]
pub struct Tally(Arc<Mutex<Counts>>);

struct Counts {
    begun: Instant,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
    first_token: Option<Duration>,
    /// It broke off after its status was sent.
    failed: bool,
}

impl Tally {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Counts {
            begun: Instant::now(),
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            first_token: None,
            failed: false,
        })))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Counts) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the request came.
    pub fn begun(&self) -> Instant {
        self.with(|counts| counts.begun)
    }

    /// A prompt of so many tokens is to be answered.
    pub fn prompt(&self, tokens: usize) {
        self.with(|counts| counts.prompt_tokens += tokens);
    }

    /// A token has come; gives the time to it where it is the first.
    pub fn token(&self) -> Option<Duration> {
        self.with(|counts| {
            counts.completion_tokens += 1;
            let is_first = counts.first_token.is_none();
            is_first.then(|| *counts.first_token.insert(counts.begun.elapsed()))
        })
    }

    /// So many of a prompt's tokens were found in pages.
    pub fn cached(&self, tokens: usize) {
        self.with(|counts| counts.cached_tokens += tokens);
    }

    /// A stream broke off.
    pub fn fail(&self) {
        self.with(|counts| counts.failed = true);
    }
}

/// How whoever went away is counted, as nginx has it.
const GONE: u16 = 499;

/// How a stream that broke off is counted.
const BROKEN_OFF: u16 = 500;

/// What is logged only where something is wrong.
const WATCHED: [&str; 2] = ["/health", "/metrics"];

/// Writes the line when it is dropped.
struct Entry {
    service: Arc<Service>,
    tally: Tally,
    method: Method,
    path: String,
    /// The route, for the figures: there are only so many.
    endpoint: String,
    status: u16,
    /// All of the answer has been handed over.
    whole: bool,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Self { service, tally, method, path, endpoint, status, whole } = self;
        let counted = match (&whole, tally.with(|counts| counts.failed)) {
            (_, true) => BROKEN_OFF,
            (false, _) => GONE,
            (true, _) => *status,
        };
        service.metrics.count_request(endpoint, counted);
        // Asked every few seconds by whoever watches, for ever.
        if WATCHED.contains(&endpoint.as_str()) && *status == 200 {
            return;
        }
        tally.with(|counts| {
            let end = match (&whole, counts.failed) {
                (_, true) => "failed",
                (true, _) => "done",
                (false, _) => "client gone",
            };
            tracing::info!(
                "{method} {path:?} {status} {end} ms={} prompt={} cached={} completion={} first_ms={}",
                counts.begun.elapsed().as_millis(),
                counts.prompt_tokens,
                counts.cached_tokens,
                counts.completion_tokens,
                counts.first_token.unwrap_or_default().as_millis(),
            );
        });
    }
}

/// Around every request.
pub async fn log(State(service): State<Arc<Service>>, mut request: Request, next: Next) -> Response {
    let tally = Tally::new();
    let endpoint = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
    let mut entry = Entry {
        tally: tally.clone(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        endpoint: endpoint.to_owned(),
        status: GONE,
        whole: false,
        service,
    };
    request.extensions_mut().insert(tally);
    let mut response = next.run(request).await;
    entry.status = response.status().as_u16();
    if entry.service.is_stopping() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|inner| {
        entry.whole = inner.is_end_stream();
        Body::new(Logged { inner, entry })
    })
}

/// A body that ends its request's line.
struct Logged {
    inner: Body,
    entry: Entry,
}

impl hyper::body::Body for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        // Whoever knows that nothing follows does not ask once more.
        self.entry.whole = matches!(frame, Poll::Ready(None)) || self.inner.is_end_stream();
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
