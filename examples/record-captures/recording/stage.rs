//! What every story is told on: a server with its recorders, and users who come to it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use client_glue::{Event, Events, Handle, Host, Share, TunnelConfig};
use server_glue::nic::Nic;
use server_glue::proxy::Backend;
use spice_proto::handshake::{ClientLink, Deadlines, Linked};
use spice_proto::io::IoError;
use spice_proto::link::{ChannelType, CommonCaps, LinkVersion};
use spice_proto::ticket::Password;
use spice_tunnel::guest::{Config, Guest, GuestStream};
use spice_tunnel::record::{self, Recording};
use spice_tunnel::serve::{Parts, Server};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::Error;

/// The password of all recordings. It is never in one: what is recorded begins behind the link stage.
pub(crate) const PASSWORD: &str = "throwaway";
/// Nothing takes this long, unless it hangs.
const SOON: Duration = Duration::from_secs(60);
/// Long enough for the last segments of what is over.
const QUIET: Duration = Duration::from_millis(300);

/// A server and its recordings.
pub(crate) struct Stage {
    server: Server,
    recordings: Vec<Recording>,
    /// Where users come to.
    pub(crate) spice: SocketAddr,
}

impl Stage {
    /// `serve`, recording to `NAME.pcapng` and `NAME.guest.pcapng`.
    pub(crate) async fn new(
        directory: &Path,
        name: &str,
        nic: Nic,
        backend: Backend,
        change: impl FnOnce(&mut Parts),
    ) -> Result<Self, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let spice = listener.local_addr()?;
        let mut parts = Parts::new(nic, backend, listener)?;
        parts.net.seed = 1;
        let (of_links, links) =
            record::links(&record::Options::new(directory.join(format!("{name}.pcapng"))))?;
        let (of_frames, frames) =
            record::frames(&record::Options::new(directory.join(format!("{name}.guest.pcapng"))))?;
        (parts.capture, parts.capture_nic) = (Some(links), Some(frames));
        change(&mut parts);
        Ok(Self { server: Server::start(parts), recordings: vec![of_links, of_frames], spice })
    }

    /// The same without Spice behind it, and a guest of our own at the card.
    pub(crate) async fn with_guest(
        directory: &Path,
        name: &str,
        guest: Config,
        change: impl FnOnce(&mut Parts),
    ) -> Result<(Self, Guest), Error> {
        let (card, cable) = UnixStream::pair()?;
        let backend = Backend::Standalone { password: Some(Password::new(PASSWORD)?) };
        let stage = Self::new(directory, name, Nic::attached(card), backend, change).await?;
        let guest = Guest::start(cable, Config { mtu: 1500, ..guest });
        within("an address for the guest", guest.lease()).await??;
        Ok((stage, guest))
    }

    /// Ends everything, and writes the recordings out.
    pub(crate) async fn end(self) -> Result<(), Error> {
        tokio::time::sleep(QUIET).await;
        self.server.stop().await;
        for recording in self.recordings {
            let path = recording.path().to_owned();
            let outcome = recording.finish().await;
            outcome.result?;
            if outcome.dropped.pieces > 0 {
                return Err(format!("{}: {:?}", path.display(), outcome.dropped).into());
            }
        }
        Ok(())
    }
}

/// A user's side: a tunnel, and what is shared in it.
pub(crate) struct User {
    handle: Handle,
    events: Events,
    tunnel: JoinHandle<Result<(), client_glue::Error>>,
}

impl User {
    /// Links the tunnel beside a viewer, as `connect` does.
    pub(crate) async fn join(spice: SocketAddr, config: TunnelConfig) -> Result<Self, Error> {
        let mut stream = TcpStream::connect(spice).await?;
        stream.set_nodelay(true)?;
        let linked = link(&mut stream, &Password::new(PASSWORD)?).await?;
        let (handle, events, tunnel) = client_glue::tunnel(stream, linked, config);
        Ok(Self { handle, events, tunnel: tokio::spawn(tunnel) })
    }

    /// Shares a service under a name. Gives where the guest finds it.
    pub(crate) async fn share(&mut self, name: &str, service: SocketAddr) -> Result<SocketAddr, Error> {
        let share =
            Share { name: name.to_owned(), ..Share::new(Host::Address(service.ip()), service.port()) };
        let wanted = self.handle.add_share(share)?;
        let mapped = async {
            while let Some(event) = self.events.recv().await {
                if let Event::Mapped { share, virtual_ip, port, .. } = event
                    && share == wanted
                {
                    return Ok(SocketAddr::new(virtual_ip, port));
                }
            }
            Err("the tunnel ended")
        };
        Ok(within("a virtual address", mapped).await??)
    }

    /// Says goodbye.
    pub(crate) async fn leave(self) -> Result<(), Error> {
        tokio::time::sleep(QUIET).await;
        self.handle.shutdown();
        Ok(within("the end of the tunnel", self.tunnel).await???)
    }

    /// Is gone from one moment to the next, as when its process is killed.
    pub(crate) async fn vanish(self) {
        self.tunnel.abort();
        // An error, since it was cancelled: that is the point.
        let _ = self.tunnel.await;
    }
}

/// The link stage of a tunnel without a session of its own.
pub(crate) async fn link(stream: &mut TcpStream, password: &Password) -> Result<Linked, IoError> {
    let asked = ClientLink {
        version: LinkVersion::V2,
        channel_type: ChannelType::TUNNEL.0,
        channel_id: 0,
        session_id: 0,
        common_caps: CommonCaps::OURS,
        channel_caps: client_glue::channel_caps(),
    };
    spice_proto::io::connect(stream, asked, password, Deadlines::default()).await
}

/// A connection of the guest.
pub(crate) async fn connect(guest: &Guest, to: SocketAddr) -> Result<GuestStream, Error> {
    Ok(within("a connection", guest.connect(to.ip(), to.port())).await??)
}

/// `future`'s outcome, unless it hangs.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T, Error> {
    tokio::time::timeout(SOON, future).await.map_err(|_| format!("waited in vain for {what}").into())
}

/// An error unless something is as it must be: a capture of something else would be worse than none.
pub(crate) fn check(holds: bool, what: &str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(format!("not so: {what}").into()) }
}
