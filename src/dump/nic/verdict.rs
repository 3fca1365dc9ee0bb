//! Whether a tunnelled connection and the guest's end of it are the same.

use crate::capture::ledger::{Answer, Connection, Ending};
use crate::capture::reassembly::Way;

use super::guest::{GuestConnection, Reply};
use super::lane::{Lane, Side, Stop};

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What is not the same, and ought to be.
    pub(super) differences: Vec<String>,
    /// What could not be compared.
    pub(super) not_compared: Vec<String>,
    /// What is not the same, and need not be.
    pub(super) notes: Vec<String>,
}

/// Judges a pair, both halves of which are over.
pub(super) fn of(tunnel: &Connection, guest: &GuestConnection, up: &Lane, down: &Lane) -> Verdict {
    let mut verdict = Verdict::default();
    answers(tunnel, guest, &mut verdict);
    let ends = Ends::of(tunnel, guest);
    bytes("up", up, Side::Guest, &ends, &mut verdict);
    bytes("down", down, Side::Tunnel, &ends, &mut verdict);
    endings(tunnel, guest, &mut verdict);
    verdict
}

/// What may excuse that one side has less.
struct Ends {
    aborted: bool,
    /// A capture does not have all of the connection.
    tunnel_cut: bool,
    guest_cut: bool,
}

impl Ends {
    fn of(tunnel: &Connection, guest: &GuestConnection) -> Self {
        let aborted = match tunnel.ending() {
            Ending::Guest | Ending::Service | Ending::TunnelEnded => true,
            Ending::Refused | Ending::Clean | Ending::NotSeen => false,
        };
        Self {
            aborted: aborted || guest.reset.is_some(),
            tunnel_cut: tunnel.incomplete,
            guest_cut: guest.ended.is_some() && !guest.end_seen,
        }
    }
}

fn answers(tunnel: &Connection, guest: &GuestConnection, verdict: &mut Verdict) {
    let gave_up = tunnel.ending() == Ending::Guest || matches!(guest.reset, Some((Way::Forth, _)));
    let text = match (tunnel.answer, guest.reply) {
        (Answer::Accepted { .. }, Reply::Accepted { .. })
        | (Answer::Refused { .. }, Reply::Refused { .. } | Reply::Unreachable { .. })
        | (Answer::None, Reply::None | Reply::Refused { .. } | Reply::Unreachable { .. }) => return,
        (Answer::Accepted { .. } | Answer::Refused { .. }, Reply::None) if gave_up => {
            verdict.notes.push("the guest gave up before it heard the answer".to_owned());
            return;
        }
        (Answer::None, Reply::Accepted { .. }) if tunnel.incomplete => return,
        (Answer::Accepted { .. }, Reply::None) => "the client accepted, the guest was told nothing",
        (Answer::Accepted { .. }, Reply::Refused { .. }) => "the client accepted, the guest was refused",
        (Answer::Accepted { .. }, Reply::Unreachable { .. }) => {
            "the client accepted, the guest was told that the service is unreachable"
        }
        (Answer::Refused { .. }, Reply::None) => "the client refused, the guest was told nothing",
        (Answer::Refused { .. }, Reply::Accepted { .. }) => "the client refused, the guest was accepted",
        (Answer::None, Reply::Accepted { .. }) => "the client never answered, the guest was accepted",
    };
    verdict.differences.push(text.to_owned());
}

/// One direction; `source` is the side that its bytes come from, and that may have more of them.
fn bytes(name: &str, lane: &Lane, source: Side, ends: &Ends, verdict: &mut Verdict) {
    match lane.stop() {
        Some(Stop::Difference { offset, tunnel, guest }) => {
            verdict.differences.push(format!(
                "{name}: byte {offset} is {tunnel:#04x} in the tunnel and {guest:#04x} at the guest"
            ));
            return;
        }
        Some(Stop::Hole { side, offset }) => {
            let side = match side {
                Side::Tunnel => "the tunnel's capture",
                Side::Guest => "the guest's capture",
            };
            verdict.not_compared.push(format!("{name}: {side} lacks bytes behind byte {offset}"));
            return;
        }
        Some(Stop::TooFarApart { offset }) => {
            verdict.not_compared.push(format!(
                "{name}: behind byte {offset} one capture is further ahead of the other than can be kept"
            ));
            return;
        }
        None => {}
    }
    let (tunnel, guest) = (lane.count(Side::Tunnel), lane.count(Side::Guest));
    if tunnel == guest {
        return;
    }
    let text = format!("{name}: {tunnel} bytes in the tunnel, {guest} at the guest");
    let more = if tunnel > guest { Side::Tunnel } else { Side::Guest };
    let short_is_cut = match more {
        Side::Tunnel => ends.guest_cut,
        Side::Guest => ends.tunnel_cut,
    };
    if short_is_cut {
        verdict.not_compared.push(format!("{text}, whose capture does not have all of the connection"));
    } else if more == source && ends.aborted {
        verdict.notes.push(format!("{text}, as it was aborted"));
    } else {
        verdict.differences.push(text);
    }
}

/// An abort must look like one, and an end like an end.
fn endings(tunnel: &Connection, guest: &GuestConnection, verdict: &mut Verdict) {
    match (tunnel.ending(), guest.reset) {
        (Ending::Clean, Some((Way::Back, _))) => {
            verdict.differences.push("the service ended, the guest was reset".to_owned());
        }
        (Ending::Service, None)
            if guest.end_seen && guest.down.fin.is_some() && tunnel.down.fin.is_none() =>
        {
            verdict.differences.push("the service aborted, the guest was told that it ended".to_owned());
        }
        (_, _) => {}
    }
}

#[cfg(test)]
mod tests;
