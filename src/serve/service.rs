//! What the handlers share: the settings, and the model with its engine once it is loaded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;

use super::body;
use super::engine::Engine;
use super::metrics::Metrics;
use super::problem::Problem;
use super::{Options, Served};
use crate::Error;
use crate::chat::{ChatTemplate, ToolForm};
use crate::model::Model;
use crate::runtime::{BatchOptions, Scheduler};

/// The server's state.
pub struct Service {
    pub options: Options,
    pub metrics: Metrics,
    /// Room for bodies.
    pub bodies: Arc<Semaphore>,
    loaded: OnceLock<Arc<Loaded>>,
    stopping: AtomicBool,
}

impl Service {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            metrics: Metrics::new(),
            bodies: body::room(),
            loaded: OnceLock::new(),
            stopping: AtomicBool::new(false),
        }
    }

    /// The model is there.
    pub fn set_loaded(&self, loaded: Loaded) {
        // It is loaded once.
        let _ = self.loaded.set(Arc::new(loaded));
    }

    /// From now on nothing new is begun.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The model, if it is there.
    pub fn loaded(&self) -> Option<&Arc<Loaded>> {
        self.loaded.get()
    }

    /// The model, for something new.
    pub fn for_work(&self) -> Result<&Arc<Loaded>, Problem> {
        if self.is_stopping() {
            return Err(Problem::stopping());
        }
        self.loaded().ok_or_else(Problem::loading)
    }
}

/// A model being served.
pub struct Loaded {
    pub model: Arc<Model>,
    pub options: BatchOptions,
    pub template: Result<ChatTemplate, Error>,
    /// What the template ends the model's turns with.
    pub end_of_turn: Option<u32>,
    /// How the model calls tools, where the template knows of them.
    pub tool_form: Option<ToolForm>,
    pub engine: Engine,
    /// What the model is called in requests and answers.
    pub name: String,
    /// All that answers depend on beside the request.
    pub fingerprint: String,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

impl Loaded {
    /// Starts the engine for `served`.
    pub fn new(served: Served, options: &Options) -> Result<Self, Error> {
        let Served { model, scheduler, template } = served;
        let start = {
            let (model, scheduler) = (Arc::clone(&model), scheduler.clone());
            move || {
                let mut scheduler = Scheduler::new(&model, &scheduler)?;
                scheduler.warm_up()?;
                Ok(Box::new(scheduler) as _)
            }
        };
        let capacity = scheduler.parallel.saturating_add(options.queue);
        let engine = Engine::new(Box::new(start), capacity)?;
        Ok(Self::on_engine(engine, model, scheduler, template, options))
    }

    /// The same with an engine of one's own.
    pub fn on_engine(
        engine: Engine,
        model: Arc<Model>,
        scheduler: BatchOptions,
        template: Option<ChatTemplate>,
        options: &Options,
    ) -> Self {
        let template = template.map_or_else(|| ChatTemplate::of(model.tokenizer()), Ok);
        let end_of_turn = template.as_ref().ok().and_then(|t| t.end_of_turn(model.tokenizer()));
        let tool_form = template.as_ref().ok().and_then(ChatTemplate::tool_form);
        let path = model.file().path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let kv = format!("{:?}", scheduler.session.kv).to_lowercase();
        Self {
            name: options.alias.clone().unwrap_or_else(|| stem.into_owned()),
            fingerprint: format!("torchless-{} {file} kv={kv}", env!("CARGO_PKG_VERSION")),
            created: now(),
            model,
            options: scheduler,
            template,
            end_of_turn,
            tool_form,
            engine,
        }
    }

    /// The template, for a conversation.
    pub fn template(&self) -> Result<&ChatTemplate, Problem> {
        self.template.as_ref().map_err(|error| Problem::request(error.to_string()))
    }

    /// Whether the model ends texts, or its turns, with this token.
    pub fn ends_text(&self, token: u32) -> bool {
        self.end_of_turn == Some(token) || self.model.tokenizer().eos_ids().contains(&token)
    }

    /// Refuses a request for another model.
    pub fn check_name(&self, asked: Option<&str>) -> Result<(), Problem> {
        match asked {
            Some(asked) if asked != self.name => Err(Problem::no_such_model(asked, &self.name)),
            _ => Ok(()),
        }
    }

    /// Refuses an answer that has no room behind its prompt; `param` is the prompt's field.
    pub fn check_room(&self, param: &str, prompt: usize, max_tokens: usize) -> Result<(), Problem> {
        let ctx = self.options.session.ctx;
        if prompt.saturating_add(max_tokens) <= ctx {
            return Ok(());
        }
        let message = format!(
            "the context holds {ctx} tokens: {prompt} of the prompt and {max_tokens} of the answer are more; \
             shorten the prompt, or ask for less"
        );
        Err(Problem::too_long(param, message))
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
