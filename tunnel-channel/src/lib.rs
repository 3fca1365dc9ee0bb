//! The Spice tunnel channel (type 7), both ends, without I/O.
//!
//! One machine, [`Channel`], with the parameter [`Role`]. Frames and the time go in, events, bytes and the next
//! deadline come out; whoever owns it does the reading, the writing and the waiting.
//!
//! | question | module |
//! | --- | --- |
//! | what can be commanded | `channel` |
//! | how do messages go out | `outbound` |
//! | what does a message of the peer do | `inbound` |
//! | what may happen to a socket, in which order | `socket` |
//! | who may send how much | `credit` |
//! | when may it be more | `growth` |
//! | which ids are in use | `table` |
//! | whose turn is it to send | `turns` |
//! | where does wait what a sink is too slow for, and in which memory | `tail` |
//! | which services are there | `service` |
//! | which names may be asked for, and which are | `names` |
//! | is the peer there | `liveness` |
//! | what waits to be sent | `outgoing` |
//! | how much do we take on | `config` |
//! | what is the owner told, and what can go wrong | `event` |

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]
#![cfg_attr(test, allow(clippy::wildcard_enum_match_arm))]

mod channel;
mod config;
mod credit;
mod event;
#[cfg(any(test, feature = "test-pair"))]
#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test tool: what does not hold must panic, and its numbers are small"
)]
mod exercise;
mod growth;
mod inbound;
mod liveness;
mod names;
mod outbound;
mod outgoing;
#[cfg(any(test, feature = "test-pair"))]
pub mod pair;
mod service;
mod socket;
mod table;
mod tail;
mod turns;

pub use channel::Channel;
pub use config::{Config, MAX_DATA_LIMIT, Role};
pub use event::{
    AddError, AskError, DomainError, Event, MapError, NewService, OpenError, ResetCause, SocketViolation,
    Violation,
};
pub use liveness::TimeoutReason;
pub use service::ServiceFault;
pub use tail::{Spares, Tail};
pub use turns::Turns;

pub use spice_proto::tunnel::{InfoBody, NameAnswer, QueryId};

#[cfg(test)]
mod tests;
