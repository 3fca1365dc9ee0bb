//! Our half of SASL: the strongest of SCRAM-SHA-256, SCRAM-SHA-1 and PLAIN that the server offers.
//!
//! Only over TLS. There the server has shown its certificate, so that even PLAIN tells the password to nobody else. In
//! clear a Spice server wants a mechanism that encrypts all that follows, which today is GSSAPI or the broken DIGEST-MD5; we have
//! neither, and give no password away there.

use std::str::from_utf8;

use rsasl::prelude::{Mechname, SASLClient, SASLConfig, Session, State};
use spice_proto::io::{SaslClient, SaslRefusal, SaslStart};
use spice_proto::sasl::Mechanisms;

use crate::server::Credentials;

/// What we speak, best first.
const OURS: [&str; 3] = ["SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"];

/// How often a server may have us hash the password. Each time is a microsecond or less; Cyrus SASL asks for 4096.
const MOST_ITERATIONS: u32 = 1_000_000;

/// Why SASL does not come about.
#[derive(Debug, thiserror::Error)]
enum SaslError {
    #[error("the server asks for a username too: use --username")]
    NoUsername,
    #[error(
        "this is a link in clear, on which no password is sent: give the server's TLS port, as in spice+tls://HOST:PORT"
    )]
    InClear,
    #[error("no mechanism in common: the server offers {}, we have {}", if offered.is_empty() { "none" } else { offered }, OURS.join(", "))]
    NoMechanism { offered: String },
    #[error("expected a password in UTF-8, got other bytes")]
    Password,
    #[error("the server wants the password hashed {0} times, at most {MOST_ITERATIONS} are done for it")]
    Iterations(String),
    #[error("the server goes on where {0} is over")]
    GoesOn(&'static str),
    #[error("the server ended {0} without proof that it knows the password")]
    Unproven(&'static str),
    #[error("the mechanism failed")]
    Mechanism(#[source] SaslRefusal),
}

/// For a server that may want SASL; without TLS or a username there is none.
pub(crate) fn client(credentials: &Credentials, secure: bool) -> Option<Client> {
    let username = credentials.username.clone().filter(|_| secure)?;
    Some(Client { username, password: credentials.password.as_bytes().to_vec(), running: None })
}

/// Why [`client`] gave none.
pub(crate) fn missing(secure: bool) -> SaslRefusal {
    if secure { SaslError::NoUsername } else { SaslError::InClear }.into()
}

pub(crate) struct Client {
    username: String,
    password: Vec<u8>,
    running: Option<Running>,
}

struct Running {
    session: Session,
    mechanism: &'static str,
    /// The mechanism has nothing more to say or to verify.
    finished: bool,
}

impl SaslClient for Client {
    fn start(&mut self, offered: &Mechanisms) -> Result<SaslStart, SaslRefusal> {
        let common = OURS.into_iter().find(|ours| offered.offers(ours.as_bytes()));
        let mechanism = common.ok_or_else(|| SaslError::NoMechanism { offered: offered.to_string() })?;
        let password = from_utf8(&self.password).map_err(|_| SaslError::Password)?;
        let config =
            SASLConfig::with_credentials(None, self.username.clone(), password.to_owned()).map_err(failed)?;
        let name = Mechname::parse(mechanism.as_bytes()).map_err(failed)?;
        let session = SASLClient::new(config).start_suggested(&[name]).map_err(failed)?;
        let first = session.are_we_first();
        let running = self.running.insert(Running { session, mechanism, finished: false });
        let data = if first { running.advance(None)? } else { None };
        tracing::debug!(mechanism, "SASL");
        Ok(SaslStart { mechanism: mechanism.to_owned(), data })
    }

    fn step(&mut self, data: Option<&[u8]>, complete: bool) -> Result<Option<Vec<u8>>, SaslRefusal> {
        let running = self.running.as_mut().ok_or(SaslError::GoesOn("nothing"))?;
        let mechanism = running.mechanism;
        match (running.finished, complete) {
            (true, true) => Ok(None),
            (true, false) => Err(SaslError::GoesOn(mechanism).into()),
            (false, _) => {
                bounded(mechanism, data.unwrap_or_default())?;
                let answer = running.advance(data)?;
                if complete && !running.finished {
                    return Err(SaslError::Unproven(mechanism).into());
                }
                Ok(answer)
            }
        }
    }
}

impl Running {
    fn advance(&mut self, data: Option<&[u8]>) -> Result<Option<Vec<u8>>, SaslRefusal> {
        let mut said = Vec::new();
        match self.session.step(data, &mut said).map_err(failed)? {
            State::Running => {}
            State::Finished(_) => self.finished = true,
        }
        Ok((!said.is_empty()).then_some(said))
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> SaslError {
    SaslError::Mechanism(error.into())
}

/// Looks for SCRAM's `i=` before it is obeyed: four billion rounds would be half an hour.
fn bounded(mechanism: &str, data: &[u8]) -> Result<(), SaslError> {
    if !mechanism.starts_with("SCRAM-") {
        return Ok(());
    }
    for field in data.split(|byte| *byte == b',') {
        if let Some(number) = field.strip_prefix(b"i=") {
            let number = String::from_utf8_lossy(number);
            if !number.parse().is_ok_and(|rounds: u32| (1..=MOST_ITERATIONS).contains(&rounds)) {
                return Err(SaslError::Iterations(number.chars().filter(|c| !c.is_control()).collect()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use spice_proto::ticket::Password;

    use super::*;

    fn credentials(username: Option<&str>) -> Credentials {
        let password = Password::new("sesame").unwrap();
        Credentials { username: username.map(str::to_owned), password }
    }

    fn started(offered: &str) -> Result<(Client, SaslStart), String> {
        let mut client = client(&credentials(Some("user")), true).unwrap();
        match client.start(&Mechanisms::parse(offered.as_bytes())) {
            Ok(start) => Ok((client, start)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// SCRAM's nonce, which may hold anything but a comma.
    fn nonce(start: SaslStart) -> String {
        let first = String::from_utf8(start.data.unwrap()).unwrap();
        first.split_once(",r=").unwrap().1.to_owned()
    }

    #[test]
    fn the_strongest_is_chosen() {
        for (offered, chosen) in [
            (",PLAIN,SCRAM-SHA-1,SCRAM-SHA-256,GSSAPI,", "SCRAM-SHA-256"),
            ("PLAIN,SCRAM-SHA-1", "SCRAM-SHA-1"),
            (",LOGIN,PLAIN,", "PLAIN"),
        ] {
            assert_eq!(started(offered).unwrap().1.mechanism, chosen, "{offered}");
        }
        assert_eq!(started(",PLAIN,").unwrap().1.data.unwrap(), b"\0user\0sesame");
    }

    #[test]
    fn nothing_in_common_names_both() {
        let error = started(",DIGEST-MD5,GSSAPI,").err().unwrap();
        assert!(
            error.contains("DIGEST-MD5, GSSAPI") && error.contains("SCRAM-SHA-256, SCRAM-SHA-1, PLAIN"),
            "{error}"
        );
        assert!(started(",,").err().unwrap().contains("offers none"));
    }

    #[test]
    fn nothing_without_tls_or_a_name() {
        assert!(client(&credentials(Some("user")), false).is_none());
        assert!(client(&credentials(None), true).is_none());
        assert!(missing(false).to_string().contains("in clear"));
        assert!(missing(true).to_string().contains("--username"));
    }

    #[test]
    fn plain_ends_where_it_should() {
        let (mut client, _) = started(",PLAIN,").unwrap();
        assert_eq!(client.step(None, true).unwrap(), None);
        let (mut client, _) = started(",PLAIN,").unwrap();
        assert!(client.step(Some(b"more?"), false).unwrap_err().to_string().contains("goes on"));
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_found_out() {
        for (end, complete) in [(None, true), (Some(&b"v=AAAA"[..]), true), (Some(&b"v=AAAA"[..]), false)] {
            let (mut client, start) = started(",SCRAM-SHA-256,").unwrap();
            let before = nonce(start);
            assert!(client.step(None, true).is_err(), "not even asked");
            let (mut client, start) = started(",SCRAM-SHA-256,").unwrap();
            let nonce = nonce(start);
            assert_ne!(nonce, before, "another each time");
            let challenge = format!("r={nonce}ours,s=QSXCR+Q6sek8bf92,i=4096");
            let proof = client.step(Some(challenge.as_bytes()), false).unwrap().unwrap();
            assert!(proof.starts_with(b"c=biws,r="));
            assert!(client.step(end, complete).is_err(), "{end:?}");
        }
    }

    #[test]
    fn a_server_does_not_keep_us_busy() {
        for rounds in ["4294967295", "1000001", "0", "-1", "99999999999999999999", "x\n"] {
            let (mut client, start) = started(",SCRAM-SHA-1,").unwrap();
            let challenge = format!("r={}ours,s=QSXCR+Q6sek8bf92,i={rounds}", nonce(start));
            let error = client.step(Some(challenge.as_bytes()), false).unwrap_err().to_string();
            assert!(error.contains("hashed"), "{error}");
        }
    }
}
