//! The page of metrics: names, units, help, and which number stands where.
//!
//! Labels take values from lists of ours alone; nothing in here was chosen by a guest, a user or a device.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};
use server_glue::status::{EndReason, ProxyStatus, Status};

use super::process::Process;

/// The numbers of one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Page {
    pub(super) status: Status,
    pub(super) proxy: ProxyStatus,
    pub(super) process: Process,
}

/// How the page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// What an `Accept` asks for: OpenMetrics, unless it names plain text and not OpenMetrics.
    pub(super) fn wanted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept)
                if accept.contains("text/plain") && !accept.contains("application/openmetrics-text") =>
            {
                Self::Text
            }
            Some(_) | None => Self::OpenMetrics,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

impl Page {
    pub(super) fn text(&self, format: Format) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.process));
        registry.sub_registry_with_prefix("spice_tunnel").register_collector(Box::new(self.clone()));
        let mut text = String::new();
        match format {
            Format::OpenMetrics => text::encode(&mut text, &registry)?,
            Format::Text => prometheus_text::encode(&mut text, &registry)?,
        }
        Ok(text)
    }
}

/// Writes one metric after the other.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: impl EncodeGaugeValue,
    ) -> fmt::Result {
        self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        encoder.encode_counter(&value, None::<&Exemplar<[(&str, &str); 0], u64>>)
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'l str, u64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (value, number) in values {
            encoder.encode_family(&[(label, value)])?.encode_gauge(&number)?;
        }
        Ok(())
    }

    fn counters<'l>(
        &mut self,
        (name, unit): (&str, Option<&Unit>),
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'l str, u64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (value, number) in values {
            encoder
                .encode_family(&[(label, value)])?
                .encode_counter(&number, None::<&Exemplar<[(&str, &str); 0], u64>>)?;
        }
        Ok(())
    }
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Writer(encoder);
        to.0.encode_descriptor("build", "What runs", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        self.tunnel(&mut to)?;
        self.guest(&mut to)?;
        self.names(&mut to)?;
        self.links(&mut to)
    }
}

impl Page {
    fn tunnel(&self, to: &mut Writer<'_>) -> fmt::Result {
        let Status { tunnel, traffic, joins, ends, .. } = &self.status;
        let now = tunnel.unwrap_or_default();
        to.gauge("joined", "Whether a user's tunnel is joined", None, u64::from(tunnel.is_some()))?;
        to.counter("joins", "Tunnels that joined", *joins)?;
        let ended = EndReason::ALL.map(|reason| (reason.name(), ends.of(reason)));
        to.counters(
            ("ends", None),
            "Tunnels that ended; dead is one whose client was not heard any more",
            "reason",
            ended,
        )?;
        to.gauge("services", "Services that the guest can reach", None, now.services as u64)?;
        to.gauge("sockets", "Sockets of the tunnel in use", None, now.sockets as u64)?;
        if let Some(rtt) = now.rtt {
            to.gauge(
                "round_trip",
                "Last measured round trip to the user",
                Some(&Unit::Seconds),
                rtt.as_secs_f64(),
            )?;
        }
        to.gauge(
            "undelivered",
            "Payload from the user that the guest has not taken",
            Some(&Unit::Bytes),
            now.undelivered as u64,
        )?;
        to.gauge("unsent", "What waits for the tunnel's link", Some(&Unit::Bytes), now.outgoing as u64)?;
        let help = "Payload that tunnels carried: up is from the guest";
        to.counters(
            ("data", Some(&Unit::Bytes)),
            help,
            "direction",
            [("up", traffic.up_bytes), ("down", traffic.down_bytes)],
        )?;
        let help = "DATA messages that tunnels carried: up is from the guest";
        to.counters(
            ("data_messages", None),
            help,
            "direction",
            [("up", traffic.up_messages), ("down", traffic.down_messages)],
        )
    }

    fn guest(&self, to: &mut Writer<'_>) -> fmt::Result {
        let Status { netstack: net, connections, half_open, waiting, card, .. } = &self.status;
        to.gauge("card_connected", "Whether the VM's card is there", None, u64::from(*card))?;
        let states = [
            ("established", connections.saturating_sub(*half_open)),
            ("half_open", half_open.saturating_sub(*waiting)),
            ("waiting", *waiting),
        ];
        let help = "The guest's connections: half_open is not answered yet, waiting is for a tunnel to come";
        to.gauges("guest_connections", help, "state", states.map(|(state, count)| (state, count as u64)))?;
        let frames = [("in", net.frames_in), ("out", net.frames_out)];
        to.counters(("guest_frames", None), "Frames of the card: in is from the guest", "direction", frames)?;
        let dropped = [
            ("malformed", net.malformed),
            ("bad_checksum", net.bad_checksum),
            ("fragment", net.fragments),
            ("ipv6", net.ipv6),
            ("unknown_protocol", net.unknown_protocol),
            ("martian", net.martian),
            ("not_for_us", net.not_for_us),
            ("outbox_full", net.outbox_full),
            ("rings_full", net.rings_full),
        ];
        let help = "Frames that were not looked at further; outbox_full is of answers to the guest, rings_full of data that nobody takes";
        to.counters(("guest_frames_dropped", None), help, "reason", dropped)?;
        let syns = [
            ("asked", net.connects),
            ("refused", net.refused),
            ("half_open_full", net.half_open_full),
            ("full", net.flows_full),
        ];
        let help = "Attempts of the guest to connect: asked went to the user or waits for one, refused is to what is not shared, full is over --max-connections";
        to.counters(("guest_connects", None), help, "outcome", syns)?;
        to.counter("guest_connections_accepted", "Connections that a user's service took", net.accepted)?;
        to.counter("guest_connections_closed", "Connections that ended in order", net.closed)?;
        to.counter("guest_connections_reset", "Connections that broke, for whatever cause", net.resets)?;
        to.counter("guest_stray_segments", "TCP segments of no connection", net.stray)
    }

    fn names(&self, to: &mut Writer<'_>) -> fmt::Result {
        let net = &self.status.netstack;
        let dhcp = [("answered", net.dhcp_answered), ("ignored", net.dhcp_ignored)];
        to.counters(("dhcp_messages", None), "DHCP messages of the guest", "outcome", dhcp)?;
        let dns = [
            ("answered", net.dns_answered.saturating_sub(net.dns_refused)),
            ("refused", net.dns_refused),
            ("dropped", net.dns_dropped),
        ];
        to.counters(
            ("dns_messages", None),
            "DNS messages of the guest; refused is what is not ours to know",
            "outcome",
            dns,
        )?;
        let mdns = [("in", net.mdns_in), ("out", net.mdns_out)];
        to.counters(
            ("mdns_messages", None),
            "Multicast DNS messages: in is from the guest",
            "direction",
            mdns,
        )?;
        to.counter(
            "mdns_conflicts",
            "Messages in which the guest claimed a name that we have told it",
            net.mdns_conflicts,
        )
    }

    fn links(&self, to: &mut Writer<'_>) -> fmt::Result {
        let ProxyStatus { sessions, links, wrong_tickets, rejected, crowded } = &self.proxy;
        to.gauge("sessions", "Spice sessions that live", None, *sessions as u64)?;
        let open = links.iter().map(|(channel, count)| (*channel, count.open));
        to.gauges("proxied_links", "Links that pass to the Spice server", "channel", open)?;
        let total = links.iter().map(|(channel, count)| (*channel, count.total));
        to.counters(
            ("proxied_links_opened", None),
            "Links that passed to the Spice server",
            "channel",
            total,
        )?;
        to.counter("wrong_tickets", "Tickets and passwords that were wrong", *wrong_tickets)?;
        let help = "Links that had to go unheard: too_many in all, crowded are those without a ticket";
        to.counters(
            ("links_rejected", None),
            help,
            "reason",
            [("too_many", *rejected), ("crowded", *crowded)],
        )
    }
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Writer(encoder);
        to.0.encode_descriptor("process_cpu", "Processor time", Some(&Unit::Seconds), MetricType::Counter)?
            .encode_counter(&self.cpu.as_secs_f64(), None::<&Exemplar<[(&str, &str); 0], f64>>)?;
        if let Some(open) = self.open_fds {
            to.gauge("process_open_fds", "Open file descriptors", None, open)?;
        }
        if let Some(most) = self.max_fds {
            to.gauge("process_max_fds", "The limit of open file descriptors", None, most)?;
        }
        if let Some(resident) = self.resident {
            to.gauge("process_resident_memory", "Resident memory", Some(&Unit::Bytes), resident)?;
        }
        if let Some(threads) = self.threads {
            to.gauge("process_threads", "Threads", None, threads)?;
        }
        let began = self.began.as_secs_f64();
        to.gauge("process_start_time", "When it began, since 1970", Some(&Unit::Seconds), began)
    }
}
