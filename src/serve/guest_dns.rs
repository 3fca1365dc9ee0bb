//! What the guest is told of names by unicast DNS.

use clap::{Args, ValueEnum};
use server_glue::Domain;
use server_glue::netstack::NetConfig;

/// What `serve` is told of it.
#[derive(Clone, Debug, Args)]
pub(super) struct GuestDnsArgs {
    /// The domain of the virtual network. A guest that uses its DNS server finds what is shared as DEVICE.DOMAIN, and the
    /// other way round, and browses for printers there
    #[arg(long, value_name = "NAME", default_value_t)]
    domain: Domain,

    /// Whether the virtual network's first address is a DNS server for the guest. It knows what users share, asks the
    /// user's side for names in domains that the user allowed, and answers REFUSED to everything else, upon which a
    /// guest asks the name servers of its other cards
    #[arg(long, value_enum, default_value_t = GuestDns::Announce)]
    guest_dns: GuestDns,
}

/// Whether there is a DNS server, and whether DHCP says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GuestDns {
    /// DHCP names it, with the domain as the one to search in. Right for guests that keep the name servers of all their
    /// cards, as systemd-resolved, NetworkManager, Windows and macOS do
    Announce,
    /// It answers, but DHCP does not say so. For guests whose DHCP client knows only one list of name servers, and would
    /// put ours in the place of those that know the world (dhclient or udhcpc writing resolv.conf by themselves)
    Quiet,
    /// There is none. Multicast DNS still tells the guest of what is shared
    Off,
}

impl GuestDnsArgs {
    /// The network's, with this.
    pub(super) fn net(&self, net: NetConfig) -> NetConfig {
        let (server, announced) = match self.guest_dns {
            GuestDns::Announce => (true, true),
            GuestDns::Quiet => (true, false),
            GuestDns::Off => (false, false),
        };
        NetConfig { domain: server.then(|| self.domain.clone()), announce_dns: announced, ..net }
    }

    /// In words, for `--check`.
    pub(super) fn describe(&self) -> String {
        match self.guest_dns {
            GuestDns::Announce => format!("DNS for {}, which DHCP says", self.domain),
            GuestDns::Quiet => format!("DNS for {}, which DHCP does not say", self.domain),
            GuestDns::Off => "no DNS".to_owned(),
        }
    }
}
