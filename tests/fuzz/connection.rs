#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pitstop::proxy::fuzzing::connection(input));
