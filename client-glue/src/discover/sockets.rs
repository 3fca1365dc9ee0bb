//! UDP sockets, one on each interface: what is asked there is answered there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::Poll;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::interfaces::Interface;
use super::outlet::SourceError;

/// How far questions to a group go: not beyond the first router, as UPnP and WS-Discovery have it or less.
const HOPS: u32 = 1;

/// Sockets of one source.
pub(crate) struct Sockets {
    places: Vec<Interface>,
    sockets: Vec<One>,
    /// Which is looked at first, so that a busy one does not hide the others.
    first: usize,
}

struct One {
    /// Our address; `None` for one that listens on all interfaces.
    own: Option<IpAddr>,
    socket: UdpSocket,
}

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Our address on the interface that it came to, or in whose network the sender is.
    pub(crate) own: IpAddr,
    pub(crate) from: SocketAddr,
    /// It fills so much of the buffer; if that is all of it, there may have been more.
    pub(crate) length: usize,
}

impl Sockets {
    /// One to ask from in each of these places.
    pub(crate) fn open(places: &[Interface]) -> Result<Sockets, SourceError> {
        let mut sockets = Vec::new();
        let mut failure = None;
        for place in places {
            match asking(place) {
                Ok(socket) => sockets.push(One { own: Some(place.network.address), socket }),
                // The address may be a new one that is not usable yet, or be gone.
                Err(error) => {
                    tracing::debug!("cannot ask on interface {}: {error}", place.name);
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(error) if sockets.is_empty() => Err(failed("open a UDP socket", error)),
            Some(_) | None => Ok(Sockets { places: places.to_vec(), sockets, first: 0 }),
        }
    }

    /// Listens to a group as well, beside other programs of this machine that do.
    pub(crate) fn listen(&mut self, group: SocketAddr) -> Result<(), SourceError> {
        let socket = listening(group, &self.places).map_err(|error| failed("listen to a group", error))?;
        self.sockets.push(One { own: None, socket });
        Ok(())
    }

    /// Sends from one of our addresses. What cannot be sent is lost, as any packet may be.
    ///
    /// Cancel safe: sent or not.
    pub(crate) async fn send(&self, own: IpAddr, to: SocketAddr, bytes: &[u8]) {
        let Some(one) = self.sockets.iter().find(|one| one.own == Some(own)) else { return };
        if let Err(error) = one.socket.send_to(bytes, to).await {
            tracing::debug!("cannot send from {own} to {to}: {error}");
        }
    }

    /// The next packet that comes from a place's own network, or to one of our addresses.
    ///
    /// Cancel safe.
    pub(crate) async fn receive(&mut self, buffer: &mut [u8]) -> Result<Packet, SourceError> {
        loop {
            let (index, received) = std::future::poll_fn(|context| {
                for step in 0..self.sockets.len() {
                    let index = (self.first + step) % self.sockets.len();
                    let Some(one) = self.sockets.get(index) else { continue };
                    let mut filled = ReadBuf::new(buffer);
                    if let Poll::Ready(received) = one.socket.poll_recv_from(context, &mut filled) {
                        let length = filled.filled().len();
                        return Poll::Ready((index, received.map(|from| (from, length))));
                    }
                }
                Poll::Pending
            })
            .await;
            self.first = (index + 1) % self.sockets.len().max(1);
            let (from, length) = match received {
                Ok(received) => received,
                // What was sent before met nobody: Windows tells it of the socket.
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Err(failed("receive", error)),
            };
            let own = self.sockets.get(index).and_then(|one| one.own).or_else(|| {
                let place = self.places.iter().find(|place| place.network.holds(from.ip()))?;
                Some(place.network.address)
            });
            if let Some(own) = own {
                return Ok(Packet { own, from, length });
            }
        }
    }
}

fn asking(place: &Interface) -> io::Result<UdpSocket> {
    let address = place.network.address;
    let socket = Socket::new(Domain::for_address((address, 0).into()), Type::DGRAM, Some(Protocol::UDP))?;
    match address {
        IpAddr::V4(four) => {
            socket.set_broadcast(true)?;
            socket.set_multicast_if_v4(&four)?;
            socket.set_multicast_ttl_v4(HOPS)?;
        }
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_multicast_if_v6(place.index.unwrap_or_default())?;
            socket.set_multicast_hops_v6(HOPS)?;
        }
    }
    socket.bind(&SocketAddr::new(address, 0).into())?;
    into_tokio(socket)
}

fn listening(group: SocketAddr, places: &[Interface]) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(group), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    #[cfg(all(unix, not(target_os = "linux"), not(target_os = "android")))]
    socket.set_reuse_port(true)?;
    let any: IpAddr = match group.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            Ipv6Addr::UNSPECIFIED.into()
        }
    };
    socket.bind(&SocketAddr::new(any, group.port()).into())?;
    let mut joined = false;
    let mut failure = None;
    for place in places {
        let join = match (group.ip(), place.network.address) {
            (IpAddr::V4(group), IpAddr::V4(own)) => socket.join_multicast_v4(&group, &own),
            (IpAddr::V6(group), IpAddr::V6(_)) => {
                socket.join_multicast_v6(&group, place.index.unwrap_or_default())
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => continue,
        };
        match join {
            Ok(()) => joined = true,
            // Another address of the same interface has joined.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => joined = true,
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if !joined => Err(error),
        Some(_) | None => into_tokio(socket),
    }
}

fn into_tokio(socket: Socket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::Interrupted
    )
}

fn failed(what: &'static str, error: io::Error) -> SourceError {
    SourceError::Io { what, error }
}
