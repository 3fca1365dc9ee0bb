//! What can go wrong with TLS, and who is to blame.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Which side of a connection is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Whoever we connected to.
    Server,
    /// Whoever connected to us.
    Client,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "the server",
            Self::Client => "the client",
        })
    }
}

/// Why there is no TLS.
///
/// Texts of a peer, such as a certificate's names, are in here escaped and cut to a bearable length.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is larger than any file of its kind.
    #[error("{origin} is larger than {limit} bytes; is it the right file?")]
    TooLarge {
        /// The file.
        origin: String,
        /// As large as it may be.
        limit: usize,
    },
    /// Nothing of use in it.
    #[error("{origin} has no certificate; expected PEM text, with a line -----BEGIN CERTIFICATE-----")]
    NoCertificate {
        /// The file, or what else it is.
        origin: String,
    },
    /// PEM text, but what is in it is no certificate.
    #[error("{origin} has a damaged certificate, number {number}: {reason}")]
    BadCertificate {
        /// The file, or what else it is.
        origin: String,
        /// Which one in the file, from 1.
        number: usize,
        /// What the TLS library says.
        reason: String,
    },
    /// Nothing of use in it.
    #[error("{} has no private key; expected PEM text, with a line -----BEGIN PRIVATE KEY-----", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// PEM text, but what is in it is no key.
    #[error("{} has a damaged private key: {reason}", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What the TLS library says.
        reason: String,
    },
    /// Nobody is there to type the key's password.
    #[error("the private key in {0} is encrypted; decrypt it first: openssl pkey -in {0} -out NEWFILE", path.display())]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// Two files that do not belong together.
    #[error(
        "the private key in {} does not belong to the first certificate in {}",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// The file with certificates.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
    },
    /// The TLS library does not take the certificate.
    #[error("the certificate in {} cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the TLS library says.
        reason: String,
    },
    /// A list of ciphers that is none.
    #[error("the list of TLS ciphers names none that could be used: {given:?}")]
    Ciphers {
        /// The list.
        given: String,
    },
    /// The TLS library failed where it should not.
    #[error("the TLS library failed: {reason}")]
    Library {
        /// What it says.
        reason: String,
    },

    /// Nobody we believe vouches for the server.
    #[error(
        "the server's certificate, for {subject}, was issued by {issuer}, who is not among {roots}; \
         if that is right, give the authority's certificate as the CA"
    )]
    UnknownIssuer {
        /// Whom the certificate is for.
        subject: Box<str>,
        /// Who signed the last certificate of its chain that came.
        issuer: Box<str>,
        /// Whom we believe.
        roots: Box<str>,
    },
    /// The server vouches for itself.
    #[error(
        "the server's certificate, for {subject}, is signed by itself and is not among {roots}; \
         if that is right, give this very certificate as the CA"
    )]
    SelfSigned {
        /// Whom the certificate is for.
        subject: String,
        /// Whom we believe.
        roots: String,
    },
    /// A certificate of the chain is over.
    #[error(
        "the certificate of {subject} expired on {at}; the server needs a new one, or this machine's clock is wrong"
    )]
    Expired {
        /// Whom the certificate is for.
        subject: String,
        /// When.
        at: String,
    },
    /// A certificate of the chain has not begun.
    #[error("the certificate of {subject} is not valid before {from}; is this machine's clock right?")]
    NotYetValid {
        /// Whom the certificate is for.
        subject: String,
        /// When it will be.
        from: String,
    },
    /// The certificate is for another host.
    #[error(
        "the server's certificate is for another host: expected {expected}, got {}; if that is the right server, \
         use one of its names or give its certificate's subject",
        names.join(", ")
    )]
    WrongHost {
        /// The host we wanted.
        expected: String,
        /// Whom it is for: its names, or without any its subject.
        names: Vec<String>,
    },
    /// The certificate is for somebody else.
    #[error("the server's certificate is for another subject: expected {expected}, got {got}")]
    WrongSubject {
        /// What it should have been.
        expected: String,
        /// What it is, as `host-subject` would have it.
        got: String,
    },
    /// Anything else wrong with the chain.
    #[error("the certificate of {subject} cannot be trusted: {reason}")]
    BadChain {
        /// Whom the certificate is for.
        subject: String,
        /// What the TLS library says.
        reason: String,
    },
    /// No certificate came at all.
    #[error("the server showed no certificate")]
    Anonymous,

    /// Spice where TLS was due.
    #[error("{peer} speaks Spice without TLS; {}", match peer {
        Peer::Server => "its TLS port is another one",
        Peer::Client => "this port takes TLS only",
    })]
    PlainSpice {
        /// Who does.
        peer: Peer,
    },
    /// Something else where TLS was due.
    #[error("{peer} does not speak TLS: expected a TLS handshake, got {got:?}")]
    NotTls {
        /// Who does not.
        peer: Peer,
        /// How it began.
        got: String,
    },
    /// Only TLS that is too old.
    #[error("{peer} speaks only versions of TLS older than 1.2, which are not safe")]
    OldTls {
        /// Who does.
        peer: Peer,
    },
    /// The peer ended the handshake by TLS's own means.
    #[error("{peer} refused the TLS handshake: {reason}{}", match peer {
        Peer::Server => "",
        Peer::Client => "; does it have the CA of this server's certificate, and the right name?",
    })]
    Refused {
        /// Who did.
        peer: Peer,
        /// Its alert.
        reason: String,
    },
    /// The connection ended.
    #[error("{peer} closed the connection in the TLS handshake{}", match peer {
        Peer::Server => "; is that its TLS port?",
        Peer::Client => "",
    })]
    Closed {
        /// Who did.
        peer: Peer,
    },
    /// The connection failed.
    #[error("the connection failed in the TLS handshake")]
    Io {
        /// What the operating system said.
        #[from]
        source: io::Error,
    },
    /// Anything else.
    #[error("the TLS handshake with {peer} failed: {reason}")]
    Handshake {
        /// With whom.
        peer: Peer,
        /// What the TLS library says.
        reason: String,
    },
}

/// Where the fault lies.
#[derive(PartialEq, Eq)]
enum Blame {
    /// In what the peer showed.
    Certificate,
    /// In what we were given, before any peer was asked.
    Configuration,
    /// In the handshake, or in the way there.
    Handshake,
}

impl TlsError {
    /// The server is not who it should be: to try again is to ask a stranger again. Somebody must look.
    pub fn is_untrusted(&self) -> bool {
        self.blame() == Blame::Certificate
    }

    /// Our own configuration is wrong: no peer was asked.
    pub fn is_configuration(&self) -> bool {
        self.blame() == Blame::Configuration
    }

    fn blame(&self) -> Blame {
        match self {
            Self::UnknownIssuer { .. }
            | Self::SelfSigned { .. }
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::WrongHost { .. }
            | Self::WrongSubject { .. }
            | Self::BadChain { .. }
            | Self::Anonymous => Blame::Certificate,
            Self::Unreadable { .. }
            | Self::TooLarge { .. }
            | Self::NoCertificate { .. }
            | Self::BadCertificate { .. }
            | Self::NoKey { .. }
            | Self::BadKey { .. }
            | Self::EncryptedKey { .. }
            | Self::Mismatch { .. }
            | Self::Unusable { .. }
            | Self::Ciphers { .. } => Blame::Configuration,
            Self::Library { .. }
            | Self::PlainSpice { .. }
            | Self::NotTls { .. }
            | Self::OldTls { .. }
            | Self::Refused { .. }
            | Self::Closed { .. }
            | Self::Io { .. }
            | Self::Handshake { .. } => Blame::Handshake,
        }
    }
}

/// A text of the peer's, fit for a log: without control characters, and not longer than anybody would read.
pub(super) fn tame(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut tame = String::new();
    for character in text.chars() {
        if tame.len() >= LONGEST {
            tame.push('…');
            break;
        }
        if character.is_control() || is_direction(character) {
            tame.extend(character.escape_default());
        } else {
            tame.push(character);
        }
    }
    tame
}

/// Characters that turn what stands around them.
fn is_direction(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}
