//! Drives the link stage over a tokio stream, with a deadline for every step.
//!
//! Nothing is read past the link stage: what follows is still in the stream, and [`Linked::leftover`] is empty.

use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout_at;

use crate::handshake::{
    ClientHandshake, ClientLink, ClientNeeds, Deadlines, HandshakeError, Linked, OnSasl, ServerHandshake,
    ServerNeeds, Step,
};
use crate::link::{CommonCaps, LinkError, LinkMess, Welcome};
use crate::sasl::Mechanisms;
use crate::ticket::{Password, SealError, TicketKey, Undecryptable, seal};

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The peer, or we, ended it.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The connection failed.
    #[error("the connection failed in the link stage: {0}")]
    Io(#[from] std::io::Error),
    /// The server's key is not fit for a ticket.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Our own half of SASL gave up.
    #[error("cannot authenticate by SASL")]
    Sasl(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A client's half of SASL: what a library for its mechanisms does.
pub trait SaslClient: Send {
    /// Chooses one of the mechanisms that the server offers, and gives its name and first data.
    ///
    /// # Errors
    /// That none of them will do.
    fn start(&mut self, offered: &Mechanisms) -> Result<SaslStart, SaslRefusal>;

    /// Answers the server's data. With `complete` there is nothing to be answered any more, only to be verified.
    ///
    /// # Errors
    /// That the server is not what it should be.
    fn step(&mut self, data: Option<&[u8]>, complete: bool) -> Result<Option<Vec<u8>>, SaslRefusal>;
}

/// How an exchange begins.
#[derive(Clone, PartialEq, Eq)]
pub struct SaslStart {
    /// Name of the mechanism.
    pub mechanism: String,
    /// Its first data, if the client is the one to begin.
    pub data: Option<Vec<u8>>,
}

/// Why a [`SaslClient`] gives up.
pub type SaslRefusal = Box<dyn std::error::Error + Send + Sync>;

/// How the server answers a link message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The channel is there. Put the [`TicketKey`]'s public half in.
    Welcome(Welcome),
    /// Refuse with a code.
    Refuse(LinkError),
    /// Close without a word, as libspice-server does for a channel that it has not.
    Drop,
}

/// Links as a client, with a ticket.
///
/// Not cancel safe: a link that was cancelled half-way is spoilt; drop the stream.
pub async fn connect<S>(
    stream: &mut S,
    link: ClientLink,
    password: &Password,
    deadlines: Deadlines,
) -> Result<Linked, IoError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connect_with(stream, link, password, None, deadlines).await
}

/// Links as a client, with SASL where the server offers it and `sasl` is given, else with a ticket.
///
/// Only for a stream that is protected by TLS: the password may pass as it is. Not cancel safe, as [`connect`].
pub async fn connect_with<S>(
    stream: &mut S,
    mut link: ClientLink,
    password: &Password,
    mut sasl: Option<&mut dyn SaslClient>,
    deadlines: Deadlines,
) -> Result<Linked, IoError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    link.common_caps.set(CommonCaps::AUTH_SASL, sasl.is_some());
    let mut machine = ClientHandshake::new(now(), deadlines, link);
    loop {
        flush(stream, &mut machine).await?;
        match machine.needs() {
            ClientNeeds::Bytes(wanted) => receive(stream, &mut machine, wanted).await?,
            ClientNeeds::Ticket(key) => {
                let sealed = seal(key, password)?;
                machine.ticket(now(), &sealed)?;
            }
            ClientNeeds::SaslStart(offered) => {
                let sasl = sasl.as_mut().ok_or(HandshakeError::OutOfStep(Step::SaslAnswer))?;
                let SaslStart { mechanism, data } = sasl.start(offered).map_err(IoError::Sasl)?;
                machine.sasl_start(now(), &mechanism, data.as_deref())?;
            }
            ClientNeeds::SaslStep { data, complete } => {
                let sasl = sasl.as_mut().ok_or(HandshakeError::OutOfStep(Step::SaslAnswer))?;
                let answer = sasl.step(data, complete).map_err(IoError::Sasl)?;
                if complete {
                    machine.sasl_agree(now())?;
                } else {
                    machine.sasl_step(now(), answer.as_deref())?;
                }
            }
            ClientNeeds::Done => return Ok(machine.finish()?),
        }
    }
}

/// Links as a server. `decide` answers the link message; `verdict` gets the opened ticket, and an undecryptable one
/// too, so that both can take the same time and end in the same [`LinkError::PermissionDenied`].
///
/// Not cancel safe, as [`connect`].
pub async fn accept<S>(
    stream: &mut S,
    key: &TicketKey,
    deadlines: Deadlines,
    decide: impl FnOnce(&LinkMess) -> Decision,
    verdict: impl AsyncFnOnce(Result<Password, Undecryptable>) -> Result<(), LinkError>,
) -> Result<Linked, IoError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut machine = ServerHandshake::new(now(), deadlines, OnSasl::Refuse);
    let mut decide = Some(decide);
    let mut verdict = Some(verdict);
    loop {
        advance(stream, &mut machine).await?;
        match machine.needs() {
            ServerNeeds::Decision(mess) => match decide.take().map(|decide| decide(mess)) {
                Some(Decision::Welcome(welcome)) => machine.welcome(now(), welcome)?,
                Some(Decision::Refuse(error)) => machine.refuse(error)?,
                Some(Decision::Drop) | None => machine.drop_silently()?,
            },
            ServerNeeds::Verdict(ticket) => {
                let opened = key.open(ticket);
                let (at, step) = machine.poll_timeout().ok_or(HandshakeError::OutOfStep(Step::Verdict))?;
                let answer = match verdict.take() {
                    Some(verdict) => timeout_at(at.into(), verdict(opened))
                        .await
                        .map_err(|_| IoError::Handshake(HandshakeError::Late(step)))?,
                    None => Err(LinkError::PermissionDenied),
                };
                match answer {
                    Ok(()) => machine.permit()?,
                    Err(error) => machine.refuse(error)?,
                }
            }
            ServerNeeds::Sasl => machine.refuse_mechanism()?,
            ServerNeeds::Bytes(_) => {}
            ServerNeeds::Done => return Ok(machine.finish()?),
        }
    }
}

/// Brings a server's machine to its next question or its end: writes what it has to say, reads what it wants.
///
/// # Errors
/// Also when the client is at fault; what it is to be told has been sent by then.
///
/// Not cancel safe, as [`connect`].
pub async fn advance<S>(stream: &mut S, machine: &mut ServerHandshake) -> Result<(), IoError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        flush(stream, machine).await?;
        match machine.needs() {
            ServerNeeds::Bytes(wanted) => {
                if let Err(error) = receive(stream, machine, wanted).await {
                    // The peer is told why, if it still listens; its own fault is the better report.
                    let _ = flush(stream, machine).await;
                    return Err(error);
                }
            }
            ServerNeeds::Decision(_) | ServerNeeds::Sasl | ServerNeeds::Verdict(_) | ServerNeeds::Done => {
                return Ok(());
            }
        }
    }
}

/// What the two machines have in common for a shell.
trait Machine {
    fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Result<usize, HandshakeError>;
    fn handle_eof(&mut self) -> HandshakeError;
    fn poll_timeout(&self) -> Option<(Instant, Step)>;
    fn handle_timeout(&mut self, now: Instant) -> Result<(), HandshakeError>;
    fn poll_transmit(&self) -> &[u8];
    fn sent(&mut self, n: usize);
}

macro_rules! machine {
    ($type:ty) => {
        impl Machine for $type {
            fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Result<usize, HandshakeError> {
                self.handle_bytes(now, bytes)
            }
            fn handle_eof(&mut self) -> HandshakeError {
                self.handle_eof()
            }
            fn poll_timeout(&self) -> Option<(Instant, Step)> {
                self.poll_timeout()
            }
            fn handle_timeout(&mut self, now: Instant) -> Result<(), HandshakeError> {
                self.handle_timeout(now)
            }
            fn poll_transmit(&self) -> &[u8] {
                self.poll_transmit()
            }
            fn sent(&mut self, n: usize) {
                self.sent(n);
            }
        }
    };
}
machine!(ServerHandshake);
machine!(ClientHandshake);

async fn flush<S: AsyncWrite + Unpin>(stream: &mut S, machine: &mut impl Machine) -> Result<(), IoError> {
    while !machine.poll_transmit().is_empty() {
        let wrote = deadline(machine, stream.write(machine.poll_transmit())).await;
        match wrote {
            Some(Ok(0)) => return Err(machine.handle_eof().into()),
            Some(Ok(n)) => machine.sent(n),
            Some(Err(error)) => return Err(error.into()),
            None => late(machine)?,
        }
    }
    match deadline(machine, stream.flush()).await {
        Some(flushed) => Ok(flushed?),
        None => late(machine),
    }
}

async fn receive<S: AsyncRead + Unpin>(
    stream: &mut S,
    machine: &mut impl Machine,
    wanted: usize,
) -> Result<(), IoError> {
    let mut buffer = [0; 512];
    let room = wanted.min(buffer.len());
    let (room, _) = buffer.split_at_mut_checked(room).unwrap_or_default();
    match deadline(machine, stream.read(room)).await {
        Some(Ok(0)) => Err(machine.handle_eof().into()),
        Some(Ok(n)) => {
            machine.handle_bytes(now(), room.get(..n).unwrap_or(&[]))?;
            Ok(())
        }
        Some(Err(error)) => Err(error.into()),
        None => late(machine),
    }
}

/// `None` when the machine's deadline passed first. With the link stage over there is none.
async fn deadline<T>(machine: &impl Machine, work: impl Future<Output = T>) -> Option<T> {
    match machine.poll_timeout() {
        Some((at, _)) => timeout_at(at.into(), work).await.ok(),
        None => Some(work.await),
    }
}

fn late(machine: &mut impl Machine) -> Result<(), IoError> {
    Ok(machine.handle_timeout(now())?)
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::duplex;
    use tokio::time::Instant;

    use super::*;
    use crate::link::{LinkVersion, TICKET_LEN};

    fn link() -> ClientLink {
        ClientLink {
            version: LinkVersion::V2,
            channel_type: 7,
            channel_id: 0,
            session_id: 0,
            common_caps: CommonCaps::OURS,
            channel_caps: vec![7],
        }
    }

    fn welcome(key: &TicketKey) -> Decision {
        Decision::Welcome(Welcome {
            public_key: Box::new(*key.public_der()),
            common_caps: vec![CommonCaps::OURS.bits()],
            channel_caps: vec![5],
        })
    }

    fn password(text: &str) -> Password {
        Password::new(text).unwrap()
    }

    async fn both(given: &str) -> (Result<Linked, IoError>, Result<Linked, IoError>) {
        let key = TicketKey::generate().unwrap();
        // Small, so that every message takes several writes.
        let (mut near, mut far) = duplex(13);
        let wanted = password("sesame");
        let given = password(given);
        let check = async |opened: Result<Password, Undecryptable>| match opened {
            Ok(opened) if opened.matches(&wanted) => Ok(()),
            Ok(_) | Err(Undecryptable) => Err(LinkError::PermissionDenied),
        };
        tokio::join!(
            connect(&mut near, link(), &given, Deadlines::default()),
            accept(&mut far, &key, Deadlines::default(), |_| welcome(&key), check)
        )
    }

    #[tokio::test]
    async fn a_right_ticket_links() {
        let (client, server) = both("sesame").await;
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!((client.peer_channel_caps, server.peer_channel_caps), (vec![5], vec![7]));
        assert_eq!(client.header, server.header);
        assert!(client.leftover.is_empty() && server.leftover.is_empty());
    }

    #[tokio::test]
    async fn a_wrong_ticket_does_not() {
        let (client, server) = both("other").await;
        let denied = LinkError::PermissionDenied;
        assert!(matches!(client, Err(IoError::Handshake(HandshakeError::Refused(error))) if error == denied));
        assert!(matches!(server, Err(IoError::Handshake(HandshakeError::Denied(error))) if error == denied));
    }

    #[tokio::test]
    async fn what_does_not_decrypt_is_told_as_a_wrong_ticket() {
        let key = TicketKey::generate().unwrap();
        let (mut near, mut far) = duplex(4096);
        let client = async {
            let mut machine = ClientHandshake::new(now(), Deadlines::default(), link());
            loop {
                flush(&mut near, &mut machine).await.unwrap();
                match machine.needs() {
                    ClientNeeds::Bytes(wanted) => {
                        if let Err(error) = receive(&mut near, &mut machine, wanted).await {
                            return error;
                        }
                    }
                    ClientNeeds::Ticket(_) => machine.ticket(now(), &[0x5a; TICKET_LEN]).unwrap(),
                    other
                    @ (ClientNeeds::SaslStart(_) | ClientNeeds::SaslStep { .. } | ClientNeeds::Done) => {
                        panic!("{other:?}")
                    }
                }
            }
        };
        let check = async |opened: Result<Password, Undecryptable>| {
            assert_eq!(opened, Err(Undecryptable));
            Err(LinkError::PermissionDenied)
        };
        let (client, _) =
            tokio::join!(client, accept(&mut far, &key, Deadlines::default(), |_| welcome(&key), check));
        let denied = HandshakeError::Refused(LinkError::PermissionDenied);
        assert!(matches!(client, IoError::Handshake(error) if error == denied));
    }

    #[tokio::test]
    async fn decisions_reach_the_client() {
        for (decision, expected) in [
            (Decision::Refuse(LinkError::NeedSecured), HandshakeError::Refused(LinkError::NeedSecured)),
            (Decision::Drop, HandshakeError::Closed(Step::ReplyHeader)),
        ] {
            let key = TicketKey::generate().unwrap();
            let nothing = Password::empty();
            let (mut near, far) = duplex(4096);
            let server = async move {
                let mut far = far;
                let never = async |_| panic!("no ticket was due");
                accept(&mut far, &key, Deadlines::default(), |_| decision, never).await
            };
            let (client, server) =
                tokio::join!(connect(&mut near, link(), &nothing, Deadlines::default()), server);
            assert!(server.is_err());
            assert!(matches!(client, Err(IoError::Handshake(error)) if error == expected), "{expected}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_in_a_deadline_at_both_ends() {
        let started = Instant::now();
        let (mut near, _far) = duplex(4096);
        let outcome = connect(&mut near, link(), &Password::empty(), Deadlines::default()).await;
        assert!(matches!(outcome, Err(IoError::Handshake(HandshakeError::Late(Step::ReplyHeader)))));
        assert_eq!(started.elapsed().as_secs(), 10);

        let key = TicketKey::generate().unwrap();
        let (mut near, _far) = duplex(4096);
        let never = async |_| panic!("no ticket came");
        let outcome = accept(&mut near, &key, Deadlines::default(), |_| Decision::Drop, never).await;
        assert!(matches!(outcome, Err(IoError::Handshake(HandshakeError::Late(Step::LinkHeader)))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_late_too() {
        let (mut near, _far) = duplex(5);
        let outcome = connect(&mut near, link(), &Password::empty(), Deadlines::default()).await;
        assert!(matches!(outcome, Err(IoError::Handshake(HandshakeError::Late(Step::ReplyHeader)))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_verdict_that_takes_too_long_is_given_up() {
        let key = TicketKey::generate().unwrap();
        let (mut near, mut far) = duplex(4096);
        let slow = async |_| {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Ok(())
        };
        let password = Password::empty();
        let (client, server) = tokio::join!(
            connect(&mut near, link(), &password, Deadlines::default()),
            accept(&mut far, &key, Deadlines::default(), |_| welcome(&key), slow)
        );
        assert!(matches!(client, Err(IoError::Handshake(HandshakeError::Late(Step::LinkResult)))));
        assert!(matches!(server, Err(IoError::Handshake(HandshakeError::Late(Step::Verdict)))));
    }
}
