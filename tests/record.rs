//! Recordings of real traffic: a guest, `serve`'s server and `connect`, all in this process, and what their files say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use server_glue::nic::Nic;
use server_glue::proxy::Backend;
use spice_proto::frame::{HeaderForm, put_header};
use spice_proto::handshake::Linked;
use spice_proto::link::{ChannelType, CommonCaps};
use spice_proto::names::Sender;
use spice_proto::ticket::Password;
use spice_proto::tunnel::{ClientMessage, Layout, ServerMessage, SocketId};
use spice_tunnel::capture::dissect::{self, Body, End, What};
use spice_tunnel::capture::ledger::Ledger;
use spice_tunnel::capture::reader::SpiceReader;
use spice_tunnel::capture::reassembly::{Limits, Piece, Reassembler, Way};
use spice_tunnel::capture::{file, packet};
use spice_tunnel::cli::{Cli, Command as Verb};
use spice_tunnel::guest::{Config, Guest, GuestStream};
use spice_tunnel::record::{self, Ends, Options, Outcome, Recording};
use spice_tunnel::replay::report::Verdict;
use spice_tunnel::replay::{self, replay_capture};
use spice_tunnel::serve::{Parts, Server};
use spice_tunnel::{connect, serve};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tunnel_channel::Role;

const SOON: Duration = Duration::from_secs(30);
const PASSWORD: &str = "open sesame, please";

/// A guest, a server that is recorded, and a `connect` that records itself, with an echo service.
struct World {
    directory: tempfile::TempDir,
    guest: Guest,
    server: Server,
    recordings: Vec<Recording>,
    relay: Relay,
    connect: JoinHandle<Result<(), connect::Error>>,
    shutdown: CancellationToken,
    /// Where the guest finds the echo service, and one that nobody serves.
    echo: SocketAddr,
    nobody: SocketAddr,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}, &[]).await
    }

    /// `server` changes what the server records to, `more` are words for `connect`.
    async fn with(server: impl Fn(&mut Options), more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (card, cable) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let spice = listener.local_addr().unwrap();
        let backend = Backend::Standalone { password: Some(Password::new(PASSWORD).unwrap()) };
        let mut parts = Parts::new(Nic::attached(card), backend, listener).unwrap();
        let mut options = Options::new(directory.path().join("serve"));
        server(&mut options);
        let (recording, links) = record::links(&options).unwrap();
        parts.capture = Some(links);
        let (card, frames) = record::frames(&Options::new(directory.path().join("nic"))).unwrap();
        parts.capture_nic = Some(frames);
        let server = Server::start(parts);
        let guest = Guest::start(cable, Config::default());
        timeout(SOON, guest.lease()).await.expect("a lease").unwrap();

        let relay = Relay::start(spice).await;
        let password = directory.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let uri = format!("spice://{}", relay.address);
        let echo = format!("tcp://{}?name=echo", echo().await);
        let nobody = format!("tcp://{closed}?name=nobody");
        let file = directory.path().join("connect");
        let mut words = vec!["spice-tunnel", "connect", &uri, "--share", &echo, "--share", &nobody];
        words.extend(["--password-file", password.to_str().unwrap(), "--capture", file.to_str().unwrap()]);
        words.extend(more);
        let shutdown = CancellationToken::new();
        let (out, mut lines) = tokio::io::duplex(4096);
        let connect = tokio::spawn(connect::run_to(connect_args(&words), shutdown.clone(), out));
        let mut lines = BufReader::new(&mut lines).lines();
        let mut mapped = BTreeMap::new();
        while mapped.len() < 2 {
            let line = timeout(SOON, lines.next_line()).await.expect("a line").unwrap().expect("a line");
            let name = line.split_whitespace().next().unwrap().to_owned();
            mapped.insert(name, line.rsplit(' ').next().unwrap().parse().unwrap());
        }
        let (echo, nobody) = (mapped["echo"], mapped["nobody"]);
        let recordings = vec![recording, card];
        Self { directory, guest, server, recordings, relay, connect, shutdown, echo, nobody }
    }

    async fn connect(&self, to: SocketAddr) -> GuestStream {
        timeout(SOON, self.guest.connect(to.ip(), to.port())).await.expect("an answer").unwrap()
    }

    /// Sends `data` through the echo service and checks what comes back.
    async fn exchange(&self, data: &[u8]) {
        let (mut read, mut write) = tokio::io::split(self.connect(self.echo).await);
        let send = async {
            write.write_all(data).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut answer = Vec::new();
        let both = async { tokio::join!(send, read.read_to_end(&mut answer)).1.unwrap() };
        timeout(SOON, both).await.expect("the echo");
        assert!(answer == data, "the echo differs");
    }

    /// Ends everything in order: first the client, then the server, then the recordings of the server.
    async fn end(self) -> (tempfile::TempDir, Vec<Outcome>, Relay) {
        self.shutdown.cancel();
        timeout(SOON, self.connect).await.expect("connect's end").unwrap().unwrap();
        self.server.stop().await;
        let mut outcomes = Vec::new();
        for recording in self.recordings {
            outcomes.push(recording.finish().await);
        }
        (self.directory, outcomes, self.relay)
    }
}

fn connect_args(words: &[&str]) -> connect::ConnectArgs {
    let Verb::Connect(args) = Cli::try_parse_from(words).unwrap().command else { panic!("{words:?}") };
    args
}

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await?;
                write.shutdown().await
            });
        }
    });
    address
}

/// Stands between `connect` and the server, keeps what the client says at first, and can cut the wire.
struct Relay {
    address: SocketAddr,
    /// The beginning of what each client said.
    said: Arc<Mutex<Vec<Vec<u8>>>>,
    cut: watch::Sender<u32>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (cut, cuts) = watch::channel(0);
        let noted = Arc::clone(&said);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(to).await.unwrap();
                let number = {
                    let mut noted = noted.lock().unwrap();
                    noted.push(Vec::new());
                    noted.len() - 1
                };
                let (noted, mut cuts) = (Arc::clone(&noted), cuts.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let up = async {
                        let mut buffer = vec![0; 64 << 10];
                        loop {
                            let count = from_client.read(&mut buffer).await.unwrap_or(0);
                            if count == 0 {
                                break to_server.shutdown().await;
                            }
                            if noted.lock().unwrap()[number].len() < 1000 {
                                noted.lock().unwrap()[number].extend_from_slice(&buffer[..count]);
                            }
                            to_server.write_all(&buffer[..count]).await?;
                        }
                    };
                    let down = async {
                        tokio::io::copy(&mut from_server, &mut to_client).await?;
                        to_client.shutdown().await
                    };
                    tokio::select! {
                        _ = async { tokio::join!(up, down) } => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, said, cut }
    }
}

/// Bytes that say where they are.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

/// What a file says of one link.
#[derive(Default)]
struct Told {
    client: Option<SocketAddr>,
    server: Option<SocketAddr>,
    /// Every message of each end, in words.
    from_client: Vec<String>,
    from_server: Vec<String>,
    /// What the guest sent and got on each connection, in the order of their SOCKET_OPEN.
    connections: Vec<(Vec<u8>, Vec<u8>)>,
    /// By socket.
    live: BTreeMap<u16, usize>,
    holes: Vec<dissect::Hole>,
    linked: bool,
    end: Option<End>,
}

/// Reads a recording. Nothing in it may be malformed, and it must end where it ends.
fn tell(path: &Path) -> Vec<Told> {
    let file = file::Reader::open(path).unwrap();
    let mut reader = SpiceReader::new(file, dissect::Options::default());
    let mut told: Vec<Told> = Vec::new();
    let mut note = |item: dissect::Item<'_>| {
        let number = item.stream.0 as usize;
        if let What::Began { client, server, from_start } = item.what {
            assert!(from_start, "the beginning of {client} to {server} is missing");
            assert_eq!(told.len(), number);
            told.push(Told { client: Some(client), server: Some(server), ..Told::default() });
            return;
        }
        let told = &mut told[number];
        match item.what {
            What::Message(message) => told.message(item.from.unwrap(), &message),
            What::Hole(hole) => told.holes.push(hole),
            What::Linked(_) => told.linked = true,
            What::Ended { how } => told.end = Some(how),
            What::Malformed { error, .. } => panic!("{}: malformed: {error}", path.display()),
            What::Began { .. }
            | What::LinkMess { .. }
            | What::LinkReply { .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(_) => {}
        }
    };
    while reader.step(&mut note).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {}
    assert_eq!(reader.counts().faults, BTreeMap::new());
    assert!(told.iter().all(|told| told.linked), "a link without a link stage");
    told
}

/// What a ledger says about a recording's messages.
fn remarks(path: &Path) -> Vec<String> {
    let mut reader = SpiceReader::new(file::Reader::open(path).unwrap(), dissect::Options::default());
    let mut ledger = Ledger::default();
    let mut remarks = Vec::new();
    while reader
        .step(&mut |item| remarks.extend(ledger.item(&item).remark.map(|remark| remark.text)))
        .unwrap()
    {}
    remarks
}

impl Told {
    fn message(&mut self, from: Sender, message: &dissect::Message<'_>) {
        let mut line = format!("{:?} {} bytes", message.name, message.head.size);
        match &message.body {
            Body::TunnelServer(ServerMessage::SocketData { socket, payload }) => {
                if let Some(at) = self.live.get(&socket.0) {
                    self.connections[*at].0.extend_from_slice(payload);
                }
                line += &format!(" {socket:?}");
            }
            Body::TunnelClient(ClientMessage::SocketData { socket, payload }) => {
                if let Some(at) = self.live.get(&socket.0) {
                    self.connections[*at].1.extend_from_slice(payload);
                }
                line += &format!(" {socket:?}");
            }
            Body::TunnelServer(other) => {
                if let ServerMessage::SocketOpen { socket, .. } = other {
                    self.live.insert(socket.0, self.connections.len());
                    self.connections.push(Default::default());
                }
                line += &format!(" {other:?}");
            }
            other @ (Body::TunnelClient(_)
            | Body::BaseServer(_)
            | Body::BaseClient(_)
            | Body::MainServer(_)
            | Body::MainClient(_)
            | Body::Opaque
            | Body::Incomplete) => line += &format!(" {other:?}"),
        }
        match from {
            Sender::Client => self.from_client.push(line),
            Sender::Server => self.from_server.push(line),
        }
    }
}

/// TCP connections on the guest's card: what the guest sent and got, in the order of their beginnings.
fn frames(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut reader = file::Reader::open(path).unwrap();
    let mut reassembler = Reassembler::new(Limits::default());
    let mut streams: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut note = |event: spice_tunnel::capture::reassembly::StreamEvent<'_>| {
        let number = event.stream.0 as usize;
        match event.piece {
            Piece::Opened { from_start, .. } => {
                assert!(from_start);
                assert_eq!(streams.len(), number);
                streams.push(Default::default());
            }
            Piece::Bytes { way: Way::Forth, bytes } => streams[number].0.extend_from_slice(bytes),
            Piece::Bytes { way: Way::Back, bytes } => streams[number].1.extend_from_slice(bytes),
            Piece::Hole { missing, .. } => panic!("{missing} bytes are missing on the card"),
            Piece::Answered | Piece::Finished { .. } | Piece::Reset { .. } | Piece::Ended { .. } => {}
        }
    };
    while let Some(packet) = reader.next().unwrap() {
        if let Some(segment) = packet::segment(&packet).unwrap() {
            reassembler.handle(packet.time, &segment, &mut note);
        }
    }
    reassembler.finish(&mut note);
    streams
}

/// What tshark thinks is wrong with the TCP/IP of a file: a line for each packet.
fn tshark(path: &Path) -> Vec<String> {
    // Of the payload nothing is said: stock Wireshark does not understand all of a tunnel.
    let filter = "_ws.short || tcp.analysis.flags || !(tcp.checksum.status == 1) \
                  || (ip && !(ip.checksum.status == 1)) || frame.cap_len != frame.len";
    let mut command = Command::new("tshark");
    command.arg("-r").arg(path).args(["-Y", filter, "--disable-protocol", "spice"]);
    command.args(["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]);
    command.args(["-T", "fields", "-e", "frame.number", "-e", "_ws.expert.message"]);
    let output =
        command.output().expect("tshark, which tests/install-prerequisites.sh installs, must be there");
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// How many packets tshark finds with a display filter.
fn packets(path: &Path, filter: &str) -> usize {
    let output = Command::new("tshark").arg("-r").arg(path).args(["-Y", filter]).output().unwrap();
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout.iter().filter(|byte| **byte == b'\n').count()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut at = 0;
    while let Some(next) = haystack[at..].iter().position(|byte| *byte == first) {
        at += next;
        if haystack[at..].starts_with(needle) {
            return true;
        }
        at += 1;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_record_what_was_said_and_no_secret() {
    let world = World::new().await;
    let sent: Vec<Vec<u8>> = [0, 1, 100_000, 200_000].map(|len| pattern(len as u32, len)).into();
    for data in &sent {
        world.exchange(data).await;
    }
    assert!(
        timeout(SOON, world.guest.connect(world.nobody.ip(), world.nobody.port())).await.unwrap().is_err()
    );
    let mut reset = world.connect(world.echo).await;
    reset.write_all(b"half a j").await.unwrap();
    let mut answer = [0; 8];
    timeout(SOON, reset.read_exact(&mut answer)).await.expect("the echo").unwrap();
    reset.reset();
    // The reset has arrived when a later connection has.
    world.exchange(b"the last one").await;
    let (directory, outcomes, relay) = world.end().await;
    for outcome in outcomes {
        outcome.result.unwrap();
        assert_eq!(outcome.dropped.pieces, 0);
    }
    let path = |name: &str| directory.path().join(name);
    let mut expected: Vec<(Vec<u8>, Vec<u8>)> =
        sent.iter().map(|data| (data.clone(), data.clone())).collect();
    expected.push((Vec::new(), Vec::new()));
    expected.push((b"half a j".to_vec(), b"half a j".to_vec()));
    expected.push((b"the last one".to_vec(), b"the last one".to_vec()));

    let (server, client) = (tell(&path("serve")), tell(&path("connect")));
    assert_eq!((server.len(), client.len()), (1, 1));
    for told in [&server[0], &client[0]] {
        assert!(told.connections == expected, "{:?}", told.from_server);
        assert_eq!(told.end, Some(End::Closed));
        assert_eq!(told.holes, []);
    }
    // Each end's last words may not have been read by the other.
    assert!(client[0].from_client.starts_with(&server[0].from_client));
    assert!(server[0].from_server.starts_with(&client[0].from_server));
    assert!(client[0].from_client.len() - server[0].from_client.len() <= 1);
    assert_eq!(client[0].server, Some(relay.address));
    assert_eq!(server[0].client.unwrap().ip(), Ipv4Addr::LOCALHOST);

    assert!(frames(&path("nic")) == expected, "the card's connections differ");

    let said = relay.said.lock().unwrap()[0].clone();
    // Link header, link message with two words, mechanism.
    let ticket = &said[16 + 18 + 8 + 4..][..128];
    assert!(ticket.iter().any(|byte| *byte != 0));
    for name in ["serve", "connect", "nic"] {
        let file = std::fs::read(path(name)).unwrap();
        assert!(!contains(&file, PASSWORD.as_bytes()), "{name} holds the password");
        for piece in ticket.chunks(16) {
            assert!(!contains(&file, piece), "{name} holds the ticket");
        }
        assert!(contains(&file, concat!("spice-tunnel ", env!("CARGO_PKG_VERSION")).as_bytes()));
        assert_eq!(std::fs::metadata(path(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    for name in ["serve", "connect"] {
        assert_eq!(tshark(&path(name)), Vec::<String>::new(), "{name}");
    }
    let directions = ["frame.packet_flags_direction == 1", "frame.packet_flags_direction == 2"];
    let [inbound, outbound] = directions.map(|filter| packets(&path("nic"), filter));
    assert!(inbound > 10 && outbound > 10);
    assert_eq!(inbound + outbound, packets(&path("nic"), "frame"), "every frame has a direction");
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_after_each_other_are_connections_in_one_file() {
    let world = World::new().await;
    world.exchange(b"before").await;
    world.relay.cut.send_modify(|cut| *cut += 1);
    // Mapped again, it answers again.
    let again = async {
        loop {
            match world.guest.connect(world.echo.ip(), world.echo.port()).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let mut stream = timeout(SOON, again).await.expect("the tunnel to come back");
    stream.write_all(b"after").await.unwrap();
    let mut answer = [0; 5];
    timeout(SOON, stream.read_exact(&mut answer)).await.expect("the echo").unwrap();
    let (directory, ..) = world.end().await;
    for name in ["serve", "connect"] {
        let path = directory.path().join(name);
        let told = tell(&path);
        assert_eq!(told.len(), 2, "{name}");
        let said: Vec<&[u8]> = told
            .iter()
            .flat_map(|told| &told.connections)
            .map(|(up, _)| &up[..])
            .filter(|up| !up.is_empty())
            .collect();
        assert_eq!(said, [&b"before"[..], b"after"], "{name}");
        assert_ne!(told[0].client, told[1].client, "{name}");
        assert!(told.iter().all(|told| matches!(told.end, Some(End::Closed | End::Reset(_)))));
        assert_eq!(tshark(&path), Vec::<String>::new(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_too_slow_costs_the_recording_and_not_the_traffic() {
    // A pipe that nobody reads is the slowest disk there is.
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (go, gone) = std::sync::mpsc::channel();
    let copy = directory.path().join("copy");
    let reader = std::thread::spawn({
        let (pipe, copy) = (pipe.clone(), copy.clone());
        move || {
            let mut pipe = File::open(pipe).unwrap();
            // The queue is full until then.
            let _: Result<(), _> = gone.recv();
            std::io::copy(&mut pipe, &mut File::create(copy).unwrap()).unwrap()
        }
    });
    let world = World::with(
        |options| {
            options.path.clone_from(&pipe);
            options.queue = 300_000;
        },
        &[],
    )
    .await;
    let data = pattern(9, 200_000);
    for _ in 0..20 {
        world.exchange(&data).await;
    }
    go.send(()).unwrap();
    // There is room again, and it goes on.
    let whole = tokio::time::Instant::now() + SOON;
    while world.relay.cut.receiver_count() > 0 && tokio::time::Instant::now() < whole {
        world.exchange(b"now").await;
        if std::fs::metadata(&copy).is_ok_and(|copy| copy.len() > 250_000) {
            break;
        }
    }
    world.exchange(b"after the hole").await;
    let (connected, outcomes, _) = world.end().await;
    reader.join().unwrap();
    outcomes[0].result.as_ref().unwrap();
    let dropped = outcomes[0].dropped;
    assert!(dropped.pieces > 0 && dropped.bytes > 3_000_000, "{dropped:?}");

    let told = tell(&copy).remove(0);
    let missing: u64 = told.holes.iter().map(|hole| hole.missing.unwrap()).sum();
    assert_eq!(missing, dropped.bytes);
    assert_eq!(told.end, Some(End::Closed));
    let wrong = tshark(&copy);
    assert!(wrong.iter().any(|line| line.contains("Previous segment(s) not captured")), "{wrong:?}");
    let other = |line: &&String| !line.contains("not captured") && !line.contains("ACKed segment");
    assert_eq!(wrong.iter().filter(other).collect::<Vec<_>>(), Vec::<&String>::new());
    // The client's own recording is whole.
    let told = tell(&connected.path().join("connect")).remove(0);
    assert!(told.connections[0] == (data.clone(), data), "connect's recording differs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_recording_and_not_the_tunnel() {
    let world = World::with(|options| options.path = "/dev/full".into(), &[]).await;
    world.exchange(&pattern(1, 500_000)).await;
    let (_, outcomes, _) = world.end().await;
    assert_eq!(outcomes[0].result.as_ref().unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    outcomes[1].result.as_ref().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn full_files_make_room_for_the_next() {
    let world = World::with(
        |options| {
            options.limit = Some(500_000);
            options.files = 3;
        },
        &["--capture-limit", "1M", "--capture-files", "20"],
    )
    .await;
    let data = pattern(4, 200_000);
    for _ in 0..25 {
        world.exchange(&data).await;
    }
    let (directory, outcomes, _) = world.end().await;
    for outcome in outcomes {
        outcome.result.unwrap();
    }
    let numbered = |name: &str, number: usize| match number {
        0 => directory.path().join(name),
        number => directory.path().join(format!("{name}.{number}")),
    };
    let count = |name: &str| (0..).take_while(|number| numbered(name, *number).exists()).count();
    assert_eq!(count("serve"), 3);
    for number in 0..3 {
        let path = numbered("serve", number);
        let len = std::fs::metadata(&path).unwrap().len();
        // Above the limit by what is read at once and the rest of a message each way.
        assert!(len < 500_000 + 400_000, "{number}: {len} bytes");
        assert!(number == 0 || len >= 500_000, "{number}: {len} bytes");
        assert_eq!(tell(&path).len(), 1);
        assert_eq!(tshark(&path), Vec::<String>::new());
    }
    // All files of the other end are there, and together they are everything.
    let files = count("connect");
    assert!(files > 5);
    // A tunnel that began in an earlier file is known for one.
    for number in 1..files {
        let path = numbered("connect", number);
        assert_eq!(remarks(&path), Vec::<String>::new(), "{number}");
        let file = file::Reader::open(&path).unwrap();
        let report = replay_capture(file, &[Role::Server, Role::Client], replay::Options::default(), |_| {});
        let began_before =
            report.differences().iter().any(|one| one.line().contains("began before this file"));
        assert_eq!(began_before, number + 1 < files, "{number}");
        if began_before {
            assert_eq!(report.verdict(), Verdict::NotComparable, "{number}");
        }
    }
    let mut up = 0;
    for number in (0..files).rev() {
        let told = tell(&numbered("connect", number)).remove(0);
        assert_eq!(told.holes, []);
        up += told.from_server.iter().filter(|line| line.starts_with("Some(\"socket_data\")")).count();
    }
    assert!(up >= 25 * data.len() / 32_768, "{up} messages with what the guest sent");
}

#[test]
fn a_killed_recorder_leaves_a_file_that_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("killed");
    let mut demo = Command::new(env!("CARGO_BIN_EXE_spice-tunnel"))
        .args(["demo", "--megabytes", "1000", "--capture"])
        .arg(&path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while std::fs::metadata(&path).map_or(0, |file| file.len()) < 1_000_000 {
        assert_eq!(demo.try_wait().unwrap(), None, "the demo is over too early");
        std::thread::sleep(Duration::from_millis(5));
    }
    demo.kill().unwrap();
    demo.wait().unwrap();
    let told = tell(&path).remove(0);
    assert!(told.connections[0].0.len() > 500_000);
    assert_eq!(told.end, Some(End::CaptureOver));
    assert_eq!(tshark(&path), Vec::<String>::new());
}

#[tokio::test]
async fn a_recording_that_cannot_be_made_is_said_before_anything_else() {
    let words =
        ["spice-tunnel", "connect", "spice://127.0.0.1:1", "--share", "tcp://127.0.0.1:9", "--capture"];
    for path in ["/nonexistent/there.pcapng", "/"] {
        let args = connect_args(&[&words[..], &[path]].concat());
        let error = connect::run_to(args, CancellationToken::new(), tokio::io::sink()).await.unwrap_err();
        assert!(matches!(error, connect::Error::Record(_)), "{error}");
        assert_eq!(error.to_string(), format!("cannot record to {path}"));
    }
    let directory = tempfile::tempdir().unwrap();
    let card = directory.path().join("card");
    for option in ["--capture", "--capture-nic"] {
        let nic = format!("listen:{}", card.display());
        let words = ["spice-tunnel", "serve", "--standalone", "--listen", "127.0.0.1:0", "--nic", &nic];
        let words = [&words[..], &[option, "/nonexistent/x"]].concat();
        let Verb::Serve(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not serve") };
        let error = serve::run(args, CancellationToken::new()).await.unwrap_err();
        assert!(matches!(error, serve::Error::Record(_)), "{error}");
        assert!(!card.exists(), "it had begun to serve");
    }
}

#[tokio::test]
async fn a_file_that_is_there_is_replaced_and_not_shared() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("old");
    File::create(&path).unwrap().write_all(b"what was there").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let mut held = File::open(&path).unwrap();
    let (recording, links) = record::links(&Options::new(&path)).unwrap();
    drop(links);
    recording.finish().await.result.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(tell(&path).len(), 0);
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "what was there");
}

#[tokio::test]
async fn packets_are_right_with_any_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("addresses");
    let (recording, links) = record::links(&Options::new(&path)).unwrap();
    let linked = Linked {
        channel_type: ChannelType::TUNNEL.0,
        channel_id: 0,
        session_id: 0,
        header: HeaderForm::Mini,
        layout: Layout::B,
        peer_common: CommonCaps::OURS,
        common: CommonCaps::OURS,
        peer_channel_caps: client_glue::channel_caps(),
        leftover: Vec::new(),
    };
    let ends = |client: &str, server: &str| {
        Some(Ends { client: client.parse().unwrap(), server: server.parse().unwrap() })
    };
    let cases = [
        ends("[2001:db8::1]:50000", "[2001:db8::2]:5900"),
        ends("192.0.2.77:50001", "[::ffff:192.0.2.78]:5900"),
        ends("192.0.2.77:50002", "[2001:db8::2]:5900"),
        None,
        None,
    ];
    for (number, ends) in cases.into_iter().enumerate() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut tap = links.tap(near, &linked, Sender::Client, ends);
        // Of every length that checksums and the longest packet have to do with.
        for len in [0, 1, 2, 3, 4, 255, 65_400 + number, 65_468, 65_494, 200_001] {
            let message =
                ClientMessage::SocketData { socket: SocketId(0), payload: &pattern(len as u32, len) };
            let mut bytes = Vec::new();
            put_header(HeaderForm::Mini, &mut bytes, 0, message.kind(), message.body_len(Layout::B) as u32);
            message.write_body(Layout::B, &mut bytes);
            tap.write_all(&bytes).await.unwrap();
            far.read_exact(&mut bytes).await.unwrap();
        }
    }
    recording.finish().await.result.unwrap();
    let told = tell(&path);
    assert!(told.iter().all(|told| told.from_client.len() == 10 && told.end == Some(End::Closed)));
    let clients: Vec<String> = told.iter().map(|told| told.client.unwrap().to_string()).collect();
    let expected = [
        "[2001:db8::1]:50000",
        "192.0.2.77:50001",
        "[::ffff:192.0.2.77]:50002",
        "192.0.2.1:49155",
        "192.0.2.1:49156",
    ];
    assert_eq!(clients, expected);
    assert_eq!(tshark(&path), Vec::<String>::new());
}
