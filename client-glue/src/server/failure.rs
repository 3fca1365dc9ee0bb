//! Why there is no tunnel, in words for whoever wanted one.

use std::fmt;
use std::io;
use std::time::Duration;

use spice_proto::handshake::{HandshakeError, Step};
use spice_proto::io::{IoError, SaslRefusal};
use spice_proto::link::{LinkError, LinkFault};
use spice_proto::tls::TlsError;

use super::SpiceServer;
use crate::sasl;

/// What was going on when time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Looking up the name, and connecting.
    Connect,
    /// Asking the proxy.
    Proxy,
    /// The TLS handshake.
    Tls,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "nobody answered",
            Self::Proxy => "the proxy had not let us through",
            Self::Tls => "the TLS handshake had stalled; is that its TLS port?",
        })
    }
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkFailure {
    /// What is known of the server is not enough, or contradicts itself.
    #[error("cannot connect to {server}: {problem}")]
    Misconfigured {
        /// The server.
        server: String,
        /// What is missing or wrong.
        problem: &'static str,
    },
    /// Nobody there.
    #[error("cannot connect to {server}")]
    Connect {
        /// The server.
        server: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The proxy on the way does not let us through.
    #[error("cannot connect to {server} through the proxy {proxy}")]
    Proxy {
        /// The server.
        server: String,
        /// The proxy.
        proxy: String,
        /// What it said.
        source: ProxyFailure,
    },
    /// Not connected in time.
    #[error("cannot connect to {server}: after {} s {stage}", after.as_secs())]
    Late {
        /// The server.
        server: String,
        /// What was going on.
        stage: Stage,
        /// The time it had.
        after: Duration,
    },
    /// No TLS, or not with the right one.
    #[error("{}", no_tls(server, source))]
    Tls {
        /// The server.
        server: String,
        /// What is wrong.
        source: TlsError,
    },
    /// We spoke without TLS to a port for TLS.
    #[error("{server} is a TLS port: use spice+tls:// in its address")]
    TlsPort {
        /// The server.
        server: String,
    },
    /// Something else than a Spice server.
    #[error("{server} is not a Spice server")]
    NotSpice {
        /// The server.
        server: String,
        /// What is wrong with its answer.
        source: LinkFault,
    },
    /// A Spice server without a tunnel closes without a word.
    #[error("{server} offers no tunnel channel; is `spice-tunnel serve` in front of it?")]
    NoTunnel {
        /// The server.
        server: String,
    },
    /// Wrong or expired ticket; with SASL the wrong password, or somebody it does not know.
    #[error("{server} does not accept {}", unaccepted(*given, *user))]
    WrongPassword {
        /// The server.
        server: String,
        /// A password was given.
        given: bool,
        /// A user name was asked for too.
        user: bool,
    },
    /// The server wants SASL, and that cannot be.
    #[error("cannot authenticate to {server} by SASL")]
    Sasl {
        /// The server.
        server: String,
        /// What is missing or wrong.
        source: SaslRefusal,
    },
    /// The server knows no session that we could join.
    #[error(
        "{server} takes no tunnel beside a viewer: companions are turned off there, or there are several sessions"
    )]
    NoCompanion {
        /// The server.
        server: String,
    },
    /// Not now.
    #[error("{server} cannot take a tunnel now; is the Spice server behind it running?")]
    NotNow {
        /// The server.
        server: String,
    },
    /// TLS only.
    #[error("{server} wants TLS for the tunnel: give its TLS port, as in spice+tls://HOST:PORT")]
    NeedsTls {
        /// The server.
        server: String,
    },
    /// No TLS, it says; what was to be protected is not sent in clear because a server asks for it.
    #[error(
        "{server} wants the tunnel in clear, which is refused; if that is meant, give its port without TLS, as in \
         spice://HOST:PORT"
    )]
    NeedsClear {
        /// The server.
        server: String,
    },
    /// Anything else in the link stage.
    #[error("cannot link the tunnel channel of {server}")]
    Link {
        /// The server.
        server: String,
        /// What happened.
        source: IoError,
    },
}

/// Why a proxy does not let us through.
///
/// What it said is in here escaped and cut to a bearable length.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyFailure {
    /// Nobody there, or gone.
    #[error("the connection to the proxy failed")]
    Io(#[from] io::Error),
    /// The server's name cannot stand in a request.
    #[error("a proxy cannot be asked for the host {0:?}")]
    Host(String),
    /// A user's name cannot be told from its password.
    #[error("the user name for the proxy has a colon, or a control character")]
    User,
    /// It wants to know who we are, or does not like who we are.
    #[error("{}", if *given { "it does not accept our user name and password" } else {
        "it wants a user name and a password: http://USER:PASSWORD@HOST:PORT"
    })]
    Authentication {
        /// We gave some.
        given: bool,
    },
    /// Any other answer than yes.
    #[error("it answered {status} {reason:?}")]
    Refused {
        /// HTTP's number.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// No HTTP.
    #[error("it does not speak HTTP: expected a line such as HTTP/1.1 200 OK, got {got:?}")]
    NotHttp {
        /// What came.
        got: String,
    },
    /// An answer without end.
    #[error("its answer is longer than {limit} bytes")]
    TooLong {
        /// As long as it may be.
        limit: usize,
    },
    /// Closed before it had answered.
    #[error("it closed the connection without an answer")]
    Closed,
}

impl ProxyFailure {
    /// Nothing but another configuration, of ours or the proxy's, helps.
    fn is_final(&self) -> bool {
        match self {
            Self::Host(_) | Self::User | Self::Authentication { .. } => true,
            // What a proxy forbids it will forbid again; with 5xx it or the server has trouble, which may pass.
            Self::Refused { status, .. } => (400..500).contains(status) && *status != 408 && *status != 429,
            Self::Io(_) | Self::NotHttp { .. } | Self::TooLong { .. } | Self::Closed => false,
        }
    }
}

impl LinkFailure {
    /// To try again is in vain, or worse: the server is not the one that it should be, it wants TLS and we know no TLS
    /// port, or the configuration is wrong. Somebody must look.
    ///
    /// Not so with a wrong password. A server that was started again may be given its password late; the caller knows
    /// whether it ever was right.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Tls { source, .. } => {
                source.is_untrusted()
                    || source.is_configuration()
                    || matches!(source, TlsError::PlainSpice { .. } | TlsError::OldTls { .. })
            }
            Self::Proxy { source, .. } => source.is_final(),
            Self::Misconfigured { .. }
            | Self::TlsPort { .. }
            | Self::Sasl { .. }
            | Self::NeedsTls { .. }
            | Self::NeedsClear { .. } => true,
            Self::Connect { .. }
            | Self::Late { .. }
            | Self::NotSpice { .. }
            | Self::NoTunnel { .. }
            | Self::WrongPassword { .. }
            | Self::NoCompanion { .. }
            | Self::NotNow { .. }
            | Self::Link { .. } => false,
        }
    }
}

fn unaccepted(given: bool, user: bool) -> &'static str {
    match (given, user) {
        (true, false) => "the password: it is wrong, or has expired",
        (false, false) => "the password: none was given; use --password-file",
        (true, true) => "the user name or the password",
        (false, true) => "the user name, for which no password was given; use --password-file",
    }
}

fn no_tls(server: &str, source: &TlsError) -> String {
    if source.is_untrusted() {
        format!("{server} cannot be trusted")
    } else if source.is_configuration() {
        format!("cannot connect to {server}: TLS is not set up right")
    } else if matches!(source, TlsError::PlainSpice { .. } | TlsError::NotTls { .. }) {
        format!("{server} does not speak TLS")
    } else {
        format!("no TLS with {server}")
    }
}

/// What a failed link stage means to a user. May ask the server once more, whether it speaks TLS.
pub(super) async fn explain(server: &SpiceServer, given: bool, error: IoError) -> LinkFailure {
    /// A TLS alert: its type, and the versions' major number.
    const ALERT: [u8; 2] = [21, 3];

    let secure = server.is_secure();
    let name = server.to_string();
    match error {
        IoError::Handshake(HandshakeError::BadServer(LinkFault::Magic(magic)))
            if !secure && magic.starts_with(&ALERT) =>
        {
            LinkFailure::TlsPort { server: name }
        }
        // What a TLS port makes of our link message; but also how a close shows with something of ours still unread.
        IoError::Io(source) if source.kind() == io::ErrorKind::ConnectionReset => {
            if !secure && server.speaks_tls().await {
                LinkFailure::TlsPort { server: name }
            } else {
                LinkFailure::NoTunnel { server: name }
            }
        }
        IoError::Handshake(HandshakeError::Closed(Step::ReplyHeader)) => {
            LinkFailure::NoTunnel { server: name }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::PermissionDenied)) => {
            LinkFailure::WrongPassword { server: name, given, user: false }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::BadConnectionId)) => {
            LinkFailure::NoCompanion { server: name }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::ChannelNotAvailable)) => {
            LinkFailure::NotNow { server: name }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::NeedSecured)) if !secure => {
            LinkFailure::NeedsTls { server: name }
        }
        IoError::Handshake(HandshakeError::Refused(LinkError::NeedUnsecured)) if secure => {
            LinkFailure::NeedsClear { server: name }
        }
        IoError::Handshake(HandshakeError::BadServer(source)) => {
            LinkFailure::NotSpice { server: name, source }
        }
        IoError::Handshake(HandshakeError::SaslRejected) => {
            LinkFailure::WrongPassword { server: name, given, user: true }
        }
        IoError::Handshake(HandshakeError::SaslRequired) => {
            LinkFailure::Sasl { server: name, source: sasl::missing(secure) }
        }
        IoError::Sasl(source) => LinkFailure::Sasl { server: name, source },
        source @ (IoError::Handshake(_) | IoError::Io(_) | IoError::Seal(_)) => {
            LinkFailure::Link { server: name, source }
        }
    }
}
