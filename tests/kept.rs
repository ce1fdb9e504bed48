//! `-m` with what is no model file yet: converted once, kept, and anew when it has changed.

mod common {
    pub mod fixture;
    #[allow(dead_code, reason = "what goes wrong with a hub is tested in tests/hub.rs")]
    pub mod hub;
}

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use common::fixture::fixture;
use common::hub::{Fault, StandIn, etag};

/// A cache, and models to convert beside it.
struct Setup {
    root: TempDir,
}

impl Setup {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A copy of a fixture, a file or a folder.
    fn copy(&self, name: &str) -> String {
        let (from, to) = (fixture(name), self.path(name));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            for entry in fs::read_dir(from).unwrap().flatten() {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        } else {
            fs::copy(from, &to).unwrap();
        }
        to.to_str().unwrap().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
        for name in
            ["TORCHLESS_MODEL", "TORCHLESS_ISA", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"]
        {
            command.env_remove(name);
        }
        command.env("TORCHLESS_CACHE", self.path("cache")).env("HF_HOME", self.path("hf")).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What goes well: stdout, and what stderr says of the work.
    fn good(&self, args: &[&str]) -> (String, String) {
        good(self.command(args))
    }

    fn failure(&self, args: &[&str]) -> String {
        failure(self.command(args))
    }

    fn list(&self) -> Vec<Value> {
        let (stdout, _) = self.good(&["cache", "--json"]);
        serde_json::from_str::<Value>(&stdout).unwrap()["conversions"].as_array().unwrap().clone()
    }

    /// The names of what lies in the folder of conversions, temporaries included.
    fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("cache/converted")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// As [`Setup::good`]; how fast it was is left out.
fn good(mut command: Command) -> (String, String) {
    let output = command.output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{command:?}: {stderr}");
    let said = stderr.lines().filter(|line| !line.starts_with("prompt: "));
    (stdout, said.map(|line| format!("{line}\n")).collect())
}

/// What fails with exit code 1 and one line, after what was said of the work.
fn failure(mut command: Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {stderr}");
    let errors: Vec<_> = stderr
        .lines()
        .filter(|line| !["Converting ", "Fetching "].iter().any(|note| line.starts_with(note)))
        .collect();
    assert!(errors.len() == 1 && errors[0].starts_with("error: "), "{stderr}");
    errors[0].to_owned()
}

const ASK: [&str; 6] = ["she", "-n", "8", "--ignore-eos", "--temp", "0"];

fn generate<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["generate", "-m", model], &ASK[..], more].concat()
}

#[test]
fn the_first_use_converts_and_the_second_opens() {
    for name in ["qwen3.gguf", "mistral-hf"] {
        let setup = Setup::new();
        let model = setup.copy(name);
        let explicit = setup.path("explicit.bin");
        setup.good(&["convert", &model, explicit.to_str().unwrap()]);
        let (expected, _) = setup.good(&generate(explicit.to_str().unwrap(), &[]));
        let (first, said) = setup.good(&generate(&model, &[]));
        assert_eq!(first, expected);
        assert!(
            said.lines().count() == 1 && said.contains("Converting ") && said.contains("cache/converted"),
            "{said}"
        );
        let (second, said) = setup.good(&generate(&model, &[]));
        assert_eq!((second, said), (expected.clone(), String::new()));
        if Path::new(&model).is_dir() {
            let shard = format!("{model}/model-00002-of-00002.safetensors");
            assert_eq!(setup.good(&generate(&shard, &[])), (expected.clone(), String::new()));
        }
        // Everywhere a model can be named.
        let (short, _) = setup.good(&[&[model.as_str()], &ASK[..]].concat());
        let mut by_variable = setup.command(&[&["generate"], &ASK[..]].concat());
        by_variable.env("TORCHLESS_MODEL", &model);
        assert_eq!((short, good(by_variable).0), (expected.clone(), expected));
        setup.good(&["inspect", &model]);
        assert_eq!(setup.kept().len(), 1);
    }
}

#[test]
fn each_quantisation_is_kept() {
    let setup = Setup::new();
    let model = setup.copy("qwen3.gguf");
    for quant in ["f32", "int8", "int4", "int4:6"] {
        let (_, said) = setup.good(&generate(&model, &["--quant", quant]));
        assert!(said.contains(&format!("--quant {quant}")), "{said}");
        assert_eq!(setup.good(&generate(&model, &["--quant", quant])).1, "");
    }
    let mut quants: Vec<_> =
        setup.list().iter().map(|kept| kept["quant"].as_str().unwrap().to_owned()).collect();
    quants.sort();
    assert_eq!(quants, ["f32", "int4", "int4:6", "int8"]);
    let model = fixture("mistral-int8.bin");
    let error = setup.failure(&generate(model.to_str().unwrap(), &["--quant", "int4"]));
    assert!(error.contains("is a model file already") && error.contains("torchless convert"), "{error}");
    assert_eq!(setup.run(&generate("x", &["--quant", "int3"])).status.code(), Some(2));
}

/// Changes when a file was written.
fn touch(path: &Path, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn what_has_changed_is_converted_anew_and_takes_the_old_ones_place() {
    let setup = Setup::new();
    let model = setup.copy("mistral-hf");
    let expected = setup.good(&generate(&model, &[])).0;
    let folder = Path::new(&model);
    let entry = setup.kept();
    let again = |what: &str| {
        let (text, said) = setup.good(&generate(&model, &[]));
        assert!(text == expected && said.contains("Converting "), "{what}: {said}");
        assert_eq!(setup.kept(), entry, "{what}");
        assert_eq!(setup.good(&generate(&model, &[])).1, "", "{what}");
    };
    for name in ["config.json", "model-00002-of-00002.safetensors", "tokenizer_config.json"] {
        touch(&folder.join(name), 100);
        again(name);
    }
    // A file that was not there is read now.
    fs::write(folder.join("generation_config.json"), "{}").unwrap();
    again("generation_config.json");
    fs::remove_file(folder.join("generation_config.json")).unwrap();
    again("no generation_config.json");
    // Others are not read.
    fs::write(folder.join("README.md"), "new").unwrap();
    assert_eq!(setup.good(&generate(&model, &[])).1, "");
    // So are those that it was converted into in another way.
    setup.good(&generate(&model, &["--quant", "f32"]));
    assert_eq!(setup.kept().len(), 2);
    touch(&folder.join("tokenizer.json"), 300);
    again("tokenizer.json");
    // Another converter, or a record that makes no sense.
    let record = setup.path("cache/converted").join(&entry[0]).join("record.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"converter\":\"", "\"converter\":\"9")).unwrap();
    again("another converter");
    fs::write(&record, "{").unwrap();
    again("a damaged record");
}

#[test]
fn several_at_once_make_one() {
    let setup = Setup::new();
    let model = setup.copy("qwen3.gguf");
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut command = setup.command(&generate(&model, &[]));
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, outputs[0].stdout);
    }
    assert_eq!(setup.kept().len(), 1);
}

#[test]
fn conversions_are_listed_and_removed() {
    let setup = Setup::new();
    let (gguf, folder) = (setup.copy("qwen3.gguf"), setup.copy("mistral-hf"));
    assert_eq!(setup.list(), [Value::Null; 0]);
    setup.good(&generate(&gguf, &[]));
    setup.good(&generate(&gguf, &["--quant", "f32"]));
    setup.good(&generate(&folder, &[]));
    let list = setup.list();
    assert_eq!(list.len(), 3);
    let last = &list[0];
    assert_eq!(last["source"].as_str(), Path::new(&folder).canonicalize().unwrap().to_str());
    let file = last["file"].as_str().unwrap();
    assert_eq!(last["bytes"].as_u64(), Some(fs::metadata(file).unwrap().len()));
    assert!(file.ends_with("/mistral-hf.bin"), "{file}");
    let (text, said) = setup.good(&["cache"]);
    assert_eq!(text.lines().count(), 3);
    assert!(
        text.contains("just now") && text.contains("qwen3-auto-") && said.starts_with("3 conversions, "),
        "{text}{said}"
    );
    // What was used is listed first.
    for kept in &list {
        touch(&setup.path("cache/converted").join(kept["name"].as_str().unwrap()).join("record.json"), 7200);
    }
    setup.good(&generate(&gguf, &[]));
    assert_eq!(setup.list()[0]["quant"], "auto");
    assert!(setup.good(&["cache"]).0.contains("2 hours ago"));

    let error = setup.failure(&["cache", "rm", &folder, "nothing"]);
    assert!(error.contains("nothing: no conversion is called so") && setup.list().len() == 3, "{error}");
    setup.good(&["cache", "rm", last["name"].as_str().unwrap()]);
    assert_eq!(setup.list().len(), 2);
    let (removed, _) = setup.good(&["cache", "rm", &gguf, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&removed).unwrap()["conversions"].as_array().unwrap().len(), 2);
    assert_eq!(setup.kept(), [""; 0]);
    assert_eq!(setup.run(&["cache", "rm"]).status.code(), Some(2));
    setup.good(&generate(&folder, &[]));
    setup.good(&["cache", "rm", "--all"]);
    assert_eq!(setup.kept(), [""; 0]);
}

#[test]
fn what_cannot_be_is_one_line() {
    let setup = Setup::new();
    let model = setup.copy("qwen3.gguf");
    setup.good(&generate(&model, &[]));
    fs::remove_file(&model).unwrap();
    let error = setup.failure(&generate(&model, &[]));
    assert!(
        error.contains("qwen3.gguf: No such file") && error.contains("is still there, name that instead: "),
        "{error}"
    );
    let left = error.rsplit(": ").next().unwrap();
    setup.good(&generate(left, &[]));
    assert!(!setup.failure(&generate("no-such.gguf", &[])).contains("still there"));

    // A folder without a model, and a damaged file: nothing is left.
    let empty = setup.path("empty");
    fs::create_dir(&empty).unwrap();
    assert!(setup.failure(&generate(empty.to_str().unwrap(), &[])).contains("has no config.json"));
    let damaged = setup.path("damaged.gguf");
    fs::write(&damaged, &fs::read(fixture("qwen3.gguf")).unwrap()[..60_000]).unwrap();
    setup.failure(&generate(damaged.to_str().unwrap(), &[]));
    assert_eq!(setup.kept().len(), 1);

    // A cache that cannot be.
    let other = fixture("qwen2.gguf");
    let mut command = setup.command(&generate(other.to_str().unwrap(), &[]));
    command.env("TORCHLESS_CACHE", setup.path("damaged.gguf"));
    assert!(failure(command).contains("damaged.gguf/converted: "));
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_one_line_and_leaves_nothing() {
    let setup = Setup::new();
    let model = setup.copy("qwen3.gguf");
    // As a disk that is full: no file may have more than 20 blocks.
    let program = env!("CARGO_BIN_EXE_torchless");
    let mut command = Command::new("sh");
    command.env("TORCHLESS_CACHE", setup.path("cache")).env_remove("TORCHLESS_MODEL");
    command.args(["-c", &format!("ulimit -f 20; exec {program} generate -m {model} she")]);
    let error = failure(command);
    assert!(error.contains("cache/converted: ") && error.contains("TORCHLESS_CACHE"), "{error}");
    assert_eq!(setup.kept(), [""; 0]);
}

#[test]
fn a_model_of_the_hub_is_fetched_once_and_converted_once() {
    let setup = Setup::new();
    let folder = fs::read_dir(fixture("mistral-hf")).unwrap().map(|entry| entry.unwrap().path());
    let file =
        |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
    let mut files: Vec<_> = folder.map(file).collect();
    files.push(("f32/m-F32.gguf".to_owned(), fs::read(fixture("qwen3.gguf")).unwrap()));
    let server = StandIn::new(files.clone());
    let command = |args: &[&str]| {
        let mut command = setup.command(args);
        command.env("HF_ENDPOINT", server.endpoint());
        command
    };
    let (path, _) = good(command(&["pull", "hf:org/tiny"]));
    assert!(
        Path::new(path.trim_end()).join("config.json").is_file()
            && path.contains("/hf/hub/models--org--tiny/")
    );
    let model = fixture("mistral-hf");
    let expected = setup.good(&generate(model.to_str().unwrap(), &[])).0;
    let mut offline = command(&["tokenize", "-m", "hf:org/tiny", "she", "--quant", "f32"]);
    offline.env("HF_HUB_OFFLINE", "1");
    assert_eq!(good(offline).1.lines().count(), 1, "only that it is converted");
    let (text, said) = good(command(&generate("hf:org/tiny", &[])));
    assert!(text == expected && said.starts_with("Converting hf:org/tiny "), "{said}");
    server.asked();
    assert_eq!(good(command(&generate("hf:org/tiny", &[]))), (expected.clone(), String::new()));
    assert!(server.asked().is_empty(), "what was used before needs no hub");
    let mut chat = command(&["chat", "hf:org/tiny", "she", "--chat-template", "chatml", "-n", "4"]);
    chat.env("HF_HUB_OFFLINE", "1");
    good(chat);

    // A GGUF file of it, and by its name in full.
    let (_, said) = good(command(&generate("hf:org/tiny:F32", &[])));
    assert!(
        said.contains("Fetching hf:org/tiny:F32, once")
            && said.contains("Converting hf:org/tiny:f32/m-F32.gguf"),
        "{said}"
    );
    assert_eq!(good(command(&generate("hf:org/tiny:f32/m-F32.gguf", &[]))).1, "");
    let to = setup.path("to.bin");
    good(command(&["convert", "hf:org/tiny", to.to_str().unwrap()]));
    assert_eq!(setup.good(&generate(to.to_str().unwrap(), &[])).0, expected);
    let mut here = command(&["convert", "hf:org/tiny"]);
    good({
        here.current_dir(setup.root.path());
        here
    });
    assert!(setup.path("tiny.bin").is_file());

    // What can be had again need not be kept twice.
    let models = setup.path("hf/hub/models--org--tiny");
    fs::rename(&models, setup.path("elsewhere")).unwrap();
    server.asked();
    for name in ["hf:org/tiny", "hf:org/tiny:F32", "hf:org/tiny:f32/m-F32.gguf"] {
        assert_eq!(good(command(&generate(name, &[]))).1, "", "{name}");
    }
    assert!(server.asked().is_empty());
    fs::rename(setup.path("elsewhere"), models).unwrap();

    // Something newer comes when it is pulled, and not before.
    server.commit(files.into_iter().filter(|(name, _)| name != "tokenizer_config.json").collect());
    assert_eq!(good(command(&generate("hf:org/tiny", &[]))).1, "");
    good(command(&["pull", "hf:org/tiny"]));
    assert!(good(command(&generate("hf:org/tiny", &[]))).1.starts_with("Converting "));
    let sources: Vec<_> =
        setup.list().iter().map(|kept| kept["source"].as_str().unwrap().to_owned()).collect();
    assert_eq!(sources.iter().filter(|source| *source == "hf:org/tiny").count(), 1);
    good(command(&["cache", "rm", "hf:org/tiny"]));

    assert!(failure(command(&["pull", "hf:org/none"])).contains("hf:org/none: there is none"));
    assert!(failure(command(&["pull", "hf:org"])).contains("write hf:ORG/NAME"));
    assert_eq!(command(&["pull", "org/tiny"]).output().unwrap().status.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn a_pull_that_is_ended_goes_on_where_it_was() {
    use rustix::process::{Pid, Signal, kill_process};
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::KILL, None)] {
        let setup = Setup::new();
        let content = fs::read(fixture("qwen3.gguf")).unwrap();
        let server = StandIn::new(vec![("m.gguf".to_owned(), content.clone())]);
        let pull = || {
            let mut command = setup.command(&["pull", "hf:org/tiny"]);
            command.env("HF_ENDPOINT", server.endpoint());
            command
        };
        server.meet(|asked| (!asked.of_hub).then_some(Fault::Stall(50_000)));
        let mut child = pull().stderr(std::process::Stdio::null()).spawn().unwrap();
        let digest = etag("m.gguf", &content);
        let partial = setup.path("hf/hub/models--org--tiny/blobs").join(format!("{digest}.incomplete"));
        while fs::metadata(&partial).map_or(0, |found| found.len()) < 50_000 {
            std::thread::sleep(Duration::from_millis(5));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), code);
        server.meet(|_| None);
        server.asked();
        let (path, _) = good(pull());
        assert!(fs::read(path.trim_end()).unwrap() == content && !partial.exists());
        let asked = server.asked().into_iter().find(|asked| !asked.of_hub).unwrap();
        assert_eq!(asked.headers["range"], "bytes=50000-");
    }
}

#[test]
fn either_part_names_one_model() {
    let setup = Setup::new();
    let (one, two) = (setup.path("m-00001-of-00002.gguf"), setup.path("m-00002-of-00002.gguf"));
    fs::copy(fixture("qwen3.gguf"), &one).unwrap();
    fs::copy(fixture("qwen3.gguf"), &two).unwrap();
    setup.good(&generate(two.to_str().unwrap(), &[]));
    assert_eq!(setup.good(&generate(one.to_str().unwrap(), &[])).1, "");
    assert!(setup.kept().len() == 1 && setup.kept()[0].starts_with("m-auto-"), "{:?}", setup.kept());
}

#[test]
fn the_token_comes_from_the_environment_or_a_file() {
    let setup = Setup::new();
    let server = StandIn::new(vec![("m.gguf".to_owned(), fs::read(fixture("qwen3.gguf")).unwrap())]);
    server.close();
    let pull = |token: Option<&str>| {
        let mut command = setup.command(&["pull", "hf:org/tiny"]);
        command.env("HF_ENDPOINT", server.endpoint() + "/");
        token.map(|token| command.env("HF_TOKEN", token));
        command
    };
    assert!(failure(pull(None)).contains("set HF_TOKEN"));
    assert!(failure(pull(Some("two\nlines"))).contains("HF_TOKEN: holds what no token does"));
    good(pull(Some(common::hub::TOKEN)));
    fs::remove_dir_all(setup.path("hf")).unwrap();
    fs::create_dir(setup.path("hf")).unwrap();
    fs::write(setup.path("hf/token"), format!("{}\n", common::hub::TOKEN)).unwrap();
    good(pull(None));
}
