//! How the result comes to be: all at once, or not at all.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use torchless::format::convert::{Quant, RowLayout, Storage, convert};

use crate::fixture;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn error(src: &Path, dst: &Path) -> String {
    convert(src, dst, Quant::F32, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
}

#[test]
fn an_existing_file_is_replaced_by_success_only() {
    let folder = tempfile::tempdir().unwrap();
    let dst = folder.path().join("model.bin");
    fs::write(&dst, "old").unwrap();

    let damaged = folder.path().join("damaged.gguf");
    let mut bytes = fs::read(fixture("tiny.gguf")).unwrap();
    // The last tensor's last value becomes a NaN: everything else is written before it is found.
    let end = bytes.len();
    bytes[end - 64..].fill(0xff);
    fs::write(&damaged, bytes).unwrap();
    let mut steps = 0;
    let result = convert(&damaged, &dst, Quant::F32, &mut |_| {
        steps += 1;
        let temporaries = names(folder.path()).into_iter().filter(|name| name.ends_with(".partial"));
        assert_eq!(temporaries.count(), 1, "beside the destination, under a name that says so");
        assert_eq!(fs::read(&dst).unwrap(), b"old");
        ControlFlow::Continue(())
    });
    assert!(result.unwrap_err().to_string().contains("NaN"));
    assert!(steps > 10, "the failure came after {steps} steps");
    assert_eq!(fs::read(&dst).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["damaged.gguf", "model.bin"]);

    convert(&fixture("tiny.gguf"), &dst, Quant::F32, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(fs::read(&dst).unwrap().len() > 100_000);
    assert_eq!(names(folder.path()), ["damaged.gguf", "model.bin"]);
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let dst = folder.path().join("model.bin");
    fs::write(folder.path().join(".model.bin.abc123.partial"), "half").unwrap();
    fs::write(folder.path().join(".other.bin.abc123.partial"), "another's").unwrap();
    convert(&fixture("tiny.gguf"), &dst, Quant::F32, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(names(folder.path()), [".other.bin.abc123.partial", "model.bin"]);
}

/// Two at once: neither removes the other's temporary, and a whole file wins.
#[test]
fn conversions_to_one_file_at_the_same_time_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let dst = folder.path().join("model.bin");
    let run = |src: &str| convert(&fixture(src), &dst, Quant::F32, &mut |_| ControlFlow::Continue(()));
    std::thread::scope(|scope| {
        let runs: Vec<_> =
            (0..8).map(|i| scope.spawn(move || run(["tiny.gguf", "hf"][i % 2]).unwrap())).collect();
        runs.into_iter().for_each(|run| assert!(run.join().is_ok()));
    });
    assert_eq!(names(folder.path()), ["model.bin"]);
    torchless::Model::open(&dst).unwrap();
}

#[test]
fn destinations_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = fixture("tiny.gguf");
    assert!(error(&gguf, folder.path()).contains("is a folder"));
    assert!(error(&gguf, &folder.path().join("missing/model.bin")).contains("its folder does not exist"));
    assert!(error(&gguf, Path::new("/")).contains("is a folder"));
    assert!(error(&gguf, Path::new("")).contains("not a file name"));
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(error(&gguf, &file.join("model.bin")).contains("its folder does not exist"));
    let copy = folder.path().join("copy.gguf");
    fs::copy(&gguf, &copy).unwrap();
    assert!(error(&copy, &copy).contains("give another name"));
    assert_eq!(fs::read(&copy).unwrap(), fs::read(&gguf).unwrap());
    assert_eq!(names(folder.path()), ["copy.gguf", "file"]);
}

#[cfg(unix)]
#[test]
fn special_files_are_left_alone() {
    assert!(error(&fixture("tiny.gguf"), Path::new("/dev/null")).contains("not a regular file"));
    assert!(error(Path::new("/dev/null"), Path::new("unused.bin")).contains("not a regular file"));
}

#[cfg(unix)]
#[test]
fn the_result_has_the_permissions_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    let (dst, ordinary) = (folder.path().join("model.bin"), folder.path().join("ordinary"));
    fs::write(&ordinary, "").unwrap();
    convert(&fixture("tiny.gguf"), &dst, Quant::F32, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(mode(&dst), mode(&ordinary));
}

/// A result in the place of what it is made from would take the source away.
#[cfg(unix)]
#[test]
fn no_file_of_the_source_is_replaced() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    for source in
        [fixture("hf"), models.join("mistral-hf"), fixture("tiny.gguf"), models.join("mistral-int8.bin")]
    {
        let folder = tempfile::tempdir().unwrap();
        let src = folder.path().join("source");
        let files = match source.is_dir() {
            true => {
                fs::create_dir(&src).unwrap();
                for name in names(&source) {
                    fs::copy(source.join(&name), src.join(&name)).unwrap();
                }
                names(&src).into_iter().map(|name| src.join(name)).collect()
            }
            false => {
                fs::copy(&source, &src).unwrap();
                vec![src.clone()]
            }
        };
        for file in files {
            let before = fs::read(&file).unwrap();
            let (hard, soft) = (folder.path().join("hard"), folder.path().join("soft"));
            fs::hard_link(&file, &hard).unwrap();
            std::os::unix::fs::symlink(&file, &soft).unwrap();
            for dst in [&file, &hard, &soft] {
                let message = error(&src, dst);
                assert!(message.starts_with(dst.to_str().unwrap()), "{message}");
                assert!(message.contains("is read for it: give another name"), "{message}");
                assert_eq!(message.lines().count(), 1);
                assert!(fs::read(&file).unwrap() == before, "{} was replaced", file.display());
            }
            fs::remove_file(hard).unwrap();
            fs::remove_file(soft).unwrap();
        }
        assert_eq!(names(folder.path()), ["source"]);
        // What is not read of the folder is not to be lost either.
        for other in ["tokenizer.model", "pytorch_model.bin", "original.safetensors", "README.md"] {
            if src.is_dir() {
                let other = src.join(other);
                fs::write(
                    &other,
                    if other.extension().unwrap() == "safetensors" { "12345678{}" } else { "PK34" },
                )
                .unwrap();
                let message = error(&src, &other);
                assert!(message.contains("lies in the folder that is converted"), "{message}");
                assert!(fs::metadata(&other).unwrap().len() < 20, "{message}");
                fs::remove_file(&other).unwrap();
            }
        }
        // Beside them there is room.
        if src.is_dir() {
            convert(&src, &src.join("model.bin"), Quant::F32, &mut |_| ControlFlow::Continue(())).unwrap();
            convert(&src, &src.join("model.bin"), Quant::F32, &mut |_| ControlFlow::Continue(())).unwrap();
        }
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_is_replaced_keeps_its_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let dst = folder.path().join("model.bin");
    for mode in [0o600, 0o640, 0o444, 0o666] {
        fs::write(&dst, "old").unwrap();
        fs::set_permissions(&dst, fs::Permissions::from_mode(mode)).unwrap();
        convert(&fixture("tiny.gguf"), &dst, Quant::F32, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(fs::metadata(&dst).unwrap().permissions().mode() & 0o7777, mode);
        fs::remove_file(&dst).unwrap();
    }
}

#[test]
fn broken_off_it_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dst = folder.path().join("model.bin");
    let mut steps = 0;
    let result = convert(&fixture("hf"), &dst, Quant::F32, &mut |_| {
        steps += 1;
        if steps == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(torchless::Error::Interrupted)));
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn progress_counts_up_to_the_total() {
    let folder = tempfile::tempdir().unwrap();
    for quant in [Quant::F32, Quant::Int8] {
        let mut seen = Vec::new();
        let dst = folder.path().join("model.bin");
        convert(&fixture("hf"), &dst, quant, &mut |at| {
            seen.push((at.step.to_owned(), at.done, at.total));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen.len(), 21, "one a tensor, small as they are");
        assert!(seen.is_sorted_by(|a, b| a.1 < b.1 && a.2 == b.2));
        let (step, done, total) = seen.last().unwrap();
        assert_eq!((step.as_str(), done), ("lm_head.weight", total));
    }
}

#[test]
fn quant_reads_its_command_line_spelling() {
    for (name, quant) in [("int8", Quant::Int8), ("int8-proj", Quant::Int8Proj), ("f32", Quant::F32)] {
        assert_eq!(name.parse(), Ok(quant));
    }
    assert!("q4".parse::<Quant>().unwrap_err().contains("int8-proj, int4, int4:BITS, f32"));
    for (name, layout) in [("panels", RowLayout::Panels), ("rows", RowLayout::Rows)] {
        assert_eq!(name.parse(), Ok(layout));
    }
    assert!("columns".parse::<RowLayout>().unwrap_err().contains("panels, rows"));
    assert_eq!(Storage::from(Quant::Int8), Quant::Int8.laid_out(RowLayout::Panels));
    assert_eq!(Storage::from(Quant::Int8Proj), Quant::Int8Proj.laid_out(RowLayout::Rows));
}
