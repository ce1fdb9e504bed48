//! The order of the rooms: data flows one way, and no module needs one above it (docs/architecture.md).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders and files of `src/`, from the ground up. Those of one line do not know each other.
const FLOORS: [&[&str]; 12] = [
    &["error"],
    &["arch"],
    &["tokenizer"],
    &["parallel"],
    &["format"],
    &["kv"],
    &["model"],
    &["sampling"],
    &["runtime"],
    &["bench", "calibrate", "chat", "perplexity", "pull"],
    &["serve"],
    &["cli"],
];

/// What the library's root gives another name.
const RENAMED: [(&str, &str); 3] = [("Error", "error"), ("Malformed", "error"), ("Model", "model")];

/// Lines that a file may have without a reason.
const LINES: usize = 450;

/// Longer files, each with its reason.
const LONG: [(&str, &str); 0] = [];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// All Rust files below `folder`, relative to the repository's root.
fn files(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The room that a file of `src/` belongs to; `None` for the roots, which name all of them.
fn room_of(file: &Path) -> Option<String> {
    let first = file.components().nth(1)?;
    let room = Path::new(&first).file_stem()?.to_str()?.to_owned();
    (!["lib", "main"].contains(&room.as_str())).then_some(room)
}

/// The first names after each `prefix` in a file's code: of `crate::{arch::Config, Error}` both `arch` and `Error`.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let name = |text: &str| {
        text.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
    };
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        // Part of a longer word, such as `other_crate::`.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.extend(name(rest));
            continue;
        };
        let (mut depth, mut expected) = (1, true);
        for (i, c) in group.char_indices() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if depth == 0 {
                break;
            }
            if expected && !c.is_whitespace() {
                names.extend(name(&group[i..]));
                expected = false;
            }
            expected |= depth == 1 && c == ',';
        }
    }
    names
}

/// The rooms that a file's code names, its own left out.
fn rooms_named(file: &Path, text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |code, line| code + line + "\n");
    let depth = file.components().count() - 1 - usize::from(file.file_name().unwrap() == "mod.rs");
    let out_of_the_room = "super::".repeat(depth);
    let prefixes = ["crate::", "torchless::", &out_of_the_room];
    let names = prefixes.iter().flat_map(|prefix| names_after(&code, prefix));
    let rooms = names.map(|name| match RENAMED.iter().find(|(short, _)| *short == name) {
        Some((_, room)) => (*room).to_owned(),
        None => name,
    });
    let own = room_of(file);
    rooms.filter(|room| floor(room).is_some() && Some(room) != own.as_ref()).collect()
}

/// The arrows of one file that do not point down.
fn wrong_arrows(file: &Path, text: &str) -> Vec<String> {
    let Some(own) = room_of(file) else { return Vec::new() };
    let Some(at) = floor(&own) else {
        return vec![format!("{}: the room {own} is not on the list of tests/house.rs", file.display())];
    };
    let up = rooms_named(file, text).into_iter().filter(|room| floor(room) >= Some(at));
    up.map(|room| format!("{}: {own} → {room}", file.display())).collect()
}

#[test]
fn no_room_needs_one_above_it() {
    let files = files("src");
    assert!(files.len() > 80, "only {} files", files.len());
    let wrong: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
            wrong_arrows(file, &text)
        })
        .collect();
    assert!(wrong.is_empty(), "arrows that do not point down:\n{}", wrong.join("\n"));
}

#[test]
fn arrows_are_found_however_they_are_written() {
    let arrows = |file: &str, text: &str| wrong_arrows(Path::new(file), text);
    for (file, text, expected) in [
        ("src/format/bin/mod.rs", "use crate::model::Model;", "format → model"),
        ("src/format/convert.rs", "use crate::{Error, Model};", "format → model"),
        ("src/kv/cache.rs", "use crate::{\n    Error,\n    runtime::{Session, Piece},\n};", "kv → runtime"),
        ("src/model/linear.rs", "fn f() { super::super::runtime::generate() }", "model → runtime"),
        ("src/model/attention/mod.rs", "use super::super::kv::A;\nuse crate::chat::Chat;", "model → chat"),
        ("src/chat/mod.rs", "let x: crate::bench::Test;", "chat → bench"),
        ("src/perplexity.rs", "use super::pull;", "perplexity → pull"),
        ("src/chat/mod.rs", "use crate::serve::Server;", "chat → serve"),
        ("src/attic/mod.rs", "", "the room attic is not on the list"),
    ] {
        let found = arrows(file, text);
        assert!(found.len() == 1 && found[0].contains(expected), "{file}: {found:?}");
    }
    for (file, text) in [
        (
            "src/model/mod.rs",
            "use crate::{Error, arch::Config};\n// use crate::runtime::Session;\nuse super::kv::A;",
        ),
        ("src/runtime/session.rs", "use super::generate::Piece;\nuse crate::model::Model;"),
        (
            "src/serve/service.rs",
            "use super::engine::Engine;\nuse crate::{chat::ChatTemplate, runtime::Scheduler};",
        ),
        ("src/cli/bench/plot.rs", "use super::super::plot::Picture;\nuse torchless::bench::Test;"),
        ("src/lib.rs", "pub mod cli;"),
    ] {
        assert_eq!(arrows(file, text), [""; 0], "{file}");
    }
}

#[test]
fn long_files_have_a_reason() {
    let mut long = Vec::new();
    for file in [files("src"), files("kernels/src")].concat() {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file)).unwrap();
        let excused = LONG.iter().any(|(name, reason)| Path::new(name) == file && !reason.is_empty());
        match text.lines().count() {
            n if n > LINES && !excused => long.push(format!("{}: {n} lines", file.display())),
            n => assert!(n > LINES || !excused, "{} is short now: take it off the list", file.display()),
        }
    }
    assert!(long.is_empty(), "split them, or give the reason:\n{}", long.join("\n"));
}
