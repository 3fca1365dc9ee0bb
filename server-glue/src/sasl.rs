//! Links with SASL, where the Spice server is reached over TLS: the exchange passes byte by byte and is followed.
//!
//! Over TLS SASL only authenticates; what comes behind it is Spice as ever. (In clear a Spice server wants SASL to encrypt what
//! follows as well; such links pass unread, see [`crate::passage`].) We see the secrets of a weak mechanism on the way, and keep none.
//!
//! A tunnel is authenticated by the same exchange, with a link of the server's that comes to nothing: see [`crate::oracle`].
//!
//! A display cannot be shielded as with a ticket, by showing that to the server only with DISPLAY_INIT in hand: a client says nothing
//! before it is accepted. So once the server may have accepted, a task that nobody can abort stays with it, and if the client is
//! not there any more says DISPLAY_INIT in its stead. What remains is our own sudden death in that moment.

use std::io;
use std::time::{Duration, Instant};

use spice_proto::frame::{HeaderForm, put_header};
use spice_proto::handshake::{HandshakeError, ServerHandshake, ServerNeeds};
use spice_proto::io::advance;
use spice_proto::link::{
    CommonCaps, LinkError, LinkMess, LinkReply, LinkVersion, MECHANISM_SASL, PUBLIC_KEY_LEN, TunnelCaps,
    Welcome,
};
use spice_proto::sasl::{Exchange, Outcome, Part, SaslFault, Side, Turn};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use crate::oracle::Inquiry;
use crate::passage::{self, DISPLAY_INIT_LEN};
use crate::proxy::{End, Link, Trusted, finish_refused, now, refuse, within};
use crate::relay::{DISPLAY_INIT, Watch};
use crate::stream::{BoxStream, farewell, send_all};

/// Bytes that pass at once.
const PIECE: usize = 4096;

/// How long a server may think about a display's client. Longer than anyone needs: to hang up on a server that accepts
/// afterwards would kill it.
const DISPLAY_VERDICT: Duration = Duration::from_secs(600);

/// How an exchange ended. The server's link result, where there is one, has not been passed on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Accepted, with this link result.
    Accepted(Option<LinkError>),
    /// Not accepted; the client knows all that the server said of it.
    Rejected,
}

/// Relays an exchange, from behind the client's choice of SASL to before the link result.
///
/// When the client goes, or its future's `gone` fires, while the server may yet accept, the server is listened to until that
/// is settled.
pub(crate) async fn exchange(
    link: &Link,
    client: &mut BoxStream,
    server: &mut BoxStream,
    gone: &CancellationToken,
    verdict_limit: Duration,
) -> Result<Ending, End> {
    let deadlines = link.inner.config.limits.deadlines;
    let began = Instant::now();
    let left = || deadlines.step.min(deadlines.total.saturating_sub(began.elapsed()));
    let mut exchange = Exchange::new();
    let mut paced = false;
    let mut lost = None;
    let mut buffer = [0; PIECE];
    loop {
        let (side, lacking) = match exchange.turn() {
            Turn::Of(side, lacking) => (side, lacking),
            Turn::Over(Outcome::Linked) => return Ok(Ending::Accepted(None)),
            Turn::Over(Outcome::Refused(error)) => return Ok(Ending::Accepted(Some(error))),
            Turn::Over(Outcome::Rejected) => return Ok(rejected(link, &exchange)),
        };
        let part = exchange.part();
        let room = buffer.get_mut(..lacking.min(PIECE)).unwrap_or_default();
        match side {
            Side::Client => {
                if let Some(end) = lost {
                    return Err(end);
                }
                if part == Part::ClientLength && !paced {
                    link.pace().await?;
                    paced = true;
                }
                let mut early = [0; 1];
                let n = tokio::select! {
                    () = gone.cancelled() => return Err(End::Over("the link was given up in its SASL exchange")),
                    n = within(left(), "the client's part of SASL", async { Ok(client.read(room).await?) }) => n?,
                    n = server.read(&mut early) => return Err(out_of_turn(n, part)),
                };
                if n == 0 {
                    return Err(End::Over("the client closed in its SASL exchange"));
                }
                let bytes = room.get(..n).unwrap_or_default();
                exchange.handle(Side::Client, bytes).map_err(End::Sasl)?;
                let writing = async { send_all(server, bytes).await.map_err(End::Upstream) };
                within(left(), "the Spice server's attention to SASL", writing).await?;
            }
            Side::Server => {
                let reading = async { Ok(server.read(room).await.unwrap_or(0)) };
                let limit = if exchange.is_with_server() { verdict_limit.max(left()) } else { left() };
                let n = within(limit, "the Spice server's part of SASL", reading).await?;
                if n == 0 {
                    // By an end, or by a reset, and without TLS's own goodbye.
                    return if exchange.ends_in_rejection() {
                        Ok(rejected(link, &exchange))
                    } else {
                        Err(End::Upstream(io::ErrorKind::UnexpectedEof.into()))
                    };
                }
                let bytes = room.get(..n).unwrap_or_default();
                exchange.handle(Side::Server, bytes).map_err(End::Sasl)?;
                if part == Part::LinkResult || lost.is_some() {
                    continue;
                }
                let writing = async { Ok(send_all(client, bytes).await?) };
                lost = within(left(), "the client's attention to SASL", writing).await.err();
            }
        }
    }
}

fn rejected(link: &Link, exchange: &Exchange) -> Ending {
    let (mechanism, text) = (exchange.chosen(), exchange.text());
    tracing::info!(peer = %link.peer, mechanism, text, "the Spice server does not accept the username or the password");
    link.wrong();
    Ending::Rejected
}

/// The server spoke, or closed, while the client had the word.
fn out_of_turn(read: io::Result<usize>, expected: Part) -> End {
    match read {
        Ok(0) => End::Upstream(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => End::Sasl(SaslFault::OutOfTurn { expected }),
        Err(error) => End::Upstream(error),
    }
}

/// A link that is neither a display nor a tunnel. `None`: it was refused, and the client has been told.
pub(crate) async fn straight(
    link: &Link,
    client: &mut BoxStream,
    server: &mut BoxStream,
) -> Result<Ending, End> {
    let never = CancellationToken::new();
    exchange(link, client, server, &never, Duration::ZERO).await
}

/// Tells a client that it is not let in.
pub(crate) async fn turn_away(mut client: BoxStream, ending: Ending) -> Result<(), End> {
    let end = match ending {
        Ending::Accepted(error) => {
            send_all(&mut client, &error.map_or(0, LinkError::code).to_le_bytes()).await?;
            error.map_or(End::Over("the link ended behind its SASL exchange"), End::Refused)
        }
        Ending::Rejected => End::SaslRejected,
    };
    farewell(client).await;
    Err(end)
}

/// A tunnel link: the client convinces the server on a link that comes to nothing. Then it is for the caller to permit.
pub(crate) async fn tunnel(
    link: &Link,
    mut client: BoxStream,
    mut machine: ServerHandshake,
    mess: &LinkMess,
    mut inquiry: Inquiry,
) -> Result<(BoxStream, ServerHandshake), End> {
    let refusal = if !inquiry.secure {
        tracing::warn!(
            peer = %link.peer,
            "no tunnel: the Spice server asks for SASL, and is reached without TLS, where SASL encrypts what follows; give its TLS port (--upstream-tls), or turn its SASL off"
        );
        Some(LinkError::ChannelNotAvailable)
    } else if !link.peer.secure && link.peer.in_clear() {
        tracing::warn!(peer = %link.peer, "no tunnel: the Spice server asks for SASL, and the client comes without TLS, where it would tell its password");
        Some(LinkError::NeedSecured)
    } else if !mess.common().contains(CommonCaps::AUTH_SELECTION) {
        Some(LinkError::VersionMismatch)
    } else {
        None
    };
    if let Some(error) = refusal {
        refuse(client, machine, error).await?;
        return Err(End::Refused(error));
    }
    let common = CommonCaps::AUTH_SELECTION | CommonCaps::AUTH_SASL | CommonCaps::MINI_HEADER;
    machine.welcome(
        now(),
        Welcome {
            public_key: Box::new([0; PUBLIC_KEY_LEN]),
            common_caps: vec![common.bits()],
            channel_caps: vec![TunnelCaps::OURS.bits()],
        },
    )?;
    advance(&mut client, &mut machine).await?;
    if machine.needs() != ServerNeeds::Sasl {
        return Err(End::Over("the link stage ended early"));
    }
    let server = &mut inquiry.stream;
    send_all(server, &MECHANISM_SASL.to_le_bytes()).await.map_err(End::Upstream)?;
    let never = CancellationToken::new();
    match exchange(link, &mut client, server, &never, Duration::ZERO).await? {
        // The random id hit a session that did not pass through us: once in four billion.
        Ending::Accepted(None | Some(LinkError::BadConnectionId)) => Ok((client, machine)),
        Ending::Accepted(Some(other)) => {
            machine.refuse(other)?;
            finish_refused(client, machine).await?;
            Err(End::Refused(other))
        }
        Ending::Rejected => {
            farewell(client).await;
            Err(End::SaslRejected)
        }
    }
}

/// A display link, behind the client's choice of SASL.
pub(crate) async fn display(
    link: Link,
    client: BoxStream,
    server: BoxStream,
    mess: &LinkMess,
    welcome: &Welcome,
) -> Result<(), End> {
    let gone = CancellationToken::new();
    let _told = gone.clone().drop_guard();
    let session = link.inner.registry.find(mess.session_id).unwrap_or_default();
    let header = passage::header_form(mess, welcome);
    let shielded = tokio::spawn(shielded(link, client, server, header, session, gone));
    let (link, client, server, said) = shielded.await.map_err(|_| End::Over("the proxy shuts down"))??;
    passage::run(link, client, server, welcome, mess, Watch::Display(said)).await
}

/// Brings a display to where its server has come out of its wait for DISPLAY_INIT, whatever the client does.
async fn shielded(
    link: Link,
    mut client: BoxStream,
    mut server: BoxStream,
    header: HeaderForm,
    session: CancellationToken,
    gone: CancellationToken,
) -> Result<(Trusted, BoxStream, BoxStream, Vec<u8>), End> {
    let limit = link.inner.config.limits.deadlines.step;
    match exchange(&link, &mut client, &mut server, &gone, DISPLAY_VERDICT).await? {
        Ending::Accepted(None) => {}
        ending @ (Ending::Accepted(Some(_)) | Ending::Rejected) => {
            // Nothing is linked.
            turn_away(client, ending).await?;
            return Err(End::Over("the display was refused"));
        }
    }
    let link = link.authenticated();
    let introduced = async {
        send_all(&mut client, &[0; 4]).await?;
        passage::first_message(&mut client, &mut server, header, &session).await
    };
    let introduced = tokio::select! {
        () = gone.cancelled() => Err(End::Over("the display link was given up before it said anything")),
        first = within(limit, "the client's DISPLAY_INIT", introduced) => first,
    };
    let (first, lost) = match introduced {
        Ok(first) => (first, None),
        Err(end) => (made_up_init(header), Some(end)),
    };
    send_all(&mut server, &first).await.map_err(End::Upstream)?;
    let said = passage::first_words(&mut server).await?;
    match lost {
        None => Ok((link, client, server, said)),
        Some(end) => {
            tracing::info!(peer = %link.peer, "said DISPLAY_INIT in the place of a client that did not, to keep QEMU alive");
            Err(end)
        }
    }
}

/// A DISPLAY_INIT that asks for no caches.
fn made_up_init(header: HeaderForm) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_header(header, &mut bytes, 1, DISPLAY_INIT, DISPLAY_INIT_LEN);
    bytes.resize(bytes.len() + DISPLAY_INIT_LEN as usize, 0);
    bytes
}

/// Answers a choice that the server does not offer: as any unknown mechanism, and as the server should. libspice-server 0.15.1
/// starts SASL where it is turned off, with whatever its library finds on the machine, past the ticket.
pub(crate) async fn not_offered(mut client: BoxStream, mechanism: u32) -> Result<(), End> {
    let mut reply = Vec::new();
    LinkReply::Refused(LinkError::InvalidData).write(LinkVersion::V2, &mut reply);
    send_all(&mut client, &reply).await?;
    farewell(client).await;
    Err(HandshakeError::Mechanism(mechanism).into())
}
