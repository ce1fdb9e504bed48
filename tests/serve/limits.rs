//! How much, and how slowly, a client may send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;
use torchless::serve::Options;

use crate::common::server::Running;

/// Sends this, and reads to the end of the connection.
fn raw(running: &Running, request: &str) -> String {
    let mut stream = TcpStream::connect(running.address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    // A connection that is reset has ended, too.
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let running = Running::new("llama-int8.bin", Options::default(), |_| {});
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    // It says so itself, and nothing is read of it.
    let reply = raw(&running, &format!("{head}content-length: 5000000\r\n\r\n"));
    assert!(reply.starts_with("HTTP/1.1 413") && reply.contains("request_too_large"), "{reply}");
    // It shows only when it comes.
    let mut stream = TcpStream::connect(running.address).unwrap();
    write!(stream, "{head}transfer-encoding: chunked\r\n\r\n").unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    let sent = (0..5).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count();
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    assert!(reply.starts_with("HTTP/1.1 413") || sent < 5, "{reply}");
    running.client().post("/v1/completions", &json!({"prompt": "a", "max_tokens": 1})).good();
}

#[test]
fn headers_that_are_too_many_or_too_long_are_refused() {
    let running = Running::new("llama-int8.bin", Options::default(), |_| {});
    let many: String = (0..200).map(|i| format!("x-{i}: 1\r\n")).collect();
    let long = format!("x: {}\r\n", "1".repeat(100_000));
    for headers in [many, long] {
        let reply = raw(&running, &format!("GET /health HTTP/1.1\r\nhost: x\r\n{headers}\r\n"));
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431"), "{reply}");
    }
    assert!(raw(&running, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    running.client().get("/health").good();
}

#[test]
fn nobody_is_waited_for_for_ever() {
    let options = Options { patience: Duration::from_millis(200), ..Options::default() };
    let running = Running::new("llama-int8.bin", options, |_| {});
    // The end of a connection is waited for here: headers that do not come, and a body.
    assert!(!raw(&running, "GET /health HTTP/1.1\r\nhost: x\r\n").contains("200 OK"));
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{";
    let reply = raw(&running, head);
    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("request_timeout"), "{reply}");
    running.client().get("/health").good();
}
