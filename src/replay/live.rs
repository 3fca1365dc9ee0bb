//! `replay --live`: a captured client against a running server.
//!
//! The client is today's channel, and its owner plays the script of the capture: it announces the captured services, and
//! whenever the live guest opens a connection to one of them, it does what the captured client did on its next
//! connection to that service, each step as soon as the guest has sent what it had sent before that step. The guest
//! decides what happens; what it sends is compared with what the captured one sent.

mod script;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use spice_proto::frame::{Split, split};
use spice_proto::handshake::{ClientLink, Deadlines, Linked};
use spice_proto::io::IoError;
use spice_proto::link::{ChannelType, CommonCaps, LinkVersion, TunnelCaps};
use spice_proto::ticket::Password;
use spice_proto::tunnel::{ServiceId, SocketId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tunnel_channel::{Channel, Config, Event, NewService, ResetCause, Role};

use self::script::{Act, Play};
pub use self::script::{MAX_BYTES, Script};
use super::report::{Difference, Part, Place, Report, Subject};
use super::story::Manner;

/// Why a live replay could not take place.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// Nobody there.
    #[error("cannot connect to {server}")]
    Connect {
        /// The server.
        server: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is no tunnel, or not for us.
    #[error("cannot link the tunnel channel of {server}")]
    Link {
        /// The server.
        server: String,
        /// What happened.
        source: IoError,
    },
}

/// How long a server's host may take to answer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Links the tunnel channel of `server` (HOST:PORT) as a companion, and plays `script` until it is over, or until
/// nothing came from the guest for `patience`.
///
/// # Errors
///
/// There is no link. What goes wrong behind it is a finding.
pub async fn run(
    server: &str,
    password: &Password,
    script: Script,
    patience: Duration,
) -> Result<Report, LiveError> {
    let failed = |source| LiveError::Connect { server: server.to_owned(), source };
    let late = |_| failed(io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s"));
    let connect = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(server));
    let mut stream = connect.await.map_err(late)?.map_err(failed)?;
    // Small messages should not wait; where that cannot be had, it is only slower.
    let _ = stream.set_nodelay(true);
    let asked = ClientLink {
        version: LinkVersion::V2,
        channel_type: ChannelType::TUNNEL.0,
        channel_id: 0,
        session_id: 0,
        common_caps: CommonCaps::OURS,
        channel_caps: client_glue::channel_caps(),
    };
    let linked = spice_proto::io::connect(&mut stream, asked, password, Deadlines::default())
        .await
        .map_err(|source| LiveError::Link { server: server.to_owned(), source })?;
    Ok(play(stream, &linked, script, patience).await)
}

/// [`run`] on a stream whose link stage is over.
pub async fn play(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    linked: &Linked,
    script: Script,
    patience: Duration,
) -> Report {
    let mut player = Player::new(linked, script);
    if player.script.unusable.is_some() || player.script.plays.is_empty() {
        return player.report();
    }
    let mut received = linked.leftover.clone();
    let mut buffer = vec![0; 64 << 10];
    let mut quiet_since = tokio::time::Instant::now();
    let (mut from, mut to) = tokio::io::split(&mut stream);
    while !player.is_over() {
        let due = player.channel.poll_timeout().map(|(at, _)| at.into());
        let far = tokio::time::Instant::now() + patience;
        let outgoing = player.channel.outgoing().to_vec();
        tokio::select! {
            wrote = to.write(&outgoing), if !outgoing.is_empty() => match wrote {
                Ok(n @ 1..) => player.channel.sent(n),
                Ok(0) | Err(_) => { player.lost("the server does not read any more"); break }
            },
            got = from.read(&mut buffer) => match got {
                Ok(0) => { player.lost("the server closed the tunnel"); break }
                Ok(n) => {
                    received.extend_from_slice(buffer.get(..n).unwrap_or_default());
                    if player.take(&mut received) {
                        quiet_since = tokio::time::Instant::now();
                    }
                }
                Err(error) => { player.lost(&format!("the connection failed: {error}")); break }
            },
            () = tokio::time::sleep_until(due.unwrap_or(far)) => {
                if let Err(violation) = player.channel.handle_timeout(Instant::now()) {
                    player.lost(&violation.to_string());
                    break;
                }
            }
            () = tokio::time::sleep_until(quiet_since + patience) => break,
        }
    }
    player.channel.disconnect(0);
    // A goodbye that nobody hears is none that matters.
    let goodbye = player.channel.outgoing().to_vec();
    let _ = tokio::time::timeout(Duration::from_secs(1), to.write_all(&goodbye)).await;
    player.report()
}

/// The owner of the channel that plays the captured client.
struct Player {
    channel: Channel,
    linked: Linked,
    script: Script,
    /// From the live services to the captured ones.
    services: BTreeMap<ServiceId, ServiceId>,
    mapped: BTreeSet<ServiceId>,
    live: BTreeMap<SocketId, Live>,
    /// Connections of the script that were begun.
    begun: BTreeSet<usize>,
    over: usize,
    lost: bool,
    report: Report,
    started: Instant,
}

/// A connection of the live guest.
struct Live {
    play: usize,
    step: usize,
    /// Bytes from the guest.
    up: usize,
    ended: bool,
    differs: bool,
    waiting: VecDeque<Vec<u8>>,
    finish: bool,
    finished: bool,
    close: bool,
}

impl Player {
    fn new(linked: &Linked, script: Script) -> Self {
        let caps = TunnelCaps::from_words(&linked.peer_channel_caps)
            & TunnelCaps::from_words(&client_glue::channel_caps());
        let started = Instant::now();
        let channel =
            Channel::new(Role::Client, linked.header, linked.layout, caps, Config::default(), started);
        Player {
            channel,
            linked: linked.clone(),
            script,
            services: BTreeMap::new(),
            mapped: BTreeSet::new(),
            live: BTreeMap::new(),
            begun: BTreeSet::new(),
            over: 0,
            lost: false,
            report: Report::default(),
            started,
        }
    }

    /// Everything that was captured was played, and every service that was mapped is.
    fn is_over(&self) -> bool {
        self.lost || self.channel.has_ended() || self.over >= self.script.plays.len()
    }

    /// Takes whole messages off the front. Whether one of them was more than a sign of life.
    fn take(&mut self, received: &mut Vec<u8>) -> bool {
        let mut used = 0;
        let mut something = false;
        loop {
            let rest = received.get(used..).unwrap_or_default();
            let (frame, consumed) = match split(self.linked.header, self.channel.max_body(), rest) {
                Ok(Split::Frame { frame, consumed }) => (frame, consumed),
                Ok(Split::Incomplete { .. }) => break,
                Err(error) => {
                    self.lost(&error.to_string());
                    break;
                }
            };
            // Channel messages start at 101.
            something |= frame.kind > 100;
            let body = frame.body.to_vec();
            let frame = spice_proto::frame::Frame { body: &body, ..frame };
            match self.channel.handle_frame(Instant::now(), frame) {
                Ok(Some(event)) => self.event(event),
                Ok(None) => {}
                Err(violation) => self.lost(&violation.to_string()),
            }
            used += consumed;
        }
        received.drain(..used);
        something
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Ready { .. } => self.announce(),
            Event::ServiceMapped { service, .. } => {
                if let Some(captured) = self.services.get(&service) {
                    self.mapped.insert(*captured);
                }
            }
            Event::Open { socket, service } => self.open(socket, service),
            Event::Data { socket, payload } => {
                self.data(socket, payload);
                self.channel.delivered(socket, 1);
                self.advance(socket);
            }
            Event::Finished { socket } => {
                self.finished(socket);
                self.advance(socket);
            }
            Event::Writable { socket } => self.advance(socket),
            Event::PeerClosed { socket } => {
                self.server_ended(socket, Manner::Clean, "the server ended it");
                self.channel.close(socket);
            }
            Event::Reset { socket, cause } => {
                let manner = match cause {
                    ResetCause::Peer => "the server aborted it".to_owned(),
                    ResetCause::Violation(_) | ResetCause::Memory { .. } => cause.to_string(),
                };
                self.server_ended(socket, Manner::Abort, &manner);
            }
            Event::Migrate => self.lost("the VM moved to another host"),
            Event::Disconnecting { .. } => self.lost("the server said that it is leaving"),
            // No domain is added here, so that the channel refuses every question by itself.
            Event::NameAsked { .. }
            | Event::ServiceDescribed { .. }
            | Event::NameAnswered { .. }
            | Event::DomainAdded { .. }
            | Event::DomainRemoved { .. }
            | Event::ServiceAdded(_)
            | Event::ServiceRejected { .. }
            | Event::ServiceRemoved { .. }
            | Event::Accepted { .. }
            | Event::Refused { .. } => {}
        }
    }

    fn announce(&mut self) {
        for service in &self.script.services {
            let new = NewService {
                kind: service.kind,
                group: service.group,
                port: service.port,
                name: &service.name,
                description: &service.description,
                info: service.info.as_ref(),
            };
            match self.channel.add_service(new) {
                Ok(id) => {
                    self.services.insert(id, service.id);
                    self.report.compared(Part::Live).services += 1;
                }
                Err(error) => {
                    let place = Place { service: Some(service.id.0), ..Place::default() };
                    let difference = Difference::new(
                        Part::Live,
                        Subject::Service,
                        place,
                        "it is announced",
                        error.to_string(),
                    );
                    self.report.add(difference);
                }
            }
        }
    }

    fn open(&mut self, socket: SocketId, service: ServiceId) {
        let captured = self.services.get(&service).copied();
        let next = self
            .script
            .plays
            .iter()
            .enumerate()
            .find(|(number, play)| Some(play.service) == captured && !self.begun.contains(number));
        let Some((play, _)) = next else {
            let place = Place { service: captured.map(|service| service.0), ..self.place(None) };
            let text = "the guest opens one more connection to this service";
            self.report.add(Difference::new(Part::Live, Subject::Open, place, "it does not", text));
            self.channel.refuse(socket);
            return;
        };
        self.begun.insert(play);
        let live = Live {
            play,
            step: 0,
            up: 0,
            ended: false,
            differs: false,
            waiting: VecDeque::new(),
            finish: false,
            finished: false,
            close: false,
        };
        self.live.insert(socket, live);
        self.advance(socket);
    }

    fn data(&mut self, socket: SocketId, payload: &[u8]) {
        let Some(live) = self.live.get_mut(&socket) else { return };
        let Some(play) = self.script.plays.get(live.play) else { return };
        let expected = play.up.get(live.up..).unwrap_or_default();
        let same = payload.iter().zip(expected).take_while(|(a, b)| a == b).count();
        let at = live.up + same;
        live.up = live.up.saturating_add(payload.len());
        if same < payload.len() && !live.differs {
            live.differs = true;
            let byte = |byte: Option<&u8>| byte.map_or("nothing".to_owned(), |byte| format!("{byte:#04x}"));
            let captured = format!("{} at offset {at} from the guest", byte(expected.get(same)));
            let today = byte(payload.get(same));
            let place = self.place(Some(socket));
            self.report.add(Difference::new(Part::Live, Subject::Bytes, place, captured, today));
        }
    }

    fn finished(&mut self, socket: SocketId) {
        let Some(live) = self.live.get_mut(&socket) else { return };
        live.ended = true;
        let Some(play) = self.script.plays.get(live.play) else { return };
        if live.differs || (play.up_ended && play.up.len() == live.up) {
            return;
        }
        live.differs = true;
        let captured = if play.up_ended {
            format!("the guest ended behind byte {}", play.up.len())
        } else {
            "the guest did not end its direction".to_owned()
        };
        let today = format!("it ended behind byte {}", live.up);
        let place = self.place(Some(socket));
        self.report.add(Difference::new(Part::Live, Subject::HalfClose, place, captured, today));
    }

    fn server_ended(&mut self, socket: SocketId, manner: Manner, today: &str) {
        let Some(live) = self.live.get(&socket) else { return };
        let Some(play) = self.script.plays.get(live.play) else { return };
        if play.server_end != Some(manner) && !live.differs {
            let captured = match play.server_end {
                None => "the server did not end it",
                Some(Manner::Clean) => "the server ended it",
                Some(Manner::Abort) => "the server aborted it",
            };
            let place = self.place(Some(socket));
            self.report.add(Difference::new(Part::Live, Subject::End, place, captured, today));
        }
        self.done(socket);
    }

    /// Does whatever is due on a connection.
    fn advance(&mut self, socket: SocketId) {
        loop {
            let Some(live) = self.live.get_mut(&socket) else { return };
            let Some(Play { steps, .. }) = self.script.plays.get(live.play) else { return };
            let Some(step) = steps.get(live.step) else { break };
            // A guest that sends something else would never come there.
            if live.up < step.after || (step.after_end && !live.ended) {
                break;
            }
            live.step += 1;
            match &step.act {
                Act::Accept => self.channel.accept(socket),
                Act::Refuse => {
                    self.channel.refuse(socket);
                    return self.done(socket);
                }
                Act::Send(payload) => live.waiting.push_back(payload.clone()),
                Act::Finish => live.finish = true,
                Act::Close => (live.finish, live.close) = (true, true),
                Act::Abort => {
                    self.channel.reset(socket);
                    return self.done(socket);
                }
            }
        }
        self.pump(socket);
    }

    fn pump(&mut self, socket: SocketId) {
        let Some(live) = self.live.get_mut(&socket) else { return };
        while self.channel.credit(socket) > 0
            && let Some(mut message) = live.waiting.pop_front()
        {
            let sent = self.channel.send(socket, |room| {
                let n = room.len().min(message.len());
                if let (Some(room), Some(message)) = (room.get_mut(..n), message.get(..n)) {
                    room.copy_from_slice(message);
                }
                n
            });
            self.report.compared(Part::Live).bytes_down += u64::try_from(sent).unwrap_or(0);
            if sent < message.len() && sent > 0 {
                live.waiting.push_front(message.split_off(sent));
            }
        }
        if live.waiting.is_empty() && live.finish && !live.finished {
            live.finished = true;
            self.channel.finish(socket);
        }
        if live.finished && live.close {
            self.channel.close(socket);
            self.done(socket);
        }
    }

    /// A connection is over.
    fn done(&mut self, socket: SocketId) {
        let place = self.place(Some(socket));
        let Some(live) = self.live.remove(&socket) else { return };
        self.over += 1;
        let Some(play) = self.script.plays.get(live.play) else { return };
        let compared = self.report.compared(Part::Live);
        compared.connections += 1;
        compared.bytes_up += u64::try_from(live.up).unwrap_or(0);
        if live.differs {
            return;
        }
        if live.up < play.up.len() {
            let captured = format!("{} bytes from the guest", play.up.len());
            let today = format!("{} bytes", live.up);
            self.report.add(Difference::new(Part::Live, Subject::Bytes, place, captured, today));
        } else if live.step < play.steps.len() {
            let captured = format!("the client did {} things", play.steps.len());
            let today = format!("the connection ended behind {} of them", live.step);
            self.report.add(Difference::new(Part::Live, Subject::End, place, captured, today));
        }
    }

    fn lost(&mut self, why: &str) {
        if !self.lost {
            self.lost = true;
            let place = self.place(None);
            let captured = "the tunnel goes on";
            self.report.add(Difference::new(Part::Live, Subject::Channel, place, captured, why));
        }
    }

    fn place(&self, socket: Option<SocketId>) -> Place {
        let live = socket.and_then(|socket| self.live.get(&socket));
        let play = live.and_then(|live| self.script.plays.get(live.play));
        Place {
            time: Some(self.started.elapsed()),
            stream: None,
            connection: live.and_then(|live| u64::try_from(live.play).ok()),
            socket: play.map(|play| play.socket.0),
            service: play.map(|play| play.service.0),
        }
    }

    /// What was found, with what did not happen.
    fn report(mut self) -> Report {
        if let Some(why) = self.script.unusable.take() {
            let difference = Difference::not_comparable(Part::Live, Subject::Capture, Place::default(), why);
            self.report.add(difference);
            return self.report;
        }
        self.report.compared(Part::Live).channels += 1;
        for service in &self.script.services {
            if service.mapped && !self.mapped.contains(&service.id) {
                let place = Place { service: Some(service.id.0), ..Place::default() };
                let difference =
                    Difference::new(Part::Live, Subject::Service, place, "it got an address", "it got none");
                self.report.add(difference);
            }
        }
        let halfway: Vec<SocketId> = self.live.keys().copied().collect();
        for socket in halfway {
            let Some(live) = self.live.get(&socket) else { continue };
            let Some(play) = self.script.plays.get(live.play) else { continue };
            let nothing_left = live.step >= play.steps.len()
                && live.waiting.is_empty()
                && play.server_end.is_none()
                && live.up == play.up.len();
            if nothing_left {
                // The capture ended here too.
                self.done(socket);
            } else if !live.differs {
                let captured =
                    format!("{} steps and {} bytes from the guest", play.steps.len(), play.up.len());
                let today = format!("it stands behind {} steps and {} bytes", live.step, live.up);
                let place = self.place(Some(socket));
                self.report.add(Difference::new(Part::Live, Subject::End, place, captured, today));
            }
        }
        for (number, play) in self.script.plays.iter().enumerate() {
            if !self.begun.contains(&number) {
                let place = Place {
                    connection: u64::try_from(number).ok(),
                    service: Some(play.service.0),
                    ..Place::default()
                };
                let why = "the live guest did not open it";
                self.report.add(Difference::not_comparable(Part::Live, Subject::Open, place, why));
            }
        }
        self.report
    }
}
