//! Connections: taken, limited, and brought to an end in good order.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future::{Either, select};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use super::service::Service;

/// Connections at once; others wait.
const MAX_CONNECTIONS: usize = 1024;

/// A request's headers: how many, of how many bytes.
const MAX_HEADERS: usize = 100;
const MAX_HEADER_BYTES: usize = 32 << 10;

/// How long the last words take to be sent, when what still ran was given up.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Takes connections until `stop` says so. Then what runs is finished, within the options' limit, while what comes is refused.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    service: Arc<Service>,
    mut stop: watch::Receiver<bool>,
) {
    let graceful = GracefulShutdown::new();
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let door = Door { listener, router, seats, patience: service.options.patience };
    {
        let stopped = pin!(stop.wait_for(|stop| *stop));
        select(stopped, pin!(door.take_all(|| Some(graceful.watcher())))).await;
    }
    service.set_stopping();
    tracing::info!("stopping: what runs is finished, what comes is refused");
    let finished = pin!(graceful.shutdown());
    let refusing = pin!(door.take_all(|| None));
    let grace = pin!(sleep(service.options.grace));
    let rest = match select(finished, select(grace, refusing)).await {
        Either::Left(_) => None,
        Either::Right((_, rest)) => Some(rest),
    };
    if let Some(loaded) = service.loaded().cloned() {
        let stopping = tokio::task::spawn_blocking(move || loaded.engine.stop());
        if let Some(rest) = rest {
            tracing::warn!("the time to finish is over: what still ran is broken off");
            let _ = timeout(LAST_WORDS, rest).await;
        }
        let _ = stopping.await;
    }
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    router: Router,
    seats: Arc<Semaphore>,
    patience: Duration,
}

impl Door {
    /// Takes connections for ever; those with a watcher are brought to an end by it.
    async fn take_all(&self, mut watcher: impl FnMut() -> Option<Watcher>) -> Infallible {
        loop {
            let Ok(seat) = Arc::clone(&self.seats).acquire_owned().await else {
                // Nobody closes the semaphore.
                std::future::pending().await
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(connection(stream, self.router.clone(), self.patience, watcher(), seat));
                }
                Err(error) => {
                    // One that has gone already; or there are no file descriptors left, and some time helps.
                    tracing::warn!("a connection was not taken: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Serves one connection to its end.
async fn connection(
    stream: TcpStream,
    router: Router,
    patience: Duration,
    watcher: Option<Watcher>,
    _seat: OwnedSemaphorePermit,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(patience));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    // What goes wrong here concerns this connection only, and each request has its line.
    let ended = match watcher {
        Some(watcher) => watcher.watch(connection).await,
        None => connection.await,
    };
    if let Err(error) = ended {
        tracing::debug!("a connection broke: {error}");
    }
}
