//! The recordings in `captures/`: each is described, and each can be read to its end without a fault.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use spice_proto::names::{self, Sender};
use spice_proto::tunnel::{ClientMessage, ServerMessage};
use spice_tunnel::capture::dissect::{Body, Item, Message, Options, What};
use spice_tunnel::capture::file::Reader;
use spice_tunnel::capture::reader::SpiceReader;

#[path = "../examples/record-captures/recording/mod.rs"]
pub(crate) mod recording;

const FOLDER: &str = "captures";
const README: &str = include_str!("../captures/README.md");

/// The recordings, in the order of their names.
pub(crate) fn all() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(FOLDER)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pcap" || extension == "pcapng"))
        .collect();
    files.sort();
    files
}

/// Those of a virtual machine's card.
pub(crate) fn is_of_a_card(capture: &Path) -> bool {
    capture.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with(".guest"))
}

/// Those that hold a tunnel channel.
pub(crate) fn of_tunnels() -> Vec<PathBuf> {
    all().into_iter().filter(|capture| !said(capture).is_empty()).collect()
}

/// A step of a tunnel channel, as `dump` and Wireshark both show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) from: String,
    pub(crate) message: String,
    pub(crate) socket: Option<u16>,
    pub(crate) size: u32,
}

/// The steps of all tunnel channels in a recording, in their order.
pub(crate) fn said(capture: &Path) -> Vec<Said> {
    let mut steps = Vec::new();
    read(capture, &mut |item| {
        // The item of a link message is the first that knows its channel.
        if item.channel.is_some_and(|channel| channel.channel_type == 7) {
            steps.extend(step(item));
        }
    });
    steps
}

fn step(item: &Item<'_>) -> Option<Said> {
    let (message, size, socket) = match &item.what {
        What::LinkMess { size, .. } => ("link_mess", *size, None),
        What::LinkReply { size, .. } => ("link_reply", *size, None),
        What::AuthMechanism(_) => ("auth_mechanism", 4, None),
        What::Ticket => ("ticket", 128, None),
        What::Sasl { name, size } => (*name, *size, None),
        What::LinkResult(_) => ("link_result", 4, None),
        What::Message(message) => (message.name.unwrap_or("unknown"), message.head.size, socket(message)),
        What::Malformed { error, .. } => panic!("malformed: {error}"),
        What::Hole(hole) => panic!("{hole:?}"),
        What::Began { .. } | What::Linked(_) | What::Ended { .. } => return None,
    };
    let from = item.from.map(Sender::name).unwrap_or_default().to_owned();
    Some(Said { from, message: message.to_owned(), socket, size })
}

fn socket(message: &Message<'_>) -> Option<u16> {
    let socket = match &message.body {
        Body::TunnelServer(
            ServerMessage::SocketOpen { socket, .. }
            | ServerMessage::SocketFin { socket }
            | ServerMessage::SocketClose { socket }
            | ServerMessage::SocketData { socket, .. }
            | ServerMessage::SocketClosedAck { socket }
            | ServerMessage::SocketToken { socket, .. },
        )
        | Body::TunnelClient(
            ClientMessage::SocketOpenAck { socket, .. }
            | ClientMessage::SocketOpenNack { socket }
            | ClientMessage::SocketFin { socket }
            | ClientMessage::SocketClosed { socket }
            | ClientMessage::SocketClosedAck { socket }
            | ClientMessage::SocketData { socket, .. }
            | ClientMessage::SocketToken { socket, .. }
            | ClientMessage::SocketReset { socket },
        ) => socket,
        Body::TunnelServer(
            ServerMessage::Init { .. }
            | ServerMessage::ServiceIpMap { .. }
            | ServerMessage::ProbeAck { .. }
            | ServerMessage::NameQuery { .. },
        )
        | Body::TunnelClient(
            ClientMessage::ServiceAdd(_)
            | ClientMessage::ServiceRemove { .. }
            | ClientMessage::Probe { .. }
            | ClientMessage::ServiceInfo { .. }
            | ClientMessage::NameAnswer { .. }
            | ClientMessage::DomainAdd { .. }
            | ClientMessage::DomainRemove { .. },
        )
        | Body::BaseServer(_)
        | Body::BaseClient(_)
        | Body::MainServer(_)
        | Body::MainClient(_)
        | Body::Opaque
        | Body::Incomplete => return None,
    };
    Some(socket.0)
}

/// Everything in a recording.
fn read(capture: &Path, sink: &mut impl FnMut(&Item<'_>)) {
    let name = capture.display();
    let file = Reader::open(capture).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut reader = SpiceReader::new(file, Options::default());
    while reader.step(&mut |item| sink(&item)).unwrap_or_else(|error| panic!("{name}: {error}")) {}
}

/// The files that the README describes: the first cell of a table's row.
fn described() -> BTreeSet<String> {
    README
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.contains(".pcap"))
        .collect()
}

#[test]
fn every_file_is_described_and_every_description_has_a_file() {
    let files: BTreeSet<String> =
        all().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert!(files.len() >= 7, "{files:?}");
    assert_eq!(described(), files);
}

#[test]
fn every_one_is_read_to_its_end_without_a_fault() {
    for capture in all() {
        let name = capture.display();
        let mut messages = 0;
        read(&capture, &mut |item| match &item.what {
            What::Malformed { error, .. } => panic!("{name}: malformed: {error}"),
            What::Hole(hole) => panic!("{name}: {hole:?}"),
            What::Message(message) => {
                let channel = item.channel.unwrap_or_else(|| panic!("{name}: a message of no channel"));
                let from = item.from.unwrap_or_else(|| panic!("{name}: a message of nobody"));
                let known = names::message(channel.channel_type, from, message.head.kind);
                assert_eq!(message.name, known, "{name}");
                messages += 1;
            }
            What::Began { .. }
            | What::LinkMess { .. }
            | What::LinkReply { .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(_)
            | What::Linked(_)
            | What::Ended { .. } => {}
        });
        let none = is_of_a_card(&capture) || name.to_string().contains("ticket");
        assert_eq!(messages == 0, none, "{name}: {messages} messages");
    }
}

#[test]
fn our_own_recordings_hold_no_ticket() {
    let mut seen = 0;
    for capture in all().iter().filter(|capture| capture.extension().unwrap() == "pcapng") {
        if is_of_a_card(capture) {
            continue;
        }
        // Recorded from behind the link stage: what stands for the ticket are zeros.
        let tickets = said(capture).iter().filter(|said| said.message == "ticket").count();
        let bytes = std::fs::read(capture).unwrap();
        let zeros = bytes.split(|byte| *byte != 0).filter(|run| (128..136).contains(&run.len())).count();
        assert!(tickets > 0 && zeros >= tickets, "{}: {zeros} of {tickets}", capture.display());
        seen += 1;
    }
    assert!(seen >= 8, "only {seen} recordings of ours");
}

/// The documented way to record them again works, and what it records shows the same.
#[tokio::test]
async fn they_can_be_recorded_again() {
    let folder = tempfile::tempdir().unwrap();
    for name in recording::NAMES.into_iter().filter(|name| *name != "vm") {
        recording::tell(name, folder.path()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        for path in all().iter().filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(name))
        {
            let again = folder.path().join(path.file_name().unwrap());
            assert!(again.exists(), "{}", again.display());
            assert_eq!(outline(&again), outline(path), "{}", path.display());
        }
    }
}

/// How often each end said what, without what depends on the time: how data is cut into messages, and credit.
fn outline(capture: &Path) -> BTreeMap<(String, String), usize> {
    let mut outline = BTreeMap::new();
    for said in said(capture) {
        if !matches!(said.message.as_str(), "socket_data" | "socket_token") {
            *outline.entry((said.from, said.message)).or_default() += 1;
        }
    }
    outline
}
