//! What the README shows is what happens.

use clap::Parser;
use server_glue::address::AddressBook;
use server_glue::netstack::NetConfig;
use spice_tunnel::cli::Cli;

const README: &str = include_str!("../README.md");

/// The lines of all code blocks, those that end in a backslash joined with the next, prompts removed.
fn commands() -> Vec<String> {
    let mut commands = Vec::new();
    let mut in_block = false;
    let mut pending = String::new();
    for line in README.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            let line = line.trim().trim_start_matches("$ ");
            match line.strip_suffix('\\') {
                Some(start) => pending.push_str(start),
                None => commands.push(std::mem::take(&mut pending) + line),
            }
        }
    }
    commands
}

#[test]
fn every_command_is_understood() {
    let ours: Vec<String> =
        commands().into_iter().filter(|command| command.starts_with("spice-tunnel ")).collect();
    assert!(ours.len() >= 2, "the README shows serve and connect, found {ours:?}");
    for command in ours {
        let words = command.split_whitespace().map(|word| word.trim_matches('\''));
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("{command}: {error}");
        }
    }
    let demo = commands().into_iter().find(|command| command.starts_with("cargo run --release -- ")).unwrap();
    let words = demo.trim_start_matches("cargo run --release -- ").split_whitespace();
    Cli::try_parse_from(std::iter::once("spice-tunnel").chain(words)).unwrap();
}

#[test]
fn the_addresses_are_the_right_ones() {
    let net = NetConfig::default();
    let mut book = AddressBook::new(spice_tunnel::serve::NETWORK_ID, net.subnet, net.reserved());
    let lines: Vec<String> = commands().into_iter().filter(|line| line.contains("  ->  ")).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for line in lines {
        let (name, rest) = line.split_once("  ").unwrap();
        let shown = rest.split("  ->  ").nth(1).unwrap().split(':').next().unwrap();
        // What was discovered has its address by its identity.
        let row = commands().into_iter().find(|row| row.starts_with(name) && row.contains("  uuid:"));
        let identity = row
            .as_deref()
            .and_then(|row| row.split("  ").map(str::trim).find(|cell| cell.starts_with("uuid:")));
        assert_eq!(book.assign(identity.unwrap_or(name)).unwrap().to_string(), shown, "{name}");
    }
}

#[test]
fn its_scripts_are_there() {
    for command in commands() {
        if let Some(script) = command.split_whitespace().next().filter(|word| word.starts_with("tests/")) {
            assert!(std::path::Path::new(script).exists(), "{script}");
        }
    }
}

/// What the unit for systemd starts, with the names of a VM in it.
#[test]
fn the_units_command_is_understood() {
    const UNIT: &str = include_str!("../examples/operate/systemd/spice-tunnel@.service");

    let joined = UNIT.replace("\\\n", " ");
    let line =
        |key: &str| joined.lines().find_map(|line| line.strip_prefix(key)).unwrap().replace("%i", "vm1");
    let mut command = line("ExecStart=").replace("${STATE_DIRECTORY}", "/var/lib/spice-tunnel/vm1");
    for (name, value) in line("Environment=").split(' ').map(|one| one.split_once('=').unwrap()) {
        command = command.replace(&format!("${{{name}}}"), value);
    }
    assert!(!command.contains('$') && !command.contains('%'), "{command}");
    if let Err(error) = Cli::try_parse_from(command.split_whitespace()) {
        panic!("{command}: {error}");
    }
}
