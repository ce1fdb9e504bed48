//! Fetching models from a hub, which here is a stand-in on this machine.

mod common {
    pub mod fixture;
    #[allow(dead_code, reason = "processes that are ended are tested in tests/kept.rs")]
    pub mod hub;
}

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use torchless::pull::{Fetched, Hub};

use common::fixture::fixture;
use common::hub::{Asked, Fault, REPOSITORY, StandIn, TOKEN, etag};

/// A file, by name.
fn file(name: &str, content: impl Into<Vec<u8>>) -> (String, Vec<u8>) {
    (name.to_owned(), content.into())
}

/// The files of a folder.
fn files_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| file(entry.file_name().to_str().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// A repository with a model in shards, and with what is not read of it.
fn repository() -> Vec<(String, Vec<u8>)> {
    let mut files = files_of(&fixture("mistral-hf"));
    let others =
        ["README.md", "pytorch_model.bin", "consolidated.safetensors", "original/params.json", "m-Q8_0.gguf"];
    files.extend(others.map(|name| file(name, format!("this is {name}"))));
    files
}

fn gguf() -> Vec<u8> {
    fs::read(fixture("qwen3.gguf")).unwrap()
}

struct Setup {
    server: StandIn,
    hub: Hub,
    _folder: TempDir,
}

impl Setup {
    fn new(files: Vec<(String, Vec<u8>)>) -> Self {
        let (server, folder) = (StandIn::new(files), tempfile::tempdir().unwrap());
        let hub = Hub {
            endpoint: server.endpoint(),
            cache: folder.path().join("hub"),
            token: None,
            certificates: None,
            offline: false,
            pause: Duration::from_millis(1),
        };
        Self { server, hub, _folder: folder }
    }

    fn fetch(&self, name: &str) -> Result<Fetched, String> {
        let result = self.hub.fetch(&name.parse().unwrap(), &mut |_| ControlFlow::Continue(()));
        result.map_err(|error| one_line(&error))
    }

    /// The path of what is fetched, which must go well.
    fn path(&self, name: &str) -> PathBuf {
        let Fetched { path, not_asked } = self.fetch(name).unwrap();
        assert_eq!(not_asked, None);
        path
    }

    fn error(&self, name: &str, expected: &str) {
        let error = self.fetch(name).unwrap_err();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }

    fn repository(&self) -> PathBuf {
        self.hub.cache.join("models--org--tiny")
    }

    /// The names of the files whose content is kept.
    fn blobs(&self) -> Vec<String> {
        let mut names: Vec<_> =
            files_of(&self.repository().join("blobs")).into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    }

    /// As many bytes of large files as are asked for from each position.
    fn ranges(&self) -> Vec<String> {
        let asked = self.server.asked().into_iter().filter(|asked| !asked.of_hub);
        asked.map(|asked| asked.headers.get("range").cloned().unwrap_or_default()).collect()
    }
}

fn one_line(error: &torchless::Error) -> String {
    let message = error.to_string();
    assert_eq!(message.lines().count(), 1, "not one line: {message:?}");
    message
}

/// Faults of what is large, each once, in this order.
fn in_turn(faults: Vec<Fault>) -> impl Fn(&Asked) -> Option<Fault> + Send + Sync {
    let left = std::sync::Mutex::new(faults.into_iter());
    move |asked| if asked.of_hub { None } else { left.lock().unwrap().next() }
}

const MODEL: &str = "hf:org/tiny";

#[test]
fn only_what_is_read_comes_into_the_cache_that_others_share() {
    let setup = Setup::new(repository());
    let path = setup.path(MODEL);
    assert_eq!(path, setup.repository().join("snapshots").join("1".repeat(40)));
    let (mut found, mut expected) = (files_of(&path), files_of(&fixture("mistral-hf")));
    found.sort();
    expected.sort();
    assert!(found == expected);
    assert_eq!(fs::read_to_string(setup.repository().join("refs/main")).unwrap(), "1".repeat(40));
    let mut blobs: Vec<_> = expected.iter().map(|(name, content)| etag(name, content)).collect();
    blobs.sort();
    assert_eq!(setup.blobs(), blobs);
    #[cfg(unix)]
    for (name, content) in &expected {
        let link = fs::read_link(path.join(name)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(etag(name, content)));
    }
}

#[test]
fn what_is_here_is_not_fetched_again() {
    let setup = Setup::new(repository());
    let path = setup.path(MODEL);
    setup.server.asked();
    assert_eq!(setup.path(MODEL), path);
    let asked = setup.server.asked();
    assert!(asked.len() == 1 && asked[0].path.starts_with("/api/models/"), "{asked:?}");
    // A commit that changes one file fetches one, and others' snapshots stay.
    let mut files = repository();
    files.retain(|(name, _)| name != "config.json");
    let config = fs::read_to_string(fixture("mistral-hf").join("config.json")).unwrap() + "\n";
    files.push(file("config.json", config.clone()));
    setup.server.commit(files);
    let newer = setup.path(MODEL);
    assert!(newer.ends_with("2".repeat(40)) && path.join("config.json").is_file());
    assert_eq!(fs::read_to_string(newer.join("config.json")).unwrap(), config);
    let resolved = setup.server.asked().into_iter().filter(|asked| asked.path.contains("/resolve/"));
    let resolved: Vec<_> = resolved.map(|asked| asked.path).collect();
    assert!(resolved.len() == 1 && resolved[0].ends_with("/config.json"), "{resolved:?}");
}

#[test]
fn what_other_tools_fetched_is_used() {
    let setup = Setup::new(repository());
    let elsewhere = Setup::new(repository());
    elsewhere.path(MODEL);
    fs::create_dir_all(&setup.hub.cache).unwrap();
    fs::rename(elsewhere.repository(), setup.repository()).unwrap();
    let mut hub = setup.hub.clone();
    hub.offline = true;
    let reference = MODEL.parse().unwrap();
    let path = hub.find(&reference).unwrap();
    let fetched = hub.fetch(&reference, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((fetched.path, fetched.not_asked.as_deref()), (path.clone(), Some("HF_HUB_OFFLINE is set")));
    assert!(setup.server.asked().is_empty());
    // A file that another process has not fetched yet.
    fs::remove_file(path.join("model-00002-of-00002.safetensors")).unwrap();
    let error = one_line(&hub.find(&reference).unwrap_err());
    assert!(error.contains("is not in /") && error.contains("without HF_HUB_OFFLINE"), "{error}");
    // Its content is there, and only named.
    assert_eq!(setup.path(MODEL), path);
    assert!(setup.server.asked().iter().all(|asked| asked.of_hub && !asked.path.contains("/resolve/")));
    let unknown = "hf:org/tiny@refs/pr/1".parse().unwrap();
    assert!(hub.find(&unknown).is_err());
}

#[test]
fn a_download_that_breaks_goes_on_where_it_was() {
    let setup = Setup::new(vec![file("tiny.gguf", gguf())]);
    setup.server.meet(in_turn(vec![Fault::Break(40_000), Fault::Break(0), Fault::Break(30_000)]));
    let path = setup.path(MODEL);
    assert!(fs::read(path).unwrap() == gguf());
    assert_eq!(setup.ranges(), ["", "bytes=40000-", "bytes=40000-", "bytes=70000-"]);
}

#[test]
fn broken_off_it_is_resumed_by_the_next() {
    let setup = Setup::new(vec![file("tiny.gguf", gguf())]);
    let reference = MODEL.parse().unwrap();
    setup.server.meet(in_turn(vec![Fault::Break(50_000)]));
    let interrupted = setup.hub.fetch(&reference, &mut |at| {
        if at.done > 0 && at.done < at.total { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(interrupted, Err(torchless::Error::Interrupted)));
    let incomplete = format!("{}.incomplete", etag("tiny.gguf", &gguf()));
    assert_eq!(setup.blobs(), [incomplete]);
    assert!(setup.hub.find(&reference).is_err());
    setup.server.asked();
    let path = setup.path(MODEL);
    assert!(fs::read(path).unwrap() == gguf());
    let ranges = setup.ranges();
    assert!(ranges.len() == 1 && ranges[0].starts_with("bytes="), "{ranges:?}");
    assert_eq!(setup.blobs(), [etag("tiny.gguf", &gguf())]);
}

#[test]
fn servers_without_ranges_are_put_up_with() {
    let setup = Setup::new(vec![file("tiny.gguf", gguf())]);
    setup.server.meet(in_turn(vec![Fault::Break(40_000), Fault::NoRanges]));
    assert!(fs::read(setup.path(MODEL)).unwrap() == gguf());
    // What lies there is longer than the file, or as long and another.
    for beginning in [vec![7; gguf().len() + 1], vec![7; gguf().len()], vec![7; 1000]] {
        let setup = Setup::new(vec![file("tiny.gguf", gguf())]);
        let blobs = setup.repository().join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.incomplete", etag("tiny.gguf", &gguf()))), beginning).unwrap();
        assert!(fs::read(setup.path(MODEL)).unwrap() == gguf());
    }
}

#[test]
fn what_comes_to_another_checksum_is_not_taken() {
    let setup = Setup::new(vec![file("tiny.gguf", gguf())]);
    setup.server.meet(in_turn(vec![Fault::Damage]));
    assert!(fs::read(setup.path(MODEL)).unwrap() == gguf());

    for (name, of_hub) in [("tiny.gguf", false), ("config.json", true)] {
        let setup = Setup::new(repository().into_iter().chain([file("tiny.gguf", gguf())]).collect());
        setup.server.meet(move |asked| {
            (asked.of_hub == of_hub && !asked.path.contains("/api/")).then_some(Fault::Damage)
        });
        let model = if of_hub { MODEL } else { "hf:org/tiny:tiny.gguf" };
        setup.error(model, &format!("{name}: it comes to the checksum "));
        assert!(setup.hub.find(&model.parse().unwrap()).is_err());
    }
    let setup = Setup::new(vec![file("tiny.gguf", gguf())]);
    setup.server.meet(|asked| (!asked.of_hub).then_some(Fault::Longer));
    setup.error(MODEL, "it is longer than 114912 bytes");
}

#[test]
fn a_server_without_time_is_waited_for() {
    let setup = Setup::new(repository());
    let left = std::sync::Mutex::new(0);
    setup.server.meet(move |_| {
        let mut n = left.lock().unwrap();
        *n += 1;
        let busy =
            [Fault::Status(429, &[("Retry-After", "0")]), Fault::Status(503, &[]), Fault::Status(500, &[])];
        (*n % 4 == 1 || *n % 4 == 2).then(|| busy[*n % 3])
    });
    setup.path(MODEL);

    let setup = Setup::new(repository());
    setup.server.meet(|_| Some(Fault::Status(429, &[("Retry-After", "100000")])));
    setup.error(MODEL, "the server answers with status 429; try again in 100000 s");
    setup.server.meet(|_| Some(Fault::Status(502, &[])));
    setup.server.asked();
    setup.error(MODEL, "the server answers with status 502, 5 times: try again later");
    assert_eq!(setup.server.asked().len(), 5);
}

#[test]
fn only_the_hub_is_shown_the_token() {
    let mut setup = Setup::new(repository());
    setup.server.close();
    setup.error(MODEL, "is only for those who were let in: ask at http://127.0.0.1");
    setup.hub.token = Some("hf_other".to_owned());
    setup.error(MODEL, "is only for those who were let in");
    setup.hub.token = Some(TOKEN.to_owned());
    setup.server.asked();
    setup.path(MODEL);
    let asked = setup.server.asked();
    for asked in &asked {
        assert_eq!(asked.headers.contains_key("authorization"), asked.of_hub, "{asked:?}");
    }
    assert!(asked.iter().any(|asked| !asked.of_hub));
}

#[test]
fn a_mirror_that_lists_no_checksums_is_asked_for_each() {
    let setup = Setup::new(repository());
    setup.server.tell_no_blobs();
    let path = setup.path(MODEL);
    let (mut found, mut expected) = (files_of(&path), files_of(&fixture("mistral-hf")));
    found.sort();
    expected.sort();
    assert!(found == expected);
    let asked = setup.server.asked();
    let heads = asked.iter().filter(|asked| asked.method == "HEAD" && asked.path.contains("/resolve/"));
    assert_eq!(heads.count(), expected.len());
    assert!(
        asked.iter().all(|asked| asked.of_hub || asked.method == "GET"),
        "the hub itself knows the checksums"
    );
}

#[test]
fn what_is_not_there_is_said() {
    let mut setup = Setup::new(repository());
    let unknown = "hf:org/other".to_owned();
    setup.error(&unknown, "hf:org/other: there is none, or it is private: check the name, or set HF_TOKEN");
    setup.hub.token = Some(TOKEN.to_owned());
    setup.error(&unknown, "there is none, or your token (HF_TOKEN) does not open it");
    setup.error("hf:org/tiny@v9", "there is no revision v9 at http://127.0.0.1");
    setup.error("hf:org/tiny:Q2_K", "hf:org/tiny:Q2_K: holds no such GGUF file, but m-Q8_0");
    setup.path("hf:org/tiny@refs/pr/1");
    assert!(setup.repository().join("refs/refs/pr/1").is_file());

    setup.hub.offline = true;
    setup.error("hf:org/other", "hf:org/other: is not in ");

    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    setup.hub.offline = false;
    setup.hub.endpoint = format!("http://{closed}");
    setup.error("hf:org/other", &format!("http://{closed} is out of reach ("));
    let fetched = setup.fetch("hf:org/tiny@refs/pr/1").unwrap();
    assert!(fetched.not_asked.is_some() && fetched.path.join("config.json").is_file());

    let setup = Setup::new(vec![file("config.json", "{}"), file("pytorch_model.bin", "x")]);
    setup.error(MODEL, "holds neither model.safetensors nor a GGUF file, but pytorch_model.bin");
}

#[test]
fn parts_of_a_gguf_file_come_together() {
    let parts = ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"];
    let files = [
        ("m-Q4_0.gguf", gguf()),
        (parts[0], vec![1; 10]),
        (parts[1], vec![2; 20]),
        ("mmproj.gguf", vec![3; 5]),
    ];
    let setup = Setup::new(files.map(|(name, content)| file(name, content)).into());
    setup.error(
        MODEL,
        "hf:org/tiny: holds 2 models, Q4_0 (0.00 GB), Q8_0 (0.00 GB): name one, such as hf:org/tiny:Q4_0",
    );
    let path = setup.path("hf:org/tiny:q8_0");
    assert!(path.ends_with(parts[0]) && path.with_file_name(parts[1]).is_file());
    assert_eq!(files_of(path.parent().unwrap()).len(), 2);
    assert_eq!(setup.path(&format!("hf:org/tiny:{}", parts[1])), path);
}

#[test]
fn hostile_answers_write_nothing_outside_the_cache() {
    let index = r#"{"weight_map": {"a": "../../../../escaped.safetensors"}}"#;
    let setup = Setup::new(vec![
        file("config.json", "{}"),
        file("model.safetensors.index.json", index),
        file("../../../../escaped.safetensors", "x"),
        file("../../../../../escaped.gguf", "x"),
    ]);
    setup.error(MODEL, "not a file in this folder");
    let above = setup.hub.cache.parent().unwrap();
    assert_eq!(fs::read_dir(above).unwrap().count(), 1, "only the cache");
    assert!(!setup.hub.cache.join("escaped.safetensors").exists());
    for answer in ["https://127.0.0.1:1/x", "file:///etc/passwd", ""] {
        let setup = Setup::new(vec![file("tiny.gguf", gguf())]);
        let headers: &'static [(&str, &str)] = vec![("Location", answer)].leak();
        setup
            .server
            .meet(move |asked| asked.path.contains("/resolve/").then_some(Fault::Status(302, headers)));
        assert!(setup.fetch(MODEL).is_err());
    }
    // In a circle.
    let setup = Setup::new(vec![file("tiny.gguf", gguf())]);
    let circle = &[("Location", "/round")];
    setup.server.meet(move |asked| (!asked.path.contains("/api/")).then_some(Fault::Status(302, circle)));
    setup.error(MODEL, "leads from one address to another without end");
}

#[test]
fn several_at_once_fetch_one_file() {
    let setup = Setup::new(vec![file("tiny.gguf", gguf())]);
    let paths: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| setup.path(MODEL))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(paths.iter().all(|path| *path == paths[0]) && fs::read(&paths[0]).unwrap() == gguf());
    assert_eq!(setup.ranges().len(), 1, "of {REPOSITORY}");
}
