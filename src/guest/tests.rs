//! The guest against a server that is plain smoltcp: one interface, echo sockets, and a handful of DHCP.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{
    DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, HardwareAddress, IpCidr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpPacket,
    UdpPacket, UdpRepr,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

use super::stack::ConnectionError;
use super::stream::Error;
use super::*;

const SERVER: Ipv4Address = Ipv4Address::new(198, 18, 0, 1);
const CLIENT: Ipv4Address = Ipv4Address::new(198, 18, 0, 77);
const SERVER_MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
/// Sends back what comes, and ends when the other side ends.
const ECHO: u16 = 7;
/// Answers the first byte with a reset.
const RUDE: u16 = 666;
/// Takes what comes, but says in every acknowledgement that it takes no more.
const SHY: u16 = 13;
const MTU: usize = 9000;

#[derive(Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;
    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = self.incoming.pop_front()?;
        Some((Incoming(frame), Outgoing(&mut self.outgoing)))
    }
    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.outgoing))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU + 14;
        capabilities
    }
}

/// Serves the other end of the cable until it is cut.
async fn serve(mut cable: DuplexStream, sockets: usize) {
    let start = tokio::time::Instant::now();
    let at = || smoltcp::time::Instant::from_micros(start.elapsed().as_micros() as i64 + 1);
    let mut wire = Wire::default();
    let config = InterfaceConfig::new(HardwareAddress::Ethernet(SERVER_MAC));
    let mut interface = Interface::new(config, &mut wire, at());
    interface.update_ip_addrs(|list| list.push(IpCidr::new(SERVER.into(), 16)).unwrap());
    let mut set = SocketSet::new(vec![]);
    let mut handles = Vec::new();
    for number in 0..sockets + 2 {
        let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let port = match number {
            0 => RUDE,
            1 => SHY,
            _ => ECHO,
        };
        socket.listen(port).unwrap();
        handles.push((port, set.add(socket)));
    }
    let mut pending = Vec::new();
    let mut frames = 0;
    let mut piece = vec![0; 1 << 20];
    loop {
        interface.poll(at(), &mut wire, &mut set);
        for (port, handle) in &handles {
            behave(set.get_mut(*handle), *port);
        }
        interface.poll(at(), &mut wire, &mut set);
        for mut frame in wire.outgoing.drain(..) {
            close_window(&mut frame);
            let mut framed = (frame.len() as u32).to_be_bytes().to_vec();
            framed.extend(frame);
            if cable.write_all(&framed).await.is_err() {
                return;
            }
        }
        let wait = interface.poll_delay(at(), &set).map_or(Duration::from_secs(60), Duration::from);
        match timeout(wait, cable.read(&mut piece)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(len)) => pending.extend_from_slice(&piece[..len]),
            Err(_) => {}
        }
        while pending.len() >= 4 {
            let len = u32::from_be_bytes(pending[..4].try_into().unwrap()) as usize;
            if pending.len() < 4 + len {
                break;
            }
            frames += 1;
            assert!(frames < 100_000, "the guest sends without end");
            let frame = pending[4..4 + len].to_vec();
            pending.drain(..4 + len);
            match answer_dhcp(&frame) {
                Some(answer) => wire.outgoing.push(answer),
                None => wire.incoming.push_back(frame),
            }
        }
    }
}

/// Closes the window in what [`SHY`] says.
fn close_window(frame: &mut [u8]) {
    let (ethernet, ip) = frame.split_at_mut(14);
    if ethernet[12..] != [8, 0] || ip[9] != u8::from(IpProtocol::Tcp) {
        return;
    }
    let mut tcp = TcpPacket::new_unchecked(&mut ip[20..]);
    if tcp.src_port() == SHY && !tcp.syn() {
        tcp.set_window_len(0);
        tcp.fill_checksum(&SERVER.into(), &CLIENT.into());
    }
}

fn behave(socket: &mut tcp::Socket<'_>, port: u16) {
    if port == SHY {
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), ())).unwrap();
        }
    } else if port == RUDE {
        if socket.can_recv() {
            socket.abort();
        }
    } else {
        while socket.can_recv() && socket.can_send() {
            let room = socket.send_capacity() - socket.send_queue();
            let piece = socket.recv(|bytes| (bytes.len().min(room), bytes[..bytes.len().min(room)].to_vec()));
            let piece = piece.unwrap();
            assert_eq!(socket.send_slice(&piece).unwrap(), piece.len());
        }
        if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
            socket.close();
        }
        if socket.state() == tcp::State::Closed {
            socket.listen(port).unwrap();
        }
    }
}

fn answer_dhcp(frame: &[u8]) -> Option<Vec<u8>> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 || packet.next_header() != IpProtocol::Udp {
        return None;
    }
    let udp = UdpPacket::new_checked(packet.payload()).ok()?;
    let asked = DhcpPacket::new_checked(udp.payload()).ok()?;
    let request = DhcpRepr::parse(&asked).ok()?;
    let options = [DhcpOption { kind: 26, data: &(MTU as u16).to_be_bytes() }];
    let answer = DhcpRepr {
        message_type: if request.message_type == DhcpMessageType::Discover {
            DhcpMessageType::Offer
        } else {
            DhcpMessageType::Ack
        },
        your_ip: CLIENT,
        server_ip: SERVER,
        server_identifier: Some(SERVER),
        subnet_mask: Some(Ipv4Address::new(255, 255, 0, 0)),
        lease_duration: Some(3600),
        client_identifier: None,
        requested_ip: None,
        parameter_request_list: None,
        max_size: None,
        additional_options: &options,
        ..request
    };
    let udp = UdpRepr { src_port: 67, dst_port: 68 };
    let len = 8 + answer.buffer_len();
    let broadcast = Ipv4Address::BROADCAST;
    let ip = Ipv4Repr {
        src_addr: SERVER,
        dst_addr: broadcast,
        next_header: IpProtocol::Udp,
        payload_len: len,
        hop_limit: 64,
    };
    let mut out = vec![0; 14 + 20 + len];
    let ethernet = EthernetRepr {
        src_addr: SERVER_MAC,
        dst_addr: request.client_hardware_address,
        ethertype: EthernetProtocol::Ipv4,
    };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut out));
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut out[14..]), &checksums);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut out[34..]),
        &SERVER.into(),
        &broadcast.into(),
        answer.buffer_len(),
        |place| answer.emit(&mut DhcpPacket::new_unchecked(place)).unwrap(),
        &checksums,
    );
    Some(out)
}

fn guest_and_server(config: Config, sockets: usize) -> Guest {
    let (guest_end, server_end) = tokio::io::duplex(1 << 20);
    tokio::spawn(serve(server_end, sockets));
    Guest::start(guest_end, config)
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = trouble::Random::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(len).collect()
}

/// Sends everything while it reads everything, then compares.
async fn echo(guest: &Guest, data: &[u8]) {
    let stream = guest.connect(SERVER.into(), ECHO).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        writer.write_all(data).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let receive = async { reader.read_to_end(&mut back).await.unwrap() };
    tokio::join!(send, receive);
    assert!(back == data, "{} bytes sent, {} other bytes came back", data.len(), back.len());
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(120), future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

#[tokio::test(start_paused = true)]
async fn dhcp_gives_address_and_mtu() {
    let guest = guest_and_server(Config::default(), 1);
    let lease = within("a lease", guest.lease()).await.unwrap();
    assert_eq!(lease.address, IpAddr::from(CLIENT));
    assert_eq!(lease.prefix_len, 16);
    assert_eq!(lease.mtu, Some(9000));
    assert_eq!(lease.time, Some(Duration::from_secs(3600)));
    assert_eq!(lease.router, None);
}

#[tokio::test(start_paused = true)]
async fn a_megabyte_goes_there_and_back_over_a_good_cable() {
    let guest = guest_and_server(Config::default(), 1);
    within("a lease", guest.lease()).await.unwrap();
    within("the echo", echo(&guest, &pattern(1 << 20, 1))).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_over_a_bad_cable() {
    for seed in 1..=4 {
        let trouble = Trouble { loss: 20, duplicate: 20, reorder: 20 };
        let guest = guest_and_server(Config { trouble, seed, ..Config::default() }, 1);
        within("a lease over a bad cable", guest.lease()).await.unwrap();
        within("the echo over a bad cable", echo(&guest, &pattern(300_000, seed))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_connections_at_once() {
    let guest = guest_and_server(Config::default(), 100);
    within("a lease", guest.lease()).await.unwrap();
    let data = pattern(5_000, 9);
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (guest, data) = (guest.clone(), data.clone());
        all.spawn(async move { echo(&guest, &data).await });
    }
    within("a hundred echoes", async { while all.join_next().await.transpose().unwrap().is_some() {} }).await;
}

#[tokio::test(start_paused = true)]
async fn failures_have_their_names() {
    let guest = guest_and_server(Config::default(), 1);
    let fail = |error| Err::<(), _>(Error::Connection(error));
    let early = guest.connect(SERVER.into(), ECHO).await.map(drop);
    assert_eq!(early, fail(ConnectionError::NoAddress));
    within("a lease", guest.lease()).await.unwrap();
    let refused = within("a refusal", guest.connect(SERVER.into(), 9)).await.map(drop);
    assert_eq!(refused, fail(ConnectionError::Refused));
    let nobody = IpAddr::from([198, 18, 9, 9]);
    let unreachable = within("ARP to give up", guest.connect(nobody, ECHO)).await.map(drop);
    assert_eq!(unreachable, fail(ConnectionError::Unreachable));
    let elsewhere = guest.connect([192, 0, 2, 1].into(), ECHO).await.map(drop);
    assert_eq!(elsewhere, fail(ConnectionError::NoRoute));

    let mut stream = guest.connect(SERVER.into(), RUDE).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let error = within("a reset", stream.read(&mut [0; 8])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let mut stream = guest.connect(SERVER.into(), ECHO).await.unwrap();
    stream.reset();
    let error = stream.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
}

#[tokio::test(start_paused = true)]
async fn ping_answers_or_fails() {
    let guest = guest_and_server(Config::default(), 1);
    within("a lease", guest.lease()).await.unwrap();
    within("a pong", guest.ping(SERVER.into())).await.unwrap();
    let nobody = within("ARP to give up", guest.ping([198, 18, 9, 9].into())).await;
    assert_eq!(nobody, Err(Error::Connection(ConnectionError::Unreachable)));
}

#[tokio::test(start_paused = true)]
async fn a_window_that_closes_at_the_end_is_no_reason_to_shout() {
    let (guest_end, server_end) = tokio::io::duplex(1 << 20);
    let server = tokio::spawn(serve(server_end, 1));
    let guest = Guest::start(guest_end, Config::default());
    within("a lease", guest.lease()).await.unwrap();
    let mut stream = guest.connect(SERVER.into(), SHY).await.unwrap();
    stream.write_all(&[0; 1000]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // From here on a byte at a time gets through, whenever the guest asks whether the window is still closed.
    stream.write_all(&[0; 3]).await.unwrap();
    stream.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(!server.is_finished(), "the guest sent frames without end");
    within("a pong", guest.ping(SERVER.into())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cut_cable_ends_everything() {
    let (guest_end, server_end) = tokio::io::duplex(1 << 20);
    let server = tokio::spawn(serve(server_end, 1));
    let guest = Guest::start(guest_end, Config::default());
    within("a lease", guest.lease()).await.unwrap();
    let mut stream = guest.connect(SERVER.into(), ECHO).await.unwrap();
    server.abort();
    let error = within("the end", stream.read(&mut [0; 8])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NetworkDown);
    assert!(matches!(guest.connect(SERVER.into(), ECHO).await, Err(Error::Nic(_))));
}

#[tokio::test(start_paused = true)]
async fn released_connections_leave_nothing_behind() {
    let mut stack = stack::Stack::new(Config::default(), std::time::Instant::now());
    assert_eq!(stack.connect(std::time::Instant::now(), SERVER.into(), 1), Err(ConnectionError::NoAddress));
    assert_eq!(stack.connections(), 0);
    let guest = guest_and_server(Config::default(), 50);
    within("a lease", guest.lease()).await.unwrap();
    for _ in 0..50 {
        within("an echo", echo(&guest, b"short")).await;
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(guest.connections(), 0, "they are still there long after TIME-WAIT");
}
