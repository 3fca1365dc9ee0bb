//! `replay`: every capture of the repository, and the proof that it can fail.

mod live;
mod live_serve;
mod names;
mod tape;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use spice_proto::names::Sender;
use spice_proto::tunnel::{ClientMessage, ServerMessage, ServiceId, SocketId};
use spice_tunnel::capture::file::Reader;
use spice_tunnel::replay::report::{Difference, Part, Report, Subject, Verdict};
use spice_tunnel::replay::{Handicap, Options, ReplayArgs, Which, replay, replay_capture};
use tunnel_channel::Role;

use self::tape::{Said, Tape};

/// Captures that are not to be equal, and why. A new capture that is not in here must be.
const NOT_EQUAL: [(&str, Verdict); 0] = [];

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("captures")
}

fn args(file: PathBuf) -> ReplayArgs {
    ReplayArgs {
        file,
        role: Which::All,
        nic: None,
        port: None,
        strict: false,
        json: false,
        live: None,
        password_file: None,
        wait: 30,
    }
}

fn text(report: &Report) -> String {
    let mut out = Vec::new();
    report.write_text(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// The captures of the repository: those of the Spice side, with that of the card if there is one.
fn all_captures() -> Vec<(PathBuf, Option<PathBuf>)> {
    let files: BTreeSet<PathBuf> = std::fs::read_dir(captures())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "pcap" || end == "pcapng"))
        .collect();
    let is_guest = |path: &&PathBuf| path.file_stem().unwrap().to_str().unwrap().ends_with(".guest");
    let guests: BTreeSet<&PathBuf> = files.iter().filter(is_guest).collect();
    let mut pairs = Vec::new();
    let mut used = BTreeSet::new();
    for file in files.iter().filter(|path| !is_guest(path)) {
        let end = file.extension().unwrap().to_str().unwrap();
        let guest = file.with_extension(format!("guest.{end}"));
        let guest = guests.contains(&guest).then_some(guest);
        used.extend(guest.clone());
        pairs.push((file.clone(), guest));
    }
    let lonely: Vec<_> = guests.iter().filter(|path| !used.contains(**path)).collect();
    assert!(lonely.is_empty(), "captures of a card without their Spice side: {lonely:?}");
    assert!(pairs.len() >= 5, "{pairs:?}");
    pairs
}

#[test]
fn every_capture_is_replayed_and_has_its_verdict() {
    for (file, guest) in all_captures() {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let report = replay(&ReplayArgs { nic: guest, ..args(file) }, None).unwrap();
        let expected =
            NOT_EQUAL.iter().find(|(known, _)| *known == name).map_or(Verdict::Equal, |known| known.1);
        assert_eq!(report.verdict(), expected, "{name}:\n{}", text(&report));
    }
}

#[test]
fn the_two_old_pairs_are_compared_in_full() {
    // Twelve scenarios, of which one never reaches the tunnel and one is two connections.
    for (file, messages) in [("tunnel-v1-pair.pcap", 841), ("tunnel-v2-pair.pcap", 892)] {
        let report = replay(&args(captures().join(file)), None).unwrap();
        for part in [Part::Server, Part::Client] {
            let compared = report.compared_by(part);
            assert_eq!((compared.channels, compared.services, compared.connections), (1, 8, 12), "{file}");
            assert_eq!((compared.bytes_up, compared.bytes_down), (750_033, 450_043), "{file}");
        }
        assert_eq!(report.compared_by(Part::Messages).messages, messages, "{file}");
        assert_eq!(report.compared_by(Part::Link).channels, 3, "{file}");
    }
}

// ---- captures that were changed ----

fn run(tape: &Tape, roles: &[Role], handicap: Option<Handicap>) -> Report {
    let file = Reader::new(std::io::Cursor::new(tape.pcap())).unwrap();
    replay_capture(file, roles, Options { handicap, ..Options::default() }, |_| {})
}

fn v2() -> Tape {
    Tape::read(&captures().join("tunnel-v2-pair.pcap"))
}

fn v1() -> Tape {
    Tape::read(&captures().join("tunnel-v1-pair.pcap"))
}

/// Asserts that this part found a difference about this subject whose line has these words.
#[track_caller]
fn assert_found(report: &Report, part: Part, subject: Subject, words: &[&str]) -> Difference {
    assert_eq!(report.verdict(), Verdict::Different, "{}", text(report));
    let found = report.differences().iter().find(|one| {
        one.part == part && one.subject == subject && words.iter().all(|word| one.line().contains(word))
    });
    found.unwrap_or_else(|| panic!("no {part:?} {subject:?} {words:?} in\n{}", text(report))).clone()
}

#[test]
fn an_unchanged_tape_is_equal() {
    for tape in [v1(), v2(), Tape::modern()] {
        let report = run(&tape, &[Role::Server, Role::Client], None);
        assert_eq!(report.verdict(), Verdict::Equal, "{}", text(&report));
        assert!(report.compared_by(Part::Server).connections > 1);
        assert!(report.compared_by(Part::Client).connections > 1);
    }
}

#[test]
fn an_answer_that_was_turned_round_is_found() {
    let refused = |said: &Said| matches!(said.client(), Some(ClientMessage::SocketOpenNack { .. }));
    let mut tape = v2();
    let nack = tape.position(refused);
    let socket = tape.said[nack].socket().unwrap();
    tape.say(nack, &ClientMessage::SocketOpenAck { socket, tokens: 60 });
    let report = run(&tape, &[Role::Server, Role::Client], None);
    // The captured server goes on as if the id were free.
    assert_found(
        &report,
        Part::Server,
        Subject::Open,
        &["connection 3", "opens another connection with its id", "in use"],
    );
    assert_found(&report, Part::Client, Subject::Channel, &["goes on", "socket 1, which is in use"]);

    let mut tape = v2();
    let ack = tape.position(|said| matches!(said.client(), Some(ClientMessage::SocketOpenAck { .. })));
    let socket = tape.said[ack].socket().unwrap();
    tape.say(ack, &ClientMessage::SocketOpenNack { socket });
    let report = run(&tape, &[Role::Server], None);
    assert_found(&report, Part::Server, Subject::Channel, &["socket 0, which does not exist"]);
}

#[test]
fn data_without_credit_is_found_from_both_ends() {
    // Without the tokens that were returned, later messages have none. Each end is blamed by the other, and by itself.
    let mut tape = v2();
    tape.said.retain(|said| !matches!(said.server(), Some(ServerMessage::SocketToken { .. })));
    let report = run(&tape, &[Role::Server, Role::Client], None);
    assert_found(&report, Part::Server, Subject::Credit, &["data came without credit"]);
    assert_found(&report, Part::Client, Subject::Credit, &["had no token"]);

    let mut tape = v2();
    tape.said.retain(|said| !matches!(said.client(), Some(ClientMessage::SocketToken { .. })));
    let report = run(&tape, &[Role::Server, Role::Client], None);
    assert_found(&report, Part::Client, Subject::Credit, &["data came without credit"]);
    assert_found(&report, Part::Server, Subject::Credit, &["had no token"]);
    assert_found(
        &report,
        Part::Server,
        Subject::Bytes,
        &["200000 bytes from the guest", "today: 91412 bytes"],
    );
}

#[test]
fn one_message_too_many_is_found() {
    // A historical client may send 80 messages before the first token. The 81st is one too many, even for a server of
    // today whose own window would have room for it.
    for (messages, expected) in [(80, Verdict::Equal), (81, Verdict::Different)] {
        let tape = Tape::flood(false, 80, messages);
        let report = run(&tape, &[Role::Server], None);
        assert_eq!(report.verdict(), expected, "{}", text(&report));
    }
    for (messages, expected) in [(8, Verdict::Equal), (9, Verdict::Different)] {
        let tape = Tape::flood(true, 8, messages);
        let report = run(&tape, &[Role::Server], None);
        assert_eq!(report.verdict(), expected, "{}", text(&report));
        if expected == Verdict::Different {
            assert_found(
                &report,
                Part::Server,
                Subject::Credit,
                &["connection 0", "data came without credit"],
            );
        }
    }
}

#[test]
fn a_window_smaller_than_the_captured_one_is_no_difference() {
    let tape = Tape::flood(true, 200, 200);
    let report = run(&tape, &[Role::Server, Role::Client], Some(Handicap::Window(3)));
    assert_eq!(report.verdict(), Verdict::Equal, "{}", text(&report));
}

#[test]
fn ends_that_are_missing_or_doubled_are_found() {
    // The server acknowledges an end that its client never said.
    let mut tape = v2();
    let closed = tape.position(|said| matches!(said.client(), Some(ClientMessage::SocketClosed { .. })));
    tape.said.remove(closed);
    let report = run(&tape, &[Role::Server, Role::Client], None);
    assert_found(&report, Part::Server, Subject::End, &["connection 0", "acknowledged", "it is not"]);
    assert_found(&report, Part::Client, Subject::Message, &["connection 0", "socket_closed_ack came while"]);

    let mut tape = v2();
    let fin = tape.position(|said| matches!(said.client(), Some(ClientMessage::SocketFin { .. })));
    tape.said.insert(fin, tape.said[fin].clone());
    let report = run(&tape, &[Role::Server], None);
    assert_found(&report, Part::Server, Subject::Message, &["connection 1", "socket_fin came while"]);

    // Data behind the end of its direction.
    let mut tape = v2();
    let fin = tape.position(|said| matches!(said.server(), Some(ServerMessage::SocketFin { .. })));
    tape.said.insert(fin + 1, tape.said[fin].clone());
    tape.say_server(fin + 1, &ServerMessage::SocketData { socket: SocketId(0), payload: b"late" });
    let report = run(&tape, &[Role::Server, Role::Client], None);
    assert_found(&report, Part::Client, Subject::Message, &["connection 0", "socket_data came while"]);
    assert_found(
        &report,
        Part::Server,
        Subject::Bytes,
        &["connection 0", "16 bytes from the guest", "12 bytes"],
    );
}

#[test]
fn services_that_do_not_fit_are_found() {
    let mut tape = v2();
    let add = tape.position(|said| matches!(said.client(), Some(ClientMessage::ServiceAdd(_))));
    tape.said.remove(add);
    let report = run(&tape, &[Role::Server, Role::Client], None);
    assert_found(&report, Part::Server, Subject::Service, &["service 0", "there is no service 0"]);
    assert_found(&report, Part::Client, Subject::Channel, &["never announced"]);

    let mut tape = v2();
    let open = tape.position(|said| matches!(said.server(), Some(ServerMessage::SocketOpen { .. })));
    tape.say_server(
        open,
        &ServerMessage::SocketOpen { socket: SocketId(0), service: ServiceId(99), tokens: 80 },
    );
    let report = run(&tape, &[Role::Server, Role::Client], None);
    assert_found(&report, Part::Server, Subject::Open, &["connection 0", "there is no service 99"]);
    assert_found(
        &report,
        Part::Client,
        Subject::Open,
        &["connection 0", "captured: accepted; today: refused"],
    );
}

#[test]
fn what_is_not_in_the_protocol_is_found() {
    let mut tape = v2();
    let init = tape.position(|said| matches!(said.server(), Some(ServerMessage::Init { .. })));
    tape.say_server(init, &ServerMessage::Init { max_sockets: 21, max_data: 2048 });
    let report = run(&tape, &[Role::Server], None);
    assert_found(&report, Part::Server, Subject::Channel, &["init announces 21 sockets", "20 sockets"]);

    let mut tape = v2();
    let add = tape.position(|said| matches!(said.client(), Some(ClientMessage::ServiceAdd(_))));
    tape.said[add].kind = 150;
    let report = run(&tape, &[Role::Server], None);
    assert_found(&report, Part::Server, Subject::Channel, &["type 150"]);

    let mut tape = v2();
    let token = tape.position(|said| matches!(said.client(), Some(ClientMessage::SocketToken { .. })));
    tape.said[token].body.pop();
    let report = run(&tape, &[Role::Server], None);
    assert_found(&report, Part::Server, Subject::Channel, &["socket_token"]);
}

#[test]
fn a_payload_that_is_changed_on_both_ways_is_beyond_a_channel() {
    // Said in the help: a channel carries bytes and does not know them. This pins the statement down.
    let mut tape = v2();
    let data = tape.position(|said| matches!(said.client(), Some(ClientMessage::SocketData { .. })));
    *tape.said[data].body.last_mut().unwrap() ^= 1;
    let report = run(&tape, &[Role::Server, Role::Client], None);
    assert_eq!(report.verdict(), Verdict::Equal);
}

// ---- today's code with something switched off ----

#[test]
fn code_that_returns_no_credit_is_found() {
    for role in [Role::Server, Role::Client] {
        let report = run(&v2(), &[role], Some(Handicap::NeverDeliver));
        let part = if role == Role::Server { Part::Server } else { Part::Client };
        assert_found(&report, part, Subject::Credit, &["data came without credit"]);
    }
}

#[test]
fn code_that_changes_a_byte_is_found() {
    for (role, part, words) in [
        (Role::Server, Part::Server, "at offset 0 from the guest"),
        (Role::Client, Part::Client, "at offset 0 to the guest"),
    ] {
        let report = run(&v1(), &[role], Some(Handicap::CorruptByte));
        let found = assert_found(&report, part, Subject::Bytes, &["connection 0", words]);
        assert_eq!(found.place.service, Some(0));
    }
}

#[test]
fn code_that_forgets_an_end_is_found() {
    let report = run(&v2(), &[Role::Server], Some(Handicap::ForgetFin));
    assert_found(
        &report,
        Part::Server,
        Subject::HalfClose,
        &["connection 0", "ended behind byte 12", "not ended"],
    );
    // A client's CLOSED stands for a FIN only where the server's went before.
    let report = run(&v2(), &[Role::Client], Some(Handicap::ForgetFin));
    assert_found(&report, Part::Client, Subject::HalfClose, &["connection 1", "before the other direction"]);
}

// ---- what cannot be compared ----

#[test]
fn a_hole_is_reported_and_never_passes() {
    let whole = v2();
    let at = whole.position(|said| matches!(said.server(), Some(ServerMessage::SocketOpen { .. }))) + 3;
    for from in [Sender::Client, Sender::Server] {
        let lost = (at..whole.said.len()).find(|at| whole.said[*at].from == from).unwrap();
        let mut tape = v2();
        tape.lose(lost);
        let report = run(&tape, &[Role::Server, Role::Client], None);
        assert_eq!(report.verdict(), Verdict::NotComparable, "{}", text(&report));
        assert!(text(&report).contains(&format!("bytes of the {} are not in the capture", from.name())));
        // Those that began behind it are compared all the same against the end that was captured in full. Today's
        // channel in the other role heard answers to what it never said.
        let (whole, spoilt) = match from {
            Sender::Client => (Part::Server, Part::Client),
            Sender::Server => (Part::Client, Part::Server),
        };
        assert!(report.compared_by(whole).connections >= 8, "{}", text(&report));
        let told = report
            .differences()
            .iter()
            .any(|one| one.part == spoilt && one.captured.contains("nothing behind it"));
        assert!(told, "{}", text(&report));
    }
}

#[test]
fn a_capture_that_begins_too_late_or_holds_nothing_never_passes() {
    let mut tape = v2();
    tape.begin_late();
    let report = run(&tape, &[Role::Server, Role::Client], None);
    assert_eq!(report.verdict(), Verdict::NotComparable, "{}", text(&report));

    let report = run(&Tape::silent(), &[Role::Server, Role::Client], None);
    assert_eq!(report.verdict(), Verdict::NotComparable);
    assert!(text(&report).contains("nothing in the capture could be replayed"));
}

#[test]
fn a_capture_cut_at_any_place_is_no_success_and_no_panic() {
    let whole = Tape::modern().pcap();
    for length in (24..whole.len()).step_by(41) {
        let Ok(file) = Reader::new(std::io::Cursor::new(whole[..length].to_vec())) else { continue };
        let report = replay_capture(file, &[Role::Server, Role::Client], Options::default(), |_| {});
        assert_ne!(report.verdict(), Verdict::Different, "at {length}: {}", text(&report));
    }
}

#[test]
fn any_damage_is_borne() {
    // Every message of a session, with each of its first bytes changed in turn, and messages in the wrong order. What comes
    // of it may be anything but a panic, or a replay that does not end.
    let whole = Tape::modern();
    let mut outcomes = BTreeSet::new();
    for at in 0..whole.said.len() {
        for byte in (at % 3..6).step_by(3) {
            let mut tape = Tape::modern();
            let said = &mut tape.said[at];
            match said.body.get_mut(byte) {
                Some(byte) => *byte ^= 0x81,
                None if byte > 2 => said.kind ^= 3,
                None => continue,
            }
            outcomes.insert(run(&tape, &[Role::Server, Role::Client], None).verdict());
        }
        let mut tape = Tape::modern();
        let other = (at * 7 + 3) % whole.said.len();
        tape.said.swap(at, other);
        let again = tape.said[other].clone();
        tape.said.insert(at, again);
        outcomes.insert(run(&tape, &[Role::Server, Role::Client], None).verdict());
    }
    assert!(outcomes.contains(&Verdict::Different), "{outcomes:?}");
}

// ---- the link stage ----

#[test]
fn a_link_stage_that_ends_otherwise_is_found() {
    let mut tape = v2();
    // The client of 2013 has no capabilities, so no mechanism goes before its ticket, and no server waits for one.
    tape.mechanism = Some(1);
    let report = run(&tape, &[], None);
    assert_ne!(report.verdict(), Verdict::Equal, "{}", text(&report));
}

// ---- the program ----

fn program(arguments: &[&str]) -> (i32, String, String) {
    let out =
        Command::new(env!("CARGO_BIN_EXE_spice-tunnel")).arg("replay").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn the_exit_code_says_it() {
    let folder = tempfile::tempdir().unwrap();
    let good = captures().join("tunnel-v2-pair.pcap");
    let (code, out, _) = program(&[good.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}");
    assert!(out.ends_with("equal: today's code does as the capture shows\n"), "{out}");

    let mut tape = v2();
    tape.said.retain(|said| !matches!(said.client(), Some(ClientMessage::SocketToken { .. })));
    let bad = folder.path().join("bad.pcap");
    std::fs::write(&bad, tape.pcap()).unwrap();
    let (code, out, _) = program(&["--json", bad.to_str().unwrap()]);
    assert_eq!(code, 1);
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, found) = lines.split_last().unwrap();
    assert_eq!(last["summary"]["verdict"], "different");
    assert!(found.iter().any(|line| line["subject"] == "credit" && line["connection"] == 8), "{out}");

    let cut = folder.path().join("cut.pcap");
    let whole = std::fs::read(&good).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let (code, out, _) = program(&[cut.to_str().unwrap()]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("not comparable"), "{out}");

    let (code, _, error) = program(&["/nonexistent"]);
    assert_eq!(code, 1);
    assert!(error.contains("/nonexistent"), "{error}");
    for wrong in [
        &[] as &[&str],
        &["--role", "guest", "x"],
        &["--role", "netstack", "x"],
        &["--role", "server", "--nic", "y", "x"],
    ] {
        assert_eq!(program(wrong).0, 2, "{wrong:?}");
    }
}

#[test]
fn strict_finds_what_means_nothing() {
    // Two ends of today's, without pings: the same messages, one by one.
    let modern = Tape::modern();
    let strict = |tape: &Tape| {
        let file = Reader::new(std::io::Cursor::new(tape.pcap())).unwrap();
        let options = Options { strict: true, ..Options::default() };
        replay_capture(file, &[Role::Server, Role::Client], options, |_| {})
    };
    let report = strict(&modern);
    assert_eq!(report.verdict(), Verdict::Equal, "{}", text(&report));
    let report = strict(&v2());
    assert_found(&report, Part::Server, Subject::Strict, &["set_ack"]);
    assert_found(&report, Part::Client, Subject::Strict, &["today"]);
}
