//! Any bytes as a `.bin` file: refused, or opened and run.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    torchless_fuzz::run(&torchless_fuzz::write("model.bin", data));
});
