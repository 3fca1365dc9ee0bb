//! Links that the stock server answers, from the link message to the data stage.

use std::io;
use std::time::Duration;

use spice_proto::frame::{FrameSkimmer, HeaderForm, Skimmed};
use spice_proto::handshake::ServerHandshake;
use spice_proto::io::advance;
use spice_proto::link::{
    ChannelType, CommonCaps, HEADER_LEN, LinkError, LinkHeader, LinkMess, LinkReply, MECHANISM_SASL,
    MECHANISM_TICKET, TICKET_LEN, Welcome,
};
use spice_proto::ticket::{Password, seal};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::proxy::{
    End, Judged, Link, Reply, Trusted, TunnelPolicy, channel_name, finish_refused, refuse, within,
};
use crate::registry::MainSession;
use crate::relay::{DISPLAY_INIT, MainWatch, Watch, relay, relay_blindly};
use crate::sasl::{self, Ending};
use crate::stream::{BoxStream, Leg, farewell, send_all};

/// Bytes of a DISPLAY_INIT's body: cache id, cache size, dictionary id, window size.
pub(crate) const DISPLAY_INIT_LEN: u32 = 1 + 8 + 1 + 4;

/// So long a display may take to start. libspice-server gives up on one after 30 s.
const DISPLAY_START: Duration = Duration::from_secs(35);

/// Passes a link on as it comes. Its ticket is sealed for upstream, so that we never see it.
pub(crate) async fn straight(
    link: Link,
    upstream: Leg,
    mut client: BoxStream,
    raw: &[u8],
    mess: &LinkMess,
) -> Result<(), End> {
    let deadlines = link.inner.config.limits.deadlines;
    let (mut server, reply) = ask(&upstream, deadlines.step, raw).await?;
    send_all(&mut client, &reply.raw).await?;
    let welcome = match reply.reply {
        LinkReply::Refused(error) => {
            farewell(client).await;
            return Err(End::Refused(error));
        }
        LinkReply::Welcome(welcome) => welcome,
    };
    // The server goes by the client's bit alone (wire-reference 1.5).
    let mut auth = Vec::new();
    if mess.common().contains(CommonCaps::AUTH_SELECTION) {
        let word = from_client::<4>(&mut client, deadlines.step, "the authentication mechanism").await?;
        auth.extend_from_slice(&word);
        let mechanism = u32::from_le_bytes(word);
        if mechanism == MECHANISM_SASL && offers_sasl(&welcome) {
            send_all(&mut server, &auth).await.map_err(End::Upstream)?;
            if !matches!(upstream, Leg::Tls(_)) {
                return unseen(link, client, server, mess).await;
            }
            let ending = sasl::straight(&link, &mut client, &mut server).await?;
            if ending != Ending::Accepted(None) {
                return sasl::turn_away(client, ending).await;
            }
            let watch = watch(&link, mess);
            send_all(&mut client, &[0; 4]).await?;
            return run(link.authenticated(), client, server, &welcome, mess, watch).await;
        }
        if mechanism != MECHANISM_TICKET || welcome.has_no_key() {
            return sasl::not_offered(client, mechanism).await;
        }
    }
    auth.extend_from_slice(&from_client::<TICKET_LEN>(&mut client, deadlines.step, "the ticket").await?);
    link.pace().await?;
    send_all(&mut server, &auth).await.map_err(End::Upstream)?;
    let result = from_server::<4>(&mut server, deadlines.step).await?;
    let refused = LinkError::from_code(u32::from_le_bytes(result));
    if let Some(error) = refused {
        if error == LinkError::PermissionDenied {
            link.wrong();
        }
        send_all(&mut client, &result).await?;
        // What follows a refusal is the end, or the rest of a second reply.
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(1), (&mut server).take(4096).read_to_end(&mut rest)).await;
        send_all(&mut client, &rest).await?;
        farewell(client).await;
        return Err(End::Refused(error));
    }
    let watch = watch(&link, mess);
    send_all(&mut client, &result).await?;
    run(link.authenticated(), client, server, &welcome, mess, watch).await
}

/// Links a display without letting the server know more than that somebody wants to, until the client has sent its whole
/// DISPLAY_INIT. A display link that ends before the server has begun with it kills QEMU. Server and client are linked one after the other, each with its own key.
pub(crate) async fn display(
    link: Link,
    upstream: Leg,
    mut client: BoxStream,
    mut machine: ServerHandshake,
    mess: &LinkMess,
) -> Result<(), End> {
    let deadlines = link.inner.config.limits.deadlines;
    let (mut server, reply) = ask(&upstream, deadlines.step, machine.raw()).await?;
    let welcome = match reply.reply {
        LinkReply::Refused(error) => {
            send_all(&mut client, &reply.raw).await?;
            farewell(client).await;
            return Err(End::Refused(error));
        }
        LinkReply::Welcome(welcome) => welcome,
    };
    let secure = matches!(upstream, Leg::Tls(_));
    if welcome.has_no_key() {
        send_all(&mut client, &reply.raw).await?;
        let word = from_client::<4>(&mut client, deadlines.step, "the authentication mechanism").await?;
        if u32::from_le_bytes(word) != MECHANISM_SASL {
            return sasl::not_offered(client, u32::from_le_bytes(word)).await;
        }
        send_all(&mut server, &word).await.map_err(End::Upstream)?;
        return if secure {
            sasl::display(link, client, server, mess, &welcome).await
        } else {
            unseen(link, client, server, mess).await
        };
    }
    let caps = (welcome.common_caps.clone(), welcome.channel_caps.clone());
    let password = match link.judge(&mut client, &mut machine, caps, None).await? {
        Judged::Right(password) => password,
        Judged::Refuse(error) => return refuse(client, machine, error).await,
        Judged::Sasl if offers_sasl(&welcome) => {
            send_all(&mut server, &MECHANISM_SASL.to_le_bytes()).await.map_err(End::Upstream)?;
            return if secure {
                sasl::display(link, client, server, mess, &welcome).await
            } else {
                unseen(link, client, server, mess).await
            };
        }
        Judged::Sasl => {
            machine.refuse_mechanism()?;
            return finish_refused(client, machine).await;
        }
    };
    let Some(session) = link.inner.registry.find(mess.session_id) else {
        return refuse(client, machine, LinkError::BadConnectionId).await;
    };
    let Ok(silence) = std::sync::Arc::clone(&link.inner.silent_displays).try_acquire_owned() else {
        tracing::warn!(peer = %link.peer, "too many display links that say nothing");
        return refuse(client, machine, LinkError::ChannelNotAvailable).await;
    };
    machine.permit()?;
    advance(&mut client, &mut machine).await?;
    let linked = machine.finish()?;
    let link = link.authenticated();
    let first = first_message(&mut client, &mut server, linked.header, &session).await?;
    drop(silence);
    let mut auth = Vec::new();
    if mess.common().contains(CommonCaps::AUTH_SELECTION) {
        auth.extend_from_slice(&MECHANISM_TICKET.to_le_bytes());
    }
    auth.extend_from_slice(&reseal(&welcome, &password)?);
    // In one write, so that even our own sudden death leaves no display link without its first message.
    auth.extend_from_slice(&first);
    // A task of its own, which nobody aborts: see there.
    let introduction = tokio::spawn(introduce(server, auth, deadlines.step));
    let (server, said) = introduction.await.map_err(|_| End::Over("the proxy shuts down"))??;
    run(link, client, server, &welcome, mess, Watch::Display(said)).await
}

/// Sends a display's ticket and first message, and waits until the server says something on the channel.
///
/// Only then it has come out of its loop that waits for DISPLAY_INIT. What happens to the connection before, be it that it
/// ends or that more comes in which the server does not like, is a use after free as well as if nothing had been sent
/// (libspice-server 0.15.1; it takes up to 20 ms). So whatever the client does, the server sees nothing of it yet.
async fn introduce(
    mut server: BoxStream,
    auth: Vec<u8>,
    limit: Duration,
) -> Result<(BoxStream, Vec<u8>), End> {
    send_all(&mut server, &auth).await.map_err(End::Upstream)?;
    let result = from_server::<4>(&mut server, limit).await?;
    if let Some(error) = LinkError::from_code(u32::from_le_bytes(result)) {
        // The client was told otherwise; all that is left is to close, as when a session ends right after the link.
        return Err(End::Refused(error));
    }
    let said = first_words(&mut server).await?;
    Ok((server, said))
}

/// What a display's server says first.
pub(crate) async fn first_words(server: &mut BoxStream) -> Result<Vec<u8>, End> {
    let mut said = vec![0; 4096];
    let reading = async { server.read(&mut said).await.map_err(End::Upstream) };
    let n = within(DISPLAY_START, "the Spice server's first display message", reading).await?;
    said.truncate(n);
    Ok(said)
}

/// Data stage of a link that both ends agreed on.
pub(crate) async fn run(
    link: Trusted,
    client: BoxStream,
    server: BoxStream,
    welcome: &Welcome,
    mess: &LinkMess,
    watch: Watch,
) -> Result<(), End> {
    let peer = link.peer.name.clone();
    let channel = channel_name(mess.channel_type);
    tracing::info!(peer, channel, id = mess.channel_id, session = mess.session_id, "linked");
    let _passing = link.inner.census.enter(channel);
    let outcome = relay(client, server, header_form(mess, welcome), watch, &link.peer).await;
    match outcome {
        Ok(()) => tracing::info!(peer, channel, "link closed"),
        Err(error) => tracing::info!(peer, channel, %error, "link broke"),
    }
    Ok(())
}

/// Form of the messages' headers.
pub(crate) fn header_form(mess: &LinkMess, welcome: &Welcome) -> HeaderForm {
    let both = mess.common() & welcome.common();
    if both.contains(CommonCaps::MINI_HEADER) { HeaderForm::Mini } else { HeaderForm::Full }
}

/// libspice-server has no key where it wants SASL.
fn offers_sasl(welcome: &Welcome) -> bool {
    welcome.has_no_key() || welcome.common().contains(CommonCaps::AUTH_SASL)
}

/// Passes on what cannot be read along: SASL without TLS upstream, where the server has it encrypt all that follows. Nothing of
/// it is known, neither whether it is authenticated nor its session, so that no tunnel can belong to it and no display in it
/// can be shielded.
async fn unseen(link: Link, client: BoxStream, server: BoxStream, mess: &LinkMess) -> Result<(), End> {
    let channel = channel_name(mess.channel_type);
    tracing::info!(
        peer = %link.peer,
        channel,
        "passes unseen, without a tunnel: SASL encrypts it; with TLS to the Spice server (--upstream-tls) it would not"
    );
    if link.peer.secure {
        tracing::warn!(
            peer = %link.peer,
            channel,
            "the client comes over TLS and the Spice server is reached without, where it asks for SASL that encrypts: clients over TLS do not have that; give the server's TLS port (--upstream-tls)"
        );
    }
    let peer = link.peer.clone();
    let _passing = link.inner.census.enter(channel);
    let mut relaying = Box::pin(relay_blindly(client, server));
    let outcome = match timeout(link.inner.config.limits.deadlines.total, &mut relaying).await {
        Ok(outcome) => outcome,
        // Whether it is authenticated by now we cannot see. It had the time that anyone has, and counts as any from here on.
        Err(_) => {
            let _any = link.let_go();
            relaying.await
        }
    };
    if let Err(error) = outcome {
        tracing::info!(%peer, channel, %error, "link broke");
    }
    Ok(())
}

/// Main's session, from now on for a migration target, else once INIT comes.
fn watch(link: &Link, mess: &LinkMess) -> Watch {
    if ChannelType(mess.channel_type) != ChannelType::MAIN {
        return Watch::Other;
    }
    let session = MainSession::new(link.inner.registry.clone());
    if mess.session_id != 0 {
        // Accepted unchecked by libspice-server, which then sends no INIT (wire-reference 4).
        session.begin(mess.session_id);
        tracing::info!(peer = %link.peer, session = mess.session_id, "session begins, as a migration's target");
    }
    let announce = link.inner.config.tunnel != TunnelPolicy::Disabled;
    Watch::Main(MainWatch { session, announce, target: mess.session_id != 0, peer: link.peer.name.clone() })
}

/// Connects upstream, asks, and reads the link reply.
pub(crate) async fn ask(upstream: &Leg, limit: Duration, raw: &[u8]) -> Result<(BoxStream, Reply), End> {
    let mut server = upstream.connect(limit).await?;
    send_all(&mut server, raw).await.map_err(End::Upstream)?;
    let reply = within(limit, "the Spice server's link reply", async {
        let mut head = [0; HEADER_LEN];
        match server.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if closed(&error) => return Err(End::NoChannel),
            Err(error) => return Err(End::Upstream(error)),
        }
        let header = LinkHeader::parse_from_server(&head).map_err(End::BadUpstream)?;
        let mut body = vec![0; header.size as usize];
        server.read_exact(&mut body).await.map_err(End::Upstream)?;
        let reply = LinkReply::parse(&body).map_err(End::BadUpstream)?;
        Ok(Reply { raw: [&head, body.as_slice()].concat(), reply })
    })
    .await?;
    Ok((server, reply))
}

/// QEMU closes with our capability words unread, hence perhaps by a reset.
fn closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

/// The client's whole DISPLAY_INIT. For as long as it likes, unless its session or upstream ends.
pub(crate) async fn first_message(
    client: &mut BoxStream,
    server: &mut BoxStream,
    header: HeaderForm,
    session: &CancellationToken,
) -> Result<Vec<u8>, End> {
    let mut got = Vec::new();
    let wanted = header.len() + DISPLAY_INIT_LEN as usize;
    let mut early = [0; 1];
    loop {
        let mut piece = [0; 64];
        let room = piece.get_mut(..wanted.saturating_sub(got.len())).unwrap_or_default();
        let n = tokio::select! {
            n = client.read(room) => n?,
            _ = server.read(&mut early) => return Err(End::Over("the Spice server closed a display link that had said nothing yet")),
            () = session.cancelled() => return Err(End::Over("the session ended before the display link said anything")),
        };
        if n == 0 {
            return Err(End::Over(
                "the client closed its display link before saying anything; kept from QEMU",
            ));
        }
        got.extend_from_slice(piece.get(..n).unwrap_or_default());
        if let Some(Skimmed::Header { header, .. }) = FrameSkimmer::new(header).next(&mut got.as_slice())
            && (header.kind != DISPLAY_INIT || header.size != DISPLAY_INIT_LEN)
        {
            return Err(End::NotInit { kind: header.kind, size: header.size });
        }
        if got.len() == wanted {
            return Ok(got);
        }
    }
}

fn reseal(welcome: &Welcome, password: &Password) -> Result<[u8; TICKET_LEN], End> {
    seal(&welcome.public_key, password).map_err(|error| End::Client(error.into()))
}

async fn from_client<const N: usize>(
    client: &mut BoxStream,
    limit: Duration,
    what: &'static str,
) -> Result<[u8; N], End> {
    let mut bytes = [0; N];
    within(limit, what, async { client.read_exact(&mut bytes).await.map(drop).map_err(End::Io) }).await?;
    Ok(bytes)
}

pub(crate) async fn from_server<const N: usize>(
    server: &mut BoxStream,
    limit: Duration,
) -> Result<[u8; N], End> {
    let mut bytes = [0; N];
    let reading = async { server.read_exact(&mut bytes).await.map(drop).map_err(End::Upstream) };
    within(limit, "the Spice server's link result", reading).await?;
    Ok(bytes)
}
