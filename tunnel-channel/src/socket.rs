//! One socket: what may happen to it in which order (wire-reference 6.8 to 6.10).
//!
//! Both ends run the same machine. A [`Socket`] does no I/O and knows no other socket: each event is one method, which
//! either gives the [`Step`] to take (what to say to the peer, what to tell the owner, whether the id is free) or
//! [`Illegal`], with nothing changed. The channel answers an illegal step of the peer by [`Socket::abort`], and
//! reports an illegal command as the owner's bug.
//!
//! The server's OPEN is one half of a handshake, the client's ACK the other. After it each side says FIN when its own
//! source has ended. The end of a socket takes two messages, whoever starts: the server's CLOSE or the client's CLOSED,
//! and CLOSED_ACK against it. When CLOSE and CLOSED cross, the client answers and the server does not, and that one
//! CLOSED_ACK ends both.

use crate::credit::{CreditOverflow, RecvWindow, SendCredit};
use crate::{ResetCause, Role};

/// Our own direction.
///
/// ```text
/// Open --finish--> Finished
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sending {
    /// DATA may be sent, under credit. TOKEN adds to the credit.
    Open,
    /// Our source has ended. Nothing may be sent; a late TOKEN is dropped. The client leaves out the FIN when the
    /// server's FIN came first and everything was delivered, since its CLOSED follows at once.
    Finished,
}

/// The peer's direction.
///
/// ```text
/// Open --FIN--> Finished
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiving {
    /// DATA may come, under credit, and then FIN.
    Open,
    /// FIN came. Neither DATA nor another FIN may.
    Finished,
}

/// Where a socket stands. A socket whose dance is over is absent from the channel's table.
///
/// ```text
///              SERVER                                                CLIENT
///
///   open: say OPEN                                        OPEN came: tell the owner
///        │                                                     │
///     Opening ──NACK──────────────► free                    Opening ──refuse: say NACK────────► free
///        │  │ ╲                                                │  ╲
///        │  │  reset──► Abandoned ──NACK──► free               │   CLOSE: say CLOSED_ACK─────► free
///        │  │               │                                accept: say OPEN_ACK
///    OPEN_ACK │          OPEN_ACK: say CLOSE                   │
///        │  CLOSED: ack     └────────────┐                     │
///        │    └──► free                  │                     │
///      Open{sending,receiving}           │                   Open{sending,receiving}
///        │ │ │ │                         │                     │ │ │
///        │ │ │ └─reset: say CLOSE────► Closing                 │ │ └─reset: say RESET or CLOSED──► Closing
///        │ │ │                           │ CLOSED_ACK──► free  │ │                                  │  │
///        │ │ └─CLOSED, we sent no FIN: say CLOSED_ACK─► free   │ └─CLOSE, no FIN came:   CLOSED_ACK  CLOSE:
///        │ │                                                   │   say CLOSED_ACK──► free   └► free  say CLOSED_ACK
///        │ └─CLOSED, we sent FIN──► PeerClosed                 │                                        └► free
///        │                            │ close, reset:          ├─CLOSE, FIN came──► PeerClosed
///        │                            │ say CLOSED_ACK         │                      │ close, reset: say CLOSED_ACK
///     close, both ended               └──► free                │                      └──► free
///        └──► Released ──CLOSED: say CLOSED_ACK──► free     close, both ended: say CLOSED ──► Closing (as above)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// OPEN went over. The client may accept or refuse, the server may give up; no byte may flow.
    Opening,
    /// Server only: the owner gave up before the client answered, and is gone. Saying CLOSE now would reach a client
    /// that has no socket yet, so the answer is awaited. Everything but the answer and CLOSED is dropped.
    Abandoned,
    /// Both sides have the socket. Everything may happen that the two halves allow.
    Open { sending: Sending, receiving: Receiving },
    /// The peer is through with the socket after all our side said it would send: the server got CLOSED after its own
    /// FIN, the client got CLOSE after the server's FIN. The owner delivers what waits and then closes. Nothing may be
    /// sent any more, and late messages are dropped.
    PeerClosed,
    /// Server only: both directions ended and the owner is gone. The client's CLOSED must still come.
    Released,
    /// We said CLOSE, CLOSED or RESET, and the owner is gone. Only CLOSED_ACK ends it (for the client also CLOSE, which
    /// crossed ours); everything else was sent before the peer heard us, and is dropped.
    Closing,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Opening => "opening",
            State::Abandoned => "abandoned",
            State::Open { sending: Sending::Open, receiving: Receiving::Open } => "open",
            State::Open { sending: Sending::Finished, receiving: Receiving::Open } => "open, we finished",
            State::Open { sending: Sending::Open, receiving: Receiving::Finished } => {
                "open, the peer finished"
            }
            State::Open { sending: Sending::Finished, receiving: Receiving::Finished } => {
                "open, both finished"
            }
            State::PeerClosed => "closed by the peer",
            State::Released => "released",
            State::Closing => "closing",
        }
    }
}

/// A message to the peer about one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    /// Client: OPEN_ACK with the window.
    OpenAck,
    /// Client: OPEN_NACK.
    OpenNack,
    Fin,
    /// Server: CLOSE. Client: CLOSED.
    Close,
    /// Server: CLOSE. Client: SOCKET_RESET where the server knows it, else CLOSED.
    Reset,
    ClosedAck,
}

/// What the owner must hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    Accepted,
    Refused,
    Finished,
    PeerClosed,
    Reset(ResetCause),
}

/// What follows from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the peer or the owner must hear of it, and the id may be free"]
pub(crate) struct Step {
    pub(crate) say: Option<Say>,
    pub(crate) tell: Option<Tell>,
    pub(crate) fate: Fate,
}

/// Whether the socket goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Stays,
    /// The dance is over and the id is free.
    Freed,
}

impl Step {
    const NOTHING: Step = Step { say: None, tell: None, fate: Fate::Stays };

    fn say(say: Say) -> Self {
        Step { say: Some(say), ..Self::NOTHING }
    }

    fn tell(tell: Tell) -> Self {
        Step { tell: Some(tell), ..Self::NOTHING }
    }

    fn freed() -> Self {
        Step { fate: Fate::Freed, ..Self::NOTHING }
    }

    fn and_tell(self, tell: Tell) -> Self {
        Step { tell: Some(tell), ..self }
    }

    fn and_freed(self) -> Self {
        Step { fate: Fate::Freed, ..self }
    }
}

/// An event that the state does not allow. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Illegal {
    pub(crate) state: &'static str,
}

type Result<T = Step> = std::result::Result<T, Illegal>;

/// What becomes of a DATA message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The owner gets it.
    Deliver,
    /// It crossed the end of the socket and is dropped.
    Dropped,
}

/// One socket of either role.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Socket {
    state: State,
    /// What we may send. Zero while opening at the server.
    credit: SendCredit,
    /// What the peer may send.
    window: RecvWindow,
}

impl Socket {
    /// `credit` is what the peer's OPEN granted; a server passes 0, its grant comes with OPEN_ACK. `granted` is what we
    /// grant the peer.
    pub(crate) fn opening(credit: u32, granted: u32) -> Self {
        Socket { state: State::Opening, credit: SendCredit::new(credit), window: RecvWindow::new(granted) }
    }

    pub(crate) fn window(&self) -> &RecvWindow {
        &self.window
    }

    pub(crate) fn window_mut(&mut self) -> &mut RecvWindow {
        &mut self.window
    }

    #[cfg(test)]
    pub(crate) fn state_name(&self) -> &'static str {
        self.state.name()
    }

    /// Whether the owner still holds the id, so that it may command and must be told.
    pub(crate) fn is_owned(&self) -> bool {
        match self.state {
            State::Opening | State::Open { .. } | State::PeerClosed => true,
            State::Abandoned | State::Released | State::Closing => false,
        }
    }

    /// Messages that may be sent now.
    pub(crate) fn sendable(&self) -> u32 {
        match self.state {
            State::Open { sending: Sending::Open, .. } => self.credit.available(),
            State::Open { sending: Sending::Finished, .. }
            | State::Opening
            | State::Abandoned
            | State::PeerClosed
            | State::Released
            | State::Closing => 0,
        }
    }

    /// Whether more DATA can come, so that returned credit is of any use to the peer.
    pub(crate) fn wants_credit(&self) -> bool {
        match self.state {
            State::Open { receiving: Receiving::Open, .. } => true,
            State::Open { receiving: Receiving::Finished, .. }
            | State::Opening
            | State::Abandoned
            | State::PeerClosed
            | State::Released
            | State::Closing => false,
        }
    }

    /// What its window has grown by, as long as that lets the peer send more.
    pub(crate) fn grown(&self) -> u32 {
        if self.wants_credit() { self.window.grown() } else { 0 }
    }

    /// One DATA message goes out. INVARIANT: [`Socket::sendable`] was not 0.
    pub(crate) fn sent(&mut self) {
        let had = self.credit.charge();
        debug_assert!(had, "the channel sends under credit only");
    }

    // ---- messages of the peer ----

    /// OPEN_ACK, to the server.
    pub(crate) fn on_open_ack(&mut self, tokens: u32) -> Result {
        match self.state {
            State::Opening => {
                self.credit = SendCredit::new(tokens);
                self.set_state(State::Open { sending: Sending::Open, receiving: Receiving::Open });
                Ok(Step::tell(Tell::Accepted))
            }
            State::Abandoned => {
                self.set_state(State::Closing);
                Ok(Step::say(Say::Close))
            }
            State::Open { .. } | State::PeerClosed | State::Released | State::Closing => self.illegal(),
        }
    }

    /// OPEN_NACK, to the server.
    pub(crate) fn on_open_nack(&mut self) -> Result {
        match self.state {
            State::Opening => Ok(Step::freed().and_tell(Tell::Refused)),
            State::Abandoned => Ok(Step::freed()),
            State::Open { .. } | State::PeerClosed | State::Released | State::Closing => self.illegal(),
        }
    }

    /// DATA. Credit is charged only where the owner gets it.
    pub(crate) fn on_data(&mut self, role: Role) -> Result<Arrival> {
        match (self.state, role) {
            (State::Open { receiving: Receiving::Open, .. }, Role::Server | Role::Client) => {
                Ok(Arrival::Deliver)
            }
            (State::Abandoned | State::Closing, Role::Server | Role::Client)
            | (State::PeerClosed, Role::Client) => Ok(Arrival::Dropped),
            // CLOSED is the client's last word about its data, whereas messages may cross behind the server's CLOSE.
            (State::PeerClosed, Role::Server)
            | (State::Opening | State::Released, Role::Server | Role::Client)
            | (State::Open { receiving: Receiving::Finished, .. }, Role::Server | Role::Client) => {
                self.illegal()
            }
        }
    }

    /// TOKEN. `Ok(Ok(true))`: the owner had no credit and has some now.
    pub(crate) fn on_token(
        &mut self,
        role: Role,
        tokens: u32,
    ) -> Result<std::result::Result<bool, CreditOverflow>> {
        match (self.state, role) {
            (State::Open { sending: Sending::Open, .. }, Role::Server | Role::Client) => {
                Ok(self.credit.add(tokens))
            }
            // The grant of OPEN_ACK is going to replace it.
            (State::Opening, Role::Server)
            | (
                State::Open { sending: Sending::Finished, .. }
                | State::Abandoned
                | State::PeerClosed
                | State::Released
                | State::Closing,
                Role::Server | Role::Client,
            ) => Ok(Ok(false)),
            (State::Opening, Role::Client) => self.illegal(),
        }
    }

    /// FIN.
    pub(crate) fn on_fin(&mut self) -> Result {
        match self.state {
            State::Open { sending, receiving: Receiving::Open } => {
                self.set_state(State::Open { sending, receiving: Receiving::Finished });
                Ok(Step::tell(Tell::Finished))
            }
            State::PeerClosed | State::Closing => Ok(Step::NOTHING),
            State::Open { receiving: Receiving::Finished, .. }
            | State::Opening
            | State::Abandoned
            | State::Released => self.illegal(),
        }
    }

    /// CLOSED, to the server: the client's end is gone. A clean end after our FIN, an abort before it.
    pub(crate) fn on_closed(&mut self) -> Result {
        match self.state {
            State::Open { sending: Sending::Finished, receiving } => {
                self.set_state(State::PeerClosed);
                Ok(match receiving {
                    Receiving::Open => Step::tell(Tell::Finished),
                    Receiving::Finished => Step::NOTHING,
                })
            }
            State::Opening | State::Open { sending: Sending::Open, .. } => {
                Ok(Step::say(Say::ClosedAck).and_freed().and_tell(Tell::Reset(ResetCause::Peer)))
            }
            State::Abandoned | State::Released => Ok(Step::say(Say::ClosedAck).and_freed()),
            // It crossed our CLOSE, which the client answers; or it is a useless repetition.
            State::Closing | State::PeerClosed => Ok(Step::NOTHING),
        }
    }

    /// SOCKET_RESET, to the server: the client's end was aborted.
    pub(crate) fn on_reset(&mut self) -> Result {
        match self.state {
            State::Opening | State::Open { .. } => {
                Ok(Step::say(Say::ClosedAck).and_freed().and_tell(Tell::Reset(ResetCause::Peer)))
            }
            State::Abandoned | State::Released => Ok(Step::say(Say::ClosedAck).and_freed()),
            State::Closing | State::PeerClosed => Ok(Step::NOTHING),
        }
    }

    /// CLOSE, to the client: the guest's end is gone. A clean end after the guest's FIN, an abort before it.
    pub(crate) fn on_close(&mut self) -> Result {
        match self.state {
            State::Open { receiving: Receiving::Finished, .. } => {
                self.set_state(State::PeerClosed);
                Ok(Step::tell(Tell::PeerClosed))
            }
            State::Opening | State::Open { receiving: Receiving::Open, .. } => {
                Ok(Step::say(Say::ClosedAck).and_freed().and_tell(Tell::Reset(ResetCause::Peer)))
            }
            // It crossed our CLOSED, which the server is not going to answer.
            State::Closing => Ok(Step::say(Say::ClosedAck).and_freed()),
            State::PeerClosed | State::Abandoned | State::Released => self.illegal(),
        }
    }

    /// CLOSED_ACK.
    pub(crate) fn on_closed_ack(&mut self) -> Result {
        match self.state {
            State::Closing => Ok(Step::freed()),
            State::Opening | State::Abandoned | State::Open { .. } | State::PeerClosed | State::Released => {
                self.illegal()
            }
        }
    }

    /// We end the socket and the owner does not know yet.
    pub(crate) fn abort(&mut self, role: Role, cause: ResetCause) -> Step {
        let told = self.is_owned();
        let step = match (self.state, role) {
            (State::Opening | State::Open { .. } | State::PeerClosed, Role::Server | Role::Client) => {
                self.end(role)
            }
            (State::Released, Role::Server | Role::Client) => {
                self.set_state(State::Closing);
                Step::say(Say::Close)
            }
            (State::Abandoned | State::Closing, Role::Server | Role::Client) => Step::NOTHING,
        };
        if told { step.and_tell(Tell::Reset(cause)) } else { step }
    }

    // ---- commands of the owner ----

    /// Client: the service answered.
    pub(crate) fn accept(&mut self) -> Result {
        match self.state {
            State::Opening => {
                self.set_state(State::Open { sending: Sending::Open, receiving: Receiving::Open });
                Ok(Step::say(Say::OpenAck))
            }
            State::Abandoned | State::Open { .. } | State::PeerClosed | State::Released | State::Closing => {
                self.illegal()
            }
        }
    }

    /// Client: the service did not answer.
    pub(crate) fn refuse(&mut self) -> Result {
        match self.state {
            State::Opening => Ok(Step::say(Say::OpenNack).and_freed()),
            State::Abandoned | State::Open { .. } | State::PeerClosed | State::Released | State::Closing => {
                self.illegal()
            }
        }
    }

    /// Our source ended.
    pub(crate) fn finish(&mut self, role: Role) -> Result {
        match self.state {
            State::Open { sending: Sending::Open, receiving } => {
                self.set_state(State::Open { sending: Sending::Finished, receiving });
                let close_follows = role == Role::Client
                    && receiving == Receiving::Finished
                    && self.window.undelivered() == 0;
                Ok(if close_follows { Step::NOTHING } else { Step::say(Say::Fin) })
            }
            // Nobody is left to hear it.
            State::PeerClosed => Ok(Step::NOTHING),
            State::Open { sending: Sending::Finished, .. }
            | State::Opening
            | State::Abandoned
            | State::Released
            | State::Closing => self.illegal(),
        }
    }

    /// Both directions ended and everything was delivered. Where they have not, this is a reset.
    pub(crate) fn close(&mut self, role: Role) -> Result {
        match (self.state, role) {
            (State::Open { sending: Sending::Finished, receiving: Receiving::Finished }, Role::Server) => {
                self.set_state(State::Released);
                Ok(Step::NOTHING)
            }
            (State::Open { sending: Sending::Finished, receiving: Receiving::Finished }, Role::Client) => {
                self.set_state(State::Closing);
                Ok(Step::say(Say::Close))
            }
            (
                State::Open { sending: Sending::Open, .. }
                | State::Open { receiving: Receiving::Open, .. }
                | State::Opening
                | State::PeerClosed
                | State::Abandoned
                | State::Released
                | State::Closing,
                Role::Server | Role::Client,
            ) => self.reset(role),
        }
    }

    /// The owner aborts.
    pub(crate) fn reset(&mut self, role: Role) -> Result {
        match self.state {
            State::Opening | State::Open { .. } | State::PeerClosed => Ok(self.end(role)),
            State::Abandoned | State::Released | State::Closing => self.illegal(),
        }
    }

    /// Ends a socket that the owner holds, as an abort.
    fn end(&mut self, role: Role) -> Step {
        match (self.state, role) {
            (State::Opening, Role::Server) => {
                self.set_state(State::Abandoned);
                Step::NOTHING
            }
            (State::Opening, Role::Client) => Step::say(Say::OpenNack).and_freed(),
            (State::PeerClosed, Role::Server | Role::Client) => Step::say(Say::ClosedAck).and_freed(),
            (
                State::Open { .. } | State::Abandoned | State::Released | State::Closing,
                Role::Server | Role::Client,
            ) => {
                self.set_state(State::Closing);
                Step::say(Say::Reset)
            }
        }
    }

    fn illegal<T>(&self) -> Result<T> {
        Err(Illegal { state: self.state.name() })
    }

    fn set_state(&mut self, next: State) {
        tracing::trace!(from = self.state.name(), to = next.name(), "socket state");
        self.state = next;
    }
}
