//! Tells what has changed in the crates' public interfaces since their baselines (`tests/api/CRATE.txt`), and fails where
//! that may break somebody's build and the version does not say so. Run by `tests/api/run.sh`.
//!
//! `public-api-baseline check|update VERSION DIRECTORY RUSTDOC_JSON...`
//!
//! A baseline is a line for each public item. What breaks: an item that is gone or has changed, and what was added where
//! others may have listed everything: a variant or a field of what is not `#[non_exhaustive]`, an item of a trait.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The format of rustdoc's JSON that Rust 1.95 writes and our library reads.
const FORMAT: &str = "\"format_version\":57";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [command, version, directory, files @ ..] = words.as_slice() else {
        return Err("usage: public-api-baseline check|update VERSION DIRECTORY RUSTDOC_JSON...".into());
    };
    let mut broken = false;
    for file in files {
        let file = Path::new(file);
        let name =
            file.file_stem().and_then(|stem| stem.to_str()).ok_or("no crate's name")?.replace('_', "-");
        let baseline = PathBuf::from(directory).join(format!("{name}.txt"));
        let today = interface(file)?;
        match command.as_str() {
            "update" => std::fs::write(&baseline, written(version, &today))?,
            "check" => {
                let text = std::fs::read_to_string(&baseline).map_err(|error| {
                    format!("{}: {error}; `tests/api/run.sh update` makes it", baseline.display())
                })?;
                broken |= !check(&name, version, &text, &today)?;
            }
            other => return Err(format!("{other}: expected check or update").into()),
        }
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The lines of a crate's public interface.
fn interface(json: &Path) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let text = std::fs::read_to_string(json).map_err(|error| format!("{}: {error}", json.display()))?;
    if !text.contains(FORMAT) {
        return Err(format!(
            "{} is not of Rust 1.95: try `rustup run 1.95 tests/api/run.sh`",
            json.display()
        )
        .into());
    }
    let api = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .build()?;
    Ok(api.items().map(ToString::to_string).collect())
}

fn written(version: &str, lines: &BTreeSet<String>) -> String {
    let mut text = format!("# {version}\n");
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// False: something breaks that the version does not admit.
fn check(
    name: &str,
    version: &str,
    baseline: &str,
    today: &BTreeSet<String>,
) -> Result<bool, Box<dyn Error>> {
    let (head, lines) = baseline.split_once('\n').ok_or("an empty baseline")?;
    let before = head.strip_prefix("# ").ok_or("a baseline begins with its version")?;
    let lines: BTreeSet<String> = lines.lines().map(str::to_owned).collect();
    let gone: Vec<&String> = lines.difference(today).collect();
    let added: Vec<&String> = today.difference(&lines).collect();
    let closed = closed(&lines);
    let breaking: Vec<&&String> = added.iter().filter(|line| belongs_to(line, &closed)).collect();
    println!("{name}: {} lines gone or changed, {} new since {before}", gone.len(), added.len());
    if gone.is_empty() && breaking.is_empty() {
        return Ok(true);
    }
    for line in &gone {
        println!("  - {line}");
    }
    for line in &breaking {
        println!("  + {line}");
    }
    if series(before)? != series(version)? {
        println!("  {version} may break what was built against {before}");
        return Ok(true);
    }
    println!(
        "  This breaks what was built against {before}, and {version} says that it does not. Take it back, or raise the \
         version in Cargo.toml and run `tests/api/run.sh update`."
    );
    Ok(false)
}

/// What a version promises to be compatible with: the same major number, before 1.0 the same minor one.
fn series(version: &str) -> Result<(u64, u64), Box<dyn Error>> {
    let mut numbers = version.split('.').map(str::parse::<u64>);
    let mut next = || numbers.next().ok_or("a version has three numbers")?.map_err(Box::<dyn Error>::from);
    Ok(match (next()?, next()?) {
        (0, minor) => (0, minor),
        (major, _) => (major, 0),
    })
}

/// What of these types and traits others may have listed in full, by their paths: true for a trait.
fn closed(lines: &BTreeSet<String>) -> BTreeMap<String, bool> {
    let kinds = [("pub enum ", false), ("pub struct ", false), ("pub trait ", true)];
    lines
        .iter()
        .flat_map(|line| {
            kinds.iter().filter_map(move |(kind, is_trait)| Some((line.strip_prefix(kind)?, *is_trait)))
        })
        .map(|(rest, is_trait)| (path(rest), is_trait))
        .collect()
}

/// Whether a new line is a variant or a field of one of these, or an item of such a trait.
fn belongs_to(line: &str, closed: &BTreeMap<String, bool>) -> bool {
    let Some(rest) = line.strip_prefix("pub ") else { return false };
    let keywords = ["async fn ", "const fn ", "unsafe fn ", "fn ", "const ", "type "];
    let item = keywords.iter().find_map(|keyword| rest.strip_prefix(keyword));
    let mut path = path(item.unwrap_or(rest));
    while let Some((parent, _)) = path.rsplit_once("::") {
        match closed.get(parent) {
            Some(is_trait) => return *is_trait || item.is_none(),
            None => path = parent.to_owned(),
        }
    }
    false
}

/// The path that a line begins with, without generics.
fn path(text: &str) -> String {
    let mut path = String::new();
    let mut depth = 0;
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '<' => depth += 1,
            '>' => depth -= 1,
            _ if depth > 0 => {}
            ':' if rest.peek() == Some(&':') => {
                rest.next();
                path.push_str("::");
            }
            letter if letter.is_alphanumeric() || letter == '_' => path.push(letter),
            _ => break,
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> BTreeSet<String> {
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    }

    fn passes(version: &str, today: &str) -> bool {
        let baseline = written(
            "0.1.3",
            &lines(
                "pub mod a
                 pub enum a::Open<'x>
                 pub a::Open::One
                 #[non_exhaustive] pub enum a::Grows
                 pub a::Grows::One
                 pub struct a::S
                 pub a::S::field: u8
                 pub fn a::S::method(&self)
                 pub trait a::T
                 pub fn a::T::required(&self)",
            ),
        );
        let (_, before) = baseline.split_once('\n').unwrap();
        let mut now = lines(before);
        for line in today.lines().map(str::trim) {
            match line.strip_prefix('-') {
                Some(gone) => assert!(now.remove(gone), "{gone}"),
                None => assert!(now.insert(line.to_owned()), "{line}"),
            }
        }
        check("a", version, &baseline, &now).unwrap()
    }

    #[test]
    fn what_breaks_needs_another_version() {
        for breaks in [
            "-pub fn a::S::method(&self)",
            "-pub fn a::S::method(&self)\npub fn a::S::method(&mut self)",
            "pub a::Open::Two",
            "pub a::Open::One::field: u8",
            "pub a::S::more: u8",
            "pub fn a::T::more(&self)",
        ] {
            assert!(!passes("0.1.3", breaks) && !passes("0.1.4", breaks), "{breaks}");
            assert!(passes("0.2.0", breaks) && passes("1.0.0", breaks), "{breaks}");
        }
    }

    #[test]
    fn what_does_not_break_does_not() {
        for grows in [
            "pub fn a::free()",
            "pub fn a::S::other(&self) -> a::Open<'static>",
            "pub a::Grows::Two",
            "pub a::Grows::Two::field: u8",
            "pub enum a::New\npub a::New::One",
        ] {
            assert!(passes("0.1.3", grows), "{grows}");
        }
    }
}
