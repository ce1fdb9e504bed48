//! The addresses, and what stands around all of them.

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::access;
use super::body;
use super::chat::ChatCompletions;
use super::complete::complete;
use super::completions::Completions;
use super::metrics;
use super::problem::{Problem, json_response};
use super::service::{Loaded, Service};
use super::tokens::{detokenize, tokenize};

/// All addresses. The page, health and figures are open; the rest asks for the key, where there is one.
pub fn router(service: &Arc<Service>) -> Router {
    let keyed = Router::new()
        .route("/v1/chat/completions", post(complete::<ChatCompletions>))
        .route("/v1/completions", post(complete::<Completions>))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(one_model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route_layer(middleware::from_fn_with_state(Arc::clone(service), check_key));
    let all = Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(figures))
        .merge(keyed)
        .fallback(async |service, request| refuse(service, request, Problem::no_such_path()).await)
        .method_not_allowed_fallback(async |service, request| {
            refuse(service, request, Problem::wrong_method()).await
        });
    around(all, service)
}

/// What every request goes through.
pub fn around(routes: Router<Arc<Service>>, service: &Arc<Service>) -> Router {
    let all = routes
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(Arc::clone(service), access::log))
        .with_state(Arc::clone(service));
    match &service.options.cors {
        Some(origin) => all.layer(cors(origin)),
        None => all,
    }
}

/// Pages of this origin may ask; `*` is any.
fn cors(origin: &HeaderValue) -> CorsLayer {
    let origin = match origin.as_bytes() {
        b"*" => AllowOrigin::any(),
        _ => AllowOrigin::exact(origin.clone()),
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        // OpenAI's clients send some of their own.
        .allow_headers(AllowHeaders::mirror_request())
}

/// A handler has panicked: others have not.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    Problem::internal().into_response()
}

async fn check_key(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let Some(key) = service.options.api_key.clone() else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let given = given.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "));
    // In the same time wherever the two differ.
    let right = given.is_some_and(|(_, given)| given.ct_eq(key.as_bytes()).into());
    if right {
        return next.run(request).await;
    }
    refuse(State(service), request, Problem::wrong_key()).await.into_response()
}

/// What is wrong, once the request has been taken.
async fn refuse(State(service): State<Arc<Service>>, request: Request, problem: Problem) -> Problem {
    body::discard(request, &service).await;
    problem
}

async fn page() -> Response {
    let mut response = Response::new(Body::from(include_str!("page.html")));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Nothing comes from elsewhere, nothing goes elsewhere, and nobody frames it.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// 200 where a request would be taken.
async fn health(State(service): State<Arc<Service>>) -> Response {
    let (status, what) = match (service.is_stopping(), service.loaded()) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        (_, None) => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        (_, Some(loaded)) if !loaded.engine.runs() => (StatusCode::SERVICE_UNAVAILABLE, "restarting"),
        _ => (StatusCode::OK, "ready"),
    };
    json_response(status, &json!({"status": what}))
}

async fn figures(State(service): State<Arc<Service>>) -> Result<Response, Problem> {
    let engine = service.loaded().map(|loaded| &loaded.engine);
    let text = service.metrics.text(engine).map_err(|_| Problem::internal())?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    Ok(response)
}

async fn models(State(service): State<Arc<Service>>) -> Result<Response, Problem> {
    let loaded = service.loaded().ok_or_else(Problem::loading)?;
    let list = json!({"object": "list", "data": [described(loaded)]});
    Ok(json_response(StatusCode::OK, &list))
}

async fn one_model(State(service): State<Arc<Service>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let loaded = service.loaded().ok_or_else(Problem::loading)?;
    loaded.check_name(Some(&id))?;
    Ok(json_response(StatusCode::OK, &described(loaded)))
}

fn described(loaded: &Loaded) -> Value {
    json!({
        "id": loaded.name,
        "object": "model",
        "created": loaded.created,
        "owned_by": "torchless",
        "context_length": loaded.options.session.ctx,
    })
}
