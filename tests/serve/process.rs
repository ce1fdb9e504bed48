//! The command: its log, its signals, its exit codes.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::common::fixture::fixture;
use crate::common::http::Client;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
    command.env_remove("TORCHLESS_MODEL").env_remove("TORCHLESS_ISA").env_remove("TORCHLESS_API_KEY");
    command.args(["serve", "-m"]).arg(fixture("llama-int8.bin")).args(["--port", "0"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A server that is ready, and the rest of its log.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
    client: Client,
}

impl Running {
    fn new(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening: http://") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it has ended");
        }
        let (_, address) = line.trim_end().split_once("http://").unwrap();
        let client = Client::new(address.parse().unwrap());
        while client.get("/health").status != 200 {
            thread::sleep(Duration::from_millis(5));
        }
        Self { child, log, client }
    }

    /// Sends a signal; gives the exit code and the rest of the log.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        let mut out = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(out, "");
        (self.child.wait().unwrap().code(), log)
    }
}

#[test]
fn a_signal_ends_it_in_good_order_and_each_request_has_a_line() {
    for (signal, more) in [(Signal::TERM, None), (Signal::INT, Some("--log-prompts"))] {
        let mut command = command(&["--alias", "tiny"]);
        command.args(more).env("TORCHLESS_API_KEY", "secret");
        let mut running = Running::new(command);
        let request =
            json!({"model": "tiny", "prompt": "Mary had a lamb", "max_tokens": 3, "ignore_eos": true});
        running.client.post("/v1/completions", &request).error(401);
        running.client.headers = vec![("authorization", "Bearer secret".to_owned())];
        running.client.post("/v1/completions", &request).good();
        let (code, log) = running.end(signal);
        assert_eq!(code, Some(0), "{log}");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("\"/v1/completions\"")).collect();
        assert_eq!(lines.len(), 2, "{log}");
        assert!(lines[0].contains(" 401 done") && lines[1].contains(" 200 done"), "{log}");
        assert!(lines[1].contains("completion=3"), "{log}");
        assert_eq!(log.contains("Mary had"), more.is_some(), "{log}");
        assert!(!log.contains("secret"));
    }
}

#[test]
fn what_it_cannot_do_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, code, said) in [
        (&["--parallel", "0"][..], 2, "from 1 to"),
        (&["--kv-memory", "lots"], 2, "number of bytes"),
        (&["--cors", "\n"], 2, "origin"),
        (&["--chat-template", "no-such"], 2, "chatml"),
        (&["--kv-memory", "1"], 1, "keys and values"),
        (&["--ctx", "100000"], 1, "256"),
    ] {
        let output = command(args).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), log.contains(said)), (Some(code), true), "{args:?}: {log}");
        assert_eq!(log.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{log}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
    command.args(["serve", "-m"]).arg(fixture("llama-int8.bin")).args(["--port", &port]);
    let output = command.output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && log.contains("cannot listen"), "{log}");
}
