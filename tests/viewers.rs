//! Stock viewers before a stock QEMU with every channel it has, through our `serve`: that they get what they get without us,
//! see the guest's screen, reach it with keys, and hear it.
//!
//! The guest is a boot sector ([`painter`]), so that a machine costs next to nothing and many can be tried; only in
//! [`lasting`] it is Linux.

mod lasting;
pub(crate) mod painter;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use spice_tunnel::vm::{NicRole, SpiceAddress, Vm};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::pki::{Authority, Leaf};
use crate::vm::rig::{self, Picture, Program, SOON, Screen, Stopwatch, Viewer, until};

const TICKET: &str = "sesame";

/// Of every certificate here.
const SUBJECT: &str = "O=spice-tunnel tests,CN=localhost";
/// QEMU gives these in TLS only, where it has TLS.
const SECURED: [&str; 4] = ["main", "inputs", "cursor", "record"];
const ANY_PORT: &str = "127.0.0.1:0";
/// A window that shows a guest's screen is at least so large. Linux has 720 by 400.
const WINDOW: (usize, usize) = (640, 400);
/// So long nothing comes, and all is there.
const STEADY: Duration = Duration::from_millis(700);

/// What makes QEMU offer all of its channels. The speaker needs no driver in the guest.
#[rustfmt::skip]
const EVERYTHING: [&str; 30] = [
    "-device", "qxl",
    "-audiodev", "spice,id=sound",
    "-machine", "pcspk-audiodev=sound",
    "-device", "intel-hda",
    "-device", "hda-duplex,audiodev=sound",
    "-device", "nec-usb-xhci",
    "-chardev", "spicevmc,name=usbredir,id=usb1",
    "-device", "usb-redir,chardev=usb1",
    "-chardev", "spicevmc,name=usbredir,id=usb2",
    "-device", "usb-redir,chardev=usb2",
    "-device", "virtio-serial",
    "-chardev", "spiceport,name=org.example.port,id=port",
    "-device", "virtserialport,chardev=port,name=org.example.port",
    "-chardev", "spiceport,name=org.spice-space.webdav.0,id=webdav",
    "-device", "virtserialport,chardev=webdav,name=org.spice-space.webdav.0",
];

/// Main, display, inputs, cursor, playback, record, usbredir, port, webdav.
const KINDS: [i64; 9] = [1, 2, 3, 4, 5, 6, 9, 10, 11];

/// A server, as viewers are told of it.
#[derive(Clone, Debug, Default)]
struct Target {
    port: Option<u16>,
    tls_port: Option<u16>,
    password: Option<String>,
    ca: Option<PathBuf>,
    subject: Option<String>,
}

impl Target {
    fn lend(&self) -> rig::Target<'_> {
        rig::Target {
            port: self.port,
            tls_port: self.tls_port,
            password: self.password.as_deref(),
            ca: self.ca.as_deref(),
            subject: self.subject.as_deref(),
            ..rig::Target::default()
        }
    }
}

/// By type and id: whether the link is in TLS.
type Channels = BTreeMap<(i64, i64), bool>;

#[derive(Clone, Copy, Debug)]
enum Kind {
    RemoteViewerByFile,
    RemoteViewerByUri,
    Spicy,
}

impl Kind {
    fn start(self, screen: &Screen, target: &Target) -> Viewer {
        let target = target.lend();
        match self {
            Self::RemoteViewerByFile => Viewer::remote_viewer_by_file(screen, &target),
            // Without a subject the certificate must be for the host.
            Self::RemoteViewerByUri => {
                Viewer::remote_viewer_by_uri(screen, &rig::Target { subject: None, ..target })
            }
            Self::Spicy => Viewer::spicy_at(screen, &target),
        }
    }

    /// Of its windows.
    fn class(self) -> &'static str {
        match self {
            Self::RemoteViewerByFile | Self::RemoteViewerByUri => "Remote-viewer",
            Self::Spicy => "Spicy",
        }
    }
}

/// What a viewer is told of the server's ports.
#[derive(Clone, Copy, Debug)]
enum Ports {
    Clear,
    Tls,
    /// It tries in clear, and follows the server's word that a channel needs TLS.
    Both,
}

impl Ports {
    fn of(self, target: &Target) -> Target {
        let mut target = target.clone();
        match self {
            Self::Clear => target.tls_port = None,
            Self::Tls => target.port = None,
            Self::Both => {}
        }
        target
    }
}

/// What runs in the machine.
#[derive(Clone, Copy)]
enum Guest {
    Painter,
    /// With a card, and commands.
    Linux,
}

/// A machine, our program before it, and a screen to view it on.
struct Stage {
    vm: Vm,
    serve: Program,
    screen: Screen,
    /// Without us between.
    direct: Target,
    /// Through us.
    through: Target,
    watch: Stopwatch,
    _directory: TempDir,
    /// QEMU's.
    _certificates: Option<TempDir>,
}

impl Stage {
    /// QEMU without TLS. Our program has a TLS port, where TLS ends.
    async fn clear(ticket: Option<&'static str>) -> Self {
        let port = free_port();
        let direct = Target { port: Some(port), password: ticket.map(str::to_owned), ..Target::default() };
        Self::start(Guest::Painter, direct, &[], &["--upstream", &format!("127.0.0.1:{port}")]).await
    }

    /// QEMU with a port in clear and a TLS port, and some channels that it gives in TLS only.
    async fn secure(guest: Guest, ticket: Option<&'static str>) -> Self {
        let (port, tls_port) = (free_port(), free_port());
        let directory = tempfile::tempdir().unwrap();
        let files = Authority::new("QEMU's authority").issue(&Leaf::default(), directory.path());
        let policy = SECURED.map(|channel| format!(",tls-channel={channel}")).concat();
        let options = format!("tls-port={tls_port},x509-dir={}{policy}", directory.path().display());
        let direct = Target {
            port: Some(port),
            tls_port: Some(tls_port),
            password: ticket.map(str::to_owned),
            ca: Some(files.ca.clone()),
            subject: Some(SUBJECT.to_owned()),
        };
        let (port, tls_port) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{tls_port}"));
        let ca = files.ca.display().to_string();
        let upstream = ["--upstream", &port, "--upstream-tls", &tls_port, "--upstream-ca", &ca];
        Self {
            _certificates: Some(directory),
            ..Self::start(guest, direct, &["-spice", &options], &upstream).await
        }
    }

    async fn start(guest: Guest, direct: Target, options: &[&str], upstream: &[&str]) -> Self {
        let watch = Stopwatch::start();
        let directory = tempfile::tempdir().unwrap();
        let files = Authority::new("our authority").issue(&Leaf::default(), directory.path());
        let card = directory.path().join("nic");
        let builder =
            Vm::builder().spice(SpiceAddress::Tcp((Ipv4Addr::LOCALHOST, direct.port.unwrap()).into()));
        let (mut builder, nic) = match guest {
            Guest::Painter => (builder.memory(64).floppy(painter::sector(640, 480)), "listen"),
            Guest::Linux => (builder.nic(&card, NicRole::Listens), "connect"),
        };
        if let Some(ticket) = &direct.password {
            builder = builder.ticket(ticket);
        }
        let builder = EVERYTHING.iter().chain(options).fold(builder, |builder, word| builder.argument(*word));
        let vm = builder.start().await.unwrap_or_else(|error| panic!("{error}"));
        let nic = format!("{nic}:{}", card.display());
        let path = |path: &Path| path.display().to_string();
        let (certificate, key) = (path(&files.certificate), path(&files.key));
        let entrances =
            ["--listen", ANY_PORT, "--tls-listen", ANY_PORT, "--tls-cert", &certificate, "--tls-key", &key];
        let mut serve = Program::tunnel([&["serve", "--nic", &nic], upstream, &entrances].concat());
        let mut ports = BTreeMap::new();
        while ports.len() < 2 {
            let (tls, port) = serve.line("where it listens for Spice clients", listening).await;
            ports.insert(tls, port);
        }
        let through = Target {
            port: Some(ports[&false]),
            tls_port: Some(ports[&true]),
            password: direct.password.clone(),
            ca: Some(files.ca),
            subject: Some(SUBJECT.to_owned()),
        };
        let screen = Screen::start().await;
        watch.lap("all is up");
        Self { vm, serve, screen, direct, through, watch, _directory: directory, _certificates: None }
    }

    /// Views the machine directly and through us, and finds the same in both.
    async fn compare(&self, kind: Kind, ports: Ports, key: u8) -> Channels {
        let (mut viewer, channels) = self.view(kind, &ports.of(&self.direct), |_| true).await;
        self.is_used_by(&mut viewer, kind, key).await;
        viewer.program.kill().await;
        self.watch.lap(&format!("{kind:?}, {ports:?}, directly: {channels:?}"));
        self.finds(kind, ports, key + 1, channels).await
    }

    /// Views the machine through us, with these channels.
    async fn finds(&self, kind: Kind, ports: Ports, key: u8, channels: Channels) -> Channels {
        let (mut viewer, through) =
            self.view(kind, &ports.of(&self.through), |found| *found == channels).await;
        self.is_used_by(&mut viewer, kind, key).await;
        assert_eq!(self.session().await.map(|(_, channels)| channels), Some(channels), "a link ended");
        viewer.program.kill().await;
        self.watch.lap(&format!("{kind:?}, {ports:?}, through us"));
        through
    }

    /// A second viewer takes the first one's place, as it does without us.
    async fn displaces(&self, ports: Ports) {
        let mut ends = Vec::new();
        for (target, key) in [(&self.direct, b'k'), (&self.through, b'm')] {
            let target = ports.of(target);
            let (mut first, _) = self.view(Kind::RemoteViewerByFile, &target, |_| true).await;
            self.is_used_by(&mut first, Kind::RemoteViewerByFile, key).await;
            let (mut second, _) = self.view(Kind::Spicy, &target, |_| true).await;
            let ended = until_ended(&mut first).await;
            drop(first);
            self.is_used_by(&mut second, Kind::Spicy, key + 1).await;
            second.program.kill().await;
            ends.push(ended);
            self.watch.lap("a second viewer took the place of the first");
        }
        assert_eq!(ends[0], ends[1], "the displaced viewer ends otherwise");
    }

    /// Viewers that are killed at any moment of their start do QEMU no harm, and leave no trace.
    async fn survives_kills(&self, ports: Ports) {
        let target = ports.of(&self.through);
        for round in 0..10u64 {
            let kind = if round % 2 == 0 { Kind::Spicy } else { Kind::RemoteViewerByFile };
            let viewer = kind.start(&self.screen, &target);
            sleep(Duration::from_millis(200 + 80 * round)).await;
            viewer.program.kill().await;
        }
        assert!(self.vm.is_running().await, "QEMU died: {:?}", self.vm.log());
        let (mut viewer, _) = self.view(Kind::Spicy, &target, |_| true).await;
        self.is_used_by(&mut viewer, Kind::Spicy, b'z').await;
        viewer.program.kill().await;
        until("the last session to end", || async { self.session().await.is_none().then_some(()) }).await;
        self.watch.lap("ten viewers were killed");
    }

    /// Starts a viewer and waits until it has the channels it wants, and no more come.
    async fn view(
        &self,
        kind: Kind,
        target: &Target,
        enough: impl Fn(&Channels) -> bool,
    ) -> (Viewer, Channels) {
        let before = self.session().await.map(|(id, _)| id);
        let viewer = kind.start(&self.screen, target);
        let (mut last, mut since) = (None, Instant::now());
        let deadline = since + SOON;
        loop {
            let now = self.session().await.filter(|(id, _)| Some(*id) != before);
            if now != last {
                (last, since) = (now, Instant::now());
            } else if let Some((_, found)) = &last
                && found.len() > 3
                && since.elapsed() > STEADY
                && enough(found)
            {
                return (viewer, found.clone());
            }
            let said = || viewer.program.said();
            assert!(
                Instant::now() < deadline,
                "{kind:?} at {target:?} has only {last:?}; it said:\n{}",
                said()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The id of the one session there is, and its channels.
    async fn session(&self) -> Option<(i64, Channels)> {
        let state = self.vm.qmp("query-spice").await.unwrap();
        let mut channels = Channels::new();
        let mut session = None;
        for channel in state["channels"].as_array()? {
            let number = |name: &str| channel[name].as_i64().unwrap();
            let id = number("connection-id");
            if *session.get_or_insert(id) != id {
                return None;
            }
            channels
                .insert((number("channel-type"), number("channel-id")), channel["tls"].as_bool().unwrap());
        }
        Some((session?, channels))
    }

    /// A key typed into the viewer's window reaches the guest, whose screen then changes its colour in that window; and
    /// the guest's tone is heard.
    async fn is_used_by(&self, viewer: &mut Viewer, kind: Kind, key: u8) {
        let deadline = Instant::now() + SOON;
        let (name, colour) = (char::from(key).to_string(), painter::colour(key));
        let mut seen = None;
        while seen != Some(colour) {
            let state = || format!("{seen:?}, not {colour:?}; {kind:?} said:\n{}", viewer.program.said());
            assert!(Instant::now() < deadline, "in the middle of the window is {}", state());
            if let Some(window) = self.window(kind).await {
                // What is typed before the viewer has its window ready is lost, as a user's would be.
                self.screen.xdotool(&["windowfocus", &window.id, "key", "--window", "0", &name]).await;
                for _ in 0..10 {
                    seen = window.middle(&self.screen.look());
                    if seen == Some(colour) {
                        break;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        let said = until("the guest to say the key", || async { self.vm.log().pop() }).await;
        assert_eq!(said, format!("guest: {name}"));
        until("sound in the viewer", || async {
            let heard = viewer.heard();
            (heard.iter().filter(|sample| **sample != 0).count() > 1000).then_some(())
        })
        .await;
        assert!(viewer.program.is_running(), "{kind:?} ended:\n{}", viewer.program.said());
    }

    /// The viewer's window, once it is large enough for the guest's screen.
    async fn window(&self, kind: Kind) -> Option<Window> {
        let found = self.screen.xdotool(&["search", "--onlyvisible", "--class", kind.class()]).await?;
        for id in found.lines() {
            let shape = self.screen.xdotool(&["getwindowgeometry", "--shell", id]).await?;
            let field = |name: &str| {
                let line = shape.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
                line.unwrap().parse::<usize>().unwrap()
            };
            let (width, height) = (field("WIDTH"), field("HEIGHT"));
            if width >= WINDOW.0 && height >= WINDOW.1 {
                let middle = (field("X") + width / 2, field("Y") + height / 2);
                return Some(Window { id: id.to_owned(), middle });
            }
        }
        None
    }
}

struct Window {
    id: String,
    middle: (usize, usize),
}

impl Window {
    /// The colour of a good part of it, if it is all one.
    fn middle(&self, picture: &Picture) -> Option<[u8; 3]> {
        let (x, y) = self.middle;
        let colour = picture.at(self.middle);
        let spots =
            (0..=10).flat_map(|right| (0..=10).map(move |down| (x + right * 20 - 100, y + down * 20 - 100)));
        spots.map(|spot| picture.at(spot)).all(|other| other == colour).then_some(colour)
    }
}

/// How a viewer ends whose session was ended; nothing if it stays, with an empty window or a question.
async fn until_ended(viewer: &mut Viewer) -> Option<ExitStatus> {
    timeout(Duration::from_secs(3), viewer.program.ended()).await.ok()
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// From a line of our program's log: whether it is TLS, and the port.
fn listening(line: &str) -> Option<(bool, u16)> {
    let (_, fields) = line.split_once("listening for Spice clients")?;
    let field =
        |name: &str| fields.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let (_, port) = field("address")?.rsplit_once(':')?;
    Some((field("tls")? == "true", port.parse().ok()?))
}

/// Each viewer in turn, with these ports. What all of them open together is everything there is.
async fn compare_all(stage: &Stage, ports: Ports) {
    let mut kinds = BTreeSet::new();
    for (kind, key) in
        [(Kind::RemoteViewerByFile, b'a'), (Kind::RemoteViewerByUri, b'c'), (Kind::Spicy, b'e')]
    {
        kinds.extend(stage.compare(kind, ports, key).await.into_keys().map(|(kind, _)| kind));
    }
    assert!(kinds.iter().eq(&KINDS), "nobody opens some of {KINDS:?}: {kinds:?}");
    assert!(stage.serve.complaints().is_empty(), "{:#?}", stage.serve.complaints());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_clear_with_a_ticket_viewers_get_what_they_get_directly() {
    let stage = Stage::clear(Some(TICKET)).await;
    compare_all(&stage, Ports::Clear).await;
    // TLS that ends at the proxy.
    let channels = stage.compare(Kind::Spicy, Ports::Clear, b'h').await;
    stage.finds(Kind::Spicy, Ports::Tls, b'j', channels).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_clear_without_a_ticket_viewers_get_what_they_get_directly() {
    let stage = Stage::clear(None).await;
    compare_all(&stage, Ports::Clear).await;
    stage.displaces(Ports::Clear).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_with_a_ticket_viewers_get_what_they_get_directly() {
    let stage = Stage::secure(Guest::Painter, Some(TICKET)).await;
    compare_all(&stage, Ports::Tls).await;
    compare_all(&stage, Ports::Both).await;
    stage.displaces(Ports::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_without_a_ticket_viewers_get_what_they_get_directly() {
    let stage = Stage::secure(Guest::Painter, None).await;
    compare_all(&stage, Ports::Tls).await;
    compare_all(&stage, Ports::Both).await;
    stage.survives_kills(Ports::Tls).await;
}
