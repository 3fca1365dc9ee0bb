//! A companion between links that a test hands out, under a clock that it turns.

#![allow(clippy::wildcard_enum_match_arm)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use spice_proto::frame::{self, HeaderForm, Split};
use spice_proto::link::{ChannelType, CommonCaps, TunnelCaps};
use spice_proto::tunnel::{Layout, ServiceId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tunnel_channel::{Channel, Config, Event as ChannelEvent, Role};

use super::*;
use crate::ShareError;

type Answer = Result<DuplexStream, LinkFailure>;

/// Gives what the test hands out, and hangs while there is nothing.
struct Script {
    answers: tokio::sync::Mutex<mpsc::UnboundedReceiver<Answer>>,
    asked: Arc<Mutex<Vec<Instant>>>,
    under_way: Arc<AtomicUsize>,
}

/// Counts attempts that are not over.
struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Linker for Script {
    fn name(&self) -> String {
        "the server".to_owned()
    }

    async fn link(&self) -> Result<TunnelLink, LinkFailure> {
        self.asked.lock().unwrap().push(Instant::now());
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let _under_way = UnderWay(self.under_way.clone());
        let stream = self.answers.lock().await.recv().await.expect("the test goes on")?;
        let linked = Linked {
            channel_type: ChannelType::TUNNEL.0,
            channel_id: 0,
            session_id: 0,
            header: HeaderForm::Mini,
            layout: Layout::B,
            peer_common: CommonCaps::OURS,
            common: CommonCaps::OURS,
            peer_channel_caps: vec![TunnelCaps::OURS.bits()],
            leftover: vec![],
        };
        Ok(TunnelLink { stream: Box::new(stream), linked, ends: None, secure: false })
    }
}

struct World {
    answers: mpsc::UnboundedSender<Answer>,
    asked: Arc<Mutex<Vec<Instant>>>,
    under_way: Arc<AtomicUsize>,
    handle: Handle,
    events: Events,
    run: JoinHandle<Result<(), CompanionError>>,
}

/// More than any wait of a companion.
const LONG: Duration = Duration::from_secs(100);

fn world() -> World {
    let (answers, received) = mpsc::unbounded_channel();
    let (asked, under_way) = (Arc::default(), Arc::default());
    let script = Script {
        answers: tokio::sync::Mutex::new(received),
        asked: Arc::clone(&asked),
        under_way: Arc::clone(&under_way),
    };
    let config = CompanionConfig { watch_network: false, ..CompanionConfig::default() };
    let (handle, events, run) = start(script, config);
    World { answers, asked, under_way, handle, events, run: tokio::spawn(run) }
}

/// The server's end of a link.
struct Server {
    stream: DuplexStream,
    channel: Channel,
    input: Vec<u8>,
}

impl World {
    /// Answers the attempt that is under way, or the next.
    fn link(&self) -> Server {
        let (near, far) = duplex(64 << 10);
        self.answers.send(Ok(near)).unwrap();
        let config = Config { ping_interval: None, ..Config::default() };
        let now = Instant::now().into_std();
        let channel = Channel::new(Role::Server, HeaderForm::Mini, Layout::B, TunnelCaps::OURS, config, now);
        Server { stream: far, channel, input: Vec::new() }
    }

    fn fail(&self, failure: LinkFailure) {
        self.answers.send(Err(failure)).unwrap();
    }

    async fn event(&mut self) -> Event {
        timeout(LONG, self.events.recv()).await.expect("no event").expect("no more events")
    }

    async fn linking(&mut self) -> u32 {
        match self.event().await {
            Event::Linking { attempt } => attempt,
            other => panic!("{other:?}"),
        }
    }

    async fn waiting(&mut self) -> (Duration, String) {
        match self.event().await {
            Event::Waiting { wait, reason } => (wait, reason),
            other => panic!("{other:?}"),
        }
    }

    async fn disconnected(&mut self) -> String {
        match self.event().await {
            Event::Disconnected { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// A tunnel, with its INIT said.
    async fn joined(&mut self) -> Server {
        let mut server = self.link();
        server.flush().await;
        assert!(matches!(self.event().await, Event::Connected { .. }));
        server
    }

    async fn end(self) -> Result<(), CompanionError> {
        timeout(Duration::from_secs(2), self.run).await.expect("it goes on").unwrap()
    }
}

impl Server {
    async fn flush(&mut self) {
        self.stream.write_all(self.channel.outgoing()).await.unwrap();
        self.channel.sent(usize::MAX);
    }

    /// Takes in the announcements of so many services, as device and port by group.
    async fn services(&mut self, count: usize) -> BTreeMap<ServiceId, (u32, u16, String)> {
        let mut services = BTreeMap::new();
        while services.len() < count {
            assert_ne!(timeout(LONG, self.stream.read_buf(&mut self.input)).await.unwrap().unwrap(), 0);
            while let Split::Frame { frame, consumed } =
                frame::split(HeaderForm::Mini, self.channel.max_body(), &self.input).unwrap()
            {
                let event = self.channel.handle_frame(Instant::now().into_std(), frame).unwrap();
                if let Some(ChannelEvent::ServiceAdded(add)) = event {
                    let name = String::from_utf8(add.name.to_vec()).unwrap();
                    services.insert(add.service, (add.group.0, add.port, name));
                }
                self.input.drain(..consumed);
            }
            self.flush().await;
        }
        services
    }
}

fn unreachable() -> LinkFailure {
    LinkFailure::Connect { server: "the server".to_owned(), source: io::ErrorKind::ConnectionRefused.into() }
}

fn denied() -> LinkFailure {
    LinkFailure::WrongPassword { server: "the server".to_owned(), given: true, user: false }
}

fn needs_tls() -> LinkFailure {
    LinkFailure::NeedsTls { server: "the server".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn waits_grow_and_begin_anew_after_a_good_life() {
    let mut world = world();
    assert_eq!(world.linking().await, 1);
    let server = world.joined().await;
    tokio::time::sleep(GOOD_LIFE).await;
    drop(server);
    assert_eq!(world.disconnected().await, "the server ended the tunnel");
    let mut planned = Duration::from_millis(500);
    for attempt in 1..12 {
        let (wait, _) = world.waiting().await;
        assert!((planned / 2..=planned).contains(&wait), "{attempt}: {wait:?}");
        let began = Instant::now();
        assert_eq!(world.linking().await, attempt);
        assert!((wait..=wait + Duration::from_millis(2)).contains(&began.elapsed()), "{:?}", began.elapsed());
        world.fail(unreachable());
        planned = (planned * 2).min(Duration::from_secs(30));
    }
    assert!(world.waiting().await.1.contains("connection refused"));
    assert_eq!(world.linking().await, 12);
    // One that dies young does not shorten the waits, one that lives does.
    for (life, expected) in [(Duration::from_secs(5), 15..=30), (GOOD_LIFE, 0..=1)] {
        let server = world.joined().await;
        tokio::time::sleep(life).await;
        drop(server);
        world.disconnected().await;
        let (wait, _) = world.waiting().await;
        assert!(expected.contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(world.linking().await, 1);
    }
    world.handle.shutdown();
    world.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_tunnel_begins_with_what_is_shared_then() {
    let mut world = world();
    let share = |text: &str| world.handle.add_share(text.parse().unwrap()).unwrap();
    let office = share("tcp://printer.lan:631?name=Office");
    share("tcp://nas.lan:445?name=NAS");
    share("tcp://printer.lan:80?name=Office%20web");
    world.linking().await;
    let mut server = world.joined().await;
    let first = server.services(3).await;
    let names: Vec<&(u32, u16, String)> = first.values().collect();
    assert_eq!(names, [&(0, 631, "Office".into()), &(1, 445, "NAS".into()), &(0, 80, "Office".into())]);
    drop(server);
    world.disconnected().await;
    world.waiting().await;
    world.linking().await;
    let mut server = world.joined().await;
    assert_eq!(server.services(3).await, first);
    drop(server);
    world.disconnected().await;
    // Neither joined nor linking.
    world.waiting().await;
    assert!(world.handle.remove_share(office));
    world.handle.add_share("tcp://scanner.lan:9100?name=Scanner".parse().unwrap()).unwrap();
    world.linking().await;
    let taken = world.handle.add_share("tcp://elsewhere.lan:9100?name=Office".parse().unwrap());
    assert!(matches!(taken, Err(ShareError::NameTaken { .. })), "the device's name is remembered");
    let mut server = world.joined().await;
    let now = server.services(3).await;
    let names: Vec<&(u32, u16, String)> = now.values().collect();
    assert_eq!(names, [&(1, 445, "NAS".into()), &(0, 80, "Office".into()), &(2, 9100, "Scanner".into())]);
    // And while joined, as ever.
    world.handle.add_share("tcp://tv.lan:80".parse().unwrap()).unwrap();
    assert_eq!(server.services(1).await.into_values().next(), Some((3, 80, "tv.lan".into())));
    world.handle.shutdown();
    world.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dead_link_is_found_out_in_time_and_a_live_one_lives() {
    let mut world = world();
    world.linking().await;
    let mut server = world.joined().await;
    // A server that answers.
    let began = Instant::now();
    let alive = async {
        loop {
            server.services(usize::MAX).await;
        }
    };
    assert!(timeout(Duration::from_secs(60), alive).await.is_err());
    // And does not any more. It last did at a multiple of 5 s.
    assert_eq!(world.disconnected().await, "the link is dead: nothing was heard for 15s");
    assert!((70..=76).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    world.waiting().await;
    world.linking().await;
    // Doubts shorten it.
    let _server = world.joined().await;
    let began = Instant::now();
    world.handle.probe_now();
    assert_eq!(world.disconnected().await, "the link is dead: nothing was heard for 3s");
    assert_eq!(began.elapsed().as_secs(), 3);
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn doubts_end_waits_and_begin_attempts_anew() {
    let mut world = world();
    world.linking().await;
    drop(world.joined().await);
    world.disconnected().await;
    for _ in 0..8 {
        world.waiting().await;
        world.linking().await;
        world.fail(unreachable());
    }
    let (wait, _) = world.waiting().await;
    assert!(wait > Duration::from_secs(10));
    let began = Instant::now();
    world.handle.probe_now();
    world.linking().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    // This attempt hangs.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = world.asked.lock().unwrap().len();
    world.handle.probe_now();
    world.fail(unreachable());
    let (wait, _) = world.waiting().await;
    assert!(wait < Duration::from_secs(1), "the waits begin anew: {wait:?}");
    assert_eq!(world.asked.lock().unwrap().len(), before + 1);
    assert_eq!(world.under_way.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_works_in_every_state() {
    // Before it runs, linking, joined, waiting.
    for state in 0..4 {
        let mut world = world();
        if state > 0 {
            world.linking().await;
        }
        let mut server = None;
        if state > 1 {
            server = Some(world.joined().await);
        }
        if state > 2 {
            drop(server.take());
            world.disconnected().await;
            world.waiting().await;
        }
        let began = Instant::now();
        world.handle.shutdown();
        let under_way = world.under_way.clone();
        let mut last = None;
        while let Some(event) = timeout(LONG, world.events.recv()).await.expect("the events do not end") {
            last = Some(event);
        }
        world.end().await.unwrap_or_else(|error| panic!("{state}: {error}"));
        assert!(began.elapsed() <= Duration::from_secs(1), "{state}: {:?}", began.elapsed());
        assert_eq!(under_way.load(Ordering::SeqCst), 0);
        match last {
            Some(Event::Disconnected { reason }) => assert_eq!((state, reason.as_str()), (2, "shut down")),
            Some(Event::Linking { .. }) | None => assert_ne!(state, 2),
            other => panic!("{state}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_attempt_must_succeed() {
    let mut refused = world();
    refused.fail(unreachable());
    refused.linking().await;
    assert!(matches!(refused.event().await, Event::GaveUp { .. }));
    assert!(matches!(refused.end().await, Err(CompanionError::Link(LinkFailure::Connect { .. }))));
    let occupied = world();
    drop(occupied.link());
    assert!(matches!(occupied.end().await, Err(CompanionError::Occupied { .. })));
    let broken = world();
    broken.link().stream.write_all(&[103, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
    assert!(matches!(broken.end().await, Err(CompanionError::Tunnel { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_final_failure_ends_it_and_a_refused_password_does_in_the_end() {
    let mut world1 = world();
    world1.linking().await;
    drop(world1.joined().await);
    world1.disconnected().await;
    world1.waiting().await;
    world1.fail(needs_tls());
    world1.linking().await;
    assert!(matches!(world1.event().await, Event::GaveUp { reason } if reason.contains("TLS")));
    assert!(world1.events.recv().await.is_none());
    assert!(matches!(world1.end().await, Err(CompanionError::Link(LinkFailure::NeedsTls { .. }))));

    let mut world = world();
    world.linking().await;
    drop(world.joined().await);
    world.disconnected().await;
    world.waiting().await;
    // Nine times in a row are borne, again and again.
    for _ in 0..2 {
        for _ in 1..MAX_DENIALS {
            world.linking().await;
            world.fail(denied());
            assert!(world.waiting().await.1.contains("the ticket has expired"));
        }
        world.linking().await;
        world.fail(unreachable());
        world.waiting().await;
    }
    for _ in 0..MAX_DENIALS {
        world.fail(denied());
    }
    assert!(matches!(
        timeout(10 * LONG, world.run).await.unwrap().unwrap(),
        Err(CompanionError::Expired { times: 10, .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn connections_are_numbered_on_and_deaf_owners_cost_nothing() {
    let mut world = world();
    world.linking().await;
    drop(world.joined().await);
    // Nobody fetches the events of thousands of links.
    for _ in 0..3000 {
        drop(world.link());
    }
    tokio::time::sleep(Duration::from_secs(200_000)).await;
    let mut events = 0;
    while let Ok(Some(event)) = timeout(Duration::ZERO, world.events.recv()).await {
        events += 1;
        if events > 2 {
            assert!(!matches!(event, Event::Opened { .. }));
        }
    }
    assert!(events <= 1030, "{events}");
}
