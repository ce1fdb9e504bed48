//! Asking a server.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;

use serde_json::Value;

/// Someone who asks.
pub struct Client {
    base: String,
    agent: ureq::Agent,
    /// Headers of every request.
    pub headers: Vec<(&'static str, String)>,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The JSON of an answer that went well.
    pub fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// The `error` of one that did not, with this status.
    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        let error = self.json()["error"].take();
        let fields: Vec<_> = error.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["message", "type", "param", "code"]);
        let message = error["message"].as_str().unwrap();
        assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
        error
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        Self { base: format!("http://{address}"), agent, headers: Vec::new() }
    }

    pub fn get(&self, path: &str) -> Reply {
        self.call(self.agent.get(format!("{}{path}", self.base)))
    }

    pub fn options(&self, path: &str) -> Reply {
        self.call(self.agent.options(format!("{}{path}", self.base)))
    }

    fn call(&self, request: ureq::RequestBuilder<ureq::typestate::WithoutBody>) -> Reply {
        let request =
            self.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        reply(request.call().unwrap())
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_text(path, "application/json", &body.to_string())
    }

    pub fn post_text(&self, path: &str, kind: &str, body: &str) -> Reply {
        reply(self.send(path, kind, body))
    }

    /// Asks for a stream, and reads it as far as one likes.
    pub fn stream(&self, path: &str, body: &Value) -> Stream {
        let response = self.send(path, "application/json", &body.to_string());
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let reader: Box<dyn Read + Send> = Box::new(response.into_body().into_reader());
        Stream { lines: BufReader::new(reader) }
    }

    fn send(&self, path: &str, kind: &str, body: &str) -> ureq::http::Response<ureq::Body> {
        let request = self.agent.post(format!("{}{path}", self.base)).header("content-type", kind);
        let request =
            self.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        request.send(body.as_bytes()).unwrap()
    }
}

fn reply(mut response: ureq::http::Response<ureq::Body>) -> Reply {
    let headers = response.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    Reply { status: response.status().as_u16(), headers, body: response.body_mut().read_to_string().unwrap() }
}

/// A stream of server-sent events. Dropped before its end, the connection is closed.
pub struct Stream {
    lines: BufReader<Box<dyn Read + Send>>,
}

impl Stream {
    /// The next frame's data; none at the end. Comments are passed over.
    pub fn next(&mut self) -> Option<String> {
        loop {
            let (mut line, mut empty) = (String::new(), String::new());
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            self.lines.read_line(&mut empty).unwrap();
            assert_eq!(empty, "\n", "a frame of more than one line: {line:?}");
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.strip_suffix('\n').unwrap().to_owned());
            }
            assert!(line.starts_with(':'), "{line:?}");
        }
    }

    /// All frames up to `[DONE]`, after which nothing may come.
    pub fn all(mut self) -> Vec<Value> {
        let mut frames = Vec::new();
        loop {
            let data = self.next().expect("the stream ends with [DONE]");
            if data == "[DONE]" {
                assert_eq!(self.next(), None);
                return frames;
            }
            frames.push(serde_json::from_str(&data).unwrap());
        }
    }
}
