//! A server in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use torchless::chat::ChatTemplate;
use torchless::runtime::BatchOptions;
use torchless::serve::{Options, Served, Server, Stopper};
use torchless::{Error, Model};

use super::fixture::fixture;
use super::http::Client;

/// A server that is stopped when this is dropped.
pub struct Running {
    pub address: SocketAddr,
    pub stopper: Stopper,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Running {
    /// Serves a fixture, with the template `chatml`, once it is ready.
    pub fn new(
        file: &'static str,
        options: Options,
        change: impl FnOnce(&mut BatchOptions) + Send + 'static,
    ) -> Self {
        Self::ready(options, move || {
            let model = Arc::new(Model::open(fixture(file))?);
            let template = ChatTemplate::named("chatml", model.tokenizer())?;
            let mut scheduler = BatchOptions::new(&model);
            scheduler.session.threads = 1;
            change(&mut scheduler);
            Ok(Served { model, scheduler, template: Some(template) })
        })
    }

    /// Serves what `load` gives, once it is there.
    pub fn ready(options: Options, load: impl FnOnce() -> Result<Served, Error> + Send + 'static) -> Self {
        let running = Self::loading(options, load);
        while running.client().get("/health").status != 200 {
            thread::sleep(Duration::from_millis(5));
        }
        running
    }

    /// Serves what `load` gives, which is not waited for.
    pub fn loading(options: Options, load: impl FnOnce() -> Result<Served, Error> + Send + 'static) -> Self {
        let server = Server::bind(("127.0.0.1", 0), options).unwrap();
        let (address, stopper) = (server.address(), server.stopper());
        let thread = Some(thread::spawn(move || server.run(load)));
        Self { address, stopper, thread }
    }

    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Waits for its end.
    pub fn join(mut self) -> Result<(), Error> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join().unwrap();
            assert!(thread::panicking() || ended.is_ok(), "{ended:?}");
        }
    }
}
