//! The story that ends before there is a tunnel: recorded by a relay between user and server, as tcpdump would.

use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use server_glue::nic::Nic;
use server_glue::proxy::Backend;
use spice_proto::ticket::Password;
use spice_tunnel::capture::reassembly::Way;
use spice_tunnel::serve::{Parts, Server};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::Error;
use super::stage::{PASSWORD, check, link, within};
use super::wire::{self, Conversation};

/// What passed, and when; no bytes are an end.
type Notes = Arc<Mutex<Vec<(Duration, Way, Vec<u8>)>>>;

/// Sequence number of both ends.
const FIRST: u32 = 1000;

/// A link with a wrong ticket, which `serve` refuses.
pub(crate) async fn refused_ticket(directory: &Path, name: &str) -> Result<(), Error> {
    let (card, _cable) = UnixStream::pair()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let spice = listener.local_addr()?;
    let backend = Backend::Standalone { password: Some(Password::new(PASSWORD)?) };
    let server = Server::start(Parts::new(Nic::attached(card), backend, listener)?);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let relay = listener.local_addr()?;
    let notes = Notes::default();
    let start = now()?;
    let noting = Arc::clone(&notes);
    let relayed = tokio::spawn(async move { carry(listener, spice, noting).await });

    let mut user = TcpStream::connect(relay).await?;
    let client = user.local_addr()?;
    let refused = within("the verdict", link(&mut user, &Password::new("wrong")?)).await?;
    let refused = refused.err().map(|error| error.to_string()).unwrap_or_default();
    check(refused.contains("password"), &format!("the ticket is refused: {refused}"))?;
    drop(user);
    within("the relay", relayed).await???;
    server.stop().await;

    let mut conversation = Conversation::new(v4(client)?, v4(spice)?, FIRST);
    let mut packets: Vec<_> = conversation.open().into_iter().map(|packet| (start, packet)).collect();
    for (time, way, bytes) in notes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let packet = if bytes.is_empty() { conversation.finish(*way) } else { conversation.say(*way, bytes) };
        packets.push((*time, packet));
    }
    wire::write(&directory.join(format!("{name}.pcap")), &packets)
}

/// Carries one connection to the server, and notes what passes.
async fn carry(listener: TcpListener, server: SocketAddr, notes: Notes) -> Result<(), Error> {
    let (mut client, _) = listener.accept().await?;
    let mut server = TcpStream::connect(server).await?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        copy(from_client, to_server, Way::Forth, &notes),
        copy(from_server, to_client, Way::Back, &notes)
    )?;
    Ok(())
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Way,
    notes: &Notes,
) -> Result<(), Error> {
    let mut buffer = vec![0; 4096];
    loop {
        let count = from.read(&mut buffer).await?;
        let bytes = buffer.get(..count).unwrap_or_default();
        notes.lock().unwrap_or_else(PoisonError::into_inner).push((now()?, way, bytes.to_vec()));
        if count == 0 {
            return Ok(to.shutdown().await?);
        }
        to.write_all(bytes).await?;
    }
}

fn v4(address: SocketAddr) -> Result<SocketAddrV4, Error> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => Err(format!("{address} is not IPv4").into()),
    }
}

fn now() -> Result<Duration, Error> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}
