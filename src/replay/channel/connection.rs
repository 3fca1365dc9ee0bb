//! A tunnelled connection in a replay: what was captured of it, what today's channel made of it, and what its owner has
//! still to do.

use std::collections::VecDeque;
use std::time::Duration;

use spice_proto::tunnel::{ServiceId, SocketId};

use crate::replay::story::{Matcher, Told};

/// A connection, from its SOCKET_OPEN in the capture until its id is free there.
#[derive(Debug)]
pub(super) struct Connection {
    /// Which SOCKET_OPEN of the channel, from 0.
    pub(super) number: u64,
    /// Its socket id in the capture.
    pub(super) socket: SocketId,
    pub(super) service: ServiceId,
    /// Its socket id in today's channel, until that is free there.
    pub(super) id: Option<SocketId>,
    pub(super) phase: Phase,
    pub(super) captured: Told,
    pub(super) today: Told,
    pub(super) matcher: Matcher,
    pub(super) out: Out,
    pub(super) into: Into,
    /// The played end said CLOSE, CLOSED or RESET in the capture, be it that it crossed the peer's.
    pub(super) own_close_said: bool,
    /// Today's channel ended it for a fault of the peer.
    pub(super) refusal: Option<Refusal>,
    /// A difference was reported from which others would follow.
    pub(super) given_up: bool,
}

/// How far today's socket is, as its owner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not answered.
    Opening,
    /// Both sides have it.
    Open,
    /// The peer ended it after the owner's FIN; the owner has not yet.
    PeerClosed,
    /// Out of the owner's hands.
    Gone,
}

/// What the owner sends.
#[derive(Debug, Default)]
pub(super) struct Out {
    /// Captured messages that wait for credit.
    pub(super) queue: VecDeque<Vec<u8>>,
    /// FIN is to follow.
    pub(super) fin_wanted: bool,
    /// It was commanded.
    pub(super) finished: bool,
    /// Tokens that the captured peer granted.
    pub(super) granted: u64,
    /// Messages that the capture shows.
    pub(super) captured: u64,
    /// Those among them for which there was no token.
    pub(super) overruns: u64,
    /// Messages that today's channel sent.
    pub(super) sent: u64,
}

/// What the owner receives.
#[derive(Debug, Default)]
pub(super) struct Into {
    /// Tokens that the captured end granted.
    pub(super) granted_captured: u64,
    /// Those of them that it returned by TOKEN.
    pub(super) returned: u64,
    /// Messages that the capture shows.
    pub(super) captured: u64,
    /// Tokens that today's channel granted.
    pub(super) granted: u64,
    /// The first of them.
    pub(super) window: u64,
    /// Messages that today's channel got.
    pub(super) fed: u64,
    /// Those that it gave to its owner.
    pub(super) taken: u64,
    /// Those that the owner reported as delivered.
    pub(super) delivered: u64,
}

impl Into {
    /// Messages that the peer may send today.
    pub(super) fn credit(&self) -> u64 {
        self.granted.saturating_sub(self.fed)
    }

    /// Messages that it might send when they were captured.
    pub(super) fn credit_captured(&self) -> u64 {
        self.granted_captured.saturating_sub(self.captured)
    }

    pub(super) fn undelivered(&self) -> u64 {
        self.taken.saturating_sub(self.delivered)
    }
}

/// Today's channel found a fault of the peer.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) time: Duration,
    pub(super) text: String,
    pub(super) credit: bool,
    /// The captured end ended the socket as well.
    pub(super) agreed: bool,
}

impl Connection {
    pub(super) fn new(number: u64, socket: SocketId, service: ServiceId, id: SocketId) -> Self {
        Connection {
            number,
            socket,
            service,
            id: Some(id),
            phase: Phase::Opening,
            captured: Told::default(),
            today: Told::default(),
            matcher: Matcher::default(),
            out: Out::default(),
            into: Into::default(),
            own_close_said: false,
            refusal: None,
            given_up: false,
        }
    }

    /// Whether what the played end says in the capture still counts. Behind the peer's end it crossed that, and reached
    /// nobody.
    pub(super) fn own_counts(&self) -> bool {
        self.captured.peer_end.is_none()
    }

    /// The same for the peer.
    pub(super) fn peer_counts(&self) -> bool {
        self.captured.own_end.is_none() && self.captured.peer_end.is_none()
    }
}
