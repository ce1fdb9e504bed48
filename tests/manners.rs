//! How the command treats the terminal, pipes, signals and memory it is given.
#![cfg(unix)]

mod common {
    pub mod fixture;
}

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use tempfile::TempDir;

use common::fixture::fixture;

fn torchless() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
    command.env_remove("TORCHLESS_MODEL").env_remove("TORCHLESS_ISA").stdin(Stdio::null());
    command
}

/// Bytes after the last tensor, for one more.
const SPARE: usize = 4096;

/// A vector of these bytes, as the header describes it.
fn spare_tensor(header: &Value) -> Value {
    let end = |tensor: &Value| {
        let number = |key: &str| tensor[key].as_u64().unwrap_or(0);
        let values: u64 = tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
        match tensor["scale_offset"].as_u64() {
            Some(scales) => scales + 4 * number("scale_size"),
            None => number("offset") + 4 * values,
        }
    };
    let end = header["tensors"].as_object().unwrap().values().map(end).max().unwrap();
    json!({"dtype": "f32", "shape": [4], "offset": end.next_multiple_of(64)})
}

/// A fixture with another header: it lives as long as the folder.
fn edited(name: &str, change: impl FnOnce(&mut Value)) -> (TempDir, PathBuf) {
    let bytes = fs::read(fixture(name)).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json = bytes[8..8 + size].split(|b| *b == 0).next().unwrap();
    let mut header = serde_json::from_slice(json).unwrap();
    change(&mut header);
    let mut header = header.to_string().into_bytes();
    header.resize((8 + header.len()).next_multiple_of(64) - 8, b' ');
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bin");
    let payload = &bytes[(8 + size).next_multiple_of(64)..];
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, payload, &[0; SPARE]].concat();
    fs::write(&path, file).unwrap();
    (folder, path)
}

/// A model that writes for ever: its window is 16, so that a context of a billion costs nothing.
fn endless() -> (TempDir, PathBuf) {
    edited("mistral-int8.bin", |header| {
        header["metadata"]["max_position_embeddings"] = json!("1000000000");
    })
}

/// A model all of whose tokens spell this, followed by blanks of no width.
fn always(text: &str) -> (TempDir, PathBuf) {
    edited("mistral-int8.bin", |header| {
        let vocab = header["tokenizer"]["vocab"].as_object_mut().unwrap();
        let others = vocab
            .keys()
            .filter(|piece| !matches!(piece.as_str(), "<unk>" | "<s>" | "</s>"))
            .cloned()
            .collect::<Vec<_>>();
        for (i, piece) in others.into_iter().enumerate() {
            let id = vocab.remove(&piece).unwrap();
            vocab.insert(format!("{text}{}", "\u{200b}".repeat(i)), id);
        }
    })
}

/// Waits for the child's end, but not for ever.
fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("it did not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a line begins with this, but not for ever, and reads on: a full pipe would hold the child up.
fn wait_for_line(stream: Option<impl Read + Send + 'static>, beginning: &'static str) {
    let (sender, seen) = mpsc::channel();
    let mut lines = BufReader::new(stream.unwrap()).lines().map_while(Result::ok);
    thread::spawn(move || {
        if lines.any(|line| line.starts_with(beginning)) {
            sender.send(()).unwrap();
        }
        lines.for_each(drop);
    });
    seen.recv_timeout(Duration::from_secs(60)).expect("no line begins so");
}

fn text_of(stream: Option<impl Read>) -> String {
    let mut text = String::new();
    stream.unwrap().read_to_string(&mut text).unwrap();
    text
}

fn interrupt(child: &Child) {
    signal(child, Signal::INT);
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn ctrl_c_ends_a_generation_with_its_statistics() {
    let (_folder, model) = endless();
    let mut command = torchless();
    command.args(["generate", "she", "-n", "100000000", "--ignore-eos", "-m"]).arg(model);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 20]).unwrap();
    interrupt(&child);
    let rest = text_of(Some(stdout));
    let status = wait(&mut child);
    assert_eq!(status.code(), Some(130), "{status}");
    assert!(rest.ends_with('\n'));
    let stderr = text_of(child.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("prompt: 2 tokens, ") && stderr.contains("; answer: "), "{stderr}");
}

#[test]
fn ctrl_c_in_json_mode_still_gives_the_object() {
    let (_folder, model) = endless();
    let mut command = torchless();
    command
        .args(["generate", "she", "-n", "100000000", "--ignore-eos", "--json", "--debug", "-t", "1", "-m"])
        .arg(model);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The prompt's two tokens are done, and the first of the answer.
    wait_for_line(child.stderr.take(), "positions 2..3: ");
    interrupt(&child);
    let result: Value = serde_json::from_str(&text_of(child.stdout.take())).unwrap();
    assert_eq!(wait(&mut child).code(), Some(130));
    assert_eq!(result["finish_reason"], "cancelled");
}

#[test]
fn ctrl_c_stops_an_answer_and_not_the_chat() {
    let (_folder, model) = endless();
    let mut command = torchless();
    command.args(["chat", "--chat-template", "chatml", "--ctx", "100000000", "-l", "2-inf", "-m"]).arg(model);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    stdin.write_all(b"she\n").unwrap();
    stdout.read_exact(&mut [0; 20]).unwrap();
    interrupt(&child);
    stdin.write_all(b"/stats\n").unwrap();
    drop(stdin);
    assert!(text_of(child.stderr.take()).contains("last turn:"));
    assert_eq!(wait(&mut child).code(), Some(0));
}

/// The system's request to end is for the program, not for the answer, whose end is orderly nevertheless.
#[test]
fn termination_ends_a_chat() {
    let (_folder, model) = endless();
    // Under `nohup` the tests' children ignore the hangup as well, as they should.
    let hangup = (!hangup_is_ignored()).then_some(Signal::HUP);
    for sent in [Signal::TERM].into_iter().chain(hangup) {
        let mut command = torchless();
        command
            .args(["chat", "--chat-template", "chatml", "--ctx", "100000000", "-l", "2-inf", "-m"])
            .arg(&model);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        stdin.write_all(b"she\n/stats\nshe\n").unwrap();
        stdout.read_exact(&mut [0; 20]).unwrap();
        signal(&child, sent);
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"\n"));
        assert_eq!(wait(&mut child).code(), Some(128 + sent.as_raw()));
    }
}

/// As whoever started this process had it; only Linux says.
fn hangup_is_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(str::trim);
    mask.is_none_or(|mask| u64::from_str_radix(mask, 16).unwrap() & 1 == 1)
}

#[test]
fn termination_ends_a_chat_that_waits() {
    let mut command = torchless();
    command.args(["chat", "--chat-template", "chatml", "-n", "1", "-m"]).arg(fixture("mistral-int8.bin"));
    let mut child =
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"she\n/stats\n").unwrap();
    // The answer is over: what comes next is to wait for a line.
    wait_for_line(child.stderr.take(), "last turn: ");
    signal(&child, Signal::TERM);
    assert_eq!(wait(&mut child).code(), Some(143));
}

/// What `nohup` asks for: the terminal may go away.
#[cfg(target_os = "linux")]
#[test]
fn a_hangup_that_is_ignored_stays_so() {
    let (_folder, model) = endless();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "trap '' HUP; exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_torchless"),
        "generate",
        "she",
    ]);
    command.args(["-n", "100000000", "--ignore-eos", "-m"]).arg(model);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 20]).unwrap();
    signal(&child, Signal::HUP);
    stdout.read_exact(&mut [0; 100_000]).unwrap();
    signal(&child, Signal::TERM);
    stdout.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(wait(&mut child).code(), Some(143));
}

/// Work that has nothing to end in an orderly way ends at once.
#[test]
fn ctrl_c_ends_a_measurement() {
    let (_folder, model) = endless();
    let mut command = torchless();
    command.args(["perplexity", "/dev/stdin", "-m"]).arg(model);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // A pipe holds little: all but the end of the text has been read when this is over.
    child.stdin.take().unwrap().write_all("the rain ".repeat(1_000_000).as_bytes()).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "too fast to be interrupted");
    interrupt(&child);
    assert_eq!(wait(&mut child).code(), Some(130));
}

/// Reads a little of what `args` print, then closes the pipe.
fn head(args: &[&str], model: &Path, both: bool) -> (ExitStatus, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = torchless();
    command.args(args).arg("-m").arg(model);
    match both {
        true => command.stderr(writer.try_clone().unwrap()),
        false => command.stderr(Stdio::piped()),
    };
    let mut child = command.stdout(writer).spawn().unwrap();
    drop(command);
    let mut reader = reader;
    reader.read_exact(&mut [0; 10]).unwrap();
    drop(reader);
    let status = wait(&mut child);
    (status, if both { String::new() } else { text_of(child.stderr) })
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let (_folder, model) = endless();
    let endless = ["generate", "she", "-n", "100000000", "--ignore-eos"];
    let (status, stderr) = head(&endless, &model, false);
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    // Both streams, as in `2>&1 | head -1`: there is nowhere to complain, and nothing to panic about.
    for args in [&endless[..], &[&endless[..], &["--debug"]].concat()] {
        let (status, _) = head(args, &model, true);
        assert_eq!(status.code(), Some(0), "{args:?}");
    }
    for args in [&["inspect"][..], &["inspect", "--json"], &["tokenize", "the rain in spain"]] {
        let (status, stderr) = head(args, &model, false);
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_closed_stderr_is_no_reason_to_fail() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = torchless();
    command.args(["generate", "she", "-n", "3", "--debug", "-m"]).arg(fixture("mistral-int8.bin"));
    assert_eq!(
        command.stdout(Stdio::null()).stderr(writer.try_clone().unwrap()).status().unwrap().code(),
        Some(0)
    );
    let status = torchless().args(["inspect", "-m", "no/such"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    for args in [&["generate", "she", "-n", "3"][..], &["inspect"], &["tokenize", "she", "--json"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = torchless();
        command.args(args).arg("-m").arg(fixture("mistral-int8.bin")).stdout(full);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "error: stdout: No space left on device (os error 28)\n"
        );
    }
}

#[test]
fn a_file_at_the_limit_of_its_size_is_an_error_that_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/convert/tiny.gguf");
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 20; exec \"$0\" convert \"$1\" \"$2\" --quant f32"])
        .arg(env!("CARGO_BIN_EXE_torchless"))
        .args([&gguf, &folder.path().join("model.bin")])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{:?}: {stderr}", output.status);
    assert!(stderr.lines().count() == 1 && stderr.contains("model.bin: File too large"), "{stderr}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn bytes_that_are_not_text_are_refused() {
    let wrong = OsStr::from_bytes(b"a\xffb");
    let model = fixture("mistral-int8.bin");
    let run = |args: &[&OsStr]| torchless().args(args).output().unwrap();
    let one_line = |output: Output, code: i32| {
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(code == 2 || stderr.lines().count() == 1, "{stderr}");
    };
    one_line(run(&[OsStr::new("generate"), wrong, OsStr::new("-m"), model.as_os_str()]), 2);
    one_line(run(&[OsStr::new("generate"), OsStr::new("x"), OsStr::new("-m"), wrong]), 1);
    one_line(run(&[wrong]), 2);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    fs::write(&file, b"good \xe2\x82 bad").unwrap();
    let output = run(&[OsStr::new("perplexity"), file.as_os_str(), OsStr::new("-m"), model.as_os_str()]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("not UTF-8 text (byte 5)"));
    one_line(output, 1);
    let mut command = torchless();
    command.args(["tokenize", "--stdin", "-m"]).arg(&model).stdin(File::open(&file).unwrap());
    one_line(command.output().unwrap(), 1);
}

/// A terminal, after the end that shows it.
fn terminal() -> (File, File) {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal = File::options().read(true).write(true).open(OsStr::from_bytes(name.to_bytes())).unwrap();
    (controller.into(), terminal)
}

/// Runs a command on a terminal of its own and returns all that it would show.
fn on_a_terminal(mut command: Command) -> String {
    let (mut controller, terminal) = terminal();
    command.stdout(terminal.try_clone().unwrap()).stderr(terminal);
    let mut child = command.spawn().unwrap();
    drop(command);
    let reader = thread::spawn(move || {
        let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
        // The end of a terminal is an error on Linux.
        while let Ok(n @ 1..) = controller.read(&mut buffer) {
            shown.extend_from_slice(&buffer[..n]);
        }
        shown
    });
    assert!(wait(&mut child).success());
    String::from_utf8(reader.join().unwrap()).unwrap()
}

/// The line editor changes how the terminal behaves: whatever ends the program, the shell gets it back as it was.
#[cfg(target_os = "linux")]
#[test]
fn termination_leaves_the_terminal_as_it_was() {
    use rustix::termios::{LocalModes, tcgetattr};

    let (mut controller, terminal) = terminal();
    let before = tcgetattr(&terminal).unwrap();
    // A session of its own, whose terminal this is.
    let mut command = Command::new("setsid");
    command.args(["--ctty", env!("CARGO_BIN_EXE_torchless"), "chat", "--chat-template", "chatml", "-m"]);
    command.arg(fixture("mistral-int8.bin")).env("TERM", "xterm").env("HOME", "/nonexistent");
    command.env_remove("XDG_STATE_HOME").stdin(terminal.try_clone().unwrap());
    command.stdout(terminal.try_clone().unwrap()).stderr(terminal.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let mut shown = Vec::new();
    while !String::from_utf8_lossy(&shown).contains(">>> ") {
        let mut buffer = [0; 4096];
        let n = controller.read(&mut buffer).unwrap();
        shown.extend_from_slice(&buffer[..n]);
        assert!(shown.len() < 10_000, "{}", String::from_utf8_lossy(&shown));
    }
    let during = tcgetattr(&terminal).unwrap();
    assert!(
        before.local_modes.contains(LocalModes::ICANON) && !during.local_modes.contains(LocalModes::ICANON)
    );
    signal(&child, Signal::TERM);
    assert_eq!(wait(&mut child).code(), Some(143));
    assert_eq!(tcgetattr(&terminal).unwrap().local_modes, before.local_modes);
}

/// The same without what is not the command's text: the terminal itself puts a carriage return before every line feed, and
/// a spinner erases its line.
fn text_on_a_terminal(command: Command) -> String {
    on_a_terminal(command).replace("\r\n", "\n").replace("\r\x1b[2K", "")
}

const ATTACK: &str = "\x1b]0;owned\x07\u{9b}2J\r";

/// A generation by the model that always says [`ATTACK`].
fn attack(model: &Path, args: &[&str]) -> Command {
    let mut command = torchless();
    command.args(["generate", "x", "-n", "3", "--ignore-eos", "-m"]).arg(model).args(args);
    command
}

#[test]
fn a_models_text_cannot_command_the_terminal() {
    let (_folder, model) = always(ATTACK);
    let shown = text_on_a_terminal(attack(&model, &[]));
    assert!(shown.contains("␛]0;owned␇\u{fffd}2J␍"), "{shown:?}");
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    let shown = text_on_a_terminal(attack(&model, &["--json"]));
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    assert!(on_a_terminal(attack(&model, &["--raw"])).contains(ATTACK));
    // A pipe gets the bytes.
    let output = attack(&model, &[]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains(ATTACK));
}

/// Names of tensors and what metadata say are a file's text as well.
#[test]
fn a_files_text_cannot_command_the_terminal() {
    let (_folder, model) = edited("mistral-int8.bin", |header| {
        header["metadata"]["architecture"] = json!(ATTACK);
        header["tensors"]["\x1b[2J.rotary_emb.inv_freq"] = spare_tensor(header);
    });
    let mut command = torchless();
    command.arg("inspect").arg(&model);
    let shown = text_on_a_terminal(command);
    assert!(shown.contains("␛[2J.rotary_emb") && shown.contains("architecture   ␛]0;owned"), "{shown:?}");
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    let (_folder, model) = edited("mistral-int8.bin", |header| {
        header["tensors"][ATTACK] = spare_tensor(header);
    });
    let output = torchless().arg("inspect").arg(&model).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.trim_end().contains(char::is_control), "{stderr:?}");
}

#[test]
fn no_colour_where_nobody_wants_it() {
    let usage = |variable: Option<(&str, &str)>| {
        let mut command = torchless();
        command.env_remove("NO_COLOR").env("TERM", "xterm-256color").arg("help").envs(variable);
        on_a_terminal(command)
    };
    assert!(usage(None).contains('\x1b'), "a terminal gets colours");
    assert!(!usage(Some(("NO_COLOR", "1"))).contains('\x1b'));
    let output = torchless().arg("help").output().unwrap();
    assert!(!output.stdout.contains(&0x1b), "a pipe does not");
    let folder = tempfile::tempdir().unwrap();
    let mut command = torchless();
    command.arg("convert").arg(fixture("mistral-hf")).arg(folder.path().join("model.bin"));
    assert!(!command.output().unwrap().stderr.contains(&0x1b), "nor a progress bar");
}

/// What `ulimit -v` leaves, in kB, does not do: the error says what would, and that does.
#[cfg(target_os = "linux")]
#[test]
fn a_context_that_does_not_fit_is_an_error_that_says_what_would() {
    let (_folder, model) = edited("llama-int8.bin", |header| {
        header["metadata"]["max_position_embeddings"] = json!("2147483648");
    });
    let run = |ctx: &str| {
        let script = "ulimit -v 1000000; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_torchless"),
            "generate",
            "x",
            "-n",
            "1",
            "-t",
            "1",
        ]);
        command.args(["-c", ctx, "-m"]).arg(&model).output().unwrap()
    };
    let output = run("1000000000");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.starts_with("error: a context of 1000000000 needs ") && stderr.lines().count() == 1,
        "{stderr}"
    );
    let fits = stderr.split_once("up to ").unwrap().1.split_once(' ').unwrap().0;
    assert!(fits.parse::<usize>().unwrap() > 10_000, "{stderr}");
    // A little less: what the process takes before it asks is not the same each time.
    let fewer = (fits.parse::<usize>().unwrap() / 10 * 9).to_string();
    let output = run(&fewer);
    assert!(output.status.success(), "{fewer}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A piece without a row in the embedding is refused when a text needs it, not before.
#[test]
fn a_piece_beyond_the_embedding_is_an_error_where_it_is_used() {
    let (_folder, model) = edited("mistral-f32.bin", |header| {
        header["tokenizer"]["vocab"]["▁"] = json!(1_000_000);
    });
    assert!(torchless().arg("inspect").arg(&model).output().unwrap().status.success());
    let output = torchless().args(["generate", "z z", "-m"]).arg(&model).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("token id 1000000: this model's vocabulary ends at")
    );
}

/// Standard input that ends, or is no text, ends a command that reads it.
#[test]
fn stdin_is_read_to_its_end() {
    let mut command = torchless();
    command.args(["tokenize", "--stdin", "--json", "-m"]).arg(fixture("mistral-f32.bin"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all("the rain".as_bytes()).unwrap();
    assert!(text_of(child.stdout.take()).starts_with("{\"ids\":[1,"));
    assert!(wait(&mut child).success());
}

/// What needs no thread beside this one does its work, and what does says so: here no thread can be given its stack.
#[test]
fn threads_that_cannot_be_started_are_one_line() {
    let without_threads = |args: &[&OsStr]| {
        let mut command = torchless();
        command.env("RUST_MIN_STACK", (1u64 << 62).to_string()).args(args);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let model = fixture("mistral-int8.bin");
    let args = |args: &[&'static str]| args.iter().map(|arg| OsStr::new(*arg)).collect::<Vec<_>>();
    let inspect = [&args(&["inspect", "-m"])[..], &[model.as_os_str()]].concat();
    assert_eq!(without_threads(&inspect), (Some(0), String::new()));
    for threads in ["1", "2"] {
        let generate = [&args(&["generate", "she", "-t", threads, "-m"])[..], &[model.as_os_str()]].concat();
        let (code, stderr) = without_threads(&generate);
        assert_eq!(code, Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains("cannot be started"), "{stderr}");
    }
    let folder = tempfile::tempdir().unwrap();
    let synthetic = folder.path().join("model.bin");
    let convert = [&args(&["convert", "--synthetic", "smollm2-135m"])[..], &[synthetic.as_os_str()]].concat();
    assert_eq!(without_threads(&convert).0, Some(0));
}

/// However many are asked for, here or by a variable that is for others.
#[test]
fn no_more_threads_than_are_of_use() {
    let start = Instant::now();
    let mut command = torchless();
    command.env("RAYON_NUM_THREADS", "10000").args(["generate", "she", "-n", "2", "-t", "1024", "-m"]);
    let output = command.arg(fixture("mistral-int8.bin")).output().unwrap();
    assert!(output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    let cpus = thread::available_parallelism().unwrap().get();
    if cpus < 256 {
        assert!(stderr.contains("threads instead of 1024"), "{stderr}");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn ctrl_c_ends_the_reading_of_a_grammar() {
    let folder = tempfile::tempdir().unwrap();
    let grammar = folder.path().join("endless.lark");
    fs::write(&grammar, "start: a::0\na::_: a::incr(_) \"x\" | \"y\"\n").unwrap();
    let mut command = torchless();
    command.args(["generate", "she", "--debug", "-m"]).arg(fixture("mistral-int8.bin"));
    command.arg("--grammar-file").arg(grammar);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_line(child.stderr.take(), "prompt: ");
    let start = Instant::now();
    thread::sleep(Duration::from_millis(200));
    interrupt(&child);
    assert_eq!(wait(&mut child).code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
