//! What the fuzz targets share: a folder in memory to work in, and what must hold of a model that opens.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use torchless::format::convert::{Quant, convert};
use torchless::kernels::{Isa, Kernels};
use torchless::Model;
use torchless::runtime::{GenerateOptions, Session, SessionOptions, generate};

/// The folder of this process, on tmpfs where there is one.
pub static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("torchless-fuzz.").tempdir_in(parent).expect("a folder to work in").keep()
});

/// Opens a `.bin` file and, where that goes well, has it say two tokens.
pub fn run(path: &Path) {
    let Ok(model) = Model::open(path).map(Arc::new) else { return };
    let kernels = Kernels::new(Isa::Portable).expect("every CPU has it");
    let ctx = model.config().max_position_embeddings.min(16);
    let options = SessionOptions { ctx, threads: 1, chunk: 4, kernels, ..SessionOptions::new(&model) };
    let prompt = model.tokenizer().encode("the rain <s> é", Default::default());
    let Ok(mut session) = Session::new(&model, &options) else { return };
    let options = GenerateOptions {
        max_tokens: 2,
        stop: vec!["ab".to_owned()],
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let _ = generate(&mut session, &prompt, &options, |_| ControlFlow::Continue(()));
}

/// Converts a source; what comes out must open.
pub fn convert_and_run(source: &Path, quant: Quant) {
    let converted = FOLDER.join("converted.bin");
    if convert(source, &converted, quant, &mut |_| ControlFlow::Continue(())).is_ok() {
        Model::open(&converted).expect("what convert wrote opens");
        run(&converted);
        fs::remove_file(&converted).expect("it was there");
    }
    let left: Vec<_> = fs::read_dir(&*FOLDER).expect("our folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 1, "beside the source there is {left:?}");
}

/// Writes a file into the folder.
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.join(name);
    fs::write(&path, bytes).expect("our folder takes files");
    path
}
