//! The netstack's side of its DNS server: connections to it, and what the tunnel's client allows and answers.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use spice_proto::service_info::HostName;

use super::{NetEvent, Netstack};
use crate::names::dns::domains::Outcome;
use crate::names::dns::{self};
use crate::table::FlowId;

pub use crate::names::dns::domains::DomainFault;

/// What the tunnel's client says of a name that the guest asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameFound {
    /// It is what is published at this address.
    At {
        /// Of the virtual network; if nothing is named there, the guest is told that it failed.
        address: IpAddr,
        /// How long that may be believed, in seconds.
        ttl: u32,
    },
    /// There is no such name.
    NoSuchName,
    /// It is not known, or nobody could be asked. The guest may try again.
    Failed,
    /// It is in none of the domains that are allowed.
    Refused,
}

/// Names that the guest may ask of the tunnel's client. All of it does nothing where there is no DNS server.
impl Netstack {
    /// A tunnel has come, and may take `grace` to allow again what the one before did.
    pub fn tunnel_came(&mut self, now: Instant, grace: Duration) {
        self.names.tunnel_came(now, grace);
    }

    /// The tunnel is gone, and what it allowed is known for `remember`. `announced`: it had announced something at all.
    pub fn tunnel_gone(&mut self, now: Instant, remember: Duration, announced: bool) {
        self.names.tunnel_gone(now, remember, announced, &mut self.counters);
    }

    /// What is known of tunnels that are gone is to be forgotten.
    pub fn forget_tunnels(&mut self) {
        self.names.forget_tunnels();
    }

    /// The guest may ask for names in this domain of the user's side.
    ///
    /// # Errors
    /// It is none that may be, or there are too many.
    pub fn allow_domain(&mut self, name: &str) -> Result<(), DomainFault> {
        self.names.add_domain(name)
    }

    /// It may not any more.
    pub fn disallow_domain(&mut self, name: &str) {
        self.names.remove_domain(name, &mut self.counters);
    }

    /// The next name, in lower case, that the tunnel's client is to be asked for. [`Netstack::name_answered`] has to follow, or
    /// [`Netstack::tunnel_gone`].
    pub fn poll_name(&mut self) -> Option<HostName> {
        self.names.poll_question()
    }

    /// What came of a name that [`Netstack::poll_name`] gave.
    pub fn name_answered(&mut self, now: Instant, name: &HostName, found: NameFound) {
        let outcome = match found {
            NameFound::At { address, ttl } => Outcome::Address { address, ttl },
            NameFound::NoSuchName => Outcome::NoSuchName { ttl: 0 },
            NameFound::Failed => Outcome::Failed,
            NameFound::Refused => Outcome::Refused,
        };
        self.names.answer(now, name.as_str(), outcome, &mut self.counters);
    }

    /// A message of a connection to the DNS server. True: it is answered, now or later.
    pub(crate) fn handle_dns_question(&mut self, now: Instant, flow: FlowId, message: &[u8]) -> bool {
        self.names.handle_stream(now, flow, message, &mut self.counters)
    }

    /// Time has passed for the DNS server's connections.
    pub(super) fn streams_due(&mut self, now: Instant) {
        let mut streams = std::mem::take(&mut self.streams);
        streams.handle_timeout(self, now);
        self.streams = streams;
    }

    /// Does what the DNS server's connections want, and gives them their answers.
    pub(super) fn serve_streams(&mut self, now: Instant) {
        let mut streams = std::mem::take(&mut self.streams);
        loop {
            if let Some(event) = self.stream_events.pop_front() {
                self.told(event);
                streams.handle(self, now, event);
            } else if let Some((flow, message)) = self.names.poll_stream() {
                streams.answer(self, now, flow, &message);
            } else {
                break;
            }
        }
        self.streams = streams;
    }

    /// Queues an event for whoever owns the connection: the DNS server's are its own.
    pub(super) fn tell(&mut self, local: SocketAddr, event: NetEvent) {
        if self.has_dns && local == SocketAddr::new(self.dhcp.server().into(), dns::PORT) {
            self.stream_events.push_back(event);
        } else {
            self.events.push_back(event);
        }
    }
}
