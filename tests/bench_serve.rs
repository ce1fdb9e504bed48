//! `bench serve`: what it asks of a server is what it counts.

mod common {
    pub mod fixture;
}

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use common::fixture::fixture;

fn bench_serve(args: &[&str]) -> Output {
    bench_serve_with(args, &[])
}

fn bench_serve_with(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchless"));
    for variable in ["TORCHLESS_MODEL", "TORCHLESS_ISA", "TORCHLESS_API_KEY"] {
        command.env_remove(variable);
    }
    command.envs(variables.iter().copied()).args(["bench", "serve"]).args(args).output().unwrap()
}

fn good(args: &[&str]) -> String {
    let output = bench_serve(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_server_of_its_own_answers_as_many_as_are_asked_for() {
    let model = fixture("llama-int8.bin");
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("load.svg");
    let asked =
        ["-m", model.to_str().unwrap(), "--streams", "1,3", "-p", "5", "-n", "7", "-r", "2", "-t", "1"];
    let rows = good(&[&asked[..], &["--json", "--plot", picture.to_str().unwrap()]].concat());
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    let counts = |row: &Value| ["streams", "requests", "gen_tokens"].map(|key| row[key].as_u64().unwrap());
    assert_eq!(rows.iter().map(counts).collect::<Vec<_>>(), [[1, 2, 7], [3, 6, 7]]);
    for row in &rows {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
        let tokens = number("requests") * number("gen_tokens");
        approx::assert_relative_eq!(number("tokens_per_s"), tokens / number("seconds"), max_relative = 1e-6);
        for times in ["first_token_ms", "gap_ms"].map(|key| row[key].as_array().unwrap().clone()) {
            let [median, most] = [0, 1].map(|i| times[i].as_f64().unwrap());
            assert!(median > 0.0 && most >= median, "{row}");
        }
        assert!(number("prompt_tokens") >= 5.0);
        assert_eq!(row["server"], "llama-int8");
    }
    assert_eq!(points(&picture), 2 * 3, "a point for each row in each of three lines");

    // A key in the environment is for others.
    let output = bench_serve_with(&asked, &[("TORCHLESS_API_KEY", "lamp")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = table.lines().filter(|line| line.starts_with('|')).collect();
    let widths: Vec<_> = lines.iter().map(|line| line.chars().count()).collect();
    assert_eq!(widths, [widths[0]; 4], "{table}");
}

fn points(svg: &Path) -> usize {
    let text = std::fs::read_to_string(svg).unwrap();
    let xml = roxmltree::Document::parse(&text).unwrap();
    xml.descendants().filter(|node| node.tag_name().name() == "circle").count()
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    let output = bench_serve(&["--url", &url]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.starts_with(&format!("error: {url}: ")), "{stderr}");
    // A server elsewhere has its model and its threads already.
    for wrong in [["--url", &url, "-t", "1"], ["--url", &url, "-m", "x.bin"]] {
        assert_eq!(bench_serve(&wrong).status.code(), Some(2));
    }
}
