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
use crate::link::{LinkError, LinkMess, Welcome};
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
}

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
    let mut machine = ClientHandshake::new(now(), deadlines, link);
    loop {
        flush(stream, &mut machine).await?;
        match machine.needs() {
            ClientNeeds::Bytes(wanted) => receive(stream, &mut machine, wanted).await?,
            ClientNeeds::Ticket(key) => {
                let sealed = seal(key, password)?;
                machine.ticket(now(), &sealed)?;
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
    stream.flush().await?;
    Ok(())
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
