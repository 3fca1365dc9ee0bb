//! Stock viewers before a stock QEMU with every channel it has, through our `serve`: that they get what they get without us,
//! see the guest's screen, reach it with keys, and hear it.
//!
//! The guest is a boot sector ([`painter`]), so that a machine costs next to nothing and many can be tried.

pub(crate) mod painter;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitStatus;
use std::time::Duration;

use spice_tunnel::vm::{Builder, SpiceAddress, Vm};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::vm::rig::{Picture, Program, SOON, Screen, Stopwatch, Target, Viewer, serve, until};

const TICKET: &str = "sesame";

const WIDTH: u16 = 640;
const HEIGHT: u16 = 480;
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

/// By type and id: whether the link is in TLS.
type Channels = BTreeMap<(i64, i64), bool>;

#[derive(Clone, Copy, Debug)]
enum Kind {
    RemoteViewerByFile,
    RemoteViewerByUri,
    Spicy,
}

impl Kind {
    fn start(self, screen: &Screen, target: &Target<'_>) -> Viewer {
        match self {
            Self::RemoteViewerByFile => Viewer::remote_viewer_by_file(screen, target),
            Self::RemoteViewerByUri => Viewer::remote_viewer_by_uri(screen, target),
            Self::Spicy => Viewer::spicy_at(screen, target),
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

/// A machine, our program before it, and a screen to view it on.
struct Stage {
    vm: Vm,
    serve: Program,
    screen: Screen,
    /// Without us between.
    direct: Target<'static>,
    /// Through us.
    through: Target<'static>,
    watch: Stopwatch,
    _directory: TempDir,
}

impl Stage {
    async fn plain(ticket: Option<&'static str>) -> Self {
        let watch = Stopwatch::start();
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let vm = start(machine(ticket, port)).await;
        let upstream = format!("127.0.0.1:{port}");
        let nic = format!("listen:{}", directory.path().join("nic").display());
        let (serve, address) =
            serve(&["--upstream", &upstream, "--listen", "127.0.0.1:0", "--nic", &nic]).await;
        let direct = Target { port: Some(port), password: ticket, ..Target::default() };
        let through = Target { port: Some(address.port()), ..direct.clone() };
        let screen = Screen::start().await;
        watch.lap("all is up");
        Self { vm, serve, screen, direct, through, watch, _directory: directory }
    }

    /// Views the machine directly and through us, and finds the same in both.
    async fn compare(&self, kind: Kind, key: u8) -> Channels {
        let (mut viewer, channels) = self.view(kind, &self.direct, |_| true).await;
        self.is_used_by(&mut viewer, kind, key).await;
        viewer.program.kill().await;
        self.watch.lap(&format!("{kind:?}, directly: {channels:?}"));

        let (mut viewer, through) = self.view(kind, &self.through, |found| *found == channels).await;
        self.is_used_by(&mut viewer, kind, key + 1).await;
        assert_eq!(
            self.session().await.map(|(_, channels)| channels).as_ref(),
            Some(&through),
            "a link ended"
        );
        viewer.program.kill().await;
        self.watch.lap(&format!("{kind:?}, through us"));
        through
    }

    /// A second viewer takes the first one's place, as it does without us.
    async fn displaces(&mut self) {
        let mut ends = Vec::new();
        for (target, key) in [(&self.direct, b'k'), (&self.through, b'm')] {
            let (mut first, _) = self.view(Kind::RemoteViewerByFile, target, |_| true).await;
            self.is_used_by(&mut first, Kind::RemoteViewerByFile, key).await;
            let (mut second, _) = self.view(Kind::Spicy, target, |_| true).await;
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
    async fn survives_kills(&mut self) {
        for round in 0..10u64 {
            let kind = if round % 2 == 0 { Kind::Spicy } else { Kind::RemoteViewerByFile };
            let viewer = kind.start(&self.screen, &self.through);
            sleep(Duration::from_millis(200 + 80 * round)).await;
            viewer.program.kill().await;
        }
        assert!(self.vm.is_running().await, "QEMU died: {:?}", self.vm.log());
        let (mut viewer, _) = self.view(Kind::Spicy, &self.through, |_| true).await;
        self.is_used_by(&mut viewer, Kind::Spicy, b'z').await;
        viewer.program.kill().await;
        until("the last session to end", || async { self.session().await.is_none().then_some(()) }).await;
        self.watch.lap("ten viewers were killed");
    }

    /// Starts a viewer and waits until it has the channels it wants, and no more come.
    async fn view(
        &self,
        kind: Kind,
        target: &Target<'_>,
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
            if width >= WIDTH.into() && height >= HEIGHT.into() {
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

async fn start(builder: Builder) -> Vm {
    builder.start().await.unwrap_or_else(|error| panic!("{error}"))
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn machine(ticket: Option<&str>, port: u16) -> Builder {
    let mut builder = Vm::builder()
        .spice(SpiceAddress::Tcp((Ipv4Addr::LOCALHOST, port).into()))
        .memory(64)
        .floppy(painter::sector(WIDTH, HEIGHT));
    if let Some(ticket) = ticket {
        builder = builder.ticket(ticket);
    }
    EVERYTHING.into_iter().fold(builder, Builder::argument)
}

/// Each viewer in turn. What all of them open together is everything there is.
async fn compare_all(stage: &Stage) {
    let mut kinds = BTreeSet::new();
    for (kind, key) in
        [(Kind::RemoteViewerByFile, b'a'), (Kind::RemoteViewerByUri, b'c'), (Kind::Spicy, b'e')]
    {
        kinds.extend(stage.compare(kind, key).await.into_keys().map(|(kind, _)| kind));
    }
    assert!(kinds.iter().eq(&KINDS), "nobody opens some of {KINDS:?}: {kinds:?}");
    assert!(stage.serve.complaints().is_empty(), "{:#?}", stage.serve.complaints());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_clear_with_a_ticket_viewers_get_what_they_get_directly() {
    compare_all(&Stage::plain(Some(TICKET)).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_clear_without_a_ticket_viewers_get_what_they_get_directly() {
    let mut stage = Stage::plain(None).await;
    compare_all(&stage).await;
    stage.displaces().await;
    stage.survives_kills().await;
}
