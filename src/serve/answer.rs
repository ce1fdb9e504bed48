//! From a request's body to the events of its answers.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task;
use tokio::time::timeout_at;

use super::access::Tally;
use super::body::Body;
use super::engine::{Listener, Ticket};
use super::fields::Fields;
use super::problem::Problem;
use super::service::{Loaded, Service};
use super::settings::Settings;
use crate::Error;
use crate::runtime::{Event, Finished, GenerateOptions, Piece, Request};

/// A kind of completions: what its requests look like, and its answers.
pub trait Kind: Sized + Send + 'static {
    /// What its ids begin with.
    const ID: &'static str;
    /// `object` of a whole answer, and of a piece of one that is streamed.
    const OBJECT: &'static str;
    /// See [`Kind::OBJECT`].
    const CHUNK: &'static str;
    /// The field that prompts come from.
    const PROMPT: &'static str;

    /// Reads a request; all fields are taken, or refused.
    fn read(fields: Fields, loaded: &Loaded) -> Result<(Self, Settings), Problem>;

    /// Prompts that there are, before they are worked out.
    fn prompt_count(&self) -> usize;

    /// The prompts' tokens, which may have a say in what answers look like.
    fn prompts(&mut self, loaded: &Loaded, settings: &mut Settings) -> Result<Vec<Vec<u32>>, Problem>;

    /// The most tokens of an answer, where that was said.
    fn max_tokens(&self) -> Option<usize>;

    /// Makes ready for so many answers.
    fn begin(&mut self, answers: usize, loaded: &Loaded);

    /// What comes before the first token of an answer's stream.
    fn opening(&self, _index: usize) -> Option<Value> {
        None
    }

    /// What a token adds to its answer, as `choices` of a stream.
    fn piece(&mut self, index: usize, piece: &Piece, loaded: &Loaded) -> Vec<Value>;

    /// What comes after the last.
    fn end(&mut self, index: usize, finished: &Finished) -> Vec<Value>;

    /// The answers as a whole, once they have ended.
    fn whole(self) -> Vec<Value>;
}

/// A request that has been read, its answers in the engine's queue.
pub struct Asked<K> {
    pub kind: K,
    pub settings: Settings,
    pub answers: Answers,
}

/// Answers being made. Where this is dropped they are given up.
pub struct Answers {
    pub service: Arc<Service>,
    pub loaded: Arc<Loaded>,
    tally: Tally,
    events: UnboundedReceiver<(usize, Event)>,
    /// Of those that have not ended.
    tickets: Vec<Option<Ticket>>,
    deadline: Instant,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
}

/// What happened to one of the answers.
pub enum Said {
    Piece(usize, Piece),
    Finished(usize, Finished),
}

/// Reads a request and puts it into the queue. What that takes, templates, tokenizing and grammars, is done on a thread of its
/// own, and broken off where the client goes away.
pub async fn ask<K: Kind>(service: Arc<Service>, tally: Tally, body: Body) -> Result<Asked<K>, Problem> {
    let loaded = Arc::clone(service.for_work()?);
    if loaded.engine.seats(1).is_none() {
        return Err(Problem::queue_full());
    }
    let gone = Arc::new(AtomicBool::new(false));
    let _guard = Gone(Arc::clone(&gone));
    let work = task::spawn_blocking(move || {
        if service.options.log_prompts {
            tracing::info!("body {:?}", String::from_utf8_lossy(&body.bytes));
        }
        let fields = Fields::new(parse(&body.bytes)?, "")?;
        drop(body);
        let (kind, settings) = K::read(fields, &loaded)?;
        submit(kind, settings, service, loaded, tally, &gone)
    });
    work.await.unwrap_or_else(|_| Err(Problem::internal()))
}

/// Tells that nobody waits any more.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn submit<K: Kind>(
    mut kind: K,
    mut settings: Settings,
    service: Arc<Service>,
    loaded: Arc<Loaded>,
    tally: Tally,
    gone: &AtomicBool,
) -> Result<Asked<K>, Problem> {
    loaded.check_name(settings.model.as_deref())?;
    let wanted = kind.prompt_count().saturating_mul(settings.n);
    if wanted > loaded.engine.capacity() {
        let most = loaded.engine.capacity();
        let param = if settings.n > 1 { "n" } else { K::PROMPT };
        return Err(Problem::value(param, format_args!("{wanted} answers in one request: {most} at most")));
    }
    let mut seats = loaded.engine.seats(wanted).ok_or_else(Problem::queue_full)?;
    let deadline = deadline(&tally, &service);
    let mut watch = || match gone.load(Ordering::Relaxed) || Instant::now() > deadline {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let mut requests = Vec::with_capacity(wanted);
    let prompts = kind.prompts(&loaded, &mut settings)?;
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    tally.prompt(prompt_tokens);
    for prompt in prompts {
        if let Some(most) = kind.max_tokens() {
            loaded.check_room(K::PROMPT, prompt.len(), most)?;
        }
        for i in 0..settings.n {
            let options = settings.of_choice(i);
            requests.push(request::<K>(&loaded, prompt.clone(), &options, &mut watch, &service)?);
        }
    }
    kind.begin(wanted, &loaded);
    let (sender, events) = mpsc::unbounded_channel();
    let tickets = Vec::with_capacity(wanted);
    let mut answers = Answers { service, loaded, tally, events, tickets, deadline, prompt_tokens };
    for (index, request) in requests.into_iter().enumerate() {
        let Some(seat) = seats.split(1) else { return Err(Problem::internal()) };
        let listener = Listener::new(index, sender.clone(), seat);
        answers.tickets.push(Some(answers.loaded.engine.submit(request, listener)));
    }
    Ok(Asked { kind, settings, answers })
}

/// When the request's time is over.
fn deadline(tally: &Tally, service: &Service) -> Instant {
    let (begun, timeout) = (tally.begun(), service.options.timeout);
    // A limit beyond what clocks can say is none.
    begun.checked_add(timeout).unwrap_or_else(|| begun + Duration::from_secs(u32::MAX.into()))
}

fn request<K: Kind>(
    loaded: &Loaded,
    prompt: Vec<u32>,
    options: &GenerateOptions,
    watch: &mut dyn FnMut() -> ControlFlow<()>,
    service: &Service,
) -> Result<Request, Problem> {
    Request::new(&loaded.model, &loaded.options, prompt, options, watch).map_err(|error| match error {
        Error::ContextFull { .. } => Problem::too_long(K::PROMPT, error.to_string()),
        Error::Interrupted => Problem::out_of_time(service.options.timeout.as_secs()),
        error => error.into(),
    })
}

/// The JSON of a body.
pub fn parse(body: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(body).map_err(|error| Problem::request(format!("the body is not JSON: {error}")))
}

impl Answers {
    /// The next thing that happens; none once all answers have ended. After a problem nothing follows.
    pub async fn next(&mut self) -> Option<Result<Said, Problem>> {
        if self.tickets.iter().all(Option::is_none) {
            return None;
        }
        let (index, event) = match timeout_at(self.deadline.into(), self.events.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) if self.service.is_stopping() => return Some(Err(Problem::stopping())),
            Ok(None) => return Some(Err(Problem::engine_failed())),
            Err(_) => return Some(Err(Problem::out_of_time(self.service.options.timeout.as_secs()))),
        };
        if !matches!(event, Event::Piece(_))
            && let Some(ticket) = self.tickets.get_mut(index)
        {
            *ticket = None;
        }
        Some(match event {
            Event::Piece(piece) => {
                if let Some(time) = self.tally.token() {
                    self.service.metrics.observe_first_token(time);
                }
                Ok(Said::Piece(index, piece))
            }
            Event::Finished(finished) => {
                self.tally.cached(finished.cached_tokens);
                Ok(Said::Finished(index, finished))
            }
            Event::Failed(error) => Err(error.into()),
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.tickets.len()
    }

    /// The answer broke off after its status was sent.
    pub fn fail(&self) {
        self.tally.fail();
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        for ticket in self.tickets.iter().copied().flatten() {
            self.loaded.engine.cancel(ticket);
        }
    }
}
