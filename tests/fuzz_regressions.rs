//! Replays the seeds of the fuzzers, and every input that ever made one of them fail, through the same functions.

use std::fs;
use std::path::{Path, PathBuf};

/// Files of a directory, sorted by name; none if it does not exist, as git keeps no empty ones.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn what_fuzzing_found_stays_mended() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    for (name, target) in fuzz_targets::TARGETS {
        let seeds = files(&fuzz.join("corpus").join(name));
        assert!(!seeds.is_empty(), "{name} has no seeds, so this test proves nothing for it");
        for file in seeds.into_iter().chain(files(&fuzz.join("crashes").join(name))) {
            println!("{}", file.display());
            target(&fs::read(&file).unwrap());
        }
    }
}

/// A directory whose target was renamed would be skipped in silence.
#[test]
fn every_directory_belongs_to_a_target() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    for kind in ["corpus", "crashes"] {
        for directory in files(&fuzz.join(kind)) {
            let name = directory.file_name().unwrap().to_str().unwrap();
            assert!(fuzz_targets::TARGETS.iter().any(|(known, _)| *known == name), "{}", directory.display());
        }
    }
}
