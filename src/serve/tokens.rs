//! `/tokenize` and `/detokenize`, as llama-server has them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use tokio::task;

use super::answer::parse;
use super::body;
use super::fields::{Fields, Tokens};
use super::problem::{Problem, json_response};
use super::service::{Loaded, Service};
use crate::tokenizer::EncodeOptions;

/// Text to tokens.
pub async fn tokenize(State(service): State<Arc<Service>>, request: Request) -> Result<Response, Problem> {
    work(&service, request, |mut fields, loaded| {
        let content: String = fields.need("content")?;
        let options = EncodeOptions {
            bos: fields.take("add_special")?.unwrap_or(false),
            special: fields.take("parse_special")?.unwrap_or(true),
        };
        let with_pieces = fields.take("with_pieces")?.unwrap_or(false);
        fields.finish(&[])?;
        let tokenizer = loaded.model.tokenizer();
        let tokens = tokenizer.encode(&content, options);
        if !with_pieces {
            return Ok(json!({"tokens": tokens}));
        }
        let piece = |id: u32| match String::from_utf8(tokenizer.bytes_of(id).unwrap_or_default()) {
            Ok(text) => json!({"id": id, "piece": text}),
            // Bytes that are no whole characters.
            Err(error) => json!({"id": id, "piece": error.into_bytes()}),
        };
        Ok(json!({"tokens": tokens.into_iter().map(piece).collect::<Vec<_>>()}))
    })
    .await
}

/// Tokens to text, special ones spelled out.
pub async fn detokenize(State(service): State<Arc<Service>>, request: Request) -> Result<Response, Problem> {
    work(&service, request, |mut fields, loaded| {
        let Tokens(tokens) = fields.need("tokens")?;
        fields.finish(&[])?;
        let tokenizer = loaded.model.tokenizer();
        if let Some(&id) = tokens.iter().find(|&&id| tokenizer.piece(id).is_none()) {
            return Err(Problem::value("tokens", format_args!("{id}: the model has no such token")));
        }
        Ok(json!({"content": tokenizer.decode_with_special(&tokens)}))
    })
    .await
}

/// Long texts take a while: they hold up no one here.
async fn work(
    service: &Service,
    request: Request,
    f: impl FnOnce(Fields, &Loaded) -> Result<Value, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    let body = body::read(request, service).await?;
    let loaded = Arc::clone(service.for_work()?);
    let work = task::spawn_blocking(move || f(Fields::new(parse(&body.bytes)?, "")?, &loaded));
    let value = work.await.unwrap_or_else(|_| Err(Problem::internal()))?;
    Ok(json_response(StatusCode::OK, &value))
}
