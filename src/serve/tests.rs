//! Servers whose engine steps only when it may, or panics: what happens around it can be told apart then.

#[path = "../../tests/common/http.rs"]
#[expect(dead_code, reason = "tests/serve asks more")]
mod http;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::{self, JoinHandle};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

use self::http::{Client, Reply};
use super::engine::{Engine, Steps};
use super::*;
use crate::runtime::{Event, Request, RequestId, Scheduler, Stats};

/// Lets a scheduler make so many steps.
#[derive(Default)]
struct Gate(AtomicI64);

/// More steps than any test needs.
const OPEN: i64 = 1 << 40;

/// The next step panics.
const PANIC: i64 = -1;

impl Gate {
    fn set(&self, steps: i64) {
        self.0.store(steps, Ordering::SeqCst);
    }
}

struct Gated {
    scheduler: Scheduler,
    gate: Arc<Gate>,
}

impl Steps for Gated {
    fn submit(&mut self, request: Request) -> RequestId {
        self.scheduler.submit(request)
    }

    fn cancel(&mut self, id: RequestId) {
        self.scheduler.cancel(id);
    }

    fn step(&mut self, on_event: &mut dyn FnMut(RequestId, Event)) -> bool {
        if self.scheduler.queued() + self.scheduler.running() == 0 {
            return false;
        }
        match self.gate.0.load(Ordering::SeqCst) {
            PANIC => {
                self.gate.set(OPEN);
                panic!("as the test has it");
            }
            0 => thread::sleep(Duration::from_millis(1)),
            _ => {
                self.gate.0.fetch_sub(1, Ordering::SeqCst);
                self.scheduler.step(on_event);
            }
        }
        true
    }

    fn stats(&self) -> Stats {
        self.scheduler.stats()
    }

    fn install(&mut self, f: &mut (dyn FnMut(&mut dyn Steps) + Send)) {
        f(self);
    }
}

struct Running {
    address: SocketAddr,
    gate: Arc<Gate>,
    stopper: Stopper,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Running {
    /// A server with room for `parallel` answers whose gate is closed.
    fn new(parallel: usize, options: Options) -> Self {
        let server = Server::bind(("127.0.0.1", 0), options).unwrap();
        let gate = Arc::new(Gate::default());
        let (address, stopper) = (server.address(), server.stopper());
        let load = {
            let gate = Arc::clone(&gate);
            move |options: &Options| {
                let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models/llama-int8.bin");
                let model = Arc::new(Model::open(file)?);
                let mut scheduler = BatchOptions { parallel, ..BatchOptions::new(&model) };
                scheduler.session.threads = 1;
                let start = {
                    let (model, scheduler) = (Arc::clone(&model), scheduler.clone());
                    move || {
                        let scheduler = Scheduler::new(&model, &scheduler)?;
                        Ok(Box::new(Gated { scheduler, gate: Arc::clone(&gate) }) as _)
                    }
                };
                let engine = Engine::new(Box::new(start), parallel + options.queue)?;
                Ok::<_, Error>(Loaded::on_engine(engine, model, scheduler, None, options))
            }
        };
        let thread = Some(thread::spawn(move || server.run_loaded(load)));
        let running = Self { address, gate, stopper, thread };
        running.until(|running| running.client().get("/health").status == 200);
        running
    }

    fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// A figure of `/metrics`.
    fn figure(&self, name: &str) -> u64 {
        let text = self.client().get("/metrics").body;
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("torchless_{name} ")));
        value.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
    }

    /// Waits for something that comes sooner or later.
    fn until(&self, holds: impl Fn(&Self) -> bool) {
        for _ in 0..6000 {
            if holds(self) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("it never came");
    }

    /// Waits until so many answers wait or run.
    fn until_busy(&self, answers: u64) {
        self.until(|running| running.figure("queued") + running.figure("running") == answers);
    }

    /// Asks, and waits for the answer on another thread.
    fn ask(&self, body: Value) -> JoinHandle<Reply> {
        let client = self.client();
        thread::spawn(move || client.post("/v1/completions", &body))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gate.set(OPEN);
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().unwrap().is_ok() || thread::panicking());
        }
    }
}

fn request() -> Value {
    json!({"prompt": "Once", "max_tokens": 4, "seed": 1, "ignore_eos": true})
}

#[test]
fn whoever_finds_the_queue_full_is_told_to_come_again() {
    let running = Running::new(1, Options { queue: 1, ..Options::default() });
    let asked = [running.ask(request()), running.ask(request())];
    running.until_busy(2);
    let refused = running.client().post("/v1/completions", &request());
    assert_eq!(refused.error(429)["code"], "rate_limit_exceeded");
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    // Tokens can be counted meanwhile.
    running.client().post("/tokenize", &json!({"content": "a"})).good();
    running.gate.set(OPEN);
    let texts = asked.map(|asked| asked.join().unwrap().good()["choices"][0]["text"].take());
    assert_eq!(texts[0], texts[1]);
    running.client().post("/v1/completions", &request()).good();
}

#[test]
fn more_answers_than_there_can_be_are_refused_at_once() {
    let running = Running::new(1, Options { queue: 2, ..Options::default() });
    let mut request = request();
    request["n"] = 4.into();
    assert_eq!(running.client().post("/v1/completions", &request).error(400)["param"], "n");
    request["n"] = 3.into();
    running.gate.set(OPEN);
    assert_eq!(
        running.client().post("/v1/completions", &request).good()["choices"].as_array().unwrap().len(),
        3
    );
}

#[test]
fn what_a_client_that_goes_away_held_is_free_without_another_step() {
    let running = Running::new(2, Options::default());
    let body = request().to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let mut waiting = TcpStream::connect(running.address).unwrap();
    write!(waiting, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    running.until_busy(1);
    drop(waiting);
    running.until_busy(0);
    // In the middle of a stream.
    let mut long = request();
    // With log-probabilities each token has its frame.
    (long["stream"], long["max_tokens"], long["logprobs"]) = (true.into(), 200.into(), 0.into());
    running.gate.set(3);
    let mut stream = running.client().stream("/v1/completions", &long);
    stream.next().unwrap();
    // A step's figures come after its tokens.
    running.until(|running| running.figure("pages_used") > 0);
    drop(stream);
    running.until_busy(0);
    running.until(|running| running.figure("pages_used") == 0);
    running.until(|running| {
        running.client().get("/metrics").body.contains("endpoint=\"/v1/completions\",status=\"499\"} 2")
    });
}

#[test]
fn a_request_has_so_much_time() {
    let running = Running::new(2, Options { timeout: Duration::from_millis(300), ..Options::default() });
    let late = running.client().post("/v1/completions", &request());
    assert_eq!(late.error(504)["code"], "timeout");
    assert_eq!(late.header("x-should-retry"), Some("false"));
    // A stream that has begun says so in its last frame.
    running.gate.set(2);
    let mut long = request();
    (long["stream"], long["max_tokens"]) = (true.into(), 200.into());
    let mut stream = running.client().stream("/v1/completions", &long);
    let mut last = String::new();
    while let Some(frame) = stream.next() {
        last = frame;
    }
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["error"]["code"], "timeout");
    running.until(|running| {
        running.client().get("/metrics").body.contains("endpoint=\"/v1/completions\",status=\"500\"} 1")
    });
    running.until_busy(0);
}

#[test]
fn an_engine_that_panics_takes_only_what_ran_along() {
    let running = Running::new(2, Options::default());
    let asked = [running.ask(request()), running.ask(request())];
    running.until_busy(2);
    running.gate.set(PANIC);
    for asked in asked {
        assert_eq!(asked.join().unwrap().error(500)["code"], "engine_failed");
    }
    let text = running.client().post("/v1/completions", &request()).good();
    assert_eq!(text["usage"]["completion_tokens"], 4);
    assert_eq!(running.figure("engine_restarts_total"), 1);
    running.until(|running| running.figure("generated_tokens_total") == 4);
    assert_eq!(running.client().get("/health").good()["status"], "ready");
}

#[test]
fn a_server_that_is_stopped_finishes_what_runs_and_refuses_what_comes() {
    let running = Running::new(2, Options::default());
    let asked = running.ask(request());
    running.until_busy(1);
    running.stopper.stop();
    running.until(|running| running.client().get("/health").status == 503);
    let refused = running.client().post("/v1/completions", &request());
    assert_eq!(refused.error(503)["code"], "server_stopping");
    assert!(refused.header("retry-after").is_some());
    running.gate.set(OPEN);
    let text = asked.join().unwrap().good();
    assert_eq!(text["usage"]["completion_tokens"], 4);
}

#[test]
fn what_does_not_finish_in_time_is_told_so() {
    let running = Running::new(2, Options { grace: Duration::from_millis(50), ..Options::default() });
    let asked = running.ask(request());
    running.until_busy(1);
    running.stopper.stop();
    assert_eq!(asked.join().unwrap().error(503)["code"], "server_stopping");
}

#[test]
fn a_slow_reader_slows_only_itself() {
    let running = Running::new(40, Options::default());
    running.gate.set(OPEN);
    // More than all buffers on the way hold.
    let body = json!({
        "prompt": "Once", "max_tokens": 200, "seed": 1, "ignore_eos": true, "stream": true, "n": 32, "logprobs": 20,
    });
    let body = body.to_string();
    let mut slow = TcpStream::connect(running.address).unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    write!(slow, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    slow.read_exact(&mut [0]).unwrap();
    running.until(|running| running.figure("generated_tokens_total") >= 32 * 200);
    running.client().post("/v1/completions", &request()).good();
    running.until_busy(0);
}

#[test]
fn a_handler_that_panics_is_an_answer() {
    let service = Arc::new(Service::new(Options::default()));
    let routes = Router::new().route("/", get(async || -> &'static str { panic!("as the test has it") }));
    let routes = TowerToHyperService::new(routes::around(routes, &service));
    let request = axum::http::Request::new(Body::empty());
    let runtime = runtime().unwrap();
    let response = runtime.block_on(routes.call(request)).unwrap();
    assert_eq!(response.status(), 500);
    let body = runtime.block_on(axum::body::to_bytes(response.into_body(), 1000)).unwrap();
    assert!(body.starts_with(b"{\"error\""));
    assert!(service.metrics.text(None).unwrap().contains("endpoint=\"/\",status=\"500\"} 1"));
}
