//! Which Spice session, as `connect` and `view` are told: an address or a viewer's file, and options beside it.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use client_glue::discover::policy::Policy;
use client_glue::discover::{DiscoverConfig, NetworkId, ServiceClass};
use client_glue::domains::Domain;
use client_glue::server::{Credentials, HttpProxy, Place, SpiceServer, default_roots};
use client_glue::{Offer, ShareError};
use spice_proto::ticket::{Password, PasswordError};
use spice_proto::tls::{Connector, Roots, Subject, TlsError};
use thiserror::Error;
use tracing::warn;

use crate::config::{self, Config, ConfigError};
use crate::password::{self, PasswordFileError};
use crate::proxy_uri::{self, ProxyUriError};
use crate::spice_uri::{Server, SpiceUriError};
use crate::viewer_file::{ViewerFile, ViewerFileError};

/// The session.
#[derive(Debug, Clone, Args)]
pub struct SessionArgs {
    /// The Spice session: spice://HOST:PORT, spice+tls://HOST:PORT, spice+unix:///PATH, or a viewer's file (.vv; - is
    /// standard input). With ?port=PORT;tls-port=PORT both ports can be named; TLS is used then
    #[arg(value_name = "spice://HOST:PORT|FILE.vv")]
    pub address: Address,

    /// With TLS: PEM file with the authorities that may have signed the server's certificate, instead of those in
    /// ~/.spicec/spice_truststore.pem, where that is, or the system's
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// With TLS: the whole subject that the server's certificate must have; the host's name need not be in it then
    #[arg(long, value_name = "SUBJECT")]
    pub host_subject: Option<Subject>,

    /// HTTP proxy on the way to the server, which must take CONNECT
    #[arg(long, value_name = "http://[USER:PASSWORD@]HOST:PORT", value_parser = parse_proxy)]
    pub proxy: Option<HttpProxy>,

    /// The user's name, where the server wants one (SASL)
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,

    /// File whose first line is the password of the Spice session
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// The password itself, best given by the environment; --password-file goes before it
    #[arg(long, value_name = "PASSWORD", env = "SPICE_TUNNEL_PASSWORD", hide_env_values = true, hide = true)]
    pub password: Option<String>,
}

/// What is shared with it.
#[derive(Debug, Clone, Args)]
pub struct SharingArgs {
    /// What the VM may reach: tcp://HOST:PORT, with ?name=NAME behind it to give it a lasting name, from which its
    /// virtual address is derived, and &host=localhost:631 where HTTP has to call it otherwise than the VM does. A printer that the VM is
    /// to find by itself: ipp://HOST/ipp/print?name=NAME; anything else that is to be advertised:
    /// tcp://HOST:PORT?name=NAME&type=_http._tcp&txt=KEY=VALUE. Can be given many times
    #[arg(
        long = "share",
        value_name = "tcp://HOST:PORT?name=NAME",
        required_unless_present_any = ["shares_from_file", "discover", "config"]
    )]
    pub shares: Vec<Offer>,

    /// Look for printers and scanners on this network, and share them as they come and go; =printers or =scanners for these alone.
    /// Whatever else is found is shared by name only: see --config
    #[arg(
        long,
        value_name = "WHAT",
        num_args = 0..=1,
        require_equals = true,
        value_delimiter = ',',
        default_missing_value = "printers,scanners",
        value_parser = config::class
    )]
    pub discover: Option<Vec<ServiceClass>>,

    /// TOML file with shares, where to look for more, and what of it may be shared (see below)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Share as well what the .vv file lists as share= in its group [spice-tunnel]. Whoever wrote the file decides then
    /// what of your network the VM reaches
    #[arg(long)]
    pub shares_from_file: bool,
}

/// Where the session is described.
#[derive(Debug, Clone)]
pub enum Address {
    /// In the address itself.
    Uri(Box<Server>),
    /// In a viewer's file.
    File(PathBuf),
}

impl FromStr for Address {
    type Err = SpiceUriError;

    fn from_str(given: &str) -> Result<Address, SpiceUriError> {
        let scheme = given.split(':').next().unwrap_or_default();
        let file = match given {
            "-" => true,
            _ if given.contains("://") || scheme.starts_with("spice") && scheme != given => false,
            _ => given.ends_with(".vv") || given.contains('/') || Path::new(given).is_file(),
        };
        if file {
            return Ok(Address::File(PathBuf::from(given)));
        }
        Ok(Address::Uri(Box::new(given.parse()?)))
    }
}

fn parse_proxy(given: &str) -> Result<HttpProxy, ProxyUriError> {
    proxy_uri::parse(given)
}

/// Where the password came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordSource {
    /// Nobody gave one.
    Nowhere,
    /// An option, the environment, or the address.
    User,
    /// This .vv file: it may have expired.
    ViewerFile(PathBuf),
}

/// A session that was described without contradiction.
#[derive(Clone, Debug)]
pub struct Session {
    /// Where, and who it must be.
    pub server: SpiceServer,
    /// Who we are; the password is empty where none is known.
    pub credentials: Credentials,
    /// Where the password came from.
    pub password_source: PasswordSource,
    /// The file that described it.
    pub file: Option<ViewerFile>,
}

/// Why a session cannot be used as described.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The file.
    #[error(transparent)]
    File(#[from] ViewerFileError),
    /// The password file.
    #[error(transparent)]
    PasswordFile(#[from] PasswordFileError),
    /// The password itself.
    #[error("the password cannot be used")]
    Password(#[from] PasswordError),
    /// An option for TLS, and no TLS.
    #[error("{option} is for TLS, but {server} is not: give its TLS port, as in spice+tls://HOST:PORT")]
    NotSecure {
        /// The option.
        option: &'static str,
        /// The server.
        server: String,
    },
    /// A proxy to this machine.
    #[error("--proxy leads to a host, but {server} is a socket of this machine")]
    ProxyToSocket {
        /// The server.
        server: String,
    },
    /// Authorities, subject or ciphers.
    #[error("TLS to {server} cannot be set up{}", from(file))]
    Tls {
        /// The server.
        server: String,
        /// The file that described it.
        file: Option<PathBuf>,
        /// What is wrong.
        source: TlsError,
    },
    /// Something to share is not.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A configuration that shares nothing.
    #[error(
        "nothing is shared: {} has no [[share]], nothing that discovery may share, and no [[domain]]; give --share tcp://HOST:PORT or --discover",
        file.display()
    )]
    EmptyConfig {
        /// The file.
        file: PathBuf,
    },
    /// The file was to list shares, and there is no file.
    #[error("--shares-from-file goes with a .vv file, not with an address")]
    NoFile,
    /// The file lists none.
    #[error(
        "nothing is shared: {} lists no share= in a group [spice-tunnel]; give --share tcp://HOST:PORT",
        file.display()
    )]
    NoShares {
        /// The file.
        file: PathBuf,
    },
}

fn from(file: &Option<PathBuf>) -> String {
    file.as_ref().map(|file| format!(" as {} has it", file.display())).unwrap_or_default()
}

impl SessionArgs {
    /// Reads what the session is described by. Nothing is connected, and no file is removed.
    ///
    /// # Errors
    /// [`SessionError`]
    pub fn resolve(&self) -> Result<Session, SessionError> {
        let (mut server, username, known, file) = match &self.address {
            Address::Uri(uri) => {
                if uri.password.is_some() {
                    warn!(
                        "a password in the address is seen by whoever lists processes: better use --password-file"
                    );
                }
                (uri.server.clone(), uri.username.clone(), uri.password.clone(), None)
            }
            Address::File(path) => {
                let file = ViewerFile::read(path)?;
                (file.server.clone(), file.username.clone(), file.password.clone(), Some(file))
            }
        };
        self.refine(&mut server)?;
        let path = file.as_ref().map(|file| file.path.clone());
        let (password, password_source) = match (&self.password_file, &self.password, known) {
            (Some(path), _, _) => (password::read_file(path)?, PasswordSource::User),
            (None, Some(text), _) => (Password::new(text.as_bytes())?, PasswordSource::User),
            (None, None, Some(password)) => {
                (password, path.clone().map_or(PasswordSource::User, PasswordSource::ViewerFile))
            }
            (None, None, None) => (Password::empty(), PasswordSource::Nowhere),
        };
        if server.is_secure() {
            let failed = |source| SessionError::Tls { server: server.to_string(), file: path, source };
            Connector::new(&server.trust).map_err(failed)?;
        }
        let username = self.username.clone().or(username);
        Ok(Session { server, credentials: Credentials { username, password }, password_source, file })
    }

    fn refine(&self, server: &mut SpiceServer) -> Result<(), SessionError> {
        let options =
            [("--ca-file", self.ca_file.is_some()), ("--host-subject", self.host_subject.is_some())];
        if let Some((option, _)) = options.iter().find(|(_, given)| *given && !server.is_secure()) {
            return Err(SessionError::NotSecure { option, server: server.to_string() });
        }
        match &self.ca_file {
            Some(path) => server.trust.roots = Roots::File(path.clone()),
            // As viewers do.
            None if server.trust.roots == Roots::System => server.trust.roots = default_roots(),
            None => {}
        }
        if let Some(subject) = &self.host_subject {
            server.trust.subject = Some(subject.clone());
        }
        if let Some(proxy) = &self.proxy {
            if matches!(server.place, Place::Unix(_)) {
                return Err(SessionError::ProxyToSocket { server: server.to_string() });
            }
            server.proxy = Some(proxy.clone());
        }
        Ok(())
    }
}

/// All that is to be shared, and how more is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// By hand.
    pub offers: Vec<Offer>,
    /// What is found.
    pub discovery: Option<Discovering>,
    /// Domains whose names the guest may ask for.
    pub domains: Vec<Domain>,
    /// Which network this is, if the user says so.
    pub network: Option<NetworkId>,
}

/// Where to look, and what of it may be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovering {
    /// Where.
    pub config: DiscoverConfig,
    /// What.
    pub policy: Policy,
}

impl SharingArgs {
    /// All that is to be shared with the session.
    ///
    /// # Errors
    /// There is nothing, or something that cannot be shared together.
    pub fn sharing(&self, session: &Session) -> Result<Sharing, SessionError> {
        let Config { shares, discover, policy, domains, network } =
            self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        let mut offers = self.shares.clone();
        offers.extend(shares);
        match &session.file {
            None if self.shares_from_file => return Err(SessionError::NoFile),
            None => {}
            Some(file) if self.shares_from_file => offers.extend(file.shares.iter().cloned()),
            Some(file) => {
                for offer in &file.shares {
                    let (file, share) = (file.path.display(), offer.share.target());
                    warn!(%file, share, "the file lists a share, which counts only with --shares-from-file");
                }
            }
        }
        let discovery = discovering(self.discover.as_deref(), discover, policy, network.as_ref());
        if offers.is_empty() && discovery.is_none() && domains.is_empty() {
            return match (&self.config, &session.file) {
                (Some(file), _) => Err(SessionError::EmptyConfig { file: file.clone() }),
                (None, Some(file)) => Err(SessionError::NoShares { file: file.path.clone() }),
                // The command line asks for one of them.
                (None, None) => Ok(Sharing::default()),
            };
        }
        client_glue::check_offers(&offers)?;
        Ok(Sharing { offers, discovery, domains, network })
    }
}

/// What `--discover` and the configuration say together. The command line says which classes; where it says nothing, the
/// configuration does. Looking for what cannot be shared is no use.
pub(crate) fn discovering(
    classes: Option<&[ServiceClass]>,
    config: Option<DiscoverConfig>,
    mut policy: Policy,
    network: Option<&NetworkId>,
) -> Option<Discovering> {
    let config = match (classes, config) {
        (None, None) => return None,
        (Some(classes), config) => {
            policy.classes = classes.iter().copied().collect();
            config
                .unwrap_or_else(|| DiscoverConfig { network: network.cloned(), ..DiscoverConfig::default() })
        }
        (None, Some(config)) => config,
    };
    (!policy.classes.is_empty() || !policy.allow.is_empty()).then_some(Discovering { config, policy })
}

#[cfg(test)]
mod tests;
