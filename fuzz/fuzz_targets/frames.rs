#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowcast::fuzzing::frames(data));
