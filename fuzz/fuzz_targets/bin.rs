//! Any bytes as a `.bin` file: refused, or opened and run; and as a source: refused, or stored in another way, opened and run.
#![no_main]

use torchless::format::convert::Quant;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let path = torchless_fuzz::write("model.bin", data);
    torchless_fuzz::run(&path);
    torchless_fuzz::convert_and_run(&path, Quant::Int8);
});
