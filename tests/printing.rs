//! Printing from a guest with real CUPS, through the tunnel, on a printer that speaks IPP and on a raw one: what was sent
//! comes out byte for byte, in every amount and after every kind of trouble, and the guest is told the truth.

pub(crate) mod documents;
mod jobs;
mod suites;
mod trouble;

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::lan::{Desk, Guest, Lan, Pace, Printer, Sink};

/// An office: a printer that speaks IPP and a raw one in the user's network, and queues for both in the guest, which was
/// told their addresses.
struct Office {
    guest: Guest,
    desk: Desk,
    printer: Printer,
    sink: Sink,
    /// Another raw printer, which has no trouble.
    other: Sink,
    /// Where the guest finds the two.
    ipp: SocketAddr,
    raw: SocketAddr,
    _lan: Lan,
}

/// The queue for IPP.
const IPP: &str = "office";
/// The raw queue.
const RAW: &str = "label";
/// The other raw queue.
const OTHER: &str = "other";

impl Office {
    async fn open(pace: Pace) -> Self {
        let lan = Lan::new().await;
        // Boxed: together they are more than a thread's stack should hold.
        let (printer, mut desk, mut guest) = tokio::join!(
            Box::pin(Printer::silent(&lan, "office", pace)),
            Box::pin(Desk::new(&lan)),
            Box::pin(Guest::boot(&[]))
        );
        let sink = Sink::start(&printer.machine, printer.at(9100));
        let other = Sink::start(&printer.machine, printer.at(9101));
        let mapped = desk.share(&guest, &[printer.address(), sink.address, other.address], &[]).await;
        guest.cups().await;
        let office = Self { guest, desk, printer, sink, other, ipp: mapped[0], raw: mapped[1], _lan: lan };
        office.guest.queue(IPP, &office.ipp_uri(), "everywhere").await;
        office.guest.queue(RAW, &office.raw_uri(), "raw").await;
        office.guest.queue(OTHER, &format!("socket://{}", mapped[2]), "raw").await;
        office
    }

    fn ipp_uri(&self) -> String {
        format!("ipp://{}/ipp/print", self.ipp)
    }

    fn raw_uri(&self) -> String {
        format!("socket://{}", self.raw)
    }

    /// A document in a file that the guest can read.
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.guest.machine.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The tunnel never went away.
    fn assert_steady(&self) {
        let connect = self.desk.connect.as_ref().unwrap();
        assert!(!connect.told("disconnected"), "the tunnel broke:\n{}", connect.said());
    }
}
