//! The guest's side for tests, and a tunnel to it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use client_glue::{Error, Event, Events, Handle, Share, TunnelConfig, tunnel};
use spice_proto::{
    frame::{self, HeaderForm, Split},
    handshake::Linked,
    link::{ChannelType, CommonCaps, TunnelCaps},
    service_info::ServiceInfo,
    tunnel::{ClientMessage, Layout, NameAnswer, QueryId, ServerMessage, ServiceId, SocketId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tunnel_channel::{Channel, Config, Event as ChannelEvent, Role};

/// Longest wait of any test for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that the pipe holds each way.
const PIPE: usize = 64 * 1024;

/// What the server's channel told, owned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Added { service: ServiceId, group: u32, port: u16, name: String, description: String },
    Described(ServiceId, ServiceInfo),
    Domain(String, bool),
    Name(QueryId, NameAnswer),
    Removed(ServiceId),
    Accepted(SocketId),
    Refused(SocketId),
    Data(SocketId, Vec<u8>),
    Finished(SocketId),
    Writable(SocketId),
    Reset(SocketId),
    Leaving,
}

/// A server that keeps the rules.
pub(crate) struct Peer {
    pub(crate) stream: DuplexStream,
    pub(crate) channel: Channel,
    input: Vec<u8>,
}

/// A running tunnel and its peer.
pub(crate) struct Setup {
    pub(crate) peer: Peer,
    pub(crate) handle: Handle,
    pub(crate) events: Events,
    pub(crate) run: JoinHandle<Result<(), Error>>,
}

pub(crate) fn linked(caps: TunnelCaps) -> Linked {
    Linked {
        channel_type: ChannelType::TUNNEL.0,
        channel_id: 0,
        session_id: 0,
        header: HeaderForm::Mini,
        layout: Layout::B,
        peer_common: CommonCaps::OURS,
        common: CommonCaps::OURS,
        peer_channel_caps: vec![caps.bits()],
        leftover: vec![],
    }
}

pub(crate) fn setup() -> Setup {
    setup_with(TunnelCaps::OURS, Config::default(), TunnelConfig::default())
}

pub(crate) fn setup_with(caps: TunnelCaps, server: Config, client: TunnelConfig) -> Setup {
    let (near, far) = duplex(PIPE);
    let (handle, events, run) = tunnel(near, linked(caps), client);
    let channel = Channel::new(Role::Server, HeaderForm::Mini, Layout::B, caps, server, Instant::now());
    let peer = Peer { stream: far, channel, input: Vec::new() };
    Setup { peer, handle, events, run: tokio::spawn(run) }
}

impl Setup {
    /// Shares what listens at `address`, and gives the service as the server knows it.
    pub(crate) async fn share(&mut self, address: SocketAddr) -> ServiceId {
        self.handle.add_share(share(address)).unwrap();
        match self.peer.next().await {
            Told::Added { service, .. } => service,
            told => panic!("{told:?}"),
        }
    }

    /// A connection to a shared service.
    pub(crate) async fn open(&mut self, service: ServiceId) -> SocketId {
        let socket = self.peer.channel.open(service).unwrap();
        assert_eq!(self.peer.next().await, Told::Accepted(socket));
        socket
    }

    /// The next event of the client's side that `wanted` takes.
    pub(crate) async fn event<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the tunnel ended");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, search).await.expect("the event did not come")
    }
}

impl Peer {
    /// Whatever the channel tells next.
    pub(crate) async fn next(&mut self) -> Told {
        timeout(PATIENCE, self.next_or_end()).await.expect("nothing came").expect("the link ended")
    }

    /// Nothing may be told for a while.
    pub(crate) async fn silence(&mut self) {
        let told = timeout(Duration::from_millis(100), self.next_or_end()).await;
        assert!(told.is_err(), "{told:?}");
    }

    /// Whatever is told next; `None` at the end of the link. Cancel safe.
    pub(crate) async fn next_or_end(&mut self) -> Option<Told> {
        loop {
            if let Some(told) = self.digest() {
                return Some(told);
            }
            if !self.pump().await {
                return None;
            }
        }
    }

    /// Moves what can be moved, and waits if nothing can. `false`: the link has ended.
    async fn pump(&mut self) -> bool {
        let mut buf = vec![0; 16 * 1024];
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let outgoing = self.channel.outgoing();
        tokio::select! {
            biased;
            read = reader.read(&mut buf) => match read {
                Ok(0) | Err(_) => return false,
                Ok(n) => self.input.extend_from_slice(&buf[..n]),
            },
            written = writer.write(outgoing), if !outgoing.is_empty() => match written {
                Ok(n) => self.channel.sent(n),
                Err(_) => return false,
            }
        }
        true
    }

    /// What the next message that came tells, if it tells anything. One at a time: the channel may give an id away
    /// again as soon as it has heard that it is free.
    fn digest(&mut self) -> Option<Told> {
        let (mut start, mut told) = (0, None);
        while told.is_none()
            && let Split::Frame { frame, consumed } =
                frame::split(HeaderForm::Mini, self.channel.max_body(), &self.input[start..]).unwrap()
        {
            start += consumed;
            told = Some(match self.channel.handle_frame(Instant::now(), frame).unwrap() {
                None => continue,
                Some(ChannelEvent::ServiceAdded(add)) => Told::Added {
                    service: add.service,
                    group: add.group.0,
                    port: add.port,
                    name: String::from_utf8(add.name.to_vec()).unwrap(),
                    description: String::from_utf8(add.description.to_vec()).unwrap(),
                },
                Some(ChannelEvent::ServiceDescribed { service, info }) => {
                    Told::Described(service, info.info())
                }
                Some(ChannelEvent::DomainAdded { name }) => Told::Domain(name.to_owned(), true),
                Some(ChannelEvent::DomainRemoved { name }) => Told::Domain(name.to_owned(), false),
                Some(ChannelEvent::NameAnswered { query, answer }) => Told::Name(query, answer),
                Some(ChannelEvent::ServiceRemoved { service }) => Told::Removed(service),
                Some(ChannelEvent::Accepted { socket }) => Told::Accepted(socket),
                Some(ChannelEvent::Refused { socket }) => Told::Refused(socket),
                Some(ChannelEvent::Data { socket, payload }) => {
                    let payload = payload.to_vec();
                    self.channel.delivered(socket, 1);
                    Told::Data(socket, payload)
                }
                Some(ChannelEvent::Finished { socket }) => Told::Finished(socket),
                Some(ChannelEvent::Writable { socket }) => Told::Writable(socket),
                Some(ChannelEvent::Reset { socket, .. }) => Told::Reset(socket),
                Some(ChannelEvent::Disconnecting { .. }) => Told::Leaving,
                Some(event) => panic!("{event:?}"),
            });
        }
        self.input.drain(..start);
        told
    }

    /// As much of `data` as credit allows; gives what is left.
    pub(crate) fn send<'a>(&mut self, socket: SocketId, mut data: &'a [u8]) -> &'a [u8] {
        while !data.is_empty() && !self.channel.is_congested() {
            let sent = self.channel.send(socket, |room| {
                let n = room.len().min(data.len());
                room[..n].copy_from_slice(&data[..n]);
                n
            });
            if sent == 0 {
                break;
            }
            data = &data[sent..];
        }
        data
    }

    /// Sends all of `data` and then the end, and gives all that comes back until the service's end.
    pub(crate) async fn exchange(&mut self, socket: SocketId, data: &[u8]) -> Vec<u8> {
        let (mut left, mut back, mut said, mut heard) = (data, Vec::new(), false, false);
        let work = async {
            while !(said && heard) {
                left = self.send(socket, left);
                if left.is_empty() && !said {
                    self.channel.finish(socket);
                    said = true;
                    continue;
                }
                if let Some(told) = self.digest() {
                    match told {
                        Told::Data(of, payload) if of == socket => back.extend(payload),
                        Told::Finished(of) if of == socket => heard = true,
                        Told::Writable(_) => {}
                        told => panic!("{told:?}"),
                    }
                } else {
                    assert!(self.pump().await, "the link ended");
                }
            }
        };
        timeout(PATIENCE, work).await.expect("the exchange did not end");
        self.channel.close(socket);
        back
    }

    /// Everything outgoing is in the client's hands.
    pub(crate) async fn flush(&mut self) {
        while !self.channel.outgoing().is_empty() {
            assert!(timeout(PATIENCE, self.pump()).await.unwrap());
        }
    }
}

/// A server that keeps no rule.
pub(crate) struct Hostile {
    pub(crate) stream: DuplexStream,
    pub(crate) handle: Handle,
    pub(crate) events: Events,
    pub(crate) run: JoinHandle<Result<(), Error>>,
    input: Vec<u8>,
}

pub(crate) fn hostile(client: TunnelConfig) -> Hostile {
    let (near, stream) = duplex(PIPE);
    let (handle, events, run) = tunnel(near, linked(TunnelCaps::OURS), client);
    Hostile { stream, handle, events, run: tokio::spawn(run), input: Vec::new() }
}

impl Hostile {
    pub(crate) async fn say(&mut self, messages: &[ServerMessage<'_>]) {
        let mut bytes = Vec::new();
        for message in messages {
            frame::put_header(HeaderForm::Mini, &mut bytes, 0, message.kind(), message.body_len() as u32);
            message.write_body(&mut bytes);
        }
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The name of the client's next message.
    pub(crate) async fn hear(&mut self) -> &'static str {
        let wait = async {
            loop {
                let split = frame::split(HeaderForm::Mini, 1 << 20, &self.input).unwrap();
                if let Split::Frame { frame, consumed } = split {
                    let name = ClientMessage::name_of(frame.kind).unwrap_or("base");
                    self.input.drain(..consumed);
                    return name;
                }
                let mut buf = vec![0; 4096];
                let n = self.stream.read(&mut buf).await.unwrap();
                assert_ne!(n, 0, "the link ended");
                self.input.extend_from_slice(&buf[..n]);
            }
        };
        timeout(PATIENCE, wait).await.expect("the client said nothing")
    }

    /// How the tunnel ended.
    pub(crate) async fn outcome(self) -> Result<(), Error> {
        timeout(PATIENCE, self.run).await.expect("the tunnel goes on").unwrap()
    }
}

pub(crate) fn share(address: SocketAddr) -> Share {
    format!("tcp://{address}").parse().unwrap()
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// As [`listen`], with little room for what is not read.
pub(crate) fn listen_narrowly() -> (TcpListener, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(256 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(16).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port of this machine that refuses.
pub(crate) async fn closed_port() -> SocketAddr {
    listen().await.1
}

/// A service that gives back what it gets, for ever.
pub(crate) async fn echo_service() -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    address
}

pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(PATIENCE, listener.accept()).await.expect("nobody came").unwrap().0
}

/// Reads to the end, which must come.
pub(crate) async fn read_to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("no end")?;
    Ok(all)
}

/// The service sees a reset, not an end.
pub(crate) async fn assert_reset(stream: &mut TcpStream) {
    let error = read_to_end(stream).await.expect_err("an end instead of a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// Bytes that repeat late and show what is missing.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

pub(crate) fn virtual_ip() -> IpAddr {
    [198, 18, 7, 9].into()
}
