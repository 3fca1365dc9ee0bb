//! The other views of `spice-tunnel dump`: `--stats`, `--follow`, `--nic`, and the guest's card by itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const PAIRS: [&str; 2] = ["tunnel-v1-pair", "tunnel-v2-pair"];

/// Recorded with our own program, each beside what the guest's card saw.
const OURS: [&str; 8] =
    ["client-lost", "credit", "demo", "half-close", "many-sockets", "refused-port", "resets", "vm"];

/// The scenarios of both historical pairs by connection number: port, bytes up and down, how it ended in the tunnel and at the
/// guest. The numbers are those of the SOCKET_OPENs, which `unknown` does not have; `two` has two.
const SCENARIOS: [(u64, u64, u64, &str, &str); 12] = [
    (7001, 12, 12, "closed", "closed"),
    (7002, 0, 4, "closed", "closed"),
    (7006, 8, 8, "closed", "closed"),
    (7009, 0, 0, "refused", "refused"),
    (7007, 2, 0, "service_aborted", "service_reset"),
    (7001, 3, 3, "guest_aborted", "guest_reset"),
    (7001, 1, 1, "closed", "closed"),
    (7001, 1, 1, "closed", "closed"),
    (7004, 200_000, 7, "closed", "closed"),
    (7003, 6, 300_000, "closed", "closed"),
    (7001, 150_000, 150_000, "closed", "closed"),
    (7005, 400_000, 7, "closed", "closed"),
];

fn capture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("captures").join(name)
}

fn dump(file: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spice-tunnel"))
        .arg("dump")
        .arg(file)
        .args(options)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn nic(tunnel: &Path, guest: &Path, options: &[&str]) -> Output {
    let guest = guest.to_str().unwrap();
    dump(tunnel, &[&["--nic", guest], options].concat())
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn objects(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn port(address: &Value) -> u64 {
    address.as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn stats_say_what_became_of_each_connection_and_service() {
    for name in PAIRS {
        let output = dump(&capture(&format!("{name}.pcap")), &["--stats", "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let objects = objects(&output);

        let mut sockets = of_kind(&objects, "socket");
        sockets.sort_by_key(|socket| socket["connection"].as_u64());
        let table: Vec<_> = sockets
            .iter()
            .map(|socket| {
                let bytes = |way: &str| socket[way]["bytes"].as_u64().unwrap();
                (port(&socket["destination"]), bytes("up"), bytes("down"), socket["ending"].as_str().unwrap())
            })
            .collect();
        let expected = SCENARIOS.map(|(port, up, down, ending, _)| (port, up, down, ending));
        assert_eq!(table, expected, "{name}");
        for socket in &sockets {
            assert_eq!(socket["incomplete"], false);
            assert!(socket["time_to_open"].as_f64().unwrap() > 0.0, "{socket}");
            assert_eq!((&socket["up"]["violations"], &socket["down"]["violations"]), (&0.into(), &0.into()));
        }
        // The source is stopped by its credit, for some milliseconds.
        let bulk = &sockets[9]["down"];
        assert!(bulk["stalls"].as_u64().unwrap() >= 1, "{bulk}");
        let longest = bulk["longest_stall"].as_f64().unwrap();
        assert!(longest > 0.0 && longest <= bulk["stalled"].as_f64().unwrap(), "{bulk}");
        assert!(bulk["throughput"].as_f64().unwrap() > 1e6, "{bulk}");
        // The slow one lasts 16 seconds.
        assert_eq!(sockets[11]["duration"].as_f64().unwrap().round() as u64 / 2, 8);

        let services = of_kind(&objects, "service");
        assert_eq!(services.len(), 8);
        let echo = services[0];
        assert_eq!(
            (&echo["connections"], &echo["closed"], &echo["guest_aborted"]),
            (&5.into(), &4.into(), &1.into())
        );
        assert_eq!(echo["up"]["bytes"], 12 + 3 + 1 + 1 + 150_000);
        let nobody = services.iter().find(|service| service["port"] == 7009).unwrap();
        assert_eq!((&nobody["refused"], &nobody["mean_time_to_open"]), (&1.into(), &Value::Null));

        let channels = of_kind(&objects, "channel");
        let names: BTreeSet<_> =
            channels.iter().map(|channel| channel["channel"].as_str().unwrap()).collect();
        assert_eq!(names, BTreeSet::from(["inputs", "main", "tunnel"]));
        assert_eq!(objects.len(), 12 + 8 + 3);

        let text = stdout(&dump(&capture(&format!("{name}.pcap")), &["--stats"]));
        for part in
            ["Connections of the guest", "Services", "Channels", "10.0.2.31:7003", "293.0 KiB", "refused"]
        {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }
}

#[test]
fn follow_shows_the_bytes_of_one_connection() {
    let file = capture("tunnel-v1-pair.pcap");
    let text = dump(&file, &["--follow", "1"]);
    assert!(text.status.success());
    assert_eq!(stdout(&text), "< BYE\n");
    let said = stderr(&text);
    assert!(
        said.contains("connection #1: socket 0 to service 1") && said.contains("10.0.2.31:7002"),
        "{said}"
    );
    assert!(said.contains("0 B up, 4 B down; closed after"), "{said}");

    // Half-closed by the guest, then answered.
    let half = stdout(&dump(&file, &["--follow", "2"]));
    assert_eq!(half, "> shout me\n< SHOUT ME\n");
    let hex = stdout(&dump(&file, &["--follow", "2", "--format", "hex"]));
    assert!(hex.contains("< 00000000  53 48 4f 55 54 20 4d 45"), "{hex}");
    assert!(hex.contains("|SHOUT ME|"), "{hex}");
}

#[test]
fn follow_writes_both_directions_into_files() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("job");
    for name in PAIRS {
        let file = capture(&format!("{name}.pcap"));
        // The echo of 150,000 bytes.
        let output = dump(&file, &["--follow", "10", "--raw", prefix.to_str().unwrap()]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
        let guest = std::fs::read(directory.path().join("job.guest")).unwrap();
        let service = std::fs::read(directory.path().join("job.service")).unwrap();
        assert_eq!(guest.len(), 150_000);
        assert!(guest == service, "{name}");
    }
}

#[test]
fn following_what_is_not_there_names_what_is() {
    let output = dump(&capture("tunnel-v1-pair.pcap"), &["--follow", "12"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("which has #0 to #11"), "{}", stderr(&output));
    let none = dump(&capture("spice-gtk-session.pcap"), &["--follow", "0"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(stderr(&none).contains("which has none"), "{}", stderr(&none));
}

#[test]
fn both_ends_of_the_historical_pairs_are_the_same() {
    for name in PAIRS {
        let (tunnel, guest) = (capture(&format!("{name}.pcap")), capture(&format!("{name}.guest.pcap")));
        let output = nic(&tunnel, &guest, &["--json"]);
        assert!(output.status.success(), "{}", stdout(&output));
        let objects = objects(&output);
        let mut pairs = of_kind(&objects, "pair");
        pairs.sort_by_key(|pair| pair["connection"].as_u64());
        let table: Vec<_> = pairs
            .iter()
            .map(|pair| {
                assert_eq!(pair["result"], "same", "{pair}");
                for way in ["up", "down"] {
                    assert!(pair[way]["tunnel"] == pair[way]["guest"], "{pair}");
                    assert!(pair[way]["same"] == pair[way]["guest"], "{pair}");
                }
                (
                    port(&pair["destination"]),
                    pair["up"]["same"].as_u64().unwrap(),
                    pair["down"]["same"].as_u64().unwrap(),
                    pair["ending"].as_str().unwrap(),
                    pair["guest_ending"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(table, SCENARIOS, "{name}");
        // `unknown` goes to a port that no service has.
        let alone = of_kind(&objects, "guest_only");
        assert_eq!(alone.len(), 1);
        assert_eq!((port(&alone[0]["destination"]), &alone[0]["excused"]), (7999, &true.into()));
        assert_eq!(of_kind(&objects, "tunnel_only").len(), 0);
        assert_eq!(of_kind(&objects, "result")[0]["different"], 0);
    }
}

#[test]
fn both_ends_of_our_own_recordings_are_the_same() {
    for name in OURS {
        let (tunnel, guest) = (capture(&format!("{name}.pcapng")), capture(&format!("{name}.guest.pcapng")));
        let output = nic(&tunnel, &guest, &["--json"]);
        assert!(output.status.success(), "{name}: {}", stdout(&output));
        let objects = objects(&output);
        let (pairs, last) = (of_kind(&objects, "pair"), of_kind(&objects, "result"));
        assert!(!pairs.is_empty() && pairs.iter().all(|pair| pair["result"] == "same"), "{name}");
        assert_eq!((&last[0]["unpaired"], &last[0]["not_compared"]), (&0.into(), &0.into()), "{name}");
    }
}

/// A copy of a capture with one byte changed, the first of this text.
fn changed(file: &Path, text: &[u8], directory: &Path) -> PathBuf {
    let mut bytes = std::fs::read(file).unwrap();
    let place = bytes.windows(text.len()).position(|window| window == text).unwrap();
    bytes[place] ^= 0x01;
    let copy = directory.join("changed.pcap");
    std::fs::write(&copy, bytes).unwrap();
    copy
}

#[test]
fn a_changed_byte_in_either_capture_is_found() {
    let directory = tempfile::tempdir().unwrap();
    for name in PAIRS {
        let (tunnel, guest) = (capture(&format!("{name}.pcap")), capture(&format!("{name}.guest.pcap")));
        for (text, expected) in [
            (&b"BYE\n"[..], (1, "down: byte 0 is 0x43 in the tunnel and 0x42 at the guest")),
            (&b"SHOUT ME"[..], (2, "down: byte 0 is 0x52 in the tunnel and 0x53 at the guest")),
        ] {
            let (number, expected) = expected;
            let in_tunnel = nic(&changed(&tunnel, text, directory.path()), &guest, &["--json"]);
            let in_guest = nic(&tunnel, &changed(&guest, text, directory.path()), &["--json"]);
            for (output, expected) in [(in_tunnel, expected.to_owned()), (in_guest, swapped(expected))] {
                assert_eq!(output.status.code(), Some(1), "{name}");
                let objects = objects(&output);
                let different: Vec<_> = of_kind(&objects, "pair")
                    .into_iter()
                    .filter(|pair| pair["result"] == "different")
                    .map(|pair| {
                        (pair["connection"].as_u64().unwrap(), pair["differences"][0].as_str().unwrap())
                    })
                    .collect();
                assert_eq!(different, [(number, expected.as_str())], "{name}");
            }
        }
    }
}

/// The same, the two bytes the other way round.
fn swapped(text: &str) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    let places: Vec<usize> = (0..words.len()).filter(|index| words[*index].starts_with("0x")).collect();
    words.swap(places[0], places[1]);
    words.join(" ")
}

#[test]
fn half_a_capture_of_the_card_is_not_called_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(capture("tunnel-v2-pair.guest.pcap")).unwrap();
    let half = directory.path().join("half.pcap");
    std::fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    let output = nic(&capture("tunnel-v2-pair.pcap"), &half, &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("opened after the card's capture ends"), "{text}");
    assert!(text.contains("half.pcap: "), "{text}");

    let missing = nic(&capture("tunnel-v2-pair.pcap"), Path::new("/nowhere"), &[]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("/nowhere: "), "{}", stderr(&missing));

    // Captures that have nothing to do with each other.
    let strangers = nic(&capture("tunnel-v2-pair.pcap"), &capture("tunnel-v1-pair.guest.pcap"), &[]);
    assert_eq!(strangers.status.code(), Some(1));
    assert!(stdout(&strangers).contains("nothing was compared"), "{}", stdout(&strangers));
}

#[test]
fn the_card_by_itself_is_shown_as_the_guests_connections() {
    for name in PAIRS {
        let file = capture(&format!("{name}.guest.pcap"));
        let output = dump(&file, &["--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let mut objects = objects(&output);
        objects.sort_by_key(|object| object["stream"].as_u64());
        let table: Vec<_> = objects
            .iter()
            .map(|object| {
                let keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
                assert_eq!(keys.len(), 10, "{object}");
                assert_eq!(object["message"], "guest_connection");
                let fields = &object["fields"];
                let bytes = |way: &str| fields[way]["bytes"].as_u64().unwrap();
                assert_eq!(object["size"], bytes("up") + bytes("down"));
                (
                    port(&fields["destination"]),
                    bytes("up"),
                    bytes("down"),
                    fields["answer"].as_str().unwrap(),
                    fields["ending"].as_str().unwrap(),
                )
            })
            .collect();
        let mut expected: Vec<_> = SCENARIOS
            .iter()
            .map(|(port, up, down, _, ending)| {
                let answer = if *ending == "refused" { "refused" } else { "accepted" };
                (*port, *up, *down, answer, *ending)
            })
            .collect();
        // Behind `nack`.
        expected.insert(4, (7999, 0, 0, "unreachable", "unreachable"));
        assert_eq!(table, expected, "{name}");
        let text = stdout(&dump(&file, &[]));
        assert!(text.contains("unreachable, says 10.0.2.2"), "{text}");
    }
}
