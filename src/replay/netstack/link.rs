//! What the virtual network says by itself: ARP, DHCP and ping, as captured and as today.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use server_glue::netstack::MacAddress;

use super::frame::{Content, Dhcp, Frame};
use super::judge::Finding;
use crate::replay::report::Subject;

/// So many stations, and so many answers to each, are remembered.
const MAX_KNOWN: usize = 1024;

/// DHCP message types (RFC 2132, 9.6).
const DHCP_OFFER: u8 = 2;
pub(super) const DHCP_ACK: u8 = 5;
const DHCP_NAK: u8 = 6;

/// Whose answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Captured,
    Today,
}

#[derive(Debug, Default)]
struct Both<T> {
    captured: T,
    today: T,
}

impl<T> Both<T> {
    fn of(&mut self, when: When) -> &mut T {
        match when {
            When::Captured => &mut self.captured,
            When::Today => &mut self.today,
        }
    }
}

/// What was asked, and answered.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Whether there was an answer for an address.
    arp: BTreeMap<Ipv4Addr, Both<bool>>,
    echo: BTreeMap<Ipv4Addr, Both<bool>>,
    dhcp: BTreeMap<MacAddress, Both<Vec<(u8, Ipv4Addr)>>>,
}

impl Link {
    /// A frame of the guest.
    pub(super) fn asked(&mut self, frame: &Frame<'_>) {
        match frame.content {
            // What a guest asks of itself is a probe, to be left without an answer, and shown like any other.
            Content::ArpRequest { target, .. } => {
                entry(&mut self.arp, target);
            }
            Content::Echo { request: true, destination, .. } => {
                entry(&mut self.echo, destination);
            }
            Content::Dhcp(Dhcp { reply: false, guest, .. }) => {
                entry(&mut self.dhcp, guest);
            }
            Content::Echo { .. }
            | Content::Dhcp(_)
            | Content::ArpReply { .. }
            | Content::Unreachable { .. }
            | Content::Tcp(_)
            | Content::Other => {}
        }
    }

    /// A frame to the guest.
    pub(super) fn answered(&mut self, when: When, frame: &Frame<'_>) {
        match frame.content {
            Content::ArpReply { sender } => {
                if let Some(asked) = self.arp.get_mut(&sender) {
                    *asked.of(when) = true;
                }
            }
            Content::Echo { request: false, source, .. } => {
                if let Some(asked) = self.echo.get_mut(&source) {
                    *asked.of(when) = true;
                }
            }
            Content::Dhcp(Dhcp { reply: true, guest, kind, given, .. }) => {
                if let Some(asked) = self.dhcp.get_mut(&guest)
                    && asked.of(when).len() < MAX_KNOWN
                {
                    asked.of(when).push((kind, given));
                }
            }
            Content::Echo { .. }
            | Content::Dhcp(_)
            | Content::ArpRequest { .. }
            | Content::Unreachable { .. }
            | Content::Tcp(_)
            | Content::Other => {}
        }
    }

    /// How many questions there were.
    pub(super) fn questions(&self) -> usize {
        self.arp.len() + self.echo.len() + self.dhcp.len()
    }

    /// What is not as it was. Captured networks may have answered for addresses where nothing is, as Slirp does; today's
    /// does not, on purpose, so only `strict` has it.
    pub(super) fn judge(&self, strict: bool, exists: impl Fn(Ipv4Addr) -> bool, found: &mut Vec<Finding>) {
        let text = |answered| if answered { "answered" } else { "not answered" };
        for (what, asked) in [("ARP for", &self.arp), ("ping of", &self.echo)] {
            for (address, Both { captured, today }) in asked {
                if captured != today && (strict || *today || exists(*address)) {
                    found.push(Finding::different(
                        Subject::Open,
                        format!("{what} {address} was {}", text(*captured)),
                        format!("it is {}", text(*today)),
                    ));
                }
            }
        }
        for (guest, Both { captured, today }) in &self.dhcp {
            if captured != today {
                found.push(Finding::different(
                    Subject::Open,
                    format!("DHCP for {guest}: {}", answers(captured)),
                    answers(today),
                ));
            }
        }
    }
}

fn entry<K: Ord, T: Default>(map: &mut BTreeMap<K, Both<T>>, key: K) {
    if map.len() < MAX_KNOWN {
        map.entry(key).or_default();
    }
}

fn answers(answers: &[(u8, Ipv4Addr)]) -> String {
    if answers.is_empty() {
        return "no answer".to_owned();
    }
    let texts: Vec<String> = answers
        .iter()
        .map(|(kind, given)| match *kind {
            DHCP_OFFER => format!("offer of {given}"),
            DHCP_ACK => format!("lease of {given}"),
            DHCP_NAK => "refusal".to_owned(),
            kind => format!("message of type {kind}"),
        })
        .collect();
    texts.join(", ")
}
