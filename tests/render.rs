//! `torchless render`, and conversations that other commands read from files.

mod common {
    pub mod fixture;
}

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use common::fixture::fixture;

const TALK: &str = r#"[{"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "she "}, {"type": "text", "text": "said"}]},
    {"role": "assistant", "content": null, "reasoning": "Hm.", "tool_calls": [{"id": "call00001", "type": "function",
        "function": {"name": "f", "arguments": "{\"x\": [1, 2.0]}"}}]},
    {"role": "ipython", "content": "rain"}]"#;

const TEMPLATE: &str = "{{ mood | default('no mood') }}{{ tools | tojson if tools }}\
    {% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.reasoning_content }}\
    {% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %};{% endfor %}\
    {% if add_generation_prompt %}assistant:{% endif %}";

const SHOWN: &str = "no moodsystem:Be brief.;user:she said;assistant:Hm.{\"x\": [1, 2.0]};ipython:rain;";

fn torchless(args: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
    command.env_remove("TORCHLESS_MODEL").env_remove("TORCHLESS_ISA").args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whoever fails early does not read.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

/// What must go well; gives stdout.
fn good(args: &[&str], stdin: &str) -> String {
    let output = torchless(args, stdin);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What must fail with this exit code; gives stderr.
fn bad(args: &[&str], stdin: &str, code: i32) -> String {
    let output = torchless(args, stdin);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    if code == 1 {
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
    stderr
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        for (name, text) in [("talk.json", TALK), ("template.jinja", TEMPLATE)] {
            std::fs::write(files.0.path().join(name), text).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: &Value) -> String {
        std::fs::write(self.0.path().join(name), content.to_string()).unwrap();
        self.path(name)
    }
}

fn model() -> String {
    fixture("llama-int8.bin").to_str().unwrap().to_owned()
}

#[test]
fn a_conversation_is_shown_as_the_model_sees_it() {
    let files = Files::new();
    let (talk, template, model) = (files.path("talk.json"), files.path("template.jinja"), model());
    let args = ["render", &talk, "--chat-template", &template, "-m", &model];
    assert_eq!(good(&args, ""), format!("{SHOWN}assistant:"));
    assert_eq!(good(&[&args[..], &["--no-generation-prompt"]].concat(), ""), SHOWN);
    let stdin = ["render", "-", "--chat-template", &template, "-m", &model];
    assert_eq!(good(&stdin, TALK), format!("{SHOWN}assistant:"));
    // No model is needed where the template is named.
    assert_eq!(good(&args[..4], ""), format!("{SHOWN}assistant:"));
    let without: Value = serde_json::from_str(&good(&[&args[..4], &["--json"]].concat(), "")).unwrap();
    assert_eq!(without, json!({"text": format!("{SHOWN}assistant:"), "ids": null}));
    let shown: Value = serde_json::from_str(&good(&[&args[..], &["--json"]].concat(), "")).unwrap();
    let ids: Vec<String> = shown["ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let spelled = good(&["tokenize", "--decode", &ids.join(","), "--special", "-m", &model], "");
    assert_eq!(spelled.trim(), shown["text"].as_str().unwrap());
}

#[test]
fn variables_and_tools_reach_the_template() {
    let files = Files::new();
    let (talk, template) = (files.path("talk.json"), files.path("template.jinja"));
    let args = ["render", &talk, "--chat-template", &template];
    let with = |more: &[&str]| good(&[&args[..], more].concat(), "");
    assert!(with(&["--template-arg", "mood=good"]).starts_with("goodsystem:"));
    assert!(with(&["--template-arg", "mood=[1.0, null]"]).starts_with("[1.0, None]system:"));
    assert!(with(&["--template-arg", "mood=a=b", "--template-arg", "other=1"]).starts_with("a=bsystem:"));
    // As it was written, its order included.
    let tool = json!({"type": "function", "function": {"strict": true, "name": "f", "parameters": {}}});
    let written = "no mood[{\"type\": \"function\", \"function\": {\"strict\": true, \"name\": \"f\", \"parameters\": {}}}]";
    let tools = files.write("tools.json", &json!([tool]));
    assert!(with(&["--tools", &tools]).starts_with(written));
    let messages: Value = serde_json::from_str(TALK).unwrap();
    let request = files.write("request.json", &json!({"messages": messages, "tools": [tool], "model": "x"}));
    assert!(good(&["render", &request, "--chat-template", &template], "").starts_with(written));
}

#[test]
fn what_cannot_be_rendered_is_one_line() {
    let files = Files::new();
    let (talk, template, model) = (files.path("talk.json"), files.path("template.jinja"), model());
    let args = ["render", "-", "--chat-template", &template];
    let image = r#"[{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {}}]}]"#;
    for (messages, what) in [
        (image, "messages[0]: content[1]: a part of type \"image_url\""),
        ("[{\"role\": \"user\", \"content\": 7}]", "messages[0]: content: give a string"),
        ("[{\"content\": \"x\"}]", "messages[0]: missing field `role`"),
        ("[7]", "messages[0]"),
        ("{\"message\": []}", "no list of messages"),
        ("7", "give a list of messages"),
        ("[", "not JSON"),
        (
            r#"[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]"#,
            "messages[0]: the arguments for \"f\"",
        ),
    ] {
        let said = bad(&args, messages, 1);
        assert!(said.contains(what), "{messages}: {said}");
    }
    let fails = |more: &[&str], code: i32| {
        bad(&[&["render", &talk, "--chat-template", &template][..], more].concat(), "", code)
    };
    let tools = files.write("tools.json", &json!([{"type": "function"}]));
    assert!(fails(&["--tools", &tools], 1).contains("tools[0]: "));
    for name in ["messages", "tools", "add_generation_prompt", "bos_token"] {
        let said = fails(&["--template-arg", &format!("{name}=1")], 1);
        assert!(said.contains(&format!("--template-arg: {name}")), "{said}");
    }
    for wrong in ["mood", "=1", "mood=False"] {
        let said = fails(&["--template-arg", wrong], 2);
        assert!(said.contains("--template-arg"), "{said}");
    }
    assert!(fails(&["--template-arg", "mood=False"], 2).contains("mood=false"));
    // The fixture brings no template, and needs one.
    assert!(bad(&["render", &talk, "-m", &model], "", 1).contains("--chat-template"));
    assert!(bad(&["generate", "she", "--template-arg", "a=1", "-m", &model], "", 2).contains("--messages"));
}

#[test]
fn a_conversation_in_a_file_is_answered() {
    let files = Files::new();
    let (talk, template, model) = (files.path("talk.json"), files.path("template.jinja"), model());
    let on = ["--chat-template", &template, "-m", &model, "--json"];
    let rendered: Value = serde_json::from_str(&good(&[&["render", &talk][..], &on].concat(), "")).unwrap();
    let args = ["generate", "--messages", &talk, "-n", "5", "--temp", "0", "--ignore-eos"];
    let answer: Value = serde_json::from_str(&good(&[&args[..], &on].concat(), "")).unwrap();
    assert_eq!(answer["prompt_tokens"], rendered["ids"]);
    let said = answer["text"].as_str().unwrap();
    let said = said.strip_prefix(' ').unwrap_or(said);
    assert_eq!(answer["message"], json!({"role": "assistant", "content": said}));
    let text = good(&[&args[..], &on[..4]].concat(), "");
    assert_eq!(text.trim_end_matches('\n'), said.trim_end_matches('\n'));
    // A chat goes on from it.
    let short = files.write(
        "short.json",
        &json!([{"role": "user", "content": "she"}, {"role": "assistant", "content": "x"}]),
    );
    let chat = ["chat", "--messages", &short, "he", "-n", "3", "--temp", "0"];
    let reply: Value = serde_json::from_str(&good(&[&chat[..], &on].concat(), "")).unwrap();
    let whole = r#"[{"role": "user", "content": "she"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "he"}]"#;
    let whole: Value = serde_json::from_str(&good(&[&["render", "-"][..], &on].concat(), whole)).unwrap();
    assert_eq!(reply["prompt_tokens"], whole["ids"]);
    let tools = json!({"messages": [], "tools": [{"function": {"name": "f"}}]});
    let said = bad(&["chat", "--messages", &files.write("t.json", &tools), "-m", &model, "hi"], "", 1);
    assert!(said.contains("a chat has no tools"), "{said}");
}

/// Converts a folder whose publisher says how to sample.
fn converted(files: &Files, generation: &Value) -> String {
    let folder = files.0.path().join("hf");
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(Path::new(&fixture("mistral-hf"))).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    std::fs::write(folder.join("generation_config.json"), generation.to_string()).unwrap();
    let model = files.path("model.bin");
    good(&["convert", folder.to_str().unwrap(), &model, "--quant", "int8"], "");
    model
}

#[test]
fn a_models_own_sampling_is_used_unless_an_option_says_otherwise() {
    let files = Files::new();
    let inspect = |model: &str| -> Value {
        let shown: Value = serde_json::from_str(&good(&["inspect", model, "--json"], "")).unwrap();
        shown["generation"].clone()
    };
    let own =
        json!({"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": null, "repetition_penalty": 1.05});
    let model = converted(&files, &own);
    assert_eq!(inspect(&model), own);
    assert!(
        good(&["inspect", &model], "")
            .contains("temperature 0.7, top_k 20, top_p 0.8, repetition_penalty 1.05")
    );
    // Stored in another way it is still there.
    let again = files.path("again.bin");
    good(&["convert", &model, &again, "--quant", "f32"], "");
    assert_eq!(inspect(&again), own);
    let generate = |more: &[&str]| {
        good(
            &[&["generate", "she", "-n", "12", "--seed", "3", "--ignore-eos", "-m", &model][..], more]
                .concat(),
            "",
        )
    };
    let asked = ["--temp", "0.7", "--top-k", "20", "--top-p", "0.8", "--repeat-penalty", "1.05"];
    assert_eq!(generate(&[]), generate(&asked));
    assert_ne!(generate(&[]), generate(&["--temp", "3", "--top-k", "0", "--top-p", "1", "--min-p", "0"]));
    // Without sampling the most probable token is taken, unless an option says otherwise.
    let greedy = converted(&files, &json!({"do_sample": false, "temperature": 0.6}));
    assert_eq!(inspect(&greedy)["temperature"], 0.0);
    let seeded = |seed: &str, more: &[&str]| {
        good(
            &[&["generate", "she", "-n", "12", "--ignore-eos", "-m", &greedy, "--seed", seed][..], more]
                .concat(),
            "",
        )
    };
    assert_eq!(seeded("1", &[]), seeded("2", &["--temp", "0"]));
    assert_ne!(seeded("1", &["--temp", "3"]), seeded("2", &["--temp", "3"]));
    // Nothing said is nothing kept.
    assert!(inspect(&model_without(&files)).as_object().unwrap().values().all(Value::is_null));
}

fn model_without(files: &Files) -> String {
    converted(files, &json!({"eos_token_id": 2}))
}
