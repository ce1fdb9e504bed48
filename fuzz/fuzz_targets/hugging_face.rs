//! A Hugging Face folder one of whose files is any bytes: refused, or converted to a model that opens and runs.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use torchless::format::convert::Quant;
use torchless_fuzz::FOLDER;

macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../tests/fixtures/convert/hf/", $name)).as_slice())
    };
}

const FILES: [(&str, &[u8]); 5] = [
    file!("config.json"),
    file!("tokenizer.json"),
    file!("tokenizer_config.json"),
    file!("generation_config.json"),
    file!("model.safetensors"),
];

/// The whole folder, to be damaged.
static SOURCE: LazyLock<PathBuf> = LazyLock::new(|| {
    let source = FOLDER.join("hf");
    fs::create_dir(&source).expect("our folder takes folders");
    for (name, content) in FILES {
        fs::write(source.join(name), content).expect("our folder takes files");
    }
    source
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The first byte says which file the rest is.
    let Some((&which, data)) = data.split_first() else { return };
    let (name, whole) = FILES[usize::from(which) % FILES.len()];
    let damaged = match name.ends_with(".safetensors") && which < 128 {
        // The header alone: its size and the tensors' data are put to it.
        true => {
            let header = whole.first_chunk().map_or(0, |size| u64::from_le_bytes(*size) as usize);
            [&(data.len() as u64).to_le_bytes()[..], data, &whole[8 + header..]].concat()
        }
        false => data.to_vec(),
    };
    let path = SOURCE.join(name);
    fs::write(&path, damaged).expect("our folder takes files");
    torchless_fuzz::convert_and_run(&SOURCE, Quant::Int8Proj);
    fs::write(&path, whole).expect("our folder takes files");
});
