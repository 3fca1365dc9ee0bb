//! Runs a target on files: `cargo run -p fuzz-targets --example replay -- TARGET FILE...` in tests/fuzz.

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().expect("a target's name");
    let (_, target) = fuzz_targets::TARGETS.iter().find(|(known, _)| *known == name).expect("a known target");
    for file in arguments {
        println!("{file}");
        target(&std::fs::read(file).expect("a file that can be read"));
    }
}
