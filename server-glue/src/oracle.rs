//! Asks the stock server whether a client may come in, without a secret of our own and without disturbing a session.
//!
//! libspice-server looks at the ticket before it looks at the session id (wire-reference 1.7). So a link of inputs with a
//! session id that nobody has is answered by 8 to the right ticket and by 7 to a wrong or an expired one, and
//! creates nothing. With SASL the same: who is accepted gets 8, and who is not is hung up on.

use std::time::Duration;

use spice_proto::handshake::Deadlines;
use spice_proto::link::{
    ChannelType, CommonCaps, LinkError, LinkMess, LinkReply, LinkVersion, MECHANISM_TICKET, Welcome,
};
use spice_proto::ticket::{CryptoError, Password, Undecryptable, seal};
use tokio::time::timeout;

use crate::passage;
use crate::proxy::End;
use crate::registry::Registry;
use crate::stream::{BoxStream, Leg, Peer, Upstream, send_all};

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
    /// Nobody there, or not the right one, or something else than an answer.
    #[error("the Spice server could not be asked about a client: {0}")]
    Link(Box<End>),
    /// Another result than the two.
    #[error("the Spice server was asked about a ticket, and says: {0}")]
    Unclear(LinkError),
    /// Its policy keeps every channel that could be asked from this client's kind of link.
    #[error(
        "the Spice server could not be asked about a client: it has no channel that one {} may link",
        if *secure { "over TLS" } else { "in clear" }
    )]
    NoChannel {
        /// The client came over TLS.
        secure: bool,
    },
    /// It takes too long.
    #[error("the Spice server could not be asked about a client within {0:?}")]
    Late(Duration),
    /// openssl failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl From<End> for OracleError {
    fn from(end: End) -> Self {
        Self::Link(Box::new(end))
    }
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

/// A link of the server's that waits for a client's ticket or SASL, and comes to nothing when it gets it.
pub(crate) struct Inquiry {
    /// Behind the server's reply.
    pub(crate) stream: BoxStream,
    /// Over TLS.
    pub(crate) secure: bool,
    welcome: Welcome,
}

/// Begins to ask about a client.
///
/// The question goes the way that the client's other links go. Where policy forbids that for inputs, a client in clear is
/// asked about over TLS next; what came over TLS never goes out in clear, if there is TLS upstream at all. SASL is asked over TLS
/// in any case, if there is.
pub(crate) async fn open(
    upstream: &Upstream,
    client: &Peer,
    registry: &Registry,
    deadlines: Deadlines,
) -> Result<Inquiry, OracleError> {
    let asking = open_in_turn(upstream, client, registry, deadlines);
    timeout(deadlines.total, asking).await.unwrap_or(Err(OracleError::Late(deadlines.total)))
}

async fn open_in_turn(
    upstream: &Upstream,
    client: &Peer,
    registry: &Registry,
    deadlines: Deadlines,
) -> Result<Inquiry, OracleError> {
    let legs = legs(upstream, client);
    let mut in_clear = None;
    for channel in ASKED {
        for leg in &legs {
            match try_channel(leg, channel, unused_session(registry)?, deadlines).await? {
                Some(inquiry) if inquiry.wants_sasl() && !inquiry.secure && upstream.tls.is_some() => {
                    in_clear = Some(inquiry);
                }
                Some(inquiry) => return Ok(inquiry),
                None => {}
            }
        }
    }
    in_clear.ok_or(OracleError::NoChannel { secure: client.secure })
}

fn legs(upstream: &Upstream, client: &Peer) -> Vec<Leg> {
    let mut legs: Vec<Leg> = upstream.leg(client).into_iter().collect();
    if let ([Leg::Plain(_)], Some(tls)) = (legs.as_slice(), &upstream.tls) {
        legs.push(Leg::Tls(tls.clone()));
    }
    legs
}

/// The server's reply, unless this channel is not to be had this way.
async fn try_channel(
    leg: &Leg,
    channel: ChannelType,
    session_id: u32,
    deadlines: Deadlines,
) -> Result<Option<Inquiry>, OracleError> {
    let mess = LinkMess {
        session_id,
        channel_type: channel.0,
        channel_id: 0,
        common_caps: vec![(CommonCaps::OURS | CommonCaps::AUTH_SASL).bits()],
        channel_caps: Vec::new(),
    };
    let mut raw = Vec::new();
    mess.write(LinkVersion::V2, &mut raw);
    match passage::ask(leg, deadlines.step, &raw).await {
        Ok((stream, reply)) => match reply.reply {
            LinkReply::Welcome(welcome) => {
                Ok(Some(Inquiry { stream, welcome, secure: matches!(leg, Leg::Tls(_)) }))
            }
            LinkReply::Refused(LinkError::NeedSecured | LinkError::NeedUnsecured) => Ok(None),
            LinkReply::Refused(other) => Err(End::Refused(other).into()),
        },
        // There is no such device.
        Err(End::NoChannel) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

impl Inquiry {
    /// Whether SASL is all that the server takes.
    pub(crate) fn wants_sasl(&self) -> bool {
        self.welcome.has_no_key() || is_sasl_only(self.welcome.common())
    }

    /// Asks about an opened ticket. One that did not open is wrong, but takes as long as any other.
    pub(crate) async fn ticket(
        mut self,
        opened: &Result<Password, Undecryptable>,
        limit: Duration,
    ) -> Result<Verdict, OracleError> {
        let stranger = Password::empty();
        let password = opened.as_ref().unwrap_or(&stranger);
        let mut auth = Vec::new();
        // Who does not have the bit does not read the word (wire-reference 1.5).
        if self.welcome.common().contains(CommonCaps::AUTH_SELECTION) {
            auth.extend_from_slice(&MECHANISM_TICKET.to_le_bytes());
        }
        let sealed = seal(&self.welcome.public_key, password).map_err(|error| End::Client(error.into()))?;
        auth.extend_from_slice(&sealed);
        send_all(&mut self.stream, &auth).await.map_err(End::Upstream)?;
        let result = passage::from_server::<4>(&mut self.stream, limit).await?;
        let right = match LinkError::from_code(u32::from_le_bytes(result)) {
            Some(LinkError::BadConnectionId) => true,
            Some(LinkError::PermissionDenied) => false,
            // The random id hit a session that did not pass through us: once in four billion.
            None => true,
            Some(other) => return Err(OracleError::Unclear(other)),
        };
        Ok(if right && opened.is_ok() { Verdict::Right } else { Verdict::Wrong })
    }
}

fn is_sasl_only(common: CommonCaps) -> bool {
    common.contains(CommonCaps::AUTH_SASL) && !common.contains(CommonCaps::AUTH_SPICE)
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
