//! Guest, netstack, bridge and both ends of the channel, without I/O and under a manual clock: what one side does must
//! be what the other sees. The services are the client channel's owner, scripted.

mod away;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use server_glue::address::AddressBook;
use server_glue::bridge::{AwayConfig, Bridge};
use server_glue::netstack::{NetConfig, Netstack};
use spice_proto::frame::{self, HeaderForm, Split};
use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::{GroupId, Layout, ServiceId, ServiceKind, SocketId};
use spice_tunnel::guest::stack::{ConnectionId, Event as GuestEvent, Received, Stack};
use spice_tunnel::guest::{Config as GuestConfig, ConnectionError};
use tunnel_channel::{Channel, Config, Event, NewService, Role};

const HEADER: HeaderForm = HeaderForm::Mini;

/// What a service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    /// Takes what comes, as it comes.
    Sink,
    /// Takes nothing until `World::take`.
    Stuck,
    Refuse,
    /// Leaves it open whether it takes a connection.
    Mute,
}

/// What has come of one tunnel socket at the client.
#[derive(Debug)]
struct Far {
    id: SocketId,
    service: Service,
    received: Vec<u8>,
    untaken: u32,
    finished: bool,
    reset: bool,
}

struct World {
    now: Instant,
    guest: Stack,
    bridge: Bridge,
    client: Channel,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    services: HashMap<ServiceId, Service>,
    addresses: HashMap<ServiceId, IpAddr>,
    /// In the order in which they were opened.
    far: Vec<Far>,
    pongs: usize,
}

fn channel(role: Role, config: Config, caps: TunnelCaps, now: Instant) -> Channel {
    Channel::new(role, HEADER, Layout::B, caps, config, now)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

impl World {
    fn new(config: Config, caps: TunnelCaps) -> Self {
        Self::with(config, caps, AwayConfig::FORGET)
    }

    fn with(config: Config, caps: TunnelCaps, away: AwayConfig) -> Self {
        let now = Instant::now();
        let net = NetConfig { seed: 7, ..NetConfig::default() };
        let book = AddressBook::new("test", net.subnet, net.reserved());
        let mut bridge = Bridge::new(Netstack::new(net), book).while_away(away);
        bridge.attach(now, channel(Role::Server, config, caps, now));
        let mut world = Self {
            now,
            guest: Stack::new(GuestConfig::default(), now),
            bridge,
            client: channel(Role::Client, config, caps, now),
            to_server: Vec::new(),
            to_client: Vec::new(),
            services: HashMap::new(),
            addresses: HashMap::new(),
            far: Vec::new(),
            pongs: 0,
        };
        world.run_until("a lease", |world| world.guest.lease().is_some() && world.client.is_ready());
        world
    }

    fn modern() -> Self {
        Self::new(Config::default(), TunnelCaps::OURS)
    }

    fn share(&mut self, name: &str, group: u32, port: u16, service: Service) -> (ServiceId, SocketAddr) {
        let new = NewService {
            kind: ServiceKind::Generic,
            group: GroupId(group),
            port,
            name: name.as_bytes(),
            description: b"",
            info: None,
        };
        let id = self.client.add_service(new).unwrap();
        self.services.insert(id, service);
        self.run_until("an address", |world| world.addresses.contains_key(&id));
        (id, SocketAddr::new(self.addresses[&id], port))
    }

    fn start_connect(&mut self, to: SocketAddr) -> ConnectionId {
        self.guest.connect(self.now, to.ip(), to.port()).unwrap()
    }

    fn connect(&mut self, to: SocketAddr) -> Result<ConnectionId, ConnectionError> {
        let id = self.start_connect(to);
        self.run_until("an answer to the guest's SYN", |world| world.guest.is_open(id).is_some());
        self.guest.is_open(id).unwrap().map(|()| id)
    }

    /// The guest sends all of it.
    fn guest_sends(&mut self, id: ConnectionId, mut data: &[u8]) {
        while !data.is_empty() {
            let sent = self.guest.send(id, data).unwrap();
            data = &data[sent..];
            self.run_until("room in the guest", |world| world.guest.writable(id) > 0);
        }
    }

    /// The guest reads what is there. `None`: the end.
    fn guest_reads(&mut self, id: ConnectionId) -> Result<Option<Vec<u8>>, ConnectionError> {
        let mut data = Vec::new();
        loop {
            let received = self.guest.recv(id, |piece| {
                data.extend_from_slice(piece);
                piece.len()
            })?;
            match received {
                Received::Data(_) => {}
                Received::End if data.is_empty() => return Ok(None),
                Received::Pending | Received::End => return Ok(Some(data)),
            }
        }
    }

    /// The service sends what credit allows at once; gives how much.
    fn service_sends(&mut self, index: usize, data: &[u8]) -> usize {
        let id = self.far[index].id;
        let mut sent = 0;
        loop {
            let count = self.client.send(id, |room| {
                let count = room.len().min(data.len() - sent);
                room[..count].copy_from_slice(&data[sent..sent + count]);
                count
            });
            if count == 0 {
                return sent;
            }
            sent += count;
        }
    }

    /// A stuck service takes what has come.
    fn take(&mut self, index: usize) {
        let far = &mut self.far[index];
        let untaken = std::mem::take(&mut far.untaken);
        self.client.delivered(far.id, untaken);
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let limit = self.now + Duration::from_secs(600);
        loop {
            self.settle();
            if done(self) {
                return;
            }
            assert!(self.pass() && self.now <= limit, "waited in vain for {what}");
        }
    }

    /// Lets time pass until the next timer. False: there is none.
    fn pass(&mut self) -> bool {
        let timers = [
            self.guest.poll_timeout(),
            self.bridge.poll_timeout(),
            self.client.poll_timeout().map(|(at, _)| at),
        ];
        let Some(next) = timers.into_iter().flatten().min() else { return false };
        self.now = self.now.max(next);
        self.guest.handle_timeout(self.now);
        self.bridge.handle_timeout(self.now).unwrap();
        self.client.handle_timeout(self.now).unwrap();
        true
    }

    /// Moves everything until nothing moves.
    fn settle(&mut self) {
        for _ in 0..1_000_000 {
            self.bridge.advance(self.now);
            let mut moved = false;
            while let Some(frame) = self.guest.poll_transmit(self.now) {
                self.bridge.handle_guest_frame(self.now, frame.bytes());
                self.guest.recycle(frame);
                moved = true;
            }
            self.bridge.advance(self.now);
            while let Some(frame) = self.bridge.poll_guest_frame(self.now) {
                self.guest.handle_frame(self.now, &frame);
                moved = true;
            }
            while let Some(event) = self.guest.poll_event() {
                self.pongs += usize::from(matches!(event, GuestEvent::Pong { .. }));
            }
            moved |= self.carry();
            if !moved {
                return;
            }
        }
        panic!("they talk without end");
    }

    /// Carries the link's bytes both ways.
    fn carry(&mut self) -> bool {
        let moved = !self.bridge.outgoing().is_empty() || !self.client.outgoing().is_empty();
        self.to_client.extend_from_slice(self.bridge.outgoing());
        let sent = self.bridge.outgoing().len();
        self.bridge.sent(sent);
        self.to_server.extend_from_slice(self.client.outgoing());
        let sent = self.client.outgoing_len();
        self.client.sent(sent);
        let bytes = std::mem::take(&mut self.to_server);
        let mut rest = &bytes[..];
        while let Some(channel) = self.bridge.channel()
            && let Split::Frame { frame, consumed } = frame::split(HEADER, channel.max_body(), rest).unwrap()
        {
            self.bridge.handle_tunnel_frame(self.now, frame).unwrap();
            rest = &rest[consumed..];
        }
        let bytes = std::mem::take(&mut self.to_client);
        let mut rest = &bytes[..];
        while let Split::Frame { frame, consumed } =
            frame::split(HEADER, self.client.max_body(), rest).unwrap()
        {
            if let Some(event) = self.client.handle_frame(self.now, frame).unwrap() {
                match on_client_event(&mut self.far, &self.services, &mut self.addresses, event) {
                    Answer::Nothing => {}
                    Answer::Accept(socket) => self.client.accept(socket),
                    Answer::Refuse(socket) => self.client.refuse(socket),
                    Answer::Delivered(socket) => self.client.delivered(socket, 1),
                }
            }
            rest = &rest[consumed..];
        }
        moved
    }
}

/// What the client's owner does about an event.
enum Answer {
    Nothing,
    Accept(SocketId),
    Refuse(SocketId),
    Delivered(SocketId),
}

fn on_client_event(
    far: &mut Vec<Far>,
    services: &HashMap<ServiceId, Service>,
    addresses: &mut HashMap<ServiceId, IpAddr>,
    event: Event<'_>,
) -> Answer {
    // Ids are used again: the youngest is meant.
    let live = |far: &mut Vec<Far>, id| far.iter().rposition(|far| far.id == id && !far.reset).unwrap();
    match event {
        Event::ServiceMapped { service, address } => {
            addresses.insert(service, address);
        }
        Event::Open { socket, service } => {
            let service = services[&service];
            match service {
                Service::Refuse => return Answer::Refuse(socket),
                Service::Mute => return Answer::Nothing,
                Service::Sink | Service::Stuck => {}
            }
            let (received, untaken) = (Vec::new(), 0);
            far.push(Far { id: socket, service, received, untaken, finished: false, reset: false });
            return Answer::Accept(socket);
        }
        Event::Data { socket, payload } => {
            let index = live(far, socket);
            far[index].received.extend_from_slice(payload);
            if far[index].service == Service::Sink {
                return Answer::Delivered(socket);
            }
            far[index].untaken += 1;
        }
        Event::Finished { socket } => {
            let index = live(far, socket);
            far[index].finished = true;
        }
        Event::Reset { socket, .. } | Event::PeerClosed { socket } => {
            let index = live(far, socket);
            far[index].reset = true;
        }
        Event::Ready { .. } | Event::Writable { .. } | Event::Disconnecting { .. } => {}
        Event::ServiceDescribed { .. }
        | Event::ServiceAdded(_)
        | Event::ServiceRejected { .. }
        | Event::ServiceRemoved { .. }
        | Event::NameAsked { .. }
        | Event::NameAnswered { .. }
        | Event::DomainAdded { .. }
        | Event::DomainRemoved { .. }
        | Event::Accepted { .. }
        | Event::Refused { .. }
        | Event::Migrate => panic!("the client was told {event:?}"),
    }
    Answer::Nothing
}

#[test]
fn bytes_go_both_ways_whole_and_in_order() {
    let mut world = World::modern();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    let id = world.connect(printer).unwrap();
    let data = pattern(3_000_000);
    world.guest_sends(id, &data);
    world.run_until("all of it", |world| world.far[0].received.len() == data.len());
    assert_eq!(world.far[0].received, data);

    let (mut sent, mut got) = (0, Vec::new());
    while got.len() < data.len() {
        sent += world.service_sends(0, &data[sent..]);
        world.run_until("something for the guest", |world| world.guest.readable(id) > 0);
        got.extend(world.guest_reads(id).unwrap().unwrap());
    }
    assert_eq!(got, data);
}

#[test]
fn the_guest_finishes_first() {
    let mut world = World::modern();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    let id = world.connect(printer).unwrap();
    world.guest_sends(id, b"question");
    world.guest.finish(id);
    world.run_until("the guest's end", |world| world.far[0].finished);
    assert_eq!(world.far[0].received, b"question");
    // The other direction is open still.
    assert_eq!(world.service_sends(0, b"answer"), 6);
    world.client.finish(world.far[0].id);
    world.client.close(world.far[0].id);
    world.run_until("the answer", |world| world.guest.readable(id) > 0);
    assert_eq!(world.guest_reads(id).unwrap().unwrap(), b"answer");
    // The end comes once the guest has acknowledged the answer, which it takes its time for.
    world.run_until("the id to be free", |world| world.client.sockets() == 0);
    assert_eq!(world.guest_reads(id), Ok(None));
    assert_eq!(world.bridge.channel().unwrap().sockets(), 0);
}

#[test]
fn the_service_finishes_first() {
    let mut world = World::modern();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    let id = world.connect(printer).unwrap();
    assert_eq!(world.service_sends(0, b"greeting"), 8);
    world.client.finish(world.far[0].id);
    world.run_until("the greeting", |world| world.guest.readable(id) > 0);
    assert_eq!(world.guest_reads(id).unwrap().unwrap(), b"greeting");
    world.settle();
    assert_eq!(world.guest_reads(id), Ok(None));
    world.guest_sends(id, b"and still");
    world.guest.finish(id);
    world.run_until("the guest's end", |world| world.far[0].finished);
    assert_eq!(world.far[0].received, b"and still");
    world.client.close(world.far[0].id);
    world.run_until("the id to be free", |world| world.bridge.channel().unwrap().sockets() == 0);
}

#[test]
fn a_reset_of_the_guest_reaches_the_service() {
    let mut world = World::modern();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    let id = world.connect(printer).unwrap();
    world.guest_sends(id, b"half a j");
    world.guest.reset(id);
    world.run_until("the reset", |world| world.far[0].reset);
    world.run_until("the id to be free", |world| world.bridge.channel().unwrap().sockets() == 0);
}

#[test]
fn a_reset_of_the_service_reaches_the_guest() {
    for finished in [false, true] {
        let mut world = World::modern();
        let (_, printer) = world.share("printer", 0, 631, Service::Sink);
        let id = world.connect(printer).unwrap();
        if finished {
            // Without SOCKET_RESET this would look like a clean end.
            world.guest.finish(id);
            world.run_until("the guest's end", |world| world.far[0].finished);
        }
        world.client.reset(world.far[0].id);
        world.settle();
        assert_eq!(world.guest_reads(id), Err(ConnectionError::Reset), "finished: {finished}");
        assert_eq!(world.bridge.channel().unwrap().sockets(), 0);
    }
}

#[test]
fn what_is_not_there_is_refused_or_unreachable() {
    let mut world = World::modern();
    let (_, refusing) = world.share("refusing", 0, 9100, Service::Refuse);
    assert_eq!(world.connect(refusing), Err(ConnectionError::Refused));
    assert_eq!(world.connect(SocketAddr::new(refusing.ip(), 9101)), Err(ConnectionError::Refused));
    assert_eq!(world.connect("198.18.200.200:9100".parse().unwrap()), Err(ConnectionError::Unreachable));
    assert!(world.far.is_empty(), "the client heard of a connection that nobody shared");
    assert_eq!(world.bridge.channel().unwrap().sockets(), 0);
}

#[test]
fn a_guest_that_does_not_read_stops_the_service_and_nobody_else() {
    let mut world = World::modern();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    let slow = world.connect(printer).unwrap();
    let quick = world.connect(printer).unwrap();
    let data = pattern(64 << 20);
    let mut sent = 0;
    loop {
        let more = world.service_sends(0, &data[sent..]);
        world.settle();
        if more == 0 {
            break;
        }
        sent += more;
    }
    let window = 64 * 32_768;
    assert!(sent < window + (4 << 20), "{sent} bytes were taken for a guest that does not read");
    assert!(world.bridge.channel().unwrap().waiting() <= window);
    // The other connection does not notice.
    assert_eq!(world.service_sends(1, b"hello"), 5);
    world.run_until("hello", |world| world.guest.readable(quick) == 5);
    // It reads on, and has missed nothing.
    let mut got = Vec::new();
    while got.len() < 8 << 20 {
        got.extend(world.guest_reads(slow).unwrap().unwrap());
        sent += world.service_sends(0, &data[sent..]);
        world.run_until("more", |world| world.guest.readable(slow) > 0);
    }
    assert_eq!(got, data[..got.len()]);
}

#[test]
fn a_service_that_does_not_read_stops_the_guest() {
    let mut world = World::modern();
    let (_, stuck) = world.share("stuck", 0, 9100, Service::Stuck);
    let id = world.connect(stuck).unwrap();
    let data = pattern(16 << 20);
    let mut sent = 0;
    loop {
        let more = world.guest.send(id, &data[sent..]).unwrap();
        world.settle();
        if more == 0 {
            break;
        }
        sent += more;
    }
    let window = 64 * 32_768;
    assert!(world.far[0].received.len() <= window, "more than the window came");
    assert!(sent < window + (2 << 20), "the guest could send {sent} bytes to a service that takes none");
    let start = world.now;
    while sent < data.len() || world.far[0].received.len() < data.len() {
        let before = (sent, world.far[0].received.len());
        world.take(0);
        world.settle();
        sent += world.guest.send(id, &data[sent..]).unwrap();
        if before == (sent, world.far[0].received.len()) {
            // The guest's last octets are acknowledged a little later.
            assert!(world.pass() && world.now < start + Duration::from_secs(1), "stuck with {sent} sent");
        }
    }
    assert!(world.far[0].received == data);
}

#[test]
fn the_end_of_the_tunnel_resets_the_guest_and_unmaps_everything() {
    let mut world = World::modern();
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    let open = world.connect(printer).unwrap();
    let (_, stuck) = world.share("stuck", 1, 631, Service::Stuck);
    let waiting = world.connect(stuck).unwrap();
    world.bridge.detach(world.now);
    world.settle();
    for id in [open, waiting] {
        assert_eq!(world.guest_reads(id), Err(ConnectionError::Reset));
    }
    assert_eq!(world.connect(printer), Err(ConnectionError::Unreachable));

    // The next session finds the same addresses.
    let now = world.now;
    world.bridge.attach(now, channel(Role::Server, Config::default(), TunnelCaps::OURS, now));
    world.client = channel(Role::Client, Config::default(), TunnelCaps::OURS, now);
    world.addresses.clear();
    world.run_until("INIT", |world| world.client.is_ready());
    assert_eq!(world.share("stuck", 0, 631, Service::Sink).1, stuck);
    assert_eq!(world.share("printer", 1, 631, Service::Sink).1, printer);
    world.connect(printer).unwrap();
}

#[test]
fn services_come_and_go_and_keep_their_addresses() {
    let mut world = World::modern();
    let (first, printer) = world.share("printer", 0, 631, Service::Sink);
    let (_, web) = world.share("printer", 0, 80, Service::Sink);
    assert_eq!(printer.ip(), web.ip(), "one group is one device");
    // Another device of the same name and port must be told apart.
    let (_, twin) = world.share("printer", 1, 631, Service::Sink);
    assert_ne!(twin.ip(), printer.ip());

    let id = world.connect(printer).unwrap();
    world.client.remove_service(first);
    world.settle();
    assert_eq!(world.connect(printer), Err(ConnectionError::Refused));
    world.connect(web).unwrap();
    world.guest_sends(id, b"still there");
    world.run_until("what an open connection sends", |world| world.far[0].received == b"still there");
    assert_eq!(world.share("printer", 0, 631, Service::Sink).1, printer);
}

#[test]
fn a_historical_client_gets_what_it_can_bear() {
    let mut world = World::new(Config::default(), TunnelCaps::empty());
    let (_, printer) = world.share("printer", 0, 631, Service::Sink);
    let open: Vec<_> = (0..20).map(|_| world.connect(printer).unwrap()).collect();
    assert!(world.far.iter().all(|far| far.id.0 < 20));
    assert_eq!(world.connect(printer), Err(ConnectionError::Refused), "a 21st socket");
    let data = pattern(500_000);
    world.guest_sends(open[7], &data);
    world.run_until("all of it", |world| world.far[7].received.len() == data.len());
    assert_eq!(world.far[7].received, data);
}
