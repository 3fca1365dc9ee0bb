//! Asks the stock server whether a password is right, without one of our own and without disturbing a session.
//!
//! libspice-server looks at the ticket before it looks at the session id (wire-reference 1.7). So a link of inputs with a
//! session id that nobody has is answered by 8 to the right ticket and by 7 to a wrong or an expired one, and
//! creates nothing.

use spice_proto::handshake::{ClientLink, Deadlines, HandshakeError, Step};
use spice_proto::io::{IoError, connect};
use spice_proto::link::{ChannelType, CommonCaps, LinkError, LinkVersion};
use spice_proto::ticket::{CryptoError, Password, Undecryptable};

use crate::registry::Registry;
use crate::stream::{ConnectError, Leg, Peer, Upstream};

/// What the server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Whoever knows this password may link.
    Right,
    /// Wrong, expired, or not to be decrypted at all.
    Wrong,
}

/// Why the server did not say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OracleError {
    /// Nobody there, or not the right one.
    #[error("a ticket could not be judged")]
    Connect(#[from] ConnectError),
    /// Another answer than the two.
    #[error("the Spice server could not be asked about a ticket: {0}")]
    Unclear(IoError),
    /// Its policy keeps every channel that could be asked from this client's kind of link.
    #[error(
        "the Spice server could not be asked about a ticket: it has no channel that a client {} may link",
        if *secure { "over TLS" } else { "in clear" }
    )]
    NoChannel {
        /// The client came over TLS.
        secure: bool,
    },
    /// openssl failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// Which channels are asked, one after the other, until one may be linked this way. Inputs is always there; policy may
/// keep it from one kind of link (`tls-channel=inputs`, `plaintext-channel=inputs`). The others are as good, because the
/// session id is judged before anything of the channel is touched. Not main: there it is not judged at all, and a right
/// ticket would end the session that is there.
const ASKED: [ChannelType; 6] = [
    ChannelType::INPUTS,
    ChannelType::CURSOR,
    ChannelType::DISPLAY,
    ChannelType::PLAYBACK,
    ChannelType::RECORD,
    ChannelType::USBREDIR,
];

/// Asks about an opened ticket. One that did not open is wrong, but takes as long as any other.
///
/// The question goes the way that the client's other links go. Where policy forbids that for inputs, a client in clear is
/// asked about over TLS next; what came over TLS never goes out in clear, if there is TLS upstream at all.
pub(crate) async fn ask(
    upstream: &Upstream,
    client: &Peer,
    registry: &Registry,
    opened: &Result<Password, Undecryptable>,
    deadlines: Deadlines,
) -> Result<Verdict, OracleError> {
    let stranger = Password::empty();
    let password = opened.as_ref().unwrap_or(&stranger);
    let legs = legs(upstream, client);
    for channel in ASKED {
        for leg in &legs {
            if let Some(right) =
                try_channel(leg, channel, unused_session(registry)?, password, deadlines).await?
            {
                return Ok(if right && opened.is_ok() { Verdict::Right } else { Verdict::Wrong });
            }
        }
    }
    Err(OracleError::NoChannel { secure: client.secure })
}

fn legs(upstream: &Upstream, client: &Peer) -> Vec<Leg> {
    let mut legs: Vec<Leg> = upstream.leg(client).into_iter().collect();
    if let ([Leg::Plain(_)], Some(tls)) = (legs.as_slice(), &upstream.tls) {
        legs.push(Leg::Tls(tls.clone()));
    }
    legs
}

/// Whether the ticket is right, unless this channel is not to be had this way.
async fn try_channel(
    leg: &Leg,
    channel: ChannelType,
    session_id: u32,
    password: &Password,
    deadlines: Deadlines,
) -> Result<Option<bool>, OracleError> {
    let mut stream = leg.connect(deadlines.step).await?;
    let link = ClientLink {
        version: LinkVersion::V2,
        channel_type: channel.0,
        channel_id: 0,
        session_id,
        common_caps: CommonCaps::OURS,
        channel_caps: Vec::new(),
    };
    match connect(&mut stream, link, password, deadlines).await {
        Err(IoError::Handshake(HandshakeError::Refused(LinkError::BadConnectionId))) => Ok(Some(true)),
        Err(IoError::Handshake(HandshakeError::Refused(LinkError::PermissionDenied))) => Ok(Some(false)),
        // The random id hit a session that did not pass through us: once in four billion.
        Ok(_) => Ok(Some(true)),
        Err(IoError::Handshake(
            HandshakeError::Refused(LinkError::NeedSecured | LinkError::NeedUnsecured)
            // There is no such device.
            | HandshakeError::Closed(Step::ReplyHeader),
        )) => Ok(None),
        // Closed with capability words unread.
        Err(IoError::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
        Err(other) => Err(OracleError::Unclear(other)),
    }
}

/// A random session id that no session here has, and not 0, which no session anywhere has.
pub(crate) fn unused_session(registry: &Registry) -> Result<u32, CryptoError> {
    loop {
        let mut bytes = [0; 4];
        openssl::rand::rand_bytes(&mut bytes).map_err(CryptoError::from)?;
        let id = u32::from_le_bytes(bytes);
        if id != 0 && registry.find(id).is_none() {
            return Ok(id);
        }
    }
}
