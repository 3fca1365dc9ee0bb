//! `serve --check`: what would be done with these arguments, and what would go wrong, without doing it.
//!
//! Ports are bound and released, files are read, the Spice server is connected to and nothing is said to it. What may be
//! otherwise by the time it counts (a server that is not up yet, a certificate that ends soon) is a warning.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use openssl::asn1::Asn1Time;
use openssl::x509::X509;
use serde::Serialize;
use server_glue::nic::NicSpec;
use server_glue::nic::tap::TapName;
use server_glue::stream::{ConnectError, Leg, Target, Upstream};

use super::entrance::{CardPlace, Place};
use super::{Error, ServeArgs, net_config, open_book};
use crate::causes;
use crate::inherited::Inherited;
use crate::password;

/// How long the Spice server has to take a connection.
const REACH: Duration = Duration::from_secs(5);
/// Days before its end from which a certificate is worth a warning.
const SOON: u32 = 14;

/// Whether to check only.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct CheckArgs {
    /// Serve nothing: say what would be done, and what would go wrong. Exit code 1 if something would
    #[arg(long)]
    pub(super) check: bool,

    /// With --check: say it as one JSON object
    #[arg(long, requires = "check")]
    json: bool,
}

/// What came out.
#[derive(Debug, Default, Serialize)]
struct Report {
    ok: bool,
    plan: Vec<Item>,
    warnings: Vec<String>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Item {
    what: &'static str,
    how: String,
}

impl Report {
    fn plan(&mut self, what: &'static str, how: impl Into<String>) {
        self.plan.push(Item { what, how: how.into() });
    }

    fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    fn error(&mut self, error: &dyn std::error::Error) {
        self.problem(causes::in_line(error));
    }

    /// The directory of a file that is to be made or found.
    fn directory(&mut self, what: &str, path: &Path) {
        let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        match std::fs::metadata(directory) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => self.problem(format!("{what}: {} is no directory", directory.display())),
            Err(error) => self.problem(format!("{what}: {}: {error}", directory.display())),
        }
    }

    fn print(&self, out: &mut impl Write, json: bool) -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut *out, self)?;
            return writeln!(out);
        }
        for Item { what, how } in &self.plan {
            writeln!(out, "{what:<8} {how}")?;
        }
        for (kind, texts) in [("warning", &self.warnings), ("problem", &self.problems)] {
            for text in texts {
                writeln!(out, "{kind}: {text}")?;
            }
        }
        if self.ok { writeln!(out, "This would work.") } else { Ok(()) }
    }
}

/// Checks everything, and prints what came out.
pub(super) async fn run(mut args: ServeArgs) -> Result<(), Error> {
    let mut inherited = std::mem::take(&mut args.inherited);
    let mut report = Report::default();
    clients(&args, &mut inherited, &mut report).await;
    server(&args, &mut report).await;
    metrics(&args, &mut inherited, &mut report).await;
    tunnel(&args, &mut report);
    card(&args.nic, args.mtu, &mut inherited, &mut report);
    network(&args, &mut report);
    for socket in inherited.unclaimed() {
        report.warn(format!("{socket} was passed, and no argument names it"));
    }
    report.ok = report.problems.is_empty();
    report.print(&mut io::stdout().lock(), args.check.json).map_err(Error::Output)?;
    match report.problems.len() {
        0 => Ok(()),
        problems => Err(Error::Check(problems)),
    }
}

async fn clients(args: &ServeArgs, inherited: &mut Inherited, report: &mut Report) {
    let shown = certificate(args, report);
    let entrance = &args.entrance;
    let plain = entrance.listen.iter().map(|place| (place, false));
    for (place, tls) in plain.chain(entrance.tls_listen.iter().map(|place| (place, true))) {
        let how = match &shown {
            Some(certificate) if tls => format!("{place}, over TLS, {certificate}"),
            None if tls => format!("{place}, over TLS"),
            Some(_) | None => match place {
                Place::Unix(_) => format!("{place}, for this user's programs"),
                Place::Tcp(_) | Place::Fd(_) | Place::Systemd(_) => format!("{place}, in clear"),
            },
        };
        report.plan("clients", how);
        if let Err(error) = place.open(inherited, tls).await {
            report.error(&error);
        }
    }
}

async fn metrics(args: &ServeArgs, inherited: &mut Inherited, report: &mut Report) {
    for place in &args.metrics.metrics {
        let whom = match place {
            Place::Unix(_) => "for this user's programs",
            Place::Tcp(_) | Place::Fd(_) | Place::Systemd(_) => "for whoever reaches it",
        };
        report.plan("metrics", format!("{place}, {whom}"));
        if let Err(error) = place.open(inherited, false).await {
            report.error(&error);
        }
    }
}

/// The certificate in words.
fn certificate(args: &ServeArgs, report: &mut Report) -> Option<String> {
    let (chain, key) = args.entrance.tls_cert.as_deref().zip(args.entrance.tls_key.as_deref())?;
    if let Err(error) = args.entrance.certificate() {
        report.error(&Error::Certificate(error));
        return None;
    }
    if std::fs::metadata(key).is_ok_and(|found| found.permissions().mode() & 0o007 != 0) {
        report.warn(format!("everybody on this machine may read the key in {}", key.display()));
    }
    let certificate = X509::from_pem(&std::fs::read(chain).ok()?).ok()?;
    let (from, to) = (certificate.not_before(), certificate.not_after());
    let (now, soon) = (Asn1Time::days_from_now(0).ok()?, Asn1Time::days_from_now(SOON).ok()?);
    let file = chain.display();
    if to < now {
        report.problem(format!("the certificate in {file} expired on {to}"));
    } else if from > now {
        report.problem(format!("the certificate in {file} is not valid before {from}"));
    } else if to < soon {
        report.warn(format!("the certificate in {file} expires on {to}"));
    }
    let subject: Vec<String> = certificate
        .subject_name()
        .entries()
        .filter_map(|entry| {
            Some(format!("{}={}", entry.object().nid().short_name().ok()?, entry.data().to_string().ok()?))
        })
        .collect();
    Some(format!("as {} until {to}", subject.join(",")))
}

async fn server(args: &ServeArgs, report: &mut Report) {
    let upstream = match args.upstream.upstream() {
        Ok(Some(upstream)) => upstream,
        Ok(None) => return standalone(args, report),
        Err(error) => return report.error(&Error::Upstream(error)),
    };
    let Upstream { plain, tls, allow_clear } = &upstream;
    if let Some(plain) = plain {
        let whom = match tls {
            Some(_) => "answers clients in clear",
            None => "answers all clients; with those over TLS, TLS ends here",
        };
        report.plan("server", format!("{plain}, without TLS, {whom}"));
        reach(Leg::Plain(plain.clone()), report).await;
        if tls.is_none() && !args.entrance.tls_listen.is_empty() && leaves_this_machine(plain) {
            report
                .warn(format!("what clients send over TLS goes on in clear to {plain}: use --upstream-tls"));
        }
    }
    if let Some(tls) = tls {
        let whom = match (plain, allow_clear) {
            (Some(_), _) => "answers clients over TLS",
            (None, true) => "answers all clients",
            (None, false) => "answers clients over TLS; those in clear are told to come over TLS",
        };
        report.plan("server", format!("{}, over TLS, {whom}", tls.target));
        reach(Leg::Tls(tls.clone()), report).await;
        if plain.is_none() && !allow_clear && args.entrance.tls_listen.is_empty() {
            report.warn(
                "no client can come in: the Spice server is behind TLS and there is no --tls-listen; \
                         on a user's own machine --allow-clear helps",
            );
        }
    }
}

fn leaves_this_machine(target: &Target) -> bool {
    let Target::Tcp(address) = target else { return false };
    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host != "localhost" && !address.is_ok_and(|address| address.is_loopback())
}

async fn reach(leg: Leg, report: &mut Report) {
    if let Target::Tcp(address) = leg.target()
        && let Err(error) = tokio::net::lookup_host(address).await
    {
        return report.problem(format!("the Spice server's address {address} cannot be resolved: {error}"));
    }
    match leg.connect(REACH).await {
        Ok(_) => {}
        Err(error @ ConnectError::Tls { .. }) => report.error(&error),
        Err(error @ (ConnectError::Unreachable { .. } | ConnectError::Late { .. })) => {
            report.warn(causes::in_line(&error));
        }
    }
}

fn standalone(args: &ServeArgs, report: &mut Report) {
    let Some(file) = &args.password_file else {
        report.plan("server", "none: a session with nothing but the tunnel, for anybody");
        return report.warn("no --password-file: anybody who can connect may offer services to the VM");
    };
    report.plan("server", "none: a session with nothing but the tunnel, for who knows the password");
    if let Err(error) = password::read_file(file) {
        report.error(&error);
    }
}

fn tunnel(args: &ServeArgs, report: &mut Report) {
    let any_tls = !args.entrance.tls_listen.is_empty() || args.upstream.upstream_tls.is_some();
    let way = match (args.entrance.tunnel_in_clear(&args.upstream), any_tls) {
        (false, _) => "over TLS only; in clear it is told to come over TLS",
        (true, true) => "over TLS and in clear",
        (true, false) => "in clear",
    };
    let who = if args.no_companion {
        "from the session's own client only"
    } else {
        "from the session's own client, or from a companion beside it"
    };
    report.plan("tunnel", format!("{way}; {who}"));
}

fn card(place: &CardPlace, mtu: u16, inherited: &mut Inherited, report: &mut Report) {
    match place {
        CardPlace::Spec(NicSpec::Listen(path)) => {
            report.plan("card", format!("QEMU connects to {}", path.display()));
            free_path(path, report);
        }
        CardPlace::Spec(NicSpec::Connect(path)) => {
            report.plan("card", format!("QEMU listens at {}", path.display()));
            report.directory("--nic", path);
            match std::fs::symlink_metadata(path) {
                Ok(found) if is_socket(&found) => {}
                Ok(_) => report.problem(format!("--nic: {} is no socket", path.display())),
                Err(error) => {
                    report.warn(format!("--nic: {}: {error}; QEMU is waited for", path.display()));
                }
            }
        }
        #[cfg(feature = "vhost-user")]
        CardPlace::Spec(NicSpec::VhostUser(path)) => {
            report.plan("card", format!("QEMU connects to {} and shares its guest's rings", path.display()));
            free_path(path, report);
        }
        CardPlace::Spec(NicSpec::Tap(spec)) => tap(&spec.name, mtu, report),
        CardPlace::Fd(_) => {
            report.plan("card", place.to_string());
            if let Err(error) = place.claim(inherited) {
                report.error(&error);
            }
        }
    }
}

/// Where we are to listen.
fn free_path(path: &Path, report: &mut Report) {
    report.directory("--nic", path);
    if std::fs::symlink_metadata(path).is_ok_and(|found| !is_socket(&found)) {
        report.problem(format!("--nic: {} exists and is no socket", path.display()));
    }
}

fn tap(name: &TapName, mtu: u16, report: &mut Report) {
    match name.probe() {
        Ok(state) => {
            let how = if state.exists { "" } else { ", which is made, and is gone with this program" };
            report.plan("card", format!("the TAP device {name}{how}"));
            if state.up == Some(false) && !state.privileged {
                report.warn(format!("--nic: {name} is down, and this user may not bring it up: let root do `ip link set {name} up`"));
            }
            if let Some(has) = state.mtu
                && has < mtu
                && !state.privileged
            {
                report.warn(format!("--nic: {name} takes packets of at most {has} bytes, and this user may not change it: let root do `ip link set {name} mtu {mtu}`"));
            }
        }
        Err(error) => {
            report.plan("card", format!("the TAP device {name}"));
            report.problem(format!("--nic: {error}"));
        }
    }
}

fn is_socket(found: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;

    found.file_type().is_socket()
}

fn network(args: &ServeArgs, report: &mut Report) {
    report.plan("network", format!("{}, packets of at most {} bytes", args.subnet.0, args.mtu));
    report.plan("names", args.guest_dns.describe());
    match net_config(args) {
        Ok(net) => {
            if let Err(error) = open_book(args, &net) {
                report.error(&error);
            }
        }
        Err(error) => report.error(&error),
    }
    match &args.lease_file {
        Some(path) => {
            report.plan("leases", format!("kept in {}", path.display()));
            report.directory("--lease-file", path);
        }
        None => report.plan("leases", "not kept"),
    }
    for (name, path) in [("--capture", &args.capture), ("--capture-nic", &args.capture_nic)] {
        if let Some(path) = path {
            report.plan("record", format!("{} ({name})", path.display()));
            report.directory(name, path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_this_machine() {
        for (target, leaves) in [
            ("unix:/run/spice.sock", false),
            ("localhost:5900", false),
            ("127.0.0.2:5900", false),
            ("[::1]:5900", false),
            ("[2001:db8::1]:5900", true),
            ("192.0.2.1:5900", true),
            ("host7:5900", true),
        ] {
            assert_eq!(leaves_this_machine(&target.parse().unwrap()), leaves, "{target}");
        }
    }
}
