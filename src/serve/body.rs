//! Reading a request's body: so much, so fast, and JSON.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::header;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::Problem;
use super::service::Service;

/// Bytes of a body. Contexts hold less, and JSON takes many times as much once it is read.
const MAX_BODY: usize = 4 << 20;

/// Bytes of all bodies that are not dealt with yet.
const MAX_BODIES: usize = 64 << 20;

/// What all bodies may take together.
pub fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_BODIES))
}

/// A body that has come.
pub struct Body {
    pub bytes: Vec<u8>,
    /// Its share of the room.
    _share: Option<OwnedSemaphorePermit>,
}

/// The body of a request that has one of JSON, if it comes in time.
pub async fn read(request: Request, service: &Service) -> Result<Body, Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    // Pages of other origins can send other types unasked, this one only where CORS allows it.
    let is_json = kind.eq_ignore_ascii_case("application/json");
    let said = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if said.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > MAX_BODY as u64) {
        return Err(Problem::too_large(MAX_BODY));
    }
    let collected = timeout(service.options.patience, collect(request, &service.bodies)).await;
    let body = collected.unwrap_or_else(|_| Err(Problem::body_too_slow()))?;
    if is_json { Ok(body) } else { Err(Problem::not_json_type()) }
}

/// Takes the body of a request that is refused: a connection that is closed before everything was read is reset, and then the
/// client may never see the answer.
pub async fn discard(request: Request, service: &Service) {
    let mut parts = request.into_body().into_data_stream();
    let all = async {
        let mut bytes = 0;
        while let Some(Ok(part)) = parts.next().await {
            bytes += part.len();
            if bytes > MAX_BODY {
                return;
            }
        }
    };
    let _ = timeout(service.options.patience, all).await;
}

async fn collect(request: Request, room: &Arc<Semaphore>) -> Result<Body, Problem> {
    let mut parts = request.into_body().into_data_stream();
    let mut body = Body { bytes: Vec::new(), _share: None };
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| Problem::request(format!("the body broke off: {error}")))?;
        if body.bytes.len() + part.len() > MAX_BODY {
            return Err(Problem::too_large(MAX_BODY));
        }
        // Parts are of some kilobytes.
        let share = Arc::clone(room).try_acquire_many_owned(part.len() as u32);
        let share = share.map_err(|_| Problem::queue_full())?;
        match &mut body._share {
            Some(shares) => shares.merge(share),
            none => *none = Some(share),
        }
        body.bytes.extend_from_slice(&part);
    }
    Ok(body)
}
