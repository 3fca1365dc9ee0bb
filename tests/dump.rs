//! `spice-tunnel dump`, the program itself, on captures of programs that are not ours.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

/// How many messages of a channel type an end sent under a name.
type Counts = BTreeMap<(String, String, String), usize>;

/// A test that waits longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn capture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("captures").join(name)
}

fn dump() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spice-tunnel"));
    command.arg("dump").env_remove("RUST_LOG");
    command
}

fn run(file: &Path, options: &[&str]) -> Output {
    dump().arg(file).args(options).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("dump prints UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The objects of a JSON dump, each checked against what is promised of all.
fn objects(output: &Output) -> Vec<Value> {
    let objects: Vec<Value> = stdout(output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    objects.iter().for_each(check_object);
    objects
}

fn check_object(object: &Value) {
    const KEYS: [&str; 10] =
        ["channel", "channel_id", "fields", "from", "message", "serial", "size", "stream", "time", "type"];
    let map = object.as_object().unwrap();
    let mut keys: Vec<&str> = map.keys().map(String::as_str).filter(|key| *key != "error").collect();
    keys.sort_unstable();
    assert_eq!(keys, KEYS, "{object}");
    assert_eq!(map.contains_key("error"), object["message"] == "malformed", "{object}");
    assert!(object["time"].as_f64().unwrap().is_finite(), "{object}");
    assert!(object["message"].is_string() && object["fields"].is_object(), "{object}");
    for (key, good) in [
        ("stream", object["stream"].is_u64()),
        ("channel", object["channel"].is_string()),
        ("channel_id", object["channel_id"].is_u64()),
        ("from", object["from"] == "client" || object["from"] == "server"),
        ("type", object["type"].is_u64()),
        ("serial", object["serial"].is_u64()),
        ("size", object["size"].is_u64()),
    ] {
        assert!(good || object[key].is_null(), "{key} of {object}");
    }
}

fn text_of(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or("-").to_owned()
}

fn counts(objects: &[Value]) -> Counts {
    let mut counts = Counts::new();
    for object in objects {
        let key = (text_of(object, "channel"), text_of(object, "from"), text_of(object, "message"));
        *counts.entry(key).or_default() += 1;
    }
    counts
}

/// `main server: init 1, notify 2` and so on, one channel and end a line.
fn expected(table: &str) -> Counts {
    let mut counts = Counts::new();
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (who, messages) = line.split_once(": ").unwrap();
        let (channel, from) = who.split_once(' ').unwrap();
        for message in messages.split(", ") {
            let (name, number) = message.split_once(' ').unwrap();
            counts.insert((channel.to_owned(), from.to_owned(), name.to_owned()), number.parse().unwrap());
        }
    }
    counts
}

/// Counted by another program, which shares nothing with this one: it sorts segments by their numbers and steps from
/// header to header.
const CAPTURES: &[(&str, &str)] = &[
    (
        "tunnel-v1-pair.pcap",
        "main client: link_mess 1, ticket 1, attach_channels 1, pong 3
         main server: link_reply 1, link_result 1, init 1, channels_list 1, ping 3, notify 1
         inputs client: link_mess 1, ticket 1, key_modifiers 1
         inputs server: link_reply 1, link_result 1, init 1
         tunnel client: link_mess 1, ticket 1, ack_sync 1, ack 25, service_add 8, socket_open_ack 11, socket_open_nack 1, socket_fin 2, socket_closed 10, socket_closed_ack 1, socket_data 230, socket_token 22
         tunnel server: link_reply 1, link_result 1, set_ack 1, init 1, service_ip_map 8, socket_open 12, socket_fin 9, socket_close 1, socket_data 473, socket_closed_ack 10, socket_token 5",
    ),
    (
        "tunnel-v2-pair.pcap",
        "main client: link_mess 1, ticket 1, attach_channels 1, pong 3
         main server: link_reply 1, link_result 1, init 1, channels_list 1, ping 3, notify 1
         inputs client: link_mess 1, ticket 1
         inputs server: link_reply 1, link_result 1, init 1
         tunnel client: link_mess 1, ticket 1, ack_sync 1, ack 27, service_add 8, socket_open_ack 11, socket_open_nack 1, socket_fin 2, socket_closed 10, socket_closed_ack 1, socket_data 247, socket_token 23
         tunnel server: link_reply 1, link_result 1, set_ack 1, init 1, service_ip_map 8, socket_open 12, socket_fin 9, socket_close 1, socket_data 501, socket_closed_ack 10, socket_token 8",
    ),
    (
        "spice-gtk-session.pcap",
        "main client: link_mess 1, auth_mechanism 1, ticket 1, attach_channels 1
         main server: link_reply 1, link_result 1, init 1, channels_list 1, name 1, uuid 1, notify 1
         display client: link_mess 1, auth_mechanism 1, ticket 1, ack_sync 1, init 1, ack 3
         display server: link_reply 1, link_result 1, mark 1, inval_all_palettes 1, set_ack 1, draw_copy 59, surface_create 1, monitors_config 2
         inputs client: link_mess 1, auth_mechanism 1, ticket 1, key_modifiers 1, key_scancode 6, mouse_position 1, mouse_release 1
         inputs server: link_reply 1, link_result 1, init 1, key_modifiers 1
         cursor client: link_mess 1, auth_mechanism 1, ticket 1, ack_sync 1
         cursor server: link_reply 1, link_result 1, init 1, set_ack 1",
    ),
    (
        "rust-client-session.pcap",
        "main client: link_mess 1, auth_mechanism 1, ticket 1, attach_channels 1
         main server: link_reply 1, link_result 1, init 1, channels_list 1, notify 1
         inputs client: link_mess 1, auth_mechanism 1, ticket 1
         inputs server: link_reply 1, link_result 1, init 1",
    ),
    (
        "wrong-ticket.pcap",
        "main client: link_mess 1, auth_mechanism 1, ticket 1
         main server: link_reply 1, link_result 1",
    ),
];

#[test]
fn counts_what_others_count() {
    for (name, table) in CAPTURES {
        let output = run(&capture(name), &["--json"]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        assert_eq!(counts(&objects(&output)), expected(table), "{name}");
        let with_hex = run(&capture(name), &["--json", "--hex"]);
        assert_eq!(counts(&objects(&with_hex)), expected(table), "{name}");
    }
}

#[test]
fn every_capture_is_read_without_fault() {
    let mut captures = 0;
    for entry in std::fs::read_dir(capture("")).unwrap() {
        let path = entry.unwrap().path();
        if !path.extension().is_some_and(|extension| extension == "pcap" || extension == "pcapng") {
            continue;
        }
        captures += 1;
        let output =
            run(&path, &["--json", "--message", "malformed", "--message", "hole", "--message", "unknown"]);
        let objects = objects(&output);
        assert_eq!((output.status.code(), objects.len()), (Some(0), 0), "{path:?}: {objects:?}");
    }
    assert!(captures > 7, "only {captures} captures");
}

#[test]
fn names_every_field() {
    let objects = objects(&run(&capture("tunnel-v1-pair.pcap"), &["--json", "--hex"]));
    let first = |channel: &str, message: &str| {
        objects
            .iter()
            .find(|object| object["channel"] == channel && object["message"] == message)
            .unwrap_or_else(|| panic!("no {message} on {channel}"))
    };
    let service = first("tunnel", "service_add");
    for (key, value) in
        [("type_name", Value::from("generic")), ("id", 0.into()), ("group", 0.into()), ("port", 7001.into())]
    {
        assert_eq!(service["fields"][key], value, "{service}");
    }
    assert_eq!(first("tunnel", "service_ip_map")["fields"]["virtual_ip"], "10.0.2.31");
    let init = &first("tunnel", "init")["fields"];
    assert_eq!(
        (init["max_num_of_sockets"].as_u64(), init["max_socket_data_size"].as_u64()),
        (Some(20), Some(2048))
    );
    let open = &first("tunnel", "socket_open")["fields"];
    assert_eq!((open["connection_id"].as_u64(), open["tokens"].as_u64()), (Some(0), Some(80)));
    assert_eq!(open["connection"], 0);
    let link = first("tunnel", "link_mess");
    assert_eq!(link["fields"]["major_version"], 0xffff_fffe_u32);
    assert_eq!((&link["type"], &link["serial"], &link["size"]), (&Value::Null, &Value::Null, &18.into()));
    let list = &first("main", "channels_list")["fields"];
    assert!(list["channels"].as_array().unwrap().iter().any(|entry| entry["name"] == "tunnel"), "{list}");
    for object in objects.iter().filter(|object| object["message"] == "socket_data") {
        let fields = &object["fields"];
        assert_eq!(fields["bytes"].as_u64().unwrap() + 2, object["size"].as_u64().unwrap());
        assert_eq!(fields["data"].as_str().unwrap().len() as u64, 2 * fields["bytes"].as_u64().unwrap());
    }
    for object in objects.iter().filter(|object| object["message"] == "ticket") {
        assert_eq!(object["fields"], serde_json::json!({}), "a ticket is nobody's business");
    }
}

#[test]
fn says_what_is_in_a_capture_in_words() {
    let output = run(&capture("tunnel-v2-pair.pcap"), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(!text.contains('\x1b'), "no colours where nobody looks");
    let lines: Vec<&str> = text.lines().collect();
    let line = |needles: &[&str]| {
        lines
            .iter()
            .find(|line| needles.iter().all(|needle| line.contains(needle)))
            .unwrap_or_else(|| panic!("no line with {needles:?} in\n{text}"))
    };
    line(&["tunnel", "client", "service_add", "service 0", "port 7001"]);
    line(&["tunnel", "server", "service_ip_map", "10.0.2.31"]);
    line(&["tunnel", "server", "socket_open", "socket 0", "80 tokens", "#0"]);
    line(&["main", "server", "channels_list", "tunnel:0"]);
    line(&["began", "127.0.0.1:5980"]);
    line(&["ended"]);
    // The summary.
    line(&["3 Spice connections"]);
    line(&["sockets", "12 opened, 11 accepted", "1 refused"]);
    line(&["services", "8 announced"]);
    line(&["errors", "none"]);
    // Everything stands in its column.
    let header = lines.iter().find(|line| line.contains("message")).unwrap();
    let at = header.find("message").unwrap();
    for name in ["link_mess", "socket_open_ack", "channels_list", "began"] {
        assert_eq!(line(&[&format!(" {name} ")]).find(name), Some(at), "{name}");
    }
}

#[test]
fn a_refused_link_says_why() {
    let output = run(&capture("wrong-ticket.pcap"), &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    assert!(text.contains("wrong or expired password (code 7)"), "{text}");
    let last = objects(&run(&capture("wrong-ticket.pcap"), &["--json"])).pop().unwrap();
    assert_eq!((&last["message"], &last["fields"]["error"]), (&"link_result".into(), &7.into()));
}

#[test]
fn a_network_card_is_no_spice() {
    let output = run(&capture("tunnel-v2-pair.guest.pcap"), &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let objects = objects(&output);
    assert!(objects.iter().all(|object| object["message"] == "guest_connection"), "{objects:?}");
    assert!(stderr(&output).contains("no Spice"), "{}", stderr(&output));
}

#[test]
fn filters_show_what_was_asked_for() {
    let file = capture("tunnel-v2-pair.pcap");
    let all = objects(&run(&file, &["--json"]));
    let opens: Vec<&Value> = all.iter().filter(|object| object["message"] == "socket_open").collect();
    let of_service: Vec<&Value> = opens
        .iter()
        .filter(|open| open["fields"]["service_id"] == 1)
        .map(|open| &open["fields"]["connection"])
        .collect();
    assert!(!of_service.is_empty());
    type Wanted<'a> = &'a dyn Fn(&Value) -> bool;
    let cases: &[(&[&str], Wanted)] = &[
        (&["--socket", "1"], &|object| {
            object["channel"] == "tunnel"
                && object["fields"]["connection_id"] == 1
                && object["message"] != "link_mess"
        }),
        (&["--message", "socket_open", "--message", "socket_open_nack"], &|object| {
            object["message"] == "socket_open" || object["message"] == "socket_open_nack"
        }),
        (&["--from", "client"], &|object| object["from"] == "client"),
        (&["--channel", "main", "--channel", "inputs:0"], &|object| {
            object["channel"] == "main" || object["channel"] == "inputs"
        }),
        (&["--stream", "1", "--from", "server"], &|object| {
            object["stream"] == 1 && object["from"] == "server"
        }),
        (&["--time", "1..2.5"], &|object| (1.0..=2.5).contains(&object["time"].as_f64().unwrap())),
        (&["--time", "..1"], &|object| object["time"].as_f64().unwrap() <= 1.0),
        (&["--port", "5980"], &|_| true),
        (&["--port", "5981"], &|_| false),
        (&["--service", "1"], &|object| match object["message"].as_str().unwrap() {
            "service_add" => object["fields"]["id"] == 1,
            "service_ip_map" => object["fields"]["service_id"] == 1,
            _ => of_service.contains(&&object["fields"]["connection"]),
        }),
    ];
    for (options, wanted) in cases {
        let output = run(&file, &[&["--json"], *options].concat());
        assert_eq!(output.status.code(), Some(0), "{options:?}: {}", stderr(&output));
        let expected: Vec<&Value> = all.iter().filter(|object| wanted(object)).collect();
        let got = objects(&output);
        assert_eq!(got.iter().collect::<Vec<_>>(), expected, "{options:?}");
        if got.len() < all.len() && options[0] != "--port" {
            assert!(stderr(&output).contains("lines shown"), "{options:?}: {}", stderr(&output));
            assert!(
                stderr(&output).contains("12 opened"),
                "the summary counts everything: {}",
                stderr(&output)
            );
        }
    }
}

/// Everything but the summary.
fn lines_of(text: &str) -> Vec<&str> {
    text.lines().take_while(|line| !line.is_empty()).collect()
}

#[test]
fn what_comes_live_is_shown_at_once() {
    let file = std::fs::read(capture("spice-gtk-session.pcap")).unwrap();
    let whole = stdout(&run(&capture("spice-gtk-session.pcap"), &[]));
    let half = packet_boundary(&file, file.len() / 2);
    let before = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(before.path(), &file[..half]).unwrap();
    let shown_before = stdout(&run(before.path(), &[]));
    // What is said about connections that have no end yet comes later.
    let expected: Vec<&str> =
        lines_of(&shown_before).into_iter().filter(|line| !line.contains(" ended ")).collect();
    assert!(expected.len() > 20, "{shown_before}");

    let (mut child, mut input, lines) = live();
    input.write_all(&file[..half]).unwrap();
    input.flush().unwrap();
    let mut seen: Vec<String> =
        expected.iter().map(|_| lines.recv_timeout(PATIENCE).expect("a line that was due")).collect();
    assert_eq!(seen, expected);
    input.write_all(&file[half..]).unwrap();
    drop(input);
    seen.extend(lines.iter());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(lines_of(&seen.join("\n")), lines_of(&whole));
}

#[test]
fn an_interrupt_ends_it_well() {
    let file = std::fs::read(capture("spice-gtk-session.pcap")).unwrap();
    let (mut child, mut input, lines) = live();
    // Not even a whole packet, so that it waits in the middle of one.
    input.write_all(&file[..file.len() / 2]).unwrap();
    input.flush().unwrap();
    lines.recv_timeout(PATIENCE).expect("the first line");
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    let rest: Vec<String> = lines.iter().collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", rest.join("\n"));
    assert!(rest.iter().any(|line| line.contains("4 Spice connections")), "{}", rest.join("\n"));
    assert!(rest.iter().any(|line| line.contains("stopped")), "{}", rest.join("\n"));
    drop(input);
}

/// `dump -`, its standard input, and its lines as they come.
fn live() -> (Child, ChildStdin, mpsc::Receiver<String>) {
    let mut child =
        dump().arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    (child, input, lines)
}

#[test]
fn who_has_read_enough_may_go() {
    let mut child = dump()
        .arg(capture("tunnel-v2-pair.pcap"))
        .args(["--json", "--hex"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn colours_are_for_terminals() {
    let shell = |no_color: &str| {
        let line = format!(
            "NO_COLOR={no_color} {} dump {}",
            env!("CARGO_BIN_EXE_spice-tunnel"),
            capture("wrong-ticket.pcap").display()
        );
        // A terminal of its own.
        let output = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
        let output = output.expect("the program `script` (bsdutils) is needed");
        assert!(output.status.success(), "{output:?}");
        stdout(&output)
    };
    assert!(shell("").contains("\x1b["));
    let plain = shell("1");
    assert!(plain.contains("link_mess") && !plain.contains('\x1b'), "{plain}");
}

#[test]
fn what_is_no_capture_is_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    let other = directory.path().join("other");
    std::fs::write(&other, b"#!/bin/sh\necho this is no capture, however long it is\n").unwrap();
    let missing = directory.path().join("missing");
    for (file, expected) in [
        (empty.as_path(), "empty"),
        (&other, "not a capture"),
        (&missing, "No such file"),
        (directory.path(), "directory"),
    ] {
        let output = run(file, &["--json"]);
        assert_eq!(output.status.code(), Some(1), "{file:?}");
        assert!(stderr(&output).contains(expected), "{file:?}: {}", stderr(&output));
        let objects = objects(&output);
        assert_eq!(objects.len(), 1, "{file:?}");
        assert_eq!((&objects[0]["message"], &objects[0]["stream"]), (&"malformed".into(), &Value::Null));
        let text = run(file, &[]);
        assert_eq!(text.status.code(), Some(1), "{file:?}");
        assert!(stdout(&text).contains("malformed"), "{file:?}: {}", stdout(&text));
    }
    for wrong in
        [&["--time", "soon"][..], &["--message", "sockets"], &["--channel", "tunel"], &["--format", "hex"]]
    {
        let output = run(&capture("wrong-ticket.pcap"), wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

/// The packets of a little-endian pcap, each with its header.
fn packets(file: &[u8]) -> Vec<&[u8]> {
    let mut packets = Vec::new();
    let mut start = 24;
    while start < file.len() {
        let length = u32::from_le_bytes(file[start + 8..start + 12].try_into().unwrap()) as usize;
        packets.push(&file[start..start + 16 + length]);
        start += 16 + length;
    }
    packets
}

/// What identifies a message of a connection with full headers.
fn identity(object: &Value) -> String {
    let keys = ["channel", "from", "message", "type", "serial", "size"];
    keys.map(|key| object[key].to_string()).join(" ")
}

/// The tunnel's messages of the data stage in a capture of which packets are missing, and its holes; both checked against those of
/// the whole capture.
fn with_missing(packets: &[&[u8]], whole: &[Value]) -> (Vec<Value>, Vec<Value>, Output) {
    let changed = tempfile::NamedTempFile::new().unwrap();
    let file = std::fs::read(capture("tunnel-v2-pair.pcap")).unwrap();
    std::fs::write(changed.path(), [&file[..24], &packets.concat()].concat()).unwrap();
    let output = run(changed.path(), &["--json", "--channel", "tunnel"]);
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    let (holes, messages): (Vec<Value>, Vec<Value>) = objects(&output)
        .into_iter()
        .filter(|object| !object["type"].is_null() || object["message"] == "hole")
        .partition(|object| object["message"] == "hole");
    let known: std::collections::BTreeSet<String> = whole.iter().map(identity).collect();
    for message in &messages {
        assert!(known.contains(&identity(message)), "nobody said {message}");
    }
    (messages, holes, output)
}

#[test]
fn what_is_missing_is_a_line_and_the_rest_is_found_again() {
    let file = std::fs::read(capture("tunnel-v2-pair.pcap")).unwrap();
    let packets = packets(&file);
    let whole = objects(&run(&capture("tunnel-v2-pair.pcap"), &["--json"]));
    let said =
        whole.iter().filter(|object| object["channel"] == "tunnel" && !object["type"].is_null()).count();

    let some: Vec<&[u8]> = packets
        .iter()
        .enumerate()
        .filter(|(index, _)| *index < 300 || index % 100 != 0)
        .map(|(_, packet)| *packet)
        .collect();
    let (messages, holes, output) = with_missing(&some, &whole);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        !holes.is_empty() && holes.iter().all(|hole| hole["fields"]["cause"] == "not_captured"),
        "{holes:?}"
    );
    assert!(messages.len() * 10 > said * 9, "{} of {said} messages, with {holes:?}", messages.len());

    // From the middle on: no fault, but said.
    let (messages, holes, output) = with_missing(&packets[400..], &whole);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!holes.is_empty() && holes.iter().all(|hole| hole["fields"]["cause"].is_null()), "{holes:?}");
    assert!(messages.len() > 300, "{} messages", messages.len());
    assert!(stderr(&output).contains("before the capture"), "{}", stderr(&output));
}

/// Runs within an address space of a gigabyte, and is not expected to need it.
fn run_confined(file: &Path) -> Output {
    Command::new("sh")
        .args([
            "-c",
            "ulimit -v 1000000; exec \"$0\" dump \"$1\" --json --hex",
            env!("CARGO_BIN_EXE_spice-tunnel"),
        ])
        .arg(file)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Checks that a damaged file was dealt with: no panic, good lines, an exit code that agrees with them.
fn check_damaged(output: &Output, what: &str) -> bool {
    let errors = stderr(output);
    assert!(!errors.contains("panicked") && !errors.contains("RUST_BACKTRACE"), "{what}: {errors}");
    let objects = objects(output);
    let is_hole = |object: &Value| object["message"] == "hole" && !object["fields"]["cause"].is_null();
    let bad = objects.iter().any(|object| object["message"] == "malformed" || is_hole(object));
    assert_eq!(output.status.code(), Some(i32::from(bad)), "{what}: {errors}");
    bad
}

#[test]
fn cut_files_are_read_to_where_they_are_cut() {
    let file = std::fs::read(capture("wrong-ticket.pcap")).unwrap();
    let cut = tempfile::NamedTempFile::new().unwrap();
    // All of the file's header and of the first packets, and then here and there.
    for length in (0..200).chain((200..file.len()).step_by(97)) {
        std::fs::write(cut.path(), &file[..length]).unwrap();
        let output = run_confined(cut.path());
        let bad = check_damaged(&output, &format!("cut at {length}"));
        let between_packets = length >= 24 && packet_boundary(&file, length) == length;
        assert!(bad || between_packets, "a file cut at {length} is damaged");
        if !between_packets {
            let last = objects(&output).pop().unwrap();
            assert_eq!(
                (&last["message"], &last["stream"]),
                (&"malformed".into(), &Value::Null),
                "cut at {length}"
            );
        }
    }
}

#[test]
fn changed_bytes_do_no_harm() {
    let original = std::fs::read(capture("spice-gtk-session.pcap")).unwrap();
    let changed = tempfile::NamedTempFile::new().unwrap();
    let mut state = 0x5eed_u64;
    let mut dice = |below: usize| {
        // Knuth's constants.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut bad = 0;
    for round in 0..60 {
        let mut file = original.clone();
        for _ in 0..1 + dice(20) {
            let at = dice(file.len());
            file[at] = dice(256) as u8;
        }
        std::fs::write(changed.path(), &file).unwrap();
        let output = run_confined(changed.path());
        let is_bad = check_damaged(&output, &format!("round {round}"));
        bad += usize::from(is_bad);
        let text = run(changed.path(), &["--hex"]);
        assert_eq!(text.status.code(), Some(i32::from(is_bad)), "round {round}: {}", stderr(&text));
        let text = stdout(&text);
        let steers = |c: char| c.is_control() && c != '\n';
        assert!(
            !text.contains(steers),
            "round {round}: {:?}",
            text.lines().find(|line| line.contains(steers))
        );
    }
    assert!(bad > 20, "only {bad} of the changed files were found to be bad");
}

/// Where the last packet ends that is wholly within the first `length` bytes of a little-endian pcap.
fn packet_boundary(file: &[u8], length: usize) -> usize {
    let mut end = 24;
    loop {
        let Some(header) = file.get(end + 8..end + 12) else { return end };
        let next = end + 16 + u32::from_le_bytes(header.try_into().unwrap()) as usize;
        if next > length {
            return end;
        }
        end = next;
    }
}

#[test]
fn help_teaches() {
    let output = dump().arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    for word in ["Examples:", "tcpdump", "--follow", "--nic", "Exit code"] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
}
