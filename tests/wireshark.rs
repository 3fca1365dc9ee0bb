//! The Wireshark dissector in `captures/wireshark`: what it shows is what our own decoder finds, by tshark's word.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use spice_proto::link::{CommonCaps, TunnelCaps};
use spice_proto::names::{self, Sender};

use crate::captures::{self, Said};

mod crafted;
mod messages;

const LUA: &str = include_str!("../captures/wireshark/spice-tunnel.lua");
const SCRIPT: &str = "captures/wireshark/spice-tunnel.lua";
const PAIRS: [&str; 2] = ["captures/tunnel-v1-pair.pcap", "captures/tunnel-v2-pair.pcap"];
const STOCK: [&str; 3] =
    ["captures/spice-gtk-session.pcap", "captures/rust-client-session.pcap", "captures/wrong-ticket.pcap"];

/// What tshark prints, in a home of its own, so that nobody's settings and plugins have a say.
fn tshark(arguments: &[&str], capture: &Path) -> String {
    tshark_at_home(tempfile::tempdir().unwrap().path(), arguments, capture)
}

fn tshark_at_home(home: &Path, arguments: &[&str], capture: &Path) -> String {
    let output = Command::new("tshark")
        .env("HOME", home)
        .env_remove("XDG_CONFIG_HOME")
        .args(["-n", "-r"])
        .arg(capture)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("tshark: {error}; tests/install-prerequisites.sh installs it"));
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn script() -> String {
    format!("lua_script:{SCRIPT}")
}

/// The steps of all tunnel channels, as the dissector shows them. Fails on an error in the script.
fn shown(capture: &Path, more: &[&str]) -> Vec<Said> {
    let script = script();
    let mut arguments = vec!["-X", &script, "-Y", "spice_tunnel or _ws.lua.error", "-T", "pdml"];
    arguments.extend(more);
    let pdml = tshark(&arguments, capture);
    assert!(!pdml.contains("Lua Error"), "{}", pdml.lines().find(|line| line.contains("Lua Error")).unwrap());
    items(&pdml)
        .into_iter()
        .map(|item| Said {
            from: item["spice_tunnel.from"].clone(),
            message: item["spice_tunnel.message"].clone(),
            socket: item.get("spice_tunnel.socket").map(|socket| socket.parse().unwrap()),
            size: item["spice_tunnel.size"].parse().unwrap(),
        })
        .collect()
}

/// The dissector's items in a PDML document: of each the fields, the first of each name.
fn items(pdml: &str) -> Vec<BTreeMap<String, String>> {
    let mut items: Vec<BTreeMap<String, String>> = Vec::new();
    let mut inside = false;
    for line in pdml.lines().map(str::trim) {
        if line.starts_with("<proto ") {
            inside = attribute(line, "name").as_deref() == Some("spice_tunnel");
            if inside {
                items.push(BTreeMap::new());
            }
        } else if inside && line.starts_with("<field ") {
            let (name, show) = (attribute(line, "name"), attribute(line, "show"));
            items.last_mut().unwrap().entry(name.unwrap()).or_insert(show.unwrap_or_default());
        }
    }
    items
}

fn attribute(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    let (value, _) = rest.split_once('"')?;
    Some(value.to_owned())
}

/// The entries `[number] = "name"` of a table of the script.
fn table(name: &str) -> BTreeMap<u16, String> {
    let (_, rest) =
        LUA.split_once(&format!("\nlocal {name} = {{\n")).unwrap_or_else(|| panic!("no table {name}"));
    let (entries, _) = rest.split_once("\n}\n").unwrap();
    entries
        .lines()
        .map(|line| {
            let (number, text) = line.trim().split_once("] = \"").unwrap_or_else(|| panic!("{name}: {line}"));
            (number.trim_start_matches('[').parse().unwrap(), text.trim_end_matches("\",").to_owned())
        })
        .collect()
}

#[test]
fn its_messages_are_the_programs() {
    for (name, sender) in [("SERVER_MESSAGES", Sender::Server), ("CLIENT_MESSAGES", Sender::Client)] {
        let ours: BTreeMap<u16, String> = (0..=u16::MAX)
            .filter_map(|kind| Some((kind, names::message(7, sender, kind)?.to_owned())))
            .collect();
        assert_eq!(table(name), ours, "{name}");
    }
}

#[test]
fn its_channels_and_capabilities_are_the_programs() {
    let channels: BTreeMap<u16, String> =
        (0..=u8::MAX).filter_map(|kind| Some((u16::from(kind), names::channel(kind)?.to_owned()))).collect();
    assert_eq!(table("CHANNELS"), channels);
    let bits = |names: Vec<(&str, u32)>| -> BTreeMap<u16, String> {
        names.into_iter().map(|(name, bits)| (bits.trailing_zeros() as u16, name.to_owned())).collect()
    };
    let common = CommonCaps::all().iter_names().map(|(name, cap)| (name, cap.bits())).collect();
    assert_eq!(table("COMMON_CAPS"), bits(common));
    let tunnel = TunnelCaps::all().iter_names().map(|(name, cap)| (name, cap.bits())).collect();
    assert_eq!(table("TUNNEL_CAPS"), bits(tunnel));
}

#[test]
fn it_shows_what_our_decoder_finds() {
    let mut seen = 0;
    for capture in captures::of_tunnels() {
        let ours = captures::said(&capture);
        assert_eq!(shown(&capture, &[]), ours, "{}", capture.display());
        seen += ours.len();
    }
    assert!(seen > 1400, "only {seen} steps in all captures");
}

/// The GUI reads a file once, and then each packet again as it is looked at.
#[test]
fn it_shows_the_same_when_a_packet_is_read_again() {
    for capture in PAIRS.map(Path::new) {
        assert_eq!(shown(capture, &["-2"]), captures::said(capture), "{}", capture.display());
    }
}

#[test]
fn decode_as_takes_the_tunnel_and_leaves_the_rest() {
    for capture in PAIRS.map(Path::new) {
        let by_port = ["-d", "tcp.port==5980,spice_tunnel"];
        assert_eq!(shown(capture, &by_port), captures::said(capture), "{}", capture.display());
        let script = script();
        let others =
            ["-X", &script, "-Y", "spice", "-T", "fields", "-e", "frame.number", "-e", "_ws.col.Info"];
        let by_themselves = tshark(&others, capture);
        assert!(by_themselves.contains("CHANNELS_LIST"), "{by_themselves}");
        assert_eq!(
            tshark(&[&others[..], &by_port[..]].concat(), capture),
            by_themselves,
            "{}",
            capture.display()
        );
    }
}

/// Why there is this dissector at all, and the proof that the tests above can fail.
#[test]
fn without_it_wireshark_loses_step() {
    for capture in PAIRS.map(Path::new) {
        let arguments = ["-Y", "spice", "-T", "fields", "-e", "_ws.col.Info"];
        let info = tshark(&arguments, capture);
        let shown = info.matches("Client SOCKET_").count();
        let ours = captures::said(capture)
            .iter()
            .filter(|said| said.from == "client" && said.message.starts_with("socket_"))
            .count();
        assert!(
            info.contains("Server SOCKET_OPEN"),
            "{}: tshark knows the server's messages",
            capture.display()
        );
        assert!(shown * 10 < ours, "{}: tshark alone shows {shown} of {ours}", capture.display());
    }
}

#[test]
fn other_channels_are_shown_as_without_it() {
    let script = script();
    for capture in STOCK.map(Path::new) {
        let lines = tshark(&[], capture);
        assert!(lines.contains(" Spice "), "{lines}");
        assert_eq!(tshark(&["-X", &script], capture), lines, "{}", capture.display());
        // That a channel's first frame went through our hands is all that may differ.
        let whole = tshark(&["-X", &script, "-V"], capture);
        let whole = whole.replace(":tcp:spice_tunnel:spice:spice_tunnel]", ":tcp:spice]");
        assert_eq!(whole, tshark(&["-V"], capture), "{}", capture.display());
    }
}

#[test]
fn its_fields_can_be_filtered_on() {
    let script = script();
    let frames = |filter: &str| {
        let arguments = ["-X", &script, "-Y", filter, "-T", "fields", "-e", "_ws.col.Info"];
        tshark(&arguments, Path::new(PAIRS[1])).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    // The third connection of the capture half-closes, and its service answers then.
    assert_eq!(
        frames("spice_tunnel.connection == 2"),
        [
            "server: socket_open socket 1 service 5 80 tokens",
            "client: socket_open_ack socket 1 60 tokens",
            "server: socket_data socket 1 8 bytes",
            "server: socket_fin socket 1",
            "client: socket_data socket 1 8 bytes",
            "client: socket_closed socket 1",
            "server: socket_closed_ack socket 1",
        ]
    );
    assert_eq!(
        frames("spice_tunnel.payload contains \"SHOUT ME\""),
        ["client: socket_data socket 1 8 bytes"]
    );
    assert_eq!(frames("spice_tunnel.message == \"socket_open_nack\""), ["client: socket_open_nack socket 1"]);
    assert_eq!(frames("spice_tunnel.port == 7003").len(), 1);
    assert_eq!(frames("spice_tunnel.address == 10.0.2.31").len(), 8);
    // The connection to service 7 is refused: announced, mapped, opened, refused.
    assert_eq!(frames("spice_tunnel.service == 7").len(), 4);
    assert!(frames("spice_tunnel.malformed").is_empty());
}

/// The README and the script's own header name the one command that installs it, and it works.
#[test]
fn the_documented_command_installs_it() {
    let readme = include_str!("../README.md");
    let command = readme.lines().find(|line| line.contains("captures/wireshark/")).unwrap();
    assert!(
        LUA.contains(&format!("-- Install:    {command}\n")),
        "the script's header does not say: {command}"
    );
    let home = tempfile::tempdir().unwrap();
    let status = Command::new("sh").args(["-ec", command]).env("HOME", home.path()).status().unwrap();
    assert!(status.success(), "{command}");
    let frames = tshark_at_home(home.path(), &["-Y", "spice_tunnel"], Path::new(PAIRS[0]));
    assert!(frames.lines().count() > 100, "the installed dissector shows nothing: {frames}");
}
