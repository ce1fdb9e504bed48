//! One model for many: an HTTP server that speaks OpenAI's API.
//!
//! What is being asked runs through the model together, and an answer depends on nothing but its request: see
//! [`Scheduler`](crate::runtime::Scheduler).
//!
//! ```no_run
//! use std::sync::Arc;
//! use torchless::Model;
//! use torchless::runtime::BatchOptions;
//! use torchless::serve::{Options, Served, Server};
//!
//! let server = Server::bind(("127.0.0.1", 8080), Options::default())?;
//! println!("http://{}", server.address());
//! let stopper = server.stopper();
//! // Somewhere else: stopper.stop();
//! server.run::<torchless::Error>(|| {
//!     let model = Arc::new(Model::open("mistral.bin")?);
//!     Ok(Served { scheduler: BatchOptions::new(&model), template: None, model })
//! })?;
//! # Ok::<(), torchless::Error>(())
//! ```

mod access;
mod answer;
mod body;
mod chat;
mod complete;
mod completions;
mod engine;
mod fields;
mod listen;
mod logprobs;
mod metrics;
mod problem;
mod routes;
mod service;
mod settings;
mod tokens;

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::http::HeaderValue;
use futures_util::future::{Either, select};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};

use self::service::{Loaded, Service};
use crate::Error;
use crate::chat::ChatTemplate;
use crate::model::Model;
use crate::runtime::BatchOptions;

/// How to serve.
#[derive(Clone)]
pub struct Options {
    /// What the model is called; its file's name otherwise, without the ending.
    pub alias: Option<String>,
    /// What those who ask must know.
    pub api_key: Option<String>,
    /// The origin whose pages may ask, or `*`; no others' may.
    pub cors: Option<HeaderValue>,
    /// Answers that may wait while others run; more are refused.
    pub queue: usize,
    /// How long a request may take, its time in the queue included.
    pub timeout: Duration,
    /// How long a client may take to send its headers, or its body, and to take some of what it is sent; also how long a
    /// connection may lie idle.
    pub patience: Duration,
    /// How long what runs may take to finish where the server is stopped.
    pub grace: Duration,
    /// Logs what is asked.
    pub log_prompts: bool,
}

impl Default for Options {
    /// No key, no other origins, 64 in the queue, ten minutes a request, half a minute for a client, 25 seconds to finish, no
    /// prompts in the log.
    fn default() -> Self {
        Self {
            alias: None,
            api_key: None,
            cors: None,
            queue: 64,
            timeout: Duration::from_secs(600),
            patience: Duration::from_secs(30),
            grace: Duration::from_secs(25),
            log_prompts: false,
        }
    }
}

/// What is served.
pub struct Served {
    /// The model.
    pub model: Arc<Model>,
    /// How it runs.
    pub scheduler: BatchOptions,
    /// How conversations become text; as the model says otherwise.
    pub template: Option<ChatTemplate>,
}

/// A server that has its address, and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    options: Options,
    stop: Stopper,
}

/// Stops a server, from any thread.
#[derive(Clone)]
pub struct Stopper(Arc<watch::Sender<bool>>);

impl Stopper {
    /// What runs is finished, what comes is refused, and [`Server::run`] returns.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// Threads that read requests, beside those that carry bytes: templates, tokenizing and grammars take their time.
const READERS: usize = 8;

impl Server {
    /// Takes an address to listen at; port 0 is one that is free.
    ///
    /// # Errors
    /// If the address is taken, or not this machine's.
    pub fn bind(address: impl ToSocketAddrs, options: Options) -> Result<Self, Error> {
        let bound = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        });
        let (address, listener) =
            bound.map_err(|e| Error::Request(format!("cannot listen at this address: {e}")))?;
        let stop = Stopper(Arc::new(watch::Sender::new(false)));
        Ok(Self { listener, address, options, stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What stops it.
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// Answers until it is stopped. Meanwhile `load` opens the model: `/health` says 503 until it has.
    ///
    /// # Errors
    /// If the model cannot be loaded, or no engine started for it.
    pub fn run<E: From<Error> + Send + 'static>(
        self,
        load: impl FnOnce() -> Result<Served, E> + Send + 'static,
    ) -> Result<(), E> {
        self.run_loaded(move |options| Ok(Loaded::new(load()?, options)?))
    }

    /// [`Server::run`], with an engine of one's own.
    fn run_loaded<E: From<Error> + Send + 'static>(
        self,
        load: impl FnOnce(&Options) -> Result<Loaded, E> + Send + 'static,
    ) -> Result<(), E> {
        let runtime = runtime().map_err(|e| Error::Request(format!("no threads to serve with: {e}")))?;
        let service = Arc::new(Service::new(self.options));
        let (failed, failure) = oneshot::channel();
        let loading = Arc::clone(&service);
        let load = move || match load(&loading.options) {
            Ok(loaded) => {
                tracing::info!("ready: {:?}, {}", loaded.name, loaded.fingerprint);
                loading.set_loaded(loaded);
            }
            Err(error) => drop(failed.send(error)),
        };
        let loader = thread::Builder::new().name("load".to_owned()).spawn(load);
        loader.map_err(|e| Error::Request(format!("no thread to load the model: {e}")))?;
        let result = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(self.listener)
                .map_err(|e| Error::Request(format!("cannot listen: {e}")))?;
            let serving = listen::serve(listener, routes::router(&service), service, self.stop.0.subscribe());
            // The sender is dropped where loading has worked.
            let failure = async {
                match failure.await {
                    Ok(error) => error,
                    Err(_) => std::future::pending().await,
                }
            };
            match select(pin!(serving), pin!(failure)).await {
                Either::Left(_) => Ok(()),
                Either::Right((error, _)) => Err(error),
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    }
}

/// Few threads: they only carry bytes, and the model needs the CPUs.
fn runtime() -> std::io::Result<Runtime> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    Builder::new_multi_thread()
        .worker_threads(cpus.clamp(1, 4))
        .max_blocking_threads(READERS)
        .thread_name("serve")
        .enable_io()
        .enable_time()
        .build()
}

#[cfg(test)]
mod tests;
