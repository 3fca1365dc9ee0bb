//! Asks the stock server whether a password is right, without one of our own and without disturbing a session.
//!
//! libspice-server looks at the ticket before it looks at the session id (wire-reference 1.7). So a link of inputs with a
//! session id that nobody has is answered by 8 to the right ticket and by 7 to a wrong or an expired one, and
//! creates nothing.

use spice_proto::handshake::{ClientLink, Deadlines, HandshakeError};
use spice_proto::io::{IoError, connect};
use spice_proto::link::{ChannelType, CommonCaps, LinkError, LinkVersion};
use spice_proto::ticket::{CryptoError, Password, Undecryptable};

use crate::registry::Registry;
use crate::stream::Upstream;

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
    /// Nobody there.
    #[error("the Spice server {upstream} does not take a connection: {error}")]
    Unreachable {
        /// Where.
        upstream: Upstream,
        /// What the system says.
        error: std::io::Error,
    },
    /// Another answer than the two.
    #[error("the Spice server could not be asked about a ticket: {0}")]
    Unclear(IoError),
    /// openssl failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// Asks about an opened ticket. One that did not open is wrong, but takes as long as any other.
pub(crate) async fn ask(
    upstream: &Upstream,
    registry: &Registry,
    opened: &Result<Password, Undecryptable>,
    deadlines: Deadlines,
) -> Result<Verdict, OracleError> {
    let unreachable = |error| OracleError::Unreachable { upstream: upstream.clone(), error };
    let mut stream = upstream.connect(deadlines.step).await.map_err(unreachable)?;
    let stranger = Password::empty();
    let password = opened.as_ref().unwrap_or(&stranger);
    let link = ClientLink {
        version: LinkVersion::V2,
        channel_type: ChannelType::INPUTS.0,
        channel_id: 0,
        session_id: unused_session(registry)?,
        common_caps: CommonCaps::OURS,
        channel_caps: Vec::new(),
    };
    let right = match connect(&mut stream, link, password, deadlines).await {
        Err(IoError::Handshake(HandshakeError::Refused(LinkError::BadConnectionId))) => true,
        Err(IoError::Handshake(HandshakeError::Refused(LinkError::PermissionDenied))) => false,
        // The random id hit a session that did not pass through us: once in four billion.
        Ok(_) => true,
        Err(other) => return Err(OracleError::Unclear(other)),
    };
    Ok(if right && opened.is_ok() { Verdict::Right } else { Verdict::Wrong })
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
