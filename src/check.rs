//! What `--check` prints: what would be done, once all that was given is known to make sense.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use client_glue::server::{HttpProxy, Place};
use serde::Serialize;
use spice_proto::tls::{Roots, Trust};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::session_args::{Discovering, PasswordSource, Session, Sharing};

/// `--check --json`.
#[derive(Serialize)]
struct Report {
    event: &'static str,
    server: String,
    tls: bool,
    security: String,
    proxy: Option<String>,
    username: Option<String>,
    password: String,
    viewer: Option<String>,
    shares: Vec<Shared>,
    /// What is looked for.
    discovery: Option<Looking>,
    domains: Vec<DomainLine>,
}

#[derive(Serialize)]
pub(crate) struct Looking {
    /// By what.
    sources: Vec<&'static str>,
    /// On which interfaces; empty: on those of a network.
    interfaces: Vec<String>,
    /// What is shared as a class.
    classes: Vec<&'static str>,
    /// How many rules there are.
    allow: usize,
    deny: usize,
    rename: usize,
}

#[derive(Serialize)]
struct DomainLine {
    name: String,
    ports: Vec<u16>,
}

#[derive(Serialize)]
struct Shared {
    name: String,
    target: String,
}

/// What would be done, as text or as one JSON object.
pub(crate) fn report(session: &Session, sharing: &Sharing, viewer: Option<&Path>, json: bool) -> String {
    let server = &session.server;
    let report = Report {
        event: "check",
        server: server.to_string(),
        tls: server.is_secure(),
        security: security(session),
        proxy: server.proxy.as_ref().map(proxy),
        username: session.credentials.username.clone(),
        password: password(session, viewer.is_some()),
        viewer: viewer.map(|path| path.display().to_string()),
        shares: sharing
            .offers
            .iter()
            .map(|offer| Shared { name: offer.share.name.clone(), target: offer.share.target() })
            .collect(),
        discovery: sharing.discovery.as_ref().map(looking),
        domains: sharing
            .domains
            .iter()
            .map(|domain| DomainLine { name: domain.name.as_str().to_owned(), ports: domain.ports.clone() })
            .collect(),
    };
    if json {
        return serde_json::to_string(&report).unwrap_or_default() + "\n";
    }
    let mut text = String::new();
    let mut line = |what: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{what:9} {value}");
    };
    line("server", &report.server);
    line("security", &report.security);
    line("proxy", report.proxy.as_deref().unwrap_or("none"));
    if let Some(name) = &report.username {
        line("user", name);
    }
    line("password", &report.password);
    if let Some(viewer) = &report.viewer {
        line("viewer", viewer);
    }
    for Shared { name, target } in &report.shares {
        line("share", &format!("{name}  {target}"));
    }
    if let Some(looking) = &report.discovery {
        line("discover", &looking.to_string());
    }
    for DomainLine { name, ports } in &report.domains {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        line("domain", &format!("{name}  ports {}", ports.join(", ")));
    }
    text
}

/// What would be looked for.
pub(crate) fn looking(discovering: &Discovering) -> Looking {
    let Discovering { config, policy } = discovering;
    let sources = crate::discover::sources(config);
    let interfaces = config.interfaces.only.clone();
    let classes = policy.classes.iter().map(|class| class.as_str()).collect();
    let [allow, deny, rename] = [policy.allow.len(), policy.deny.len(), policy.renames.len()];
    Looking { sources, interfaces, classes, allow, deny, rename }
}

impl std::fmt::Display for Looking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "by {}", self.sources.join(", "))?;
        if !self.interfaces.is_empty() {
            write!(f, " on {}", self.interfaces.join(", "))?;
        }
        match self.classes.as_slice() {
            [] => write!(f, "; nothing is shared as a class")?,
            classes => write!(f, "; every {} is shared", classes.join(" and "))?,
        }
        for (rules, word) in [(self.allow, "allow"), (self.deny, "deny"), (self.rename, "rename")] {
            if rules > 0 {
                write!(f, ", {rules} [[{word}]]")?;
            }
        }
        Ok(())
    }
}

/// Prints it.
pub(crate) async fn print(mut out: impl AsyncWrite + Unpin, text: &str) -> io::Result<()> {
    out.write_all(text.as_bytes()).await?;
    out.flush().await
}

fn security(session: &Session) -> String {
    match &session.server.place {
        Place::Unix(_) => "a socket of this machine, without TLS".to_owned(),
        Place::Tcp { tls_port: None, .. } => {
            "none: everything goes in clear, but for the password".to_owned()
        }
        Place::Tcp { tls_port: Some(_), port, host } => {
            let Trust { roots, subject, ciphers } = &session.server.trust;
            let roots = match (roots, &session.file) {
                (Roots::System, _) => "an authority that the system trusts".to_owned(),
                (Roots::File(path), _) => format!("an authority in {}", path.display()),
                (Roots::Pem(_), Some(file)) => format!("an authority in {}", file.path.display()),
                (Roots::Pem(_), None) => "a given authority".to_owned(),
            };
            let whose = match subject {
                Some(subject) => format!("for the subject {subject}"),
                None => format!("for the host {host}"),
            };
            let mut text = format!("TLS, with a certificate {whose} from {roots}");
            if let Some(ciphers) = ciphers {
                let _ = write!(text, ", ciphers {ciphers}");
            }
            if let Some(port) = port {
                let _ = write!(text, "; port {port}, which is in clear, is not used");
            }
            text
        }
    }
}

fn proxy(proxy: &HttpProxy) -> String {
    let user = proxy.user.as_ref().map(|(name, _)| format!(", as {name}")).unwrap_or_default();
    format!("http://{}:{}{user}", proxy.host, proxy.port)
}

fn password(session: &Session, view: bool) -> String {
    let begin = match &session.password_source {
        PasswordSource::User => "given".to_owned(),
        PasswordSource::ViewerFile(file) => format!("from {}", file.display()),
        PasswordSource::Nowhere => "none; asked for where the server wants one".to_owned(),
    };
    match &session.file {
        Some(file) if file.delete && view => begin + "; the file is removed as the viewer starts",
        Some(file) if file.delete => begin + "; the file is removed at the end",
        Some(_) | None => begin,
    }
}
