//! What the netstack counts.

/// What the netstack has seen and done since it started, in packets where nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Frames from the guest.
    pub frames_in: u64,
    /// Frames to the guest.
    pub frames_out: u64,
    /// Too short, or with lengths or fields that cannot be.
    pub malformed: u64,
    /// Damaged.
    pub bad_checksum: u64,
    /// Pieces of IPv4 datagrams; we do not put them together.
    pub fragments: u64,
    /// IPv6, not answered yet.
    pub ipv6: u64,
    /// Of a kind that we do not know (VLAN tags, IPX, …).
    pub unknown_protocol: u64,
    /// From a sender that cannot be: a group, outside the subnet, one of our own addresses.
    pub martian: u64,
    /// To another station, or to all of them.
    pub not_for_us: u64,
    /// ARP for what does not exist, or the guest's own.
    pub arp_unanswered: u64,
    /// Pings answered.
    pub echo_replies: u64,
    /// ICMP errors sent.
    pub icmp_errors: u64,
    /// ICMP errors not sent, because too many were.
    pub icmp_errors_withheld: u64,
    /// ICMP that needs no answer.
    pub icmp_ignored: u64,
    /// Answers dropped, because too many wait for the NIC.
    pub outbox_full: u64,
    /// DHCP messages that were answered.
    pub dhcp_answered: u64,
    /// DHCP messages that were not.
    pub dhcp_ignored: u64,
    /// DNS messages that were answered, whatever the answer.
    pub dns_answered: u64,
    /// Of those, answered by REFUSED: what is not ours to know, above all.
    pub dns_refused: u64,
    /// DNS questions that had to wait for the tunnel's client.
    pub dns_asked: u64,
    /// DNS messages that were not answered: no questions, too many, or asked already.
    pub dns_dropped: u64,
    /// Multicast DNS messages of guests.
    pub mdns_in: u64,
    /// Messages that they should have been, but were not.
    pub mdns_malformed: u64,
    /// Multicast DNS messages to guests.
    pub mdns_out: u64,
    /// Questions not looked at, or answers not sent, because too many were.
    pub mdns_withheld: u64,
    /// Messages in which a guest claimed one of our names.
    pub mdns_conflicts: u64,
    /// SYNs that became a `Connect`.
    pub connects: u64,
    /// SYNs refused, because nothing is published there.
    pub refused: u64,
    /// SYNs dropped: too many connections are not established.
    pub half_open_full: u64,
    /// SYNs refused: too many connections.
    pub flows_full: u64,
    /// Segments dropped: all connections together hold too much that nobody takes.
    pub rings_full: u64,
    /// Segments of no connection, answered by RST.
    pub stray: u64,
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections that ended in order.
    pub closed: u64,
    /// Connections that broke, for whatever cause.
    pub resets: u64,
}

impl Counters {
    pub(crate) fn sent_or_dropped(&mut self, sent: bool) {
        self.outbox_full += u64::from(!sent);
    }
}
