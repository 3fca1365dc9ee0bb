//! A hypervisor in Rust gives its guest a tunnel: Ethernet frames on one side, a linked stream on the other.
//!
//! ```sh
//! cargo run -p server-glue --example frames
//! ```
//!
//! Everything is in this process, and prints what it does: the virtual network; the hypervisor's Spice server, as far as
//! the tunnel needs one ([`serve_tunnels`]); a guest, which is a TCP/IP stack (smoltcp) that sees frames and nothing else;
//! and its user, who shares a service. What a server of yours needs of it is [`serve_tunnels`] and the four lines at the
//! top of [`main`].

use std::collections::VecDeque;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use client_glue::Event;
use server_glue::{Card, Network, NetworkConfig, network};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};
use spice_proto::handshake::{ClientLink, Deadlines};
use spice_proto::io::{Decision, accept, connect};
use spice_proto::link::{ChannelType, CommonCaps, LinkError, LinkMess, LinkVersion, Welcome};
use spice_proto::ticket::{Password, TicketKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

type BoxError = Box<dyn Error + Send + Sync>;

const MTU: u16 = 1500;
const TICKET: &str = "sesame";
const PATIENCE: Duration = Duration::from_secs(30);
const SAID: &[u8] = b"hello from the user's network\n";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The four lines: a card, a network behind it, its task, and tunnels that join it.
    let mut config = NetworkConfig::default();
    config.net.mtu = MTU;
    let (card, nic) = Card::new(MTU);
    let (network, run) = network(nic, config)?;
    let network_task = tokio::spawn(run);

    let spice = TcpListener::bind("127.0.0.1:0").await?;
    let address = spice.local_addr()?;
    let server = tokio::spawn(serve_tunnels(spice, network.clone()));

    let service = service().await?;
    let (tell, told) = oneshot::channel();
    let user = tokio::spawn(user(address, service, tell));

    let at = timeout(PATIENCE, told).await.map_err(|_| "the user was told no address")??;
    let heard = timeout(PATIENCE, guest(card, at)).await.map_err(|_| "the guest heard nothing")??;
    println!("guest: the service says {heard:?}");

    // The server ends the tunnel with the network; the user is told.
    network.shutdown();
    network_task.await?;
    println!("user: {}", user.await??);
    server.abort();
    Ok(())
}

/// Accepts links of the tunnel channel, one at a time. A server that accepts links with code of its own hands their
/// streams over with `Linked::tunnel(&common_caps(), &their_common, &their_channel)`, when it has advertised
/// [`common_caps`](server_glue::common_caps) and [`channel_caps`](server_glue::channel_caps).
async fn serve_tunnels(listener: TcpListener, network: Network) -> Result<(), BoxError> {
    let ticket = Password::new(TICKET)?;
    loop {
        let (mut stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let key = TicketKey::generate()?;
        let decide = |mess: &LinkMess| match ChannelType(mess.channel_type) {
            ChannelType::TUNNEL => Decision::Welcome(Welcome {
                public_key: Box::new(*key.public_der()),
                common_caps: server_glue::common_caps(),
                channel_caps: server_glue::channel_caps(),
            }),
            _ => Decision::Drop,
        };
        let verdict = async |opened: Result<Password, _>| match opened {
            Ok(given) if given.matches(&ticket) => Ok(()),
            Ok(_) | Err(_) => Err(LinkError::PermissionDenied),
        };
        match accept(&mut stream, &key, Deadlines::default(), decide, verdict).await {
            Ok(linked) => {
                let tunnel = network.join(stream, linked, peer.to_string()).await?;
                println!("server: a tunnel joined");
                // Dropped when the user's session ends; here the session is the tunnel.
                tunnel.ended().await;
                println!("server: the tunnel has ended");
            }
            Err(error) => println!("server: no link: {error}"),
        }
    }
}

/// What the user shares: it says hello, and closes.
async fn service() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 64];
            if stream.read(&mut asked).await.is_ok_and(|count| count > 0) {
                let _ = stream.write_all(SAID).await;
            }
        }
    });
    Ok(address)
}

/// The user's Spice client.
async fn user(
    server: SocketAddr,
    service: SocketAddr,
    tell: oneshot::Sender<(Ipv4Addr, u16)>,
) -> Result<String, BoxError> {
    let mut stream = TcpStream::connect(server).await?;
    let link = ClientLink {
        version: LinkVersion::V2,
        channel_type: ChannelType::TUNNEL.0,
        channel_id: 0,
        session_id: 0,
        common_caps: CommonCaps::OURS,
        channel_caps: client_glue::channel_caps(),
    };
    let linked = connect(&mut stream, link, &Password::new(TICKET)?, Deadlines::default()).await?;
    let (handle, mut events, run) = client_glue::tunnel(stream, linked, client_glue::TunnelConfig::default());
    let running = tokio::spawn(run);
    handle.add_share(format!("tcp://{service}?name=greeter").parse()?)?;
    let mut tell = Some(tell);
    let mut ended = String::new();
    while let Some(event) = events.recv().await {
        if let Event::Mapped { name, virtual_ip: IpAddr::V4(address), port, .. } = &event {
            println!("user: {name} is at {address}:{port} for the guest");
            if let Some(tell) = tell.take() {
                let _ = tell.send((*address, *port));
            }
        }
        if let Event::Disconnected { reason } = event {
            ended = reason;
        }
    }
    running.await??;
    Ok(ended)
}

/// A guest: gets its address by DHCP, connects, asks, and gives what it heard.
async fn guest(card: Card, to: (Ipv4Addr, u16)) -> Result<String, BoxError> {
    let (mut to_network, mut from_network) = card.split();
    let mut queues = Queues::default();
    let mac = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    let mut interface = Interface::new(Config::new(mac.into()), &mut queues, Instant::now());
    let mut sockets = SocketSet::new(Vec::new());
    let dhcp = sockets.add(dhcpv4::Socket::new());
    let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
    let tcp = sockets.add(tcp::Socket::new(buffer(), buffer()));
    let (mut asked, mut heard) = (false, Vec::new());
    loop {
        interface.poll(Instant::now(), &mut queues, &mut sockets);
        let lease = match sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
            Some(dhcpv4::Event::Configured(lease)) => Some(lease.address),
            Some(dhcpv4::Event::Deconfigured) | None => None,
        };
        let socket = sockets.get_mut::<tcp::Socket<'_>>(tcp);
        if let Some(address) = lease {
            println!("guest: my address is {address}");
            interface.update_ip_addrs(|addresses| {
                // The first, for which there is room.
                let _ = addresses.push(IpCidr::Ipv4(address));
            });
            socket.connect(interface.context(), to, 49_152)?;
        }
        if socket.can_send() && !asked {
            asked = socket.send_slice(b"hello?")? > 0;
            continue;
        }
        while socket.can_recv() {
            heard.extend(socket.recv(|bytes| (bytes.len(), bytes.to_vec()))?);
        }
        if socket.state() == tcp::State::CloseWait {
            return Ok(String::from_utf8(heard)?);
        }
        for frame in queues.from_guest.drain(..) {
            to_network.send(&frame).await?;
        }
        let pause = interface.poll_delay(Instant::now(), &sockets).map_or(PATIENCE, Into::into);
        match timeout(pause, from_network.recv()).await {
            Ok(Some(frame)) => queues.to_guest.push_back(frame),
            Ok(None) => return Err("the network is gone".into()),
            // A timer of the guest's stack.
            Err(_) => {}
        }
    }
}

/// smoltcp's side of the cable.
#[derive(Default)]
struct Queues {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);

struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        Some((Received(self.to_guest.pop_front()?), Sending(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(MTU) + 14;
        capabilities
    }
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        self.0.push(frame);
        result
    }
}
