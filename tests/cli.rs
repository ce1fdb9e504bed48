//! The command line as a user meets it: what goes to stdout, what to stderr, and the exit codes.

mod common {
    pub mod fixture;
}

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use approx::assert_abs_diff_eq;
use serde_json::Value;
use torchless::Model;
use torchless::runtime::{Session, SessionOptions};

use common::fixture::fixture;

fn torchless(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
    command.env_remove("TORCHLESS_MODEL").env_remove("TORCHLESS_ISA").args(args).output().unwrap()
}

/// Runs `torchless` with `text` on stdin.
fn torchless_reading(args: &[&str], text: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
    command.env_remove("TORCHLESS_MODEL").env_remove("TORCHLESS_ISA").args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whoever fails early does not read.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    child.wait_with_output().unwrap()
}

/// Runs `torchless` on a model among the fixtures, which must go well; returns stdout.
fn run(command: &str, model: &str, args: &[&str]) -> String {
    let model = fixture(model);
    let output = torchless(&[&[command, "-m", model.to_str().unwrap()], args].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn run_json(command: &str, model: &str, args: &[&str]) -> Value {
    let stdout = run(command, model, &[args, &["--json"]].concat());
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

/// Runs what must fail with exit code 1 and one line on stderr, which it returns; stdout stays empty.
fn failure(args: &[&str]) -> String {
    let output = torchless(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    stderr
}

fn golden(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap()).unwrap()
}

#[test]
fn generate_gives_the_golden_continuation() {
    let golden = golden("mistral");
    let prompt = golden["prompt"].as_str().unwrap();
    let result =
        run_json("generate", "mistral-f32.bin", &[prompt, "--temp", "0", "-n", "16", "--ignore-eos"]);
    assert_eq!(result["prompt_tokens"], golden["prompt_tokens"]);
    assert_eq!(result["tokens"], golden["greedy"]);
    assert_eq!(result["finish_reason"], "length");
    for timing in ["prompt_tokens_per_s", "tokens_per_s", "ttft_ms"] {
        assert!(result["timings"][timing].as_f64().unwrap() > 0.0, "{timing}");
    }
    let text = run("generate", "mistral-f32.bin", &[prompt, "--temp", "0", "-n", "16", "--ignore-eos"]);
    assert_eq!(text.trim_end_matches('\n'), result["text"].as_str().unwrap().trim_end_matches('\n'));
}

#[test]
fn one_seed_gives_one_text_at_any_number_of_threads() {
    let text = |seed: &str, threads: &str| {
        run(
            "generate",
            "mistral-int8.bin",
            &["she", "-n", "30", "--ignore-eos", "--seed", seed, "-t", threads],
        )
    };
    assert_eq!(text("1", "1"), text("1", "3"));
    assert_ne!(text("1", "1"), text("2", "1"));
}

#[test]
fn a_model_and_a_prompt_are_enough() {
    let model = fixture("mistral-int8.bin");
    let model = model.to_str().unwrap();
    let short = torchless(&[model, "she", "--debug"]);
    assert!(short.status.success());
    assert_eq!(String::from_utf8(short.stdout).unwrap(), run("generate", "mistral-int8.bin", &["she"]));
    let stderr = String::from_utf8(short.stderr).unwrap();
    for part in ["load: ", "prompt: 2 tokens", "layer 2/2", "/s; answer: "] {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
}

#[test]
fn the_model_can_come_from_the_environment() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
    command.env("TORCHLESS_MODEL", fixture("llama-f32.bin")).args(["inspect", "--json"]);
    let output = command.output().unwrap();
    let inspected: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(inspected["config"]["rope_theta"], 500000.0);
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let args = ["she", "--temp", "0", "-n", "24", "--ignore-eos"];
    let whole = run_json("generate", "llama-f32.bin", &args);
    let text = whole["text"].as_str().unwrap();
    let chars: Vec<char> = text.chars().collect();
    let stop: String = chars[chars.len() / 2..chars.len() / 2 + 2].iter().collect();
    let stopped = run_json("generate", "llama-f32.bin", &[&args[..], &["--stop", &stop]].concat());
    assert_eq!(stopped["text"].as_str().unwrap(), text.split(&stop).next().unwrap());
    assert_eq!(stopped["finish_reason"], "stop");
}

#[test]
fn a_prompt_comes_from_a_file_or_from_stdin() {
    let model = fixture("mistral-int8.bin");
    let model = model.to_str().unwrap();
    let expected = run("generate", "mistral-int8.bin", &["she\n said", "-n", "8"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "she\n said\n").unwrap();
    assert_eq!(run("generate", "mistral-int8.bin", &["-f", file.to_str().unwrap(), "-n", "8"]), expected);
    for stdin in [&["-"][..], &["-f", "-"]] {
        let output =
            torchless_reading(&[&["generate", "-m", model, "-n", "8"], stdin].concat(), "she\n said\n");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{stdin:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("/s; answer: ") && stderr.contains("first after"), "{stderr}");
    }
}

#[test]
fn json_lines_are_the_tokens_as_they_come() {
    let args = ["she", "--temp", "0", "-n", "12", "--ignore-eos"];
    let whole = run_json("generate", "mistral-f32.bin", &args);
    let lines = run("generate", "mistral-f32.bin", &[&args[..], &["--json-lines"]].concat());
    let mut lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let end = lines.pop().unwrap();
    assert_eq!(end["finish_reason"], "length");
    assert!(end["timings"]["tokens_per_s"].is_number());
    let tokens: Value = lines.iter().map(|line| line["token"].clone()).collect();
    let text: String = lines.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!((&tokens, text.as_str()), (&whole["tokens"], whole["text"].as_str().unwrap()));
}

#[test]
fn logprobs_are_those_of_the_perplexity() {
    let args = ["she said", "-n", "10", "--seed", "3", "--top-k", "0", "--logprobs", "3", "--ignore-eos"];
    let result = run_json("generate", "mistral-f32.bin", &args);
    let ids = |key: &str| result[key].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>();
    let (prompt, tokens) = (ids("prompt_tokens"), ids("tokens"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids.txt");
    std::fs::write(&file, [&prompt[..], &tokens].concat().join(" ")).unwrap();
    let expected = run_json("perplexity", "mistral-f32.bin", &["--tokens", file.to_str().unwrap()]);
    let expected = &expected["logprobs"].as_array().unwrap()[prompt.len() - 1..];
    let logprobs = result["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), expected.len()), (10, 10));
    for ((found, expected), token) in logprobs.iter().zip(expected).zip(result["tokens"].as_array().unwrap())
    {
        assert_eq!(&found["token"], token);
        assert_abs_diff_eq!(found["logprob"].as_f64().unwrap(), expected.as_f64().unwrap(), epsilon = 1e-5);
        let top: Vec<f64> =
            found["top"].as_array().unwrap().iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(
            top.len() == 3 && top.is_sorted_by(|a, b| a >= b) && top[0] >= found["logprob"].as_f64().unwrap()
        );
    }
}

#[test]
fn a_sampling_option_reaches_the_sampler() {
    let text = |args: &[&str]| {
        let common = ["she", "-n", "20", "--ignore-eos", "--top-k", "0", "--top-p", "1", "--min-p", "0"];
        run_json("generate", "mistral-int8.bin", &[&common[..], args].concat())["tokens"].clone()
    };
    let plain = text(&[]);
    for args in [
        &["--typical", "0.2"][..],
        &["--frequency-penalty", "2"],
        &["--presence-penalty", "-2"],
        &["--repeat-penalty", "3", "--repeat-last-n", "5"],
        &["--mirostat", "2", "--mirostat-ent", "1"],
    ] {
        assert_ne!(text(args), plain, "{args:?}");
    }
    let forced = text(&["-l", "7+1000", "--logit-bias", "8-inf"]);
    assert!(forced.as_array().unwrap().iter().all(|id| id == 7));
}

#[test]
fn a_text_has_the_form_asked_for() {
    let schema = r#"{"type": "object", "properties": {"wet": {"type": "boolean"}, "drops": {"enum": [1, 2, 30]}},
        "required": ["wet", "drops"], "additionalProperties": false}"#;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("schema.json"), schema).unwrap();
    for seed in ["1", "2", "3"] {
        let args = ["she", "-n", "90", "--seed", seed, "--temp", "2"];
        let inline = run_json("generate", "llama-int8.bin", &[&args[..], &["-j", schema]].concat());
        let text = inline["text"].as_str().unwrap();
        let object: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert!(
            object["wet"].is_boolean() && [1, 2, 30].contains(&object["drops"].as_i64().unwrap()),
            "{text}"
        );
        assert_eq!((object.as_object().unwrap().len(), &inline["finish_reason"]), (2, &"stop".into()));
        let file = path("schema.json");
        let from_file =
            run_json("generate", "llama-int8.bin", &[&args[..], &["--json-schema", &file]].concat());
        assert_eq!(inline["tokens"], from_file["tokens"]);
    }
    std::fs::write(path("rain.lark"), "start: \"rain\" (\" and rain\")~2 \".\"\n").unwrap();
    let grammar = path("rain.lark");
    let args = ["she", "--grammar-file", &grammar, "--ignore-eos"];
    assert_eq!(run_json("generate", "mistral-int8.bin", &args)["text"], "rain and rain and rain.");

    let model = fixture("llama-int8.bin");
    for bad in ["{\"type\": \"strin\"}", "no/such.json"] {
        failure(&["generate", "-m", model.to_str().unwrap(), "x", "--json-schema", bad]);
    }
}

/// A schema whose texts are longer than the tokens that are allowed.
#[test]
fn a_text_that_is_cut_off_inside_its_form_says_so() {
    let model = fixture("llama-int8.bin");
    let model = model.to_str().unwrap();
    let schema =
        r#"{"type": "object", "properties": {"drops": {"enum": [1, 2, 30]}}, "required": ["drops"]}"#;
    let common = ["generate", "-m", model, "she", "-j", schema, "--temp", "0"];
    for (limit, reason) in [(["-n", "2"], "length"), (["--stop", "o"], "stop")] {
        for (format, machine) in [(&[][..], false), (&["--json"], true), (&["--json-lines"], true)] {
            let output = torchless(&[&common[..], &limit, format].concat());
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{limit:?} {format:?}: {stderr}");
            let last = stderr.lines().last().unwrap();
            assert!(last.starts_with("error: ") && last.contains("cut off inside"), "{stderr}");
            assert_eq!(stderr.lines().count(), if machine { 1 } else { 2 }, "{stderr}");
            let stdout = String::from_utf8(output.stdout).unwrap();
            let last = stdout.lines().last().unwrap();
            assert!(serde_json::from_str::<Value>(last).is_ok() == machine, "{last}");
            if machine {
                let end: Value = serde_json::from_str(last).unwrap();
                assert_eq!(end["complete"], false);
                assert_eq!(end["finish_reason"], reason);
            }
        }
    }
    let whole = run_json("generate", "llama-int8.bin", &["she", "-j", schema, "-n", "90"]);
    assert_eq!(whole["complete"], true);
    // Plain text ends anywhere.
    let plain = run_json("generate", "llama-int8.bin", &["she", "-n", "2"]);
    assert!(plain.get("complete").is_none());

    let args = ["chat", "-m", model, "--chat-template", "chatml", "-n", "2", "-j", schema, "--json"];
    let output = torchless_reading(&args, "she\nhe\n");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.matches("cut off inside").count(), 3, "{stderr}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().matches("\"complete\":false").count(), 2);
    // One question, one line.
    let output = torchless(&[&args[..], &["she"]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.matches("cut off inside").count()), (Some(1), 1), "{stderr}");
}

#[test]
fn chat_keeps_the_conversation() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (model, template, saved) = (fixture("llama-int8.bin"), path("lines.jinja"), path("saved.json"));
    std::fs::write(&template, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}").unwrap();
    let args =
        ["chat", "-m", model.to_str().unwrap(), "--chat-template", &template, "--temp", "0", "-n", "5"];

    let talk = format!(
        "she\n/system rain\nhe said\\\nthat\n/stats\n/save {saved}\n/reset\n\"\"\"a\n\nb\"\"\"\n/quit\nnot read\n"
    );
    let output = torchless_reading(&[&args[..], &["--json"]].concat(), &talk);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("context: ") && stderr.contains("5 messages saved to"), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let replies: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(replies.len(), 3, "{stderr}");
    assert_eq!(replies[0]["cached_tokens"], 0);
    assert_eq!(replies[0]["finish_reason"], "length");

    let messages: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    let said: Vec<&str> = messages.iter().map(|m| m["content"].as_str().unwrap()).collect();
    let answer = |i: usize| replies[i]["text"].as_str().unwrap();
    assert_eq!(said, ["rain", "she", answer(0), "he said\nthat", answer(1)]);

    // A conversation that was saved goes on as the one that was not.
    let talk = |talk: &str| {
        let output = torchless_reading(&args, talk);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = talk(&format!("she\n/save {saved}\n"));
    let whole = talk("she\nmore\n");
    assert_eq!(first.clone() + &talk(&format!("/load {saved}\nmore\n")), whole);
    assert!(whole.len() > first.len());
}

#[test]
fn what_a_chat_cannot_do_is_one_line() {
    let model = fixture("llama-int8.bin");
    let model = model.to_str().unwrap();
    let error = failure(&["chat", "-m", model]);
    assert!(error.contains("no chat template") && error.contains("--chat-template"), "{error}");
    let error = usage_error(&["chat", "-m", model, "--chat-template", "no-such"]);
    assert!(error.contains("no-such") && error.contains("chatml"), "{error}");
    for (talk, reason) in [
        ("she\n/load no/such.json\n", "no/such.json"),
        ("/save\n", "/save needs a file"),
        (&"the rain ".repeat(200), "the context is full"),
    ] {
        let args = ["chat", "-m", model, "--chat-template", "chatml", "-n", "2"];
        let output = torchless_reading(&args, talk);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{talk:?}: {stderr}");
        // Before it a line that warns of the template.
        assert!(stderr.lines().count() == 2 && stderr.contains(reason), "{talk:?}: {stderr}");
    }
}

/// What a run reads is not what it writes to, under whatever name.
#[cfg(unix)]
#[test]
fn no_command_replaces_what_it_reads() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (model, template) = (path("model.svg"), path("lines.jinja"));
    std::fs::copy(fixture("llama-int8.bin"), &model).unwrap();
    std::fs::write(&template, "{% for m in messages %}{{ m.content }}\n{% endfor %}").unwrap();
    std::fs::hard_link(&model, path("hard.svg")).unwrap();
    std::os::unix::fs::symlink(&model, path("soft.svg")).unwrap();
    let before = std::fs::read(&model).unwrap();
    let (model, template) = (text(&model), text(&template));
    let chat = ["chat", "-m", &model, "--chat-template", &template, "-n", "2"];
    for name in ["model.svg", "hard.svg", "soft.svg", "lines.jinja"] {
        let file = text(&path(name));
        let output = torchless_reading(&chat, &format!("/save {file}\n"));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains("give another name"), "{name}: {stderr}");
        if name.ends_with("svg") {
            let error = failure(&["bench", "-m", &model, "-p", "1", "-n", "0", "-r", "1", "--plot", &file]);
            assert!(error.contains("give another name"), "{name}: {error}");
        }
        assert!(std::fs::read(&model).unwrap() == before, "{name}");
    }
    // Nor the form of the answers, nor a file that is stdin.
    let (schema, talk) = (path("schema.json"), path("talk.txt"));
    std::fs::write(&schema, "true").unwrap();
    for file in [&schema, &talk] {
        std::fs::write(&talk, format!("/save {}\n", text(file))).unwrap();
        let before = std::fs::read(file).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
        command.args(chat).args(["-j", &text(&schema)]).stdin(std::fs::File::open(&talk).unwrap());
        assert_eq!(command.output().unwrap().status.code(), Some(1), "{file:?}");
        assert!(std::fs::read(file).unwrap() == before, "{file:?}");
    }
    // A conversation that nobody else could read stays so, and its file is whole or as it was.
    let saved = path("saved.json");
    std::fs::write(&saved, "[]").unwrap();
    std::fs::set_permissions(&saved, std::fs::Permissions::from_mode(0o600)).unwrap();
    let hard = path("saved-before.json");
    std::fs::hard_link(&saved, &hard).unwrap();
    let output = torchless_reading(&chat, &format!("/load {0}\nshe\n/save {0}\n", text(&saved)));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::metadata(&saved).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(&hard).unwrap(), "[]", "written in place");
    assert!(std::fs::read_to_string(&saved).unwrap().contains("she"));
}

#[test]
fn man_pages_and_completions_name_every_command() {
    let stdout = |args: &[&str]| String::from_utf8(torchless(args).stdout).unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&["completions", shell]);
        assert!(script.contains("perplexity") && script.contains("mirostat"), "{shell}");
    }
    assert!(stdout(&["man"]).contains(".TH torchless 1"));
    let folder = tempfile::tempdir().unwrap();
    assert!(torchless(&["man", "--dir", folder.path().to_str().unwrap()]).status.success());
    let page = std::fs::read_to_string(folder.path().join("torchless-chat.1")).unwrap();
    assert!(page.contains("chat\\-template"));
}

#[test]
fn perplexity_of_ids_is_that_of_transformers() {
    let golden = golden("llama");
    let ids: Vec<String> = golden["tokens"].as_array().unwrap().iter().map(Value::to_string).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids.txt");
    std::fs::write(&file, ids.join("\n")).unwrap();
    let args = ["--tokens", file.to_str().unwrap()];
    let result = run_json("perplexity", "llama-f32.bin", &args);
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    let (found, expected) = (numbers(&result["logprobs"]), numbers(&golden["logprobs"]));
    assert_eq!((found.len(), result["tokens"].as_u64()), (47, Some(48)));
    assert_abs_diff_eq!(found[..], expected[..], epsilon = 1e-3);
    let nll = -expected.iter().sum::<f64>() / 47.0;
    assert_abs_diff_eq!(result["nll"].as_f64().unwrap(), nll, epsilon = 1e-3);
    assert_abs_diff_eq!(result["ppl"].as_f64().unwrap(), nll.exp(), epsilon = 2e-3 * nll.exp());

    // In windows of 16 the first 15 predictions are the same, and each later window has 15 of its own.
    let windows = run_json("perplexity", "llama-f32.bin", &[&args[..], &["--ctx", "16"]].concat());
    let windows = numbers(&windows["logprobs"]);
    assert_eq!(windows.len(), 3 * 15);
    assert_abs_diff_eq!(windows[..15], found[..15], epsilon = 1e-5);
}

#[test]
fn a_text_of_one_token_has_no_perplexity() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids.txt");
    let (model, file_name) = (fixture("mistral-int8.bin"), file.to_str().unwrap());
    let args = ["perplexity", "-m", model.to_str().unwrap(), "--tokens", file_name];
    std::fs::write(&file, "5").unwrap();
    assert!(failure(&args).contains("nothing to predict in a text of 1: two tokens"));
    std::fs::write(&file, "5 6 7").unwrap();
    assert!(
        failure(&[&args[..], &["--ctx", "1"]].concat()).contains("nothing to predict in a context of 1: two")
    );
    let output = torchless_reading(&["perplexity", "-m", args[2], "--tokens", "-"], "5 x");
    assert!(String::from_utf8(output.stderr).unwrap().contains("stdin: \"x\" is not a token id"));
    assert!(torchless(&args).status.success());
}

/// What `perplexity --against` must say, of logits and in numbers that are not the library's: the divergences in order, the share
/// of the same top token, and both models' mean negative log-probabilities.
fn divergence(model: &str, against: &str, chunks: &[Vec<u32>]) -> (Vec<f64>, f64, [f64; 2]) {
    let probabilities = |name: &str| -> Vec<Vec<f64>> {
        let model = Arc::new(Model::open(fixture(name)).unwrap());
        let mut session = Session::new(&model, &SessionOptions::new(&model)).unwrap();
        let mut all = Vec::new();
        for chunk in chunks {
            session.reset();
            session
                .score(chunk, |_, logits| {
                    let e: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
                    let sum: f64 = e.iter().sum();
                    all.push(e.iter().map(|e| e / sum).collect());
                })
                .unwrap();
        }
        all
    };
    let (q, p) = (probabilities(model), probabilities(against));
    let top = |p: &[f64]| p.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    let (mut kl, mut same, mut nll, mut at) = (Vec::new(), 0.0, [0.0; 2], 0);
    for chunk in chunks {
        for i in 0..chunk.len() {
            if i >= chunk.len() / 2 && i + 1 < chunk.len() {
                let (p, q, next) = (&p[at + i], &q[at + i], chunk[i + 1] as usize);
                kl.push(p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum());
                same += f64::from(top(p) == top(q));
                nll[0] -= q[next].ln();
                nll[1] -= p[next].ln();
            }
        }
        at += chunk.len();
    }
    let n = kl.len() as f64;
    kl.sort_by(f64::total_cmp);
    (kl, same / n, nll.map(|nll| nll / n))
}

#[test]
fn divergence_from_a_reference_is_what_the_logits_say() {
    let text =
        "she said that the rain had been there for days, and that the sea was as old as the hill. ".repeat(4);
    let folder = tempfile::tempdir().unwrap();
    let (file, ids_file) = (folder.path().join("text.txt"), folder.path().join("ids.txt"));
    std::fs::write(&file, &text).unwrap();
    let reference = fixture("mistral-f32.bin");
    let model = Model::open(&reference).unwrap();
    let ids = model.tokenizer().encode(&text, Default::default());
    let bos = model.tokenizer().bos().unwrap();
    assert!(
        model.tokenizer().adds_bos() && !ids.len().is_multiple_of(33) && ids.len() > 3 * 33,
        "{}",
        ids.len()
    );
    std::fs::write(&ids_file, ids.iter().map(|id| format!("{id} ")).collect::<String>()).unwrap();
    let [file, ids_file, reference] = [&file, &ids_file, &reference].map(|path| path.to_str().unwrap());
    let against = ["--against", reference, "--ctx"];

    let as_they_are: Vec<Vec<u32>> = ids.chunks_exact(33).map(<[u32]>::to_vec).collect();
    let mut with_bos = as_they_are.clone();
    with_bos.iter_mut().for_each(|chunk| chunk[0] = bos);
    // A text's chunks begin with BOS, ids are used as they are; an odd chunk, and the longest there is (of which there is but one).
    for (args, chunks) in [
        (&[file, "33"][..], with_bos),
        (&["--tokens", ids_file, "33"], as_they_are),
        (&[file, "256"], vec![ids[..256].to_vec()]),
    ] {
        let (text, ctx) = args.split_at(args.len() - 1);
        let found = run_json("perplexity", "mistral-int8.bin", &[&against[..], ctx, text].concat());
        let (kl, same_top, [nll, nll_against]) = divergence("mistral-int8.bin", "mistral-f32.bin", &chunks);
        let (n, number) = (kl.len(), |key: &str| found[key].as_f64().unwrap());
        let each = chunks[0].len();
        let counts = ["tokens", "ctx", "chunks", "counted"].map(|key| found[key].as_u64().unwrap() as usize);
        assert_eq!(counts, [ids.len(), each, chunks.len(), n]);
        assert_eq!(n, chunks.len() * (each - 1 - each / 2));
        let at = 0.99 * (n - 1) as f64;
        let (below, above) = (kl[at as usize], kl[at.ceil() as usize]);
        for (key, expected) in [
            ("kl_mean", kl.iter().sum::<f64>() / n as f64),
            ("kl_median", 0.5 * (kl[(n - 1) / 2] + kl[n / 2])),
            ("kl_99", below + at.fract() * (above - below)),
            ("kl_max", kl[n - 1]),
            ("same_top", same_top),
            ("nll", nll),
            ("ppl", nll.exp()),
            ("ppl_against", nll_against.exp()),
            ("ppl_ratio", (nll - nll_against).exp()),
        ] {
            let tolerance = 1e-4 * expected;
            assert!((number(key) - expected).abs() <= tolerance, "{args:?}: {key} {found}: {expected}");
        }
        assert!(number("kl_max") > 1e-6, "{found}");
    }
}

#[test]
fn a_model_is_no_distance_from_itself() {
    let text = fixture("../english.txt");
    let model = fixture("mistral-int8.bin");
    let args = ["--against", model.to_str().unwrap(), text.to_str().unwrap()];
    let found = run_json("perplexity", "mistral-int8.bin", &args);
    for (key, expected) in [
        ("kl_mean", 0.0),
        ("kl_median", 0.0),
        ("kl_99", 0.0),
        ("kl_max", 0.0),
        ("same_top", 1.0),
        ("ppl_ratio", 1.0),
    ] {
        assert_eq!(found[key].as_f64().unwrap(), expected, "{key}: {found}");
    }
    // The model's longest context is shorter than 512.
    assert_eq!((&found["ctx"], &found["ppl"]), (&256.into(), &found["ppl_against"]));
    let text = run("perplexity", "mistral-int8.bin", &args);
    assert!(text.contains("chunks of 256, ") && text.contains("ratio 1.000000"), "{text}");
    assert!(text.lines().count() == 4 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn an_int8_cache_is_a_small_distance_from_an_f32_one() {
    let text = fixture("../english.txt");
    for name in ["llama-f32.bin", "mistral-f32.bin", "ragged-f32.bin"] {
        let model = fixture(name);
        let distance = |kv| {
            let caches = ["--kv", kv, "--against-kv", "f32"];
            let args =
                [&caches[..], &["--against", model.to_str().unwrap(), text.to_str().unwrap()]].concat();
            run_json("perplexity", name, &args)["kl_mean"].as_f64().unwrap()
        };
        let [exact, half, int8] = ["f32", "f16", "int8"].map(distance);
        assert!(exact == 0.0 && half < int8 / 10.0 && int8 < 1e-3, "{name}: {exact}, {half}, {int8}");
    }
}

#[test]
fn what_cannot_be_compared_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids.txt");
    std::fs::write(&file, "5 ".repeat(40)).unwrap();
    let [model, llama, ragged] = ["mistral-int8.bin", "llama-f32.bin", "ragged-f32.bin"]
        .map(|name| fixture(name).to_str().unwrap().to_owned());
    let compare = |against: &str, ctx: &str| {
        let ids = file.to_str().unwrap();
        failure(&["perplexity", "-m", &model, "--against", against, "--tokens", ids, "--ctx", ctx])
    };
    for other in [&llama, &ragged] {
        let error = compare(other, "16");
        assert!(error.contains(&format!("{model} and {other} do not have the same vocabulary (")), "{error}");
    }
    for (ctx, reason) in [
        (
            "41",
            "no whole chunk of 41 in a text of 40 tokens: give a longer text, or choose shorter chunks (--ctx)",
        ),
        ("2", "nothing to count in chunks of 2: three tokens are needed at least"),
        ("257", "mistral-int8.bin: a context of 257: this model allows 1 to 256 (--ctx)"),
    ] {
        let error = compare(&model, ctx);
        assert!(error.contains(reason), "{error}");
    }
    assert!(compare("no/such.bin", "16").contains("no/such.bin: No such file"));
    std::fs::write(&file, "5 6 7 8 9 301").unwrap();
    assert!(compare(&model, "3").contains("token id 301: this model's vocabulary ends at 300"));
}

#[test]
fn tokenize_shows_ids_and_pieces_and_goes_back() {
    let golden = golden("mistral");
    let (prompt, ids) = (golden["prompt"].as_str().unwrap(), &golden["prompt_tokens"]);
    let result = run_json("tokenize", "mistral-f32.bin", &[prompt]);
    assert_eq!(&result["ids"], ids);
    assert_eq!(result["pieces"][0], "<s>");
    let without_bos = run_json("tokenize", "mistral-f32.bin", &[prompt, "--no-bos"]);
    assert_eq!(without_bos["ids"].as_array().unwrap()[..], ids.as_array().unwrap()[1..]);
    let back =
        run_json("tokenize", "mistral-f32.bin", &["--decode", &ids.to_string().replace(['[', ']'], "")]);
    assert_eq!(back["text"], prompt);
    let table = run("tokenize", "mistral-f32.bin", &[prompt]);
    assert_eq!(table.lines().count(), ids.as_array().unwrap().len());
}

#[test]
fn inspect_adds_up() {
    let result = run_json("inspect", "mistral-int8.bin", &["--ctx", "100", "--kv", "f16"]);
    assert_eq!(result["config"]["head_dim"], 32);
    assert_eq!(result["config"]["tie_word_embeddings"], true);
    let sum = |v: &Value| v.as_u64().unwrap();
    let tensors: u64 = result["tensors"].as_array().unwrap().iter().map(|t| sum(&t["bytes"])).sum();
    let by_dtype: u64 = result["bytes_by_dtype"].as_object().unwrap().values().map(sum).sum();
    assert_eq!(tensors, by_dtype);
    // Keys and values, 2 layers, 2 heads of 32, two bytes each, for two blocks of 64 positions: less than the window of
    // 16 and a chunk of 512 would take.
    assert_eq!(result["memory"]["kv_cache"], 2 * 2 * 2 * 32 * 2 * 128);
    let by_type = &result["memory"]["kv_cache_by_type"];
    assert_eq!(by_type["f16"], result["memory"]["kv_cache"]);
    assert_eq!(by_type["f32"], 2 * 2 * 2 * 32 * 4 * 128);
    // Of each head and block: four panels of keys, each a group of 1 KiB with 16 scales, and the line of what they have in common
    // with that of its scale; two panels of values, and 64 scales.
    assert_eq!(by_type["int8"], 2 * 2 * 2 * (4 * (1024 + 64) + 64 + 64 + 2 * 1024 + 256));
    assert!(run("inspect", "mistral-int8.bin", &[]).contains("sliding window 16"));
}

#[test]
fn convert_writes_a_model_that_answers_as_the_original_does() {
    let folder = tempfile::tempdir().unwrap();
    let converted = folder.path().join("converted.bin");
    let source = fixture("mistral-hf");
    let args = ["convert", source.to_str().unwrap(), converted.to_str().unwrap(), "--quant", "f32"];
    let output = torchless(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty());
    let golden = golden("mistral");
    let prompt = golden["prompt"].as_str().unwrap();
    let args = [prompt, "--temp", "0", "-n", "16", "--ignore-eos"];
    let result = run_json("generate", converted.to_str().unwrap(), &args);
    assert_eq!(result["tokens"], golden["greedy"]);
}

#[test]
fn convert_makes_a_random_model_of_a_known_shape() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("random.bin");
    let file = file.to_str().unwrap();
    let output = torchless(&["convert", "--synthetic", "smollm2-135m", file]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result = run_json("inspect", file, &[]);
    assert_eq!(result["config"]["hidden_size"], 576);
    assert_eq!(result["tokenizer"]["pieces"], 49152);
    // 16 · 30 · 192 rows of keys and values, and all others, are whole panels.
    assert_eq!(result["bytes_by_dtype"]["int8_panels"], 134_479_872 / 64 * 66);
    let spelled = run_json("tokenize", file, &["hé"]);
    assert_eq!(spelled["pieces"], serde_json::json!(["<s>", "▁", "<0x68>", "<0xC3>", "<0xA9>"]));
}

#[test]
fn bench_gives_a_row_for_each_test() {
    let args = ["-p", "8", "-n", "4", "--pg", "3,2", "-d", "0,5", "-r", "2", "-t", "1,2", "--isa", "scalar"];
    let rows = run_json("bench", "mistral-int8.bin", &args);
    let rows = rows.as_array().unwrap();
    let named: Vec<_> =
        rows.iter().map(|r| (r["test"].as_str().unwrap(), r["threads"].as_u64().unwrap())).collect();
    let tests = ["pp8", "tg4", "pp3+tg2", "pp8 @ d5", "tg4 @ d5", "pp3+tg2 @ d5"];
    let expected: Vec<_> = [1, 2].into_iter().flat_map(|t| tests.map(|test| (test, t))).collect();
    assert_eq!(named, expected);
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
        assert_eq!((row["isa"].as_str(), row["kv"].as_str()), (Some("scalar"), Some("f16")));
        let samples: Vec<_> = row["samples"].as_array().unwrap().iter().flat_map(Value::as_f64).collect();
        assert_eq!(samples.len(), 2);
        let mean = samples.iter().sum::<f64>() / 2.0;
        assert!(mean > 0.0);
        assert_abs_diff_eq!(number("tokens_per_s"), mean, epsilon = 1e-9 * mean);
        let stddev = (samples[0] - samples[1]).abs() / 2f64.sqrt();
        assert_abs_diff_eq!(number("stddev"), stddev, epsilon = 1e-6 * mean);
        let share = number("gb_per_s") / number("memory_gb_per_s");
        assert!(share > 0.0);
        assert_abs_diff_eq!(number("bandwidth_share"), share, epsilon = 1e-9 * share);
    }
}

#[test]
fn bench_leaves_out_what_is_zero_and_prints_tables() {
    let table = run("bench", "mistral-int8.bin", &["-p", "0", "-n", "4", "-r", "1"]);
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with('|')).collect();
    assert!(rows.len() == 3 && rows[0].contains("t/s") && rows[2].contains(" tg4 |"), "{table}");
    let widths: Vec<_> = rows.iter().map(|row| row.chars().count()).collect();
    assert_eq!(widths, [widths[0]; 3]);

    let csv =
        run("bench", "mistral-int8.bin", &["-p", "2", "-n", "0", "-r", "2", "-d", "0,1", "--format", "csv"]);
    let lines: Vec<_> = csv.lines().map(|line| line.split(',').collect::<Vec<_>>()).collect();
    assert_eq!(lines.iter().map(|line| (line[0], line.len())).collect::<Vec<_>>(), {
        let n = lines[0].len();
        [("test", n), ("\"pp2\"", n), ("\"pp2 @ d1\"", n)]
    });
}

#[test]
fn pictures_are_drawn_of_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let points = |svg: &Path| {
        let text = std::fs::read_to_string(svg).unwrap();
        let xml = roxmltree::Document::parse(&text).unwrap();
        xml.descendants().filter(|node| node.tag_name().name() == "circle").count()
    };
    let file = folder.path().join("speed.svg");
    let args = ["-p", "0", "-n", "2,3", "-d", "0,4,9", "-r", "1", "-t", "1", "--isa", "portable", "--plot"];
    run("bench", "mistral-int8.bin", &[&args[..], &[file.to_str().unwrap()]].concat());
    // Six rows, their speeds and their shares.
    assert_eq!(points(&file), 12);

    let file = folder.path().join("kernels.svg");
    let args = ["kernels", "attn_scores_f32", "--only", "portable", "--time", "0.001", "--json", "--plot"];
    let output = torchless(&[&args[..], &[file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    // And one that explains them, besides that of the matrices.
    assert_eq!((rows.len(), points(&file)), (8, 8 + 2));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_chat_asked_again_answers_otherwise_and_a_seed_is_one_conversation() {
    let model = fixture("llama-int8.bin");
    let chat = |seed| {
        let args = ["chat", "--chat-template", "chatml", "-n", "12", "--json", "--seed", seed, "-m"];
        let output =
            torchless_reading(&[&args[..], &[model.to_str().unwrap()]].concat(), "she\n/reset\nshe\n");
        let stdout = String::from_utf8(output.stdout).unwrap();
        let replies: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        replies.into_iter().map(|reply| reply["tokens"].clone()).collect::<Vec<_>>()
    };
    let replies = chat("3");
    assert!(replies.len() == 2 && replies[0] != replies[1], "{replies:?}");
    assert_eq!(chat("3"), replies);
    assert_eq!(chat("4")[0], replies[1]);
}

#[test]
fn what_a_user_can_get_wrong_is_one_line() {
    let model = fixture("mistral-int8.bin");
    let (model, folder, json) = (model.to_str().unwrap(), fixture("wide"), fixture("mistral.json"));
    let long = "the rain ".repeat(100);
    let cases: [(&[&str], &str); 18] = [
        (&["generate", "-m", "no/such.bin", "x"], "no/such.bin: No such file"),
        (
            &["generate", "-m", folder.to_str().unwrap(), "x"],
            "has no config.json: give a Hugging Face folder",
        ),
        (&["chat", "-m", "no/such.gguf", "x"], "no/such.gguf: No such file"),
        (&["generate", "-m", "hf:name", "x"], "hf:name: is no name on the hub: write hf:ORG/NAME"),
        (&["cache", "rm", "no-such"], "no-such: no conversion is called so"),
        (&["generate", "-m", json.to_str().unwrap(), "x"], "not a torchless .bin file"),
        (&["generate", "-m", model, &long], "do not fit in the context of 256"),
        (&["generate", "-m", model, &long, "-c", "20"], "do not fit in the context of 20"),
        (&["generate", "-m", model, "x", "-c", "257"], "a context of 257: this model allows 1 to 256"),
        (&["tokenize", "-m", model, "--decode", "1,999999"], "999999 is not in the vocabulary"),
        (&["bench", "-m", model], "pp512 takes 512 positions, and this model has 256"),
        (&["bench", "-m", model, "-p", "8", "-n", "8", "-d", "250"], "pp8 @ d250 takes 258 positions"),
        (
            &["bench", "-m", model, "--plot", "no/such/x.svg", "-p", "1"],
            "no/such/x.svg: its folder does not exist",
        ),
        (&["kernels", "--plot", "no/such/x.svg"], "no/such/x.svg: its folder does not exist"),
        // Files that are not there; what could be no file is wrong usage.
        (&["generate", "-m", model, "x", "-j", "no/such.json"], "no/such.json: No such file"),
        (&["chat", "-m", model, "x", "--chat-template", "no-such.jinja"], "no-such.jinja: No such file"),
        (&["perplexity", "-m", model, "no/such.txt"], "no/such.txt"),
        (&["perplexity", "-m", model, "--tokens", json.to_str().unwrap()], "is not a token id"),
    ];
    for (args, reason) in cases {
        let error = failure(args);
        assert!(error.contains(reason), "{args:?}: {error:?} does not say {reason:?}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [
        &["generat", "x"][..],
        &["generate"],
        &["generate", "x", "--temp", "warm"],
        &["generate", "x", "-f", "y"],
        &["generate", "x", "--logprobs", "2"],
        &["generate", "x", "--json", "--json-lines"],
        &["generate", "x", "--logit-bias", "7"],
        &["perplexity"],
        &["convert"],
        &["convert", "--synthetic", "gpt-9", "x.bin"],
        &["convert", "x.bin", "y.bin", "--layout", "columns"],
        &["convert", "x.bin", "y.bin", "--layout", "panels", "--quant", "f32"],
        &["convert", "x.bin", "y.bin", "--layout", "rows", "--quant", "int4"],
        &["convert", "x.bin", "y.bin", "--quant", "int4:3"],
        &["convert", "x.bin", "y.bin", "--quant", "int8", "--calibrate", "text.txt"],
        &["convert", "--synthetic", "smollm2-135m", "--quant", "int4", "--calibrate", "text.txt"],
        &["convert", "x.bin", "y.bin", "--layout", "rows", "--quant", "int4"],
        &["convert", "x.bin", "y.bin", "--layout", "rows", "--quant", "int4:6"],
        &["convert", "x.bin", "y.bin", "--quant", "int4:4"],
        &["convert", "x.bin", "y.bin", "--quant", "int4:"],
        &["convert", "--synthetic", "mistral-7b", "x.gguf", "x.bin"],
        &["bench", "-p", "0", "-n", "0"],
        &["bench", "--pg", "8"],
        &["bench", "-t", "0"],
        &["bench", "-r", "0"],
        &["bench", "--format", "xml"],
        &["bench", "--plot", "x.png"],
        &["kernels", "--plot", "x"],
        &["kernels", "gemmm"],
        &["chat", "x", "--chat-template", "no-such"],
        &["generate", "x", "-j", "object"],
        &["generate", "x", "-j", "[1]"],
        &["generate", "x", "-j", ""],
        &[],
    ] {
        assert_eq!(torchless(args).status.code(), Some(2), "{args:?}");
    }
}

/// What `torchless` says on stderr of wrong usage: exit code 2, and nothing on stdout.
fn usage_error(args: &[&str]) -> String {
    let output = torchless(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty() && stderr.starts_with("error: "), "{args:?}: {stderr}");
    stderr
}

#[test]
fn a_model_that_is_named_wins_over_the_environment() {
    let model = fixture("llama-f32.bin");
    let model = model.to_str().unwrap();
    let with = |variable: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
        let output = command.env("TORCHLESS_MODEL", variable).args(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    };
    for variable in ["no/such.bin", ""] {
        for args in
            [&["inspect", model][..], &["inspect", "-m", model], &["bench", model, "-p1", "-n1", "-r1"]]
        {
            assert!(!with(variable, args).is_empty());
        }
        assert!(!with(variable, &[model, "she", "-n", "2"]).is_empty());
    }
    // Named nowhere: an empty variable is none, and what follows is the default model, which a test does not fetch.
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
    let folder = tempfile::tempdir().unwrap();
    let output = command
        .env("TORCHLESS_MODEL", "")
        .env("XDG_CACHE_HOME", folder.path())
        .env("PATH", "")
        .args(["inspect"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && stderr.contains("Fetching the default model"), "{stderr}");
}

#[test]
fn a_model_where_a_text_is_expected_is_told_of_the_option() {
    let model = fixture("llama-f32.bin");
    let model = model.to_str().unwrap();
    for args in
        [&["generate", model, "she"][..], &["tokenize", model, "she"], &["perplexity", model, "book.txt"]]
    {
        let error = usage_error(args);
        assert!(error.contains("tip: ") && error.contains(&format!("-m {model}")), "{error}");
    }
    // Nor is it taken for the text, with another model.
    for command in ["generate", "tokenize"] {
        let error = usage_error(&[command, model]);
        assert!(error.contains("a text is expected") && error.contains(&format!("-m {model}")), "{error}");
    }
    assert!(torchless(&["tokenize", "-m", model, model]).status.success());
    // Other words may be said, whatever files there are.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("she"), "").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
    command.env("TORCHLESS_MODEL", model).current_dir(folder.path()).args(["tokenize", "she"]);
    assert!(command.output().unwrap().status.success());
}

#[test]
fn text_comes_from_stdin_wherever_text_is_read() {
    let model = fixture("mistral-int8.bin");
    let model = model.to_str().unwrap();
    let stdout = |args: &[&str], text: &str| {
        let output = torchless_reading(args, text);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let ids = run("tokenize", "mistral-int8.bin", &["she said"]);
    for args in [&["tokenize", "-m", model, "-"][..], &["tokenize", "-m", model]] {
        assert_eq!(stdout(args, "she said"), ids);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "she said that the rain").unwrap();
    let measured = run("perplexity", "mistral-int8.bin", &[file.to_str().unwrap()]);
    for args in [&["perplexity", "-m", model, "-"][..], &["perplexity", "-m", model]] {
        assert_eq!(stdout(args, "she said that the rain"), measured);
    }
    let number = run_json("perplexity", "mistral-int8.bin", &[file.to_str().unwrap()])["tokens"].clone();
    let ids = run_json("tokenize", "mistral-int8.bin", &["she said that the rain"])["ids"].to_string();
    let from_ids =
        stdout(&["perplexity", "-m", model, "--tokens", "-", "--json"], &ids.replace(['[', ',', ']'], " "));
    assert_eq!(serde_json::from_str::<Value>(&from_ids).unwrap()["tokens"], number);
    let text = run("generate", "mistral-int8.bin", &["she", "-n", "5"]);
    assert_eq!(stdout(&["generate", "-m", model, "-n", "5"], "she\n"), text);
    assert_eq!(stdout(&[model, "-n", "5"], "she\n"), text);
}

#[test]
fn a_chat_of_one_question_answers_once() {
    let model = fixture("llama-int8.bin");
    let model = model.to_str().unwrap();
    let common = ["--chat-template", "chatml", "-n", "5", "--seed", "3"];
    let stdout = |args: &[&str], text: &str| {
        let output = torchless_reading(&[args, &common].concat(), text);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let once = stdout(&["chat", model], "she said\n");
    assert!(!once.is_empty());
    for args in [&["chat", model, "she said"][..], &["chat", "-m", model, "she said"]] {
        assert_eq!(stdout(args, "not\nread\n"), once, "{args:?}");
    }
    assert_eq!(stdout(&["chat", model, "-"], "she said\n"), once);
    let reply: Value = serde_json::from_str(&stdout(&["chat", model, "she said", "--json"], "")).unwrap();
    assert_eq!(reply["text"].as_str().unwrap().trim_end(), once.trim_end());
    // A name that only a model has is one, also where there is none of that name.
    assert!(failure(&["chat", "no/such.bin"]).contains("no/such.bin: No such file"));
    assert!(usage_error(&["chat", "-m", model, "one", "two"]).contains("one question"));
}

#[test]
fn convert_names_the_model_after_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let convert = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
        let output = command.current_dir(folder.path()).arg("convert").args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let source = fixture("llama3.gguf");
    let source = source.to_str().unwrap();
    let (code, said) = convert(&[source]);
    assert!(code == Some(0) && said.contains("llama3.bin"), "{said}");
    assert!(folder.path().join("llama3.bin").exists());
    // What was not named is not replaced.
    let (code, said) = convert(&[source]);
    assert!(code == Some(1) && said.contains("llama3.bin") && said.contains("DST"), "{said}");
    assert_eq!(convert(&[source, "llama3.bin"]).0, Some(0));
    // A model file has that name already.
    let (code, said) = convert(&["llama3.bin"]);
    assert!(
        code == Some(1) && said.contains("llama3.bin: is SRC itself") && said.contains("name DST"),
        "{said}"
    );
    assert_eq!(convert(&["llama3.bin", "again.bin", "--layout", "rows"]).0, Some(0));
    // A point in a folder's name ends nothing.
    let versioned = folder.path().join("Mistral-v0.1");
    std::os::unix::fs::symlink(fixture("mistral-hf"), &versioned).unwrap();
    assert_eq!(convert(&["./Mistral-v0.1/"]).0, Some(0));
    assert!(folder.path().join("Mistral-v0.1.bin").exists());
}

#[test]
fn a_value_that_will_not_do_is_wrong_usage_and_says_what_will() {
    for (args, reason) in [
        (&["generate", "x", "-n", "-1"][..], "a whole number from 0 on"),
        (&["chat", "-n", "-1"], "a whole number from 0 on"),
        (&["generate", "x", "-c", "-1"], "a whole number from 1 on"),
        (&["generate", "x", "-c", "0"], "a whole number from 1 on"),
        (&["generate", "x", "--temp", "-1"], "a number 0 or more"),
        (&["generate", "x", "--temp", "warm"], "a number 0 or more"),
        (&["generate", "x", "--top-p", "2"], "a number above 0 and up to 1"),
        (&["generate", "x", "--top-k", "-1"], "a whole number from 0 on"),
        (&["generate", "x", "--min-p", "-0.5"], "a number from 0 to 1"),
        (&["generate", "x", "--typical", "0"], "a number above 0 and up to 1"),
        (&["generate", "x", "--repeat-penalty", "-2"], "a number above 0"),
        (&["generate", "x", "--mirostat-lr", "-2"], "a number 0 or more"),
        (&["generate", "x", "--seed", "-2"], "random"),
        (&["generate", "x", "--seed", "dice"], "random"),
        (&["generate", "x", "-t", "-1"], "1..=1024"),
        (&["generate", "x", "--isa", "foo"], "unknown instruction set \"foo\""),
        (&["bench", "--isa", "scalar,foo"], "unknown instruction set \"foo\""),
        (&["bench", "-p", "-1"], "a whole number from 0 on"),
        (&["kernels", "--only", "foo"], "unknown instruction set \"foo\""),
        (&["kernels", "--time", "-1"], "a number of seconds"),
        (&["generate", "x", "-j", "{"], "not JSON"),
        (&["tokenize", "--decode", "one"], "\"one\" is not a token id"),
    ] {
        let error = usage_error(args);
        assert!(error.contains("invalid value") && error.contains(reason), "{args:?}: {error}");
    }
}

#[test]
fn a_random_seed_is_said() {
    let model = fixture("mistral-int8.bin");
    let args = ["generate", "-m", model.to_str().unwrap(), "she", "-n", "20", "--ignore-eos", "--seed"];
    let of = |seed: &str| {
        let output = torchless(&[&args[..], &[seed]].concat());
        assert!(output.status.success());
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for seed in ["random", "-1"] {
        let (text, said) = of(seed);
        let chosen = said.lines().find_map(|line| line.strip_prefix("seed: ")).expect("a seed");
        assert_eq!(of(chosen).0, text);
        assert_ne!(of(seed).1.lines().next(), said.lines().next());
    }
}

#[test]
fn a_prompt_beyond_the_longest_context_is_not_told_to_raise_it() {
    let model = fixture("mistral-int8.bin");
    let long = "the rain ".repeat(100);
    let error = failure(&["generate", "-m", model.to_str().unwrap(), &long]);
    assert!(error.contains("do not fit in the context of 256") && !error.contains("--ctx"), "{error}");
    let error = failure(&["generate", "-m", model.to_str().unwrap(), &long, "-c", "20"]);
    assert!(error.contains("--ctx"), "{error}");
}

/// What a chat with these lines on stdin says on stderr; it must go well.
fn said_in_chat(args: &[&str], talk: &str) -> (String, String) {
    let model = fixture("llama-int8.bin");
    let common = ["chat", "-m", model.to_str().unwrap(), "-n", "2", "--temp", "0"];
    let output = torchless_reading(&[&common[..], args].concat(), talk);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{talk:?}: {stderr}");
    (String::from_utf8(output.stdout).unwrap(), stderr)
}

#[test]
fn a_chat_says_what_the_template_tells_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pirate.jinja");
    let template = "{% if messages[0].role != 'system' %}<<system>>You are a pirate.<<end>>{% endif %}\
        {% for m in messages %}<<{{ m.role }}>>{{ m.content }}<<end>>{% endfor %}";
    std::fs::write(&file, template).unwrap();
    let (_, said) = said_in_chat(&["--chat-template", file.to_str().unwrap()], "/system\n");
    assert!(said.contains("You are a pirate.") && !said.contains("<<"), "{said}");
    let (_, said) = said_in_chat(&["--chat-template", file.to_str().unwrap()], "she\n/system\n");
    assert!(said.contains("You are a pirate."), "{said}");
    let (_, said) = said_in_chat(&["--chat-template", "chatml"], "/system\n");
    assert!(said.contains("told nothing"), "{said}");
}

#[test]
fn a_word_that_is_no_command_does_not_end_a_chat() {
    let (answers, said) = said_in_chat(&["--chat-template", "chatml"], "/usr/bin\nshe\n");
    assert!(said.contains("/usr/bin") && said.contains("/help") && !answers.is_empty(), "{said}");
    for end in ["/exit", "/bye", "/quit"] {
        let (answers, _) = said_in_chat(&["--chat-template", "chatml"], &format!("{end}\nshe\n"));
        assert_eq!(answers, "", "{end}");
    }
    let (answers, said) = said_in_chat(&["--chat-template", "chatml"], "/exit now\nshe\n");
    assert!(said.contains("/exit takes nothing") && !answers.is_empty(), "{said}");
    for help in ["/?", "/help"] {
        let (_, said) = said_in_chat(&["--chat-template", "chatml"], &format!("{help}\n"));
        assert!(said.contains("/reset") && said.contains("/trim"), "{said}");
    }
}

#[test]
fn a_chat_can_drop_its_oldest_turns() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved.json");
    let saved = saved.to_str().unwrap();
    let kept = |trim: &str| {
        let talk = format!("/system be brief\none\ntwo\nthree\n{trim}\n/save {saved}\n");
        let (_, said) = said_in_chat(&["--chat-template", "chatml"], &talk);
        let messages: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(saved).unwrap()).unwrap();
        let users = messages.iter().filter(|m| m["role"] != "assistant");
        (users.map(|m| m["content"].as_str().unwrap().to_owned()).collect::<Vec<_>>(), said)
    };
    let (messages, said) = kept("/trim");
    assert_eq!(messages, ["be brief", "three"]);
    assert!(said.contains("2 oldest turns are dropped"), "{said}");
    let (messages, said) = kept("/trim 1");
    assert_eq!(messages, ["be brief", "two", "three"]);
    assert!(said.contains("The oldest turn is dropped"), "{said}");
    assert_eq!(kept("/trim 9").0, ["be brief"]);
    let (_, said) = said_in_chat(&["--chat-template", "chatml"], "/trim\n");
    assert!(said.contains("nothing to drop"), "{said}");
}

/// At a terminal: Tab completes a command, and what was typed is there the next time, unless that is not wanted.
#[cfg(target_os = "linux")]
#[test]
fn what_is_typed_in_a_chat_is_kept_unless_told_otherwise() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    for (option, kept) in [(&[][..], true), (&["--no-history"], false)] {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let name = name.to_str().unwrap();
        let terminal = || std::fs::File::options().read(true).write(true).open(name).unwrap();
        let state = tempfile::tempdir().unwrap();
        let mut command = Command::new("setsid");
        command.args(["--ctty", env!("CARGO_BIN_EXE_torchless"), "chat", "--chat-template", "chatml", "-m"]);
        command.arg(fixture("mistral-int8.bin")).args(option).env("TERM", "xterm");
        command.env("XDG_STATE_HOME", state.path()).stdin(terminal()).stdout(terminal()).stderr(terminal());
        let mut child = command.spawn().unwrap();
        let mut controller = std::fs::File::from(controller);
        for line in [&b"/st\t\r"[..], b"/quit\r"] {
            let mut shown = Vec::new();
            while !String::from_utf8_lossy(&shown).contains(">>> ") {
                let mut buffer = [0; 4096];
                let n = controller.read(&mut buffer).unwrap();
                shown.extend_from_slice(&buffer[..n]);
            }
            controller.write_all(line).unwrap();
        }
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while child.try_wait().unwrap().is_none() {
            assert!(std::time::Instant::now() < end, "the chat does not end");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let history =
            std::fs::read_to_string(state.path().join("torchless/chat-history")).unwrap_or_default();
        assert_eq!((history.contains("/stats"), history.contains("/quit")), (kept, kept), "{history:?}");
    }
}

#[test]
fn tokens_are_text_for_people_and_machines() {
    let golden = golden("mistral");
    let prompt = golden["prompt"].as_str().unwrap();
    let result = run_json("tokenize", "mistral-f32.bin", &[prompt, "--no-bos"]);
    let tokens = result["tokens"].as_array().unwrap();
    let bytes = tokens.iter().flat_map(|t| t["bytes"].as_array().unwrap());
    let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
    // SentencePiece writes a space before the first word.
    assert_eq!(String::from_utf8(bytes).unwrap().trim_start(), prompt.trim_start());
    let ids: Value = tokens.iter().map(|t| t["id"].clone()).collect();
    assert_eq!(ids, result["ids"]);
    assert!(tokens.iter().all(|t| !t["token"].as_str().unwrap().contains('▁')), "{tokens:?}");
    let table = run("tokenize", "mistral-f32.bin", &["she ☃", "--no-bos"]);
    assert!(!table.contains('▁') && table.contains("\\xE2"), "{table}");

    let args = ["she", "-n", "2", "--logprobs", "2", "--ignore-eos"];
    let result = run_json("generate", "mistral-f32.bin", &args);
    for logprob in result["logprobs"].as_array().unwrap() {
        for entry in logprob["top"].as_array().unwrap().iter().chain([logprob]) {
            assert!(entry["piece"].is_string() && entry["text"].is_string(), "{entry}");
            assert!(!entry["bytes"].as_array().unwrap().is_empty(), "{entry}");
        }
    }
}

#[test]
fn inspect_shows_a_tensor_of_all_layers_once() {
    let folder = tempfile::tempdir().unwrap();
    let panels = folder.path().join("panels.bin");
    let (rows, panels) = (fixture("mistral-int8.bin"), panels.to_str().unwrap());
    assert!(torchless(&["convert", rows.to_str().unwrap(), panels]).status.success());
    for (file, kind) in [("mistral-int8.bin", "int8 "), (panels, "i8x16 "), ("llama-int4.bin", "int4 ")] {
        let text = run("inspect", file, &[]);
        let shown = run_json("inspect", file, &[]);
        let tensors = shown["tensors"].as_array().unwrap();
        let all = run("inspect", file, &["--tensors"]);
        for tensor in tensors {
            assert!(all.contains(tensor["name"].as_str().unwrap()), "{tensor}");
        }
        assert!(text.contains(&format!("2 × {kind}")), "{text}");
        assert!(text.contains(".*.") && text.contains("--tensors"), "{text}");
        assert!(text.lines().count() < all.lines().count(), "{text}");
        // The file's name is as long as it is.
        for line in text.lines().filter(|line| !line.starts_with("file ")) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
    assert!(run("inspect", panels, &[]).contains(" int8_panels (i8x16)"));
    let int4 = run("inspect", "llama-int4-by-32.bin", &[]);
    assert!(int4.contains(" int4_by_32 (i4/32),\n               "), "{int4}");
    assert!(int4.contains(" int4_by_32_minimum (i4m32)\n") && int4.contains(" i4m32 "), "{int4}");
    assert!(int4.lines().skip(1).all(|line| line.chars().count() <= 80), "{int4}");
}

#[test]
fn lines_fit_a_terminal_and_one_is_no_plural() {
    let model = fixture("mistral-int8.bin");
    let model = model.to_str().unwrap();
    let said = |args: &[&str]| {
        let output = torchless(&[&["generate", "-m", model], args].concat());
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let timings = said(&["she", "-n", "9", "--ignore-eos"]);
    assert!(timings.lines().all(|line| line.chars().count() <= 80), "{timings}");
    let one = said(&["she", "-n", "1", "--ignore-eos"]);
    assert!(one.contains("answer: 1 token; "), "{one}");
    let none = said(&["she", "-n", "0"]);
    assert!(none.contains("answer: no tokens") && !none.contains("first after"), "{none}");
    // A line for each chunk of the prompt and one where the answer begins, none for each token.
    let debug = said(&["she", "-n", "9", "--ignore-eos", "--debug"]);
    assert_eq!(debug.matches("layer 2/2").count(), 2, "{debug}");

    let args = ["-p", "8", "-n", "4", "--pg", "8,4", "-d", "100", "-r", "1", "-t", "1"];
    let table = run("bench", "mistral-int8.bin", &args);
    // What the CPU is called is its own affair.
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[..lines.len() - 1].iter().all(|line| line.chars().count() <= 80), "{table}");
    assert!(table.contains("on 1 thread\n") && lines[0].contains("parameters"), "{table}");
}

#[cfg(target_os = "linux")]
#[test]
fn help_on_a_full_disk_is_an_error() {
    for args in [&["--help"][..], &["generate", "--help"], &["--version"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_torchless")).args(args).stdout(full).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains("error: stdout: No space"), "{stderr}");
    }
}

#[test]
fn a_template_of_another_family_warns() {
    let talk = |name: &str| said_in_chat(&["--chat-template", name], "she\n").1;
    let said = talk("llama3");
    assert!(said.contains("warning: ") && said.contains("<|start_header_id|>"), "{said}");
    assert!(talk("chatml").contains("<|im_start|>"));
}

#[test]
fn kernels_are_listed() {
    let list = String::from_utf8(torchless(&["kernels", "--list"]).stdout).unwrap();
    let json: Vec<String> =
        serde_json::from_slice(&torchless(&["kernels", "--list", "--json"]).stdout).unwrap();
    assert_eq!(json, list.lines().collect::<Vec<_>>());
    for name in ["gemv_i8", "gemm_i8", "gemv_int4", "gemm_int4", "attn_scores_f16", "argmax"] {
        assert_eq!(list.lines().filter(|line| *line == name).count(), 1, "{list}");
    }
    let help = String::from_utf8(torchless(&["kernels", "--help"]).stdout).unwrap();
    assert!(help.contains("minute"), "{help}");
}

#[test]
fn help_of_every_command_has_an_example() {
    let commands = [
        "generate",
        "chat",
        "perplexity",
        "tokenize",
        "inspect",
        "convert",
        "pull",
        "bench",
        "kernels",
        "completions",
        "man",
    ];
    for command in commands {
        let output = torchless(&[command, "--help"]);
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains(&format!("torchless {command}")) && help.contains("Example"), "{help}");
    }
}

#[test]
fn a_context_that_is_not_allowed_is_one_line_everywhere() {
    let model = fixture("mistral-int8.bin");
    let model = model.to_str().unwrap();
    for command in [&["inspect", "-m", model][..], &["generate", "-m", model, "she"]] {
        let output = torchless(&[command, &["-c", "0"]].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    for ctx in ["100000", "4611686018427387904", "18446744073709551615"] {
        for command in [&["inspect", "-m", model][..], &["generate", "-m", model, "she"]] {
            let error = failure(&[command, &["-c", ctx]].concat());
            assert!(error.contains(&format!("a context of {ctx}: this model allows 1 to ")), "{error}");
            assert!(error.contains("(--ctx)"), "{error}");
        }
    }
    let huge = "18446744073709551615";
    for args in
        [["-p", huge], ["-n", huge], ["-d", huge], ["--pg", "18446744073709551615,18446744073709551615"]]
    {
        let error = failure(&[&["bench", "-m", model][..], &args].concat());
        assert!(error.contains("positions, and this model has"), "{error}");
    }
}

#[test]
fn a_form_that_is_wrong_is_one_line_with_its_file_and_place() {
    let model = fixture("llama-int8.bin");
    let model = model.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let generate = |option, value: &str| failure(&["generate", "-m", model, "she", option, value]);
    let gbnf = file("yes.gbnf", "root ::= \"yes\" | \"no\"\n");
    let error = generate("--grammar-file", &gbnf);
    assert!(error.contains(&gbnf) && error.contains("line 1, column 7") && error.contains("Lark"), "{error}");
    let lark = file("rain.lark", "start: a\na: \"x\" ) \"y\"\n");
    let error = generate("--grammar-file", &lark);
    assert!(error.contains(&lark) && error.contains("line 2, column 8"), "{error}");
    let cut = file("cut.json", "{\n \"type\": ");
    let error = generate("-j", &cut);
    assert!(error.contains(&cut) && error.contains("line 2 column"), "{error}");
    let wrong = file("wrong.json", "{\"type\": \"strin\"}");
    let error = generate("-j", &wrong);
    assert!(error.contains(&wrong) && error.contains("the JSON schema: "), "{error}");
    assert!(generate("-j", "false").contains("the JSON schema: "));
    // What shows only when the text begins.
    for (name, text) in [("self.json", "{\"$ref\": \"#\"}"), ("self.lark", "start: a\na: a")] {
        let file = file(name, text);
        let error = generate(if name.ends_with("json") { "-j" } else { "--grammar-file" }, &file);
        assert!(error.contains(&format!("{file}: the ")) && error.contains("nothing can follow"), "{error}");
    }
    let long = file("long.lark", &format!("start: {}", "\"x\" ".repeat(70_000)));
    let error = generate("--grammar-file", &long);
    assert!(error.contains("cannot read it: assertion failed") && !error.contains("backtrace"), "{error}");
    let output = torchless(&["generate", "-m", model, "she", "-n", "60", "--json", "-j", "true"]);
    let text: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = (text["text"].as_str().unwrap().to_owned(), text["complete"].as_bool().unwrap());
    assert!(!text.1 || serde_json::from_str::<Value>(&text.0).is_ok(), "{text:?}");
    // Said where the conversation goes on, too.
    let args = ["chat", "-m", model, "--chat-template", "chatml", "--grammar-file", &lark];
    let output = torchless_reading(&args, "she\n");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains(&lark), "{stderr}");
}

#[test]
fn a_chat_template_that_cannot_be_used_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("llama3-hf")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), "{% if %}").unwrap();
    let model = folder.path().join("model.bin");
    let (folder, model) = (folder.path().to_str().unwrap(), model.to_str().unwrap());
    for args in [["convert", folder, model].as_slice(), &["inspect", model]] {
        let output = torchless(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr.matches("note: the chat template").count(), 1, "{args:?}: {stderr}");
    }
}

/// Two million tokens in 300 MB.
#[cfg(unix)]
#[test]
fn tokens_take_little_memory_to_show() {
    let model = fixture("llama-int8.bin");
    let text = "a\n".repeat(1 << 20);
    for json in [false, true] {
        let mut child = Command::new("sh")
            .args([
                "-c",
                "ulimit -v 300000; exec \"$@\"",
                "sh",
                env!("CARGO_BIN_EXE_torchless"),
                "tokenize",
                "--stdin",
            ])
            .args(json.then_some("--json"))
            .arg("-m")
            .arg(&model)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let text = text.clone();
        let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success());
        if json {
            let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
            let length = |name: &str| shown[name].as_array().unwrap().len();
            assert!(length("ids") > 1 << 20);
            assert_eq!(length("ids"), length("pieces"));
        }
    }
}
