//! Any bytes as a GGUF file: refused, or converted to a model that opens and runs.
#![no_main]

use torchless::format::convert::Quant;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    torchless_fuzz::convert_and_run(&torchless_fuzz::write("model.gguf", data), Quant::Int8);
});
