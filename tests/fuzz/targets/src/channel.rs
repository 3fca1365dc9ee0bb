//! One end of a tunnel channel against a hostile peer.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use spice_proto::base::{BaseClientMessage, BaseServerMessage};
use spice_proto::frame::{Frame, HeaderForm, Split, split};
use spice_proto::link::TunnelCaps;
use spice_proto::service_info::{HostName, Identity, ServiceInfo};
use spice_proto::tunnel::{
    ClientMessage, GroupId, InfoBody, IpInfo, Layout, MAX_DOMAINS, MAX_QUERIES, NameAnswer, QueryId,
    ServerMessage, ServiceAdd, ServiceId, ServiceKind, SocketId,
};
use tunnel_channel::{Channel, Config, Event, NewService, ResetCause, Role};

use crate::input::Input;

/// Bytes 0 to 3: role, capabilities, header, layout, and the limits; then operations, each a byte that chooses and the bytes
/// it needs: messages of the peer, right or wrong, commands of the owner, and time.
///
/// Whatever the peer does: the owner hears only of sockets that it has, no more than it granted, and in an order that
/// makes sense; and what is sent is well-formed, within the peer's credit, and to the ids that are in use.
pub fn channel(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    while !input.is_empty() {
        world.operate(&mut input);
        world.check();
    }
}

struct World {
    channel: Channel,
    now: Instant,
    role: Role,
    header: HeaderForm,
    layout: Layout,
    caps: TunnelCaps,
    /// Longest DATA that was agreed on.
    max_data: usize,
    max_sockets: u16,
    /// Most tokens that this end may have granted for a socket.
    window: u32,
    budget: usize,
    sockets: HashMap<SocketId, Socket>,
    /// What the peer has granted and was not used, for every id in use on the wire.
    credit: HashMap<SocketId, u64>,
    /// Names that were asked for and not answered.
    asked: BTreeSet<QueryId>,
    /// Domains that may be asked for, in lower case.
    domains: BTreeSet<String>,
}

/// What the owner knows.
#[derive(Default)]
struct Socket {
    open: bool,
    waiting: u32,
    finished: bool,
    peer_finished: bool,
    peer_closed: bool,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let now = Instant::now();
        let choice = input.byte();
        let role = if choice & 1 == 0 { Role::Server } else { Role::Client };
        let header = if choice & 2 == 0 { HeaderForm::Mini } else { HeaderForm::Full };
        let layout = if choice & 4 == 0 { Layout::B } else { Layout::A };
        let mut caps = TunnelCaps::from_bits_retain(u32::from(choice >> 3 & 15));
        caps.set(TunnelCaps::SERVICE_INFO | TunnelCaps::NAMES, choice & 0x80 != 0);
        let max_data = u32::from(input.byte()) + 1;
        let window = u32::from(input.byte() % 70) + 1;
        let budget = usize::from(input.byte()) * 64 + 1;
        let most = if max_data.is_multiple_of(2) { window * 4 } else { window };
        let config = Config {
            max_sockets: 8,
            max_data,
            window,
            max_window: most,
            max_services: 5,
            memory_budget: budget,
            ..Config::default()
        };
        let extended = caps.contains(TunnelCaps::EXTENDED) && layout == Layout::B;
        World {
            channel: Channel::new(role, header, layout, caps, config, now),
            now,
            role,
            header,
            layout,
            caps: if layout == Layout::B { caps } else { TunnelCaps::empty() },
            max_data: if extended { max_data as usize } else { 2048 },
            max_sockets: if extended { 8 } else { 20 },
            window: if extended { most } else { 80 },
            budget,
            sockets: HashMap::new(),
            credit: HashMap::new(),
            asked: BTreeSet::new(),
            domains: BTreeSet::new(),
        }
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0..=6 => match self.role {
                Role::Server => self.client_says(input),
                Role::Client => self.server_says(input),
            },
            7 => {
                let kind = if input.byte() & 1 == 0 { input.short() } else { u16::from(input.byte()) };
                let sub_list = u32::from(input.byte() / 255);
                let length = usize::from(input.byte());
                let body = input.bytes(length);
                self.frame(Frame { serial: None, kind, sub_list, body });
            }
            8 => {
                self.now += Duration::from_millis(1 << (input.byte() % 16));
                // Never more than twice: a deadline that does not move would spin.
                for _ in 0..2 {
                    if self.channel.handle_timeout(self.now).is_err() {
                        assert!(self.channel.has_ended());
                        self.lose_all();
                    }
                }
                assert!(
                    self.channel.poll_timeout().is_none_or(|(at, _)| at > self.now),
                    "a deadline that spins"
                );
            }
            9 => {
                let service = ServiceId(u32::from(input.byte() % 8));
                if self.role == Role::Server {
                    if let Ok(socket) = self.channel.open(service) {
                        assert!(
                            self.sockets.insert(socket, Socket::default()).is_none(),
                            "an id that is in use"
                        );
                    }
                    let _ = self.channel.map_service(service, [198, 18, 0, 9].into());
                } else {
                    let name = [b'a' + input.byte() % 2];
                    let info = info(name[0]);
                    let _ = self.channel.add_service(NewService {
                        kind: ServiceKind::Generic,
                        group: GroupId(u32::from(name[0])),
                        port: 1 + u16::from(input.byte()),
                        name: &name,
                        description: b"",
                        info: Some(&info),
                    });
                    if input.byte() % 8 == 0 {
                        self.channel.remove_service(service);
                    }
                }
            }
            10 => {
                if let Some(socket) = self.socket(input.byte(), |socket| !socket.open)
                    && self.role == Role::Client
                {
                    if input.byte() % 4 == 0 {
                        self.channel.refuse(socket);
                        self.sockets.remove(&socket);
                    } else {
                        self.channel.accept(socket);
                        self.sockets.entry(socket).and_modify(|socket| socket.open = true);
                    }
                }
            }
            11 | 12 => {
                let Some(socket) = self.socket(input.byte(), |socket| socket.open) else { return };
                let length = usize::from(input.byte()) * 4;
                let most = self.max_data;
                let before = self.channel.credit(socket);
                let sent = self.channel.send(socket, |room| {
                    assert!(room.len() <= most);
                    let length = length.min(room.len());
                    room[..length].fill(7);
                    length
                });
                assert!(sent == 0 || before > 0, "sent without credit");
                let finished = self.sockets[&socket].finished || self.sockets[&socket].peer_closed;
                assert!(sent == 0 || !finished, "sent after the end");
            }
            13 => {
                let Some(socket) = self.socket(input.byte(), |socket| socket.waiting > 0) else { return };
                let n = u32::from(input.byte()).min(self.sockets[&socket].waiting);
                self.channel.delivered(socket, n);
                self.sockets.entry(socket).and_modify(|socket| socket.waiting -= n);
            }
            14 => {
                let Some(socket) = self.socket(input.byte(), |socket| socket.open) else { return };
                let choice = input.byte() % 8;
                let Some(state) = self.sockets.get_mut(&socket) else { return };
                let done = state.peer_finished && state.finished || state.peer_closed;
                if choice < 3 && !state.finished && !state.peer_closed {
                    state.finished = true;
                    self.channel.finish(socket);
                } else if choice < 6 && done && state.waiting == 0 {
                    self.channel.close(socket);
                    self.sockets.remove(&socket);
                } else if choice == 7 {
                    self.channel.reset(socket);
                    self.sockets.remove(&socket);
                }
            }
            _ => {
                let n = usize::from(input.byte()).min(self.channel.outgoing_len());
                match input.byte() {
                    0xff => {
                        self.channel.disconnect(0);
                        self.lose_all();
                    }
                    0xfe => {
                        self.channel.probe(self.now, Duration::from_millis(500));
                    }
                    choice @ 0xf8..=0xfd => self.name_command(choice, input.byte()),
                    _ => {}
                }
                // Whole messages are looked at where the buffer is emptied.
                if n == self.channel.outgoing_len() || n > 64 {
                    self.look();
                }
            }
        }
    }

    fn name_command(&mut self, choice: u8, which: u8) {
        let domain = HostName::new(DOMAINS[usize::from(which) % DOMAINS.len()]).expect("a good name");
        match (self.role, choice) {
            (Role::Server, _) => {
                if let Ok(query) = self.channel.ask_name(&domain) {
                    assert!(self.covers(domain.as_str()), "asked for what is not allowed");
                    assert!(self.asked.insert(query), "a number that is in use");
                }
            }
            (Role::Client, 0xfc | 0xfd) => {
                if self.channel.add_domain(&domain).is_ok() {
                    self.domains.insert(domain.as_str().to_lowercase());
                }
            }
            (Role::Client, 0xfb) => {
                let removed = self.channel.remove_domain(&domain);
                assert_eq!(removed, self.domains.remove(&domain.as_str().to_lowercase()));
            }
            (Role::Client, 0xfa) => {
                let described = self.channel.describe_service(ServiceId(u32::from(which)), &info(which));
                assert!(!described || self.caps.contains(TunnelCaps::SERVICE_INFO));
            }
            (Role::Client, _) => {
                if let Some(query) = self.asked.pop_first() {
                    let group = GroupId(u32::from(b'a' + which % 4));
                    self.channel.answer_name(query, NameAnswer::Found { group, ttl: u32::from(which) });
                }
            }
        }
    }

    fn covers(&self, name: &str) -> bool {
        let name = HostName::new(name).expect("a good name");
        self.domains.iter().any(|domain| name.is_within(&HostName::new(domain).expect("a good name")))
    }

    fn lose_all(&mut self) {
        self.sockets.clear();
        self.asked.clear();
        self.domains.clear();
    }

    fn client_says(&mut self, input: &mut Input<'_>) {
        let (choice, which) = (input.byte(), input.byte());
        let socket = SocketId(u16::from(which & 31));
        let number = [0, 1, 5, 60, 80, 1000, u32::MAX - 2, u32::MAX][usize::from(which >> 5)];
        let service = ServiceId(u32::from(which % 8));
        let name = [b'a' + which % 2];
        let payload = [7; 512];
        let query = self.asked.first().copied().filter(|_| which % 4 != 0).unwrap_or(QueryId(number));
        let domain = DOMAINS[usize::from(which >> 1) % DOMAINS.len()];
        let mut buffer = Vec::new();
        let message = match choice % 16 {
            0 | 1 => ClientMessage::ServiceAdd(ServiceAdd {
                kind: if choice & 16 == 0 { ServiceKind::Generic } else { ServiceKind::Ipp(IpInfo::Invalid) },
                service,
                group: GroupId(u32::from(name[0])),
                port: 1 + u16::from(choice),
                name: &name,
                description: b"",
            }),
            2 => ClientMessage::ServiceRemove { service },
            3 | 4 => ClientMessage::SocketOpenAck { socket, tokens: number },
            5 => ClientMessage::SocketOpenNack { socket },
            6 => ClientMessage::SocketFin { socket },
            7 => ClientMessage::SocketClosed { socket },
            8 => ClientMessage::SocketClosedAck { socket },
            9 => ClientMessage::SocketReset { socket },
            12 if choice & 16 != 0 => ClientMessage::Probe { id: number },
            13 if choice & 16 != 0 => {
                ClientMessage::ServiceInfo { service, info: InfoBody::write(&info(which), &mut buffer) }
            }
            14 if choice & 16 != 0 => {
                let group = GroupId(u32::from(b'a' + which % 4));
                let answer = if choice & 32 == 0 {
                    NameAnswer::Found { group, ttl: number }
                } else {
                    NameAnswer::Refused
                };
                ClientMessage::NameAnswer { query, answer }
            }
            15 if choice & 48 == 16 => ClientMessage::DomainAdd { name: domain },
            15 if choice & 48 == 48 => ClientMessage::DomainRemove { name: domain },
            10 | 11 => ClientMessage::SocketToken { socket, tokens: number },
            _ => ClientMessage::SocketData { socket, payload: &payload[..usize::from(choice) * 2] },
        };
        let mut body = Vec::new();
        message.write_body(self.layout, &mut body);
        let accepted = self.frame(Frame { serial: None, kind: message.kind(), sub_list: 0, body: &body });
        // Credit counts from when the client may have given it; what the channel makes of it is for `look` to see.
        if let (
            true,
            ClientMessage::SocketOpenAck { tokens, .. } | ClientMessage::SocketToken { tokens, .. },
        ) = (accepted, message)
        {
            *self.credit.entry(socket).or_default() += u64::from(tokens);
        }
    }

    fn server_says(&mut self, input: &mut Input<'_>) {
        let (choice, which) = (input.byte(), input.byte());
        let socket = SocketId(u16::from(which & 31));
        let number = [0, 1, 5, 60, 80, 1000, u32::MAX - 2, u32::MAX][usize::from(which >> 5)];
        let service = ServiceId(u32::from(choice >> 4 & 7));
        let payload = [7; 512];
        let message = match choice % 16 {
            0 => {
                let max_data = [256, 1, 2048, u32::MAX][usize::from(which & 3)];
                let max_sockets = [20, 8, 0, u16::MAX][usize::from(which >> 2 & 3)];
                ServerMessage::Init { max_sockets, max_data }
            }
            1 => {
                let address =
                    if which & 1 == 0 { IpInfo::Invalid } else { IpInfo::V4([198, 18, 0, 9].into()) };
                ServerMessage::ServiceIpMap { service, address }
            }
            2..=4 => ServerMessage::SocketOpen { socket, service, tokens: number },
            5 | 6 => ServerMessage::SocketFin { socket },
            7 => ServerMessage::SocketClose { socket },
            8 => ServerMessage::SocketClosedAck { socket },
            9 | 10 => ServerMessage::SocketToken { socket, tokens: number },
            11 if choice & 16 != 0 => ServerMessage::ProbeAck { id: u32::from(which) },
            12 if choice & 16 != 0 => ServerMessage::NameQuery {
                query: QueryId(u32::from(which)),
                name: ["b.a.test", "c.test", "d.test", "xa.test"][usize::from(which % 4)],
            },
            _ => ServerMessage::SocketData { socket, payload: &payload[..usize::from(choice) * 2] },
        };
        let mut body = Vec::new();
        message.write_body(&mut body);
        let accepted = self.frame(Frame { serial: None, kind: message.kind(), sub_list: 0, body: &body });
        if let (true, ServerMessage::SocketOpen { tokens, .. } | ServerMessage::SocketToken { tokens, .. }) =
            (accepted, message)
        {
            *self.credit.entry(socket).or_default() += u64::from(tokens);
        }
    }

    /// Hands a frame over, and plays the owner who hears of it. `false`: it was a violation.
    fn frame(&mut self, frame: Frame<'_>) -> bool {
        if frame.body.len() > self.channel.max_body() as usize {
            return false;
        }
        let over = self.channel.has_ended();
        let event = match self.channel.handle_frame(self.now, frame) {
            Ok(event) => event,
            Err(violation) => {
                assert!(self.channel.has_ended(), "{violation} did not end the channel");
                assert_eq!(self.channel.sockets(), 0);
                self.lose_all();
                return false;
            }
        };
        assert!(!over || event.is_none(), "{event:?} after the end");
        let Some(event) = event else { return true };
        match event {
            Event::Ready { max_sockets, max_data } => {
                assert_eq!(self.role, Role::Client);
                self.max_sockets = max_sockets;
                self.max_data = max_data as usize;
            }
            Event::ServiceAdded(_) | Event::ServiceRejected { .. } | Event::ServiceRemoved { .. } => {
                assert_eq!(self.role, Role::Server);
            }
            Event::ServiceDescribed { info, .. } => {
                assert!(self.caps.contains(TunnelCaps::SERVICE_INFO));
                assert!(info.info().encoded_len() <= info.as_bytes().len());
            }
            Event::NameAsked { query, name } => {
                assert_eq!(self.role, Role::Client);
                assert!(self.covers(name), "asked for what is not allowed");
                assert!(self.asked.insert(query), "asked under a number that is in use");
            }
            Event::NameAnswered { query, answer } => {
                assert_eq!(self.role, Role::Server);
                assert!(self.asked.remove(&query), "an answer to no question");
                if let NameAnswer::Found { ttl, .. } = answer {
                    assert!((5..=3600).contains(&ttl));
                }
            }
            Event::DomainAdded { name } => {
                assert_eq!(self.role, Role::Server);
                assert!(self.domains.insert(name.to_lowercase()), "added twice");
            }
            Event::DomainRemoved { name } => {
                assert!(self.domains.remove(&name.to_lowercase()), "removed, and never added");
            }
            Event::ServiceMapped { .. } => assert_eq!(self.role, Role::Client),
            Event::Open { socket, .. } => {
                assert_eq!(self.role, Role::Client);
                assert!(self.sockets.insert(socket, Socket::default()).is_none(), "opened twice");
            }
            Event::Accepted { socket } => {
                assert_eq!(self.role, Role::Server);
                let state = self.mine(socket);
                assert!(!state.open, "accepted twice");
                state.open = true;
            }
            Event::Refused { socket } => {
                assert!(!self.mine(socket).open);
                self.sockets.remove(&socket);
            }
            Event::Data { socket, payload } => {
                assert!(!payload.is_empty() && payload.len() <= self.max_data);
                let window = self.window;
                let state = self.mine(socket);
                assert!(!state.peer_finished && !state.peer_closed, "data after the end");
                state.waiting += 1;
                assert!(state.waiting <= window, "{} messages wait, {window} were granted", state.waiting);
            }
            Event::Finished { socket } => {
                let state = self.mine(socket);
                assert!(!state.peer_finished, "finished twice");
                state.peer_finished = true;
            }
            Event::Writable { socket } => {
                assert!(self.mine(socket).open);
                assert!(self.channel.credit(socket) > 0);
            }
            Event::PeerClosed { socket } => {
                let state = self.mine(socket);
                assert!(state.peer_finished && !state.peer_closed);
                state.peer_closed = true;
            }
            Event::Reset { socket, cause } => {
                self.mine(socket);
                self.sockets.remove(&socket);
                if let ResetCause::Memory { waiting } = cause {
                    assert!(waiting + self.max_data > self.budget);
                }
            }
            Event::Migrate => {
                assert!(self.channel.has_ended());
                self.lose_all();
            }
            Event::Disconnecting { .. } => {}
        }
        true
    }

    fn mine(&mut self, socket: SocketId) -> &mut Socket {
        self.sockets.get_mut(&socket).unwrap_or_else(|| panic!("an event for {socket:?}, which is nobody's"))
    }

    /// One of the sockets that are as wanted.
    fn socket(&self, which: u8, wanted: impl Fn(&Socket) -> bool) -> Option<SocketId> {
        let mut fitting: Vec<_> = self.sockets.iter().filter(|(_, s)| wanted(s)).map(|(id, _)| *id).collect();
        fitting.sort_unstable();
        fitting.get(usize::from(which) % fitting.len().max(1)).copied()
    }

    /// Takes what is outgoing, as the peer would.
    fn look(&mut self) {
        let bytes = self.channel.outgoing().to_vec();
        self.channel.sent(bytes.len());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Ok(Split::Frame { frame, consumed }) = split(self.header, 1 << 20, rest) else {
                panic!("not whole messages: {rest:?}")
            };
            rest = &rest[consumed..];
            match self.role {
                Role::Server => match ServerMessage::parse(frame.kind, frame.body) {
                    Ok(Some(message)) => self.server_said(&message),
                    Ok(None) => {
                        assert!(matches!(BaseServerMessage::parse(frame.kind, frame.body), Ok(Some(_))))
                    }
                    Err(error) => panic!("{error}"),
                },
                Role::Client => match ClientMessage::parse(self.layout, frame.kind, frame.body) {
                    Ok(Some(message)) => self.client_said(&message),
                    Ok(None) => {
                        assert!(matches!(BaseClientMessage::parse(frame.kind, frame.body), Ok(Some(_))))
                    }
                    Err(error) => panic!("{error}"),
                },
            }
        }
        assert_eq!(self.channel.outgoing_len(), 0);
    }

    fn server_said(&mut self, message: &ServerMessage<'_>) {
        match message {
            ServerMessage::Init { max_sockets, max_data } => {
                assert_eq!((*max_sockets, *max_data as usize), (self.max_sockets, self.max_data));
            }
            ServerMessage::ServiceIpMap { .. } => {}
            ServerMessage::SocketOpen { socket, tokens, .. } => {
                assert!(*tokens <= self.window);
                self.in_range(*socket);
            }
            ServerMessage::SocketData { socket, payload } => self.spent(*socket, payload),
            ServerMessage::SocketToken { socket, tokens } => {
                assert!((1..=self.window).contains(tokens));
                self.in_range(*socket);
            }
            ServerMessage::SocketFin { socket }
            | ServerMessage::SocketClose { socket }
            | ServerMessage::SocketClosedAck { socket } => self.in_range(*socket),
            ServerMessage::ProbeAck { .. } => assert!(self.caps.contains(TunnelCaps::PROBE)),
            ServerMessage::NameQuery { .. } => assert!(self.caps.contains(TunnelCaps::NAMES)),
        }
    }

    fn client_said(&mut self, message: &ClientMessage<'_>) {
        match message {
            ClientMessage::ServiceAdd(_) => {}
            ClientMessage::ServiceRemove { .. } => assert!(self.caps.contains(TunnelCaps::SERVICE_REMOVE)),
            ClientMessage::SocketData { socket, payload } => self.spent(*socket, payload),
            ClientMessage::SocketOpenAck { socket, tokens }
            | ClientMessage::SocketToken { socket, tokens } => {
                assert!((1..=self.window).contains(tokens));
                self.in_range(*socket);
            }
            ClientMessage::SocketReset { socket } => {
                assert!(self.caps.contains(TunnelCaps::RESET));
                self.in_range(*socket);
            }
            ClientMessage::SocketOpenNack { socket }
            | ClientMessage::SocketFin { socket }
            | ClientMessage::SocketClosed { socket }
            | ClientMessage::SocketClosedAck { socket } => self.in_range(*socket),
            ClientMessage::Probe { .. } => assert!(self.caps.contains(TunnelCaps::PROBE)),
            ClientMessage::ServiceInfo { .. } => assert!(self.caps.contains(TunnelCaps::SERVICE_INFO)),
            ClientMessage::NameAnswer { .. }
            | ClientMessage::DomainAdd { .. }
            | ClientMessage::DomainRemove { .. } => assert!(self.caps.contains(TunnelCaps::NAMES)),
        }
    }

    fn in_range(&self, socket: SocketId) {
        assert!(socket.0 < self.max_sockets, "{socket:?} of {}", self.max_sockets);
    }

    fn spent(&mut self, socket: SocketId, payload: &[u8]) {
        self.in_range(socket);
        assert!(!payload.is_empty() && payload.len() <= self.max_data);
        let credit = self.credit.entry(socket).or_default();
        assert!(*credit > 0, "data without credit");
        *credit -= 1;
    }

    fn check(&self) {
        assert!(self.channel.sockets() >= self.sockets.len());
        assert!(self.channel.sockets() <= usize::from(self.max_sockets).max(20));
        assert!(self.channel.waiting() <= 2 * self.budget.max(self.max_data));
        assert_eq!(self.channel.queries(), self.asked.len());
        assert!(self.asked.len() <= MAX_QUERIES && self.domains.len() <= MAX_DOMAINS);
        if self.channel.has_ended() {
            assert_eq!((self.channel.sockets(), self.channel.poll_timeout()), (0, None));
        }
    }
}

const DOMAINS: [&str; 4] = ["a.test", "B.a.Test", "c.test", "more.example"];

/// Something that a service can say of itself.
fn info(which: u8) -> ServiceInfo {
    let identity = Identity::new(&format!("uuid:{which}")).ok();
    let host = (which % 2 == 0).then(|| HostName::new("printer.local").expect("a good name"));
    ServiceInfo::new(identity, host, Vec::new()).expect("a short one")
}
