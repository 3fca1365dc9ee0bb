//! A captured guest against the whole of today's netstack.
//!
//! # Theory of operation
//!
//! Two captures of one run go in: of the tunnel's link, and of the virtual card. Between them stood a netstack with a server
//! channel, which is taken out and replaced by today's [`Bridge`](server_glue::bridge::Bridge):
//!
//! ```text
//!             card's capture                                          tunnel's capture
//!   captured guest │ captured server's answers    captured server's messages │ captured client
//!         ▼        │        ┆                               ┆                │       ▼
//!       guest ─────┼──► today's netstack ◄──── bridge ────► today's channel ◄┼──── socket
//!                  │        ┆                               ┆                │
//!                  └─ card: compared, a connection at a time   compared, a socket at a time ─┘ tunnel
//! ```
//!
//! The two files are read side by side in the order of their times; both clocks are taken for one, or for a fraction of
//! a second apart. Today's code lives on
//! that clock too: between two packets its timers fire when they are due. Nothing else is random, so a replay has the
//! same outcome every time.
//!
//! ## Two readings
//!
//! The files are read twice. The first time (`survey.rs`) tells who the guest is and how the captured network was laid out: its
//! subnet, its own address, which address each service had. Today's network is laid out alike; the services' addresses
//! are put into its address book as if it had given them.
//!
//! ## What causes what
//!
//! Today's code is faster or slower than the captured one, cuts its messages and segments elsewhere, and has other
//! sequence numbers. So what the captured guest and client said cannot go in just when it was captured:
//!
//! * What the *guest* sends waits until today's netstack has sent what the guest had acknowledged by then (its SYN-ACK
//!   included), and until it fits today's window. So an answer never comes before its question, and a reset never
//!   before the bytes that the guest had read.
//! * What the guest *acknowledges* is not taken from the capture. Its receiving half is played: it takes what comes, as
//!   far as the captured window had opened by then, and acknowledges it at once. So today's netstack is never left
//!   waiting for an acknowledgement of bytes which the captured one had sent otherwise.
//! * What the *client* says on a socket waits until today's server has opened that socket, sent as many bytes as the
//!   captured one had by then, said FIN if that had, and, for DATA, granted the credit.
//! * *Tokens* go by bytes: they return for today's messages when the captured client had returned those for the same
//!   bytes, and before that where today's server has used up its credit with less than the captured one had sent.
//!
//! All these are relations of "before" that really were in the captured run, so they cannot wait for each other in a circle,
//! and code that does what the captured one did is never held up. Whatever still waits when the captures are over waits
//! for something that today's code does not do. It is let go, and what comes of it is a difference.
//!
//! Which of the guest's connections a captured SOCKET_OPEN belongs to, the message does not say: it is the oldest to that
//! service which was not answered yet. Today's SOCKET_OPEN comes from the frame that was just fed.
//!
//! ## What is compared
//!
//! For each connection: how the connect was answered, the bytes either way, half-closes, whether an end is in order or an
//! abort. For each service its address; for the network what it answers to ARP, ping and DHCP. When a connection was
//! aborted, what was on its way is lost or not as it happens: then the bytes must be equal as far as both go, and no
//! fewer than the guest had acknowledged.
//!
//! Two things that older networks did otherwise are no difference unless `strict`: a connect to where nothing is shared
//! may be refused by RST or by ICMP, and ARP or ping for an address where nothing is may be answered.
//!
//! A guest that died without a word is played as one that lives: nothing tells when it died.
//!
//! What touches a hole in one of the captures is not comparable, and said to be so.
//!
//! ## Bounds
//!
//! Everything that waits, or is ahead of its counterpart, is charged to one budget over all connections (`budget.rs`);
//! tables have limits of their own. What goes beyond is given up with a finding.

mod budget;
mod card;
mod frame;
mod guest;
mod judge;
mod link;
mod questions;
mod socket;
mod stage;
mod survey;
mod tunnel;
mod twin;

use std::path::Path;
use std::time::Duration;

use server_glue::netstack::NetConfig;

use super::report::{Difference, Part, Place, Report, Subject};
use super::{Error, Options};
use crate::capture::dissect::{self, Dissector, Item};
use crate::capture::file::{FileError, Packet, Reader};
use crate::capture::packet;
use crate::capture::reassembly::{Limits, Reassembler};
use stage::Stage;
use survey::Survey;

/// Replays the guest of the NIC capture `nic` against the netstack, with the captured client of `tunnel` behind it, and
/// adds what differs to `report`.
///
/// # Errors
///
/// One of the files cannot be opened or is no capture. Damage further behind is a finding.
pub fn replay(tunnel: &Path, nic: &Path, options: &Options, report: &mut Report) -> Result<(), Error> {
    replay_with(tunnel, nic, options, report, |_| {})
}

/// As [`replay`], with a network that `adjust` has changed from the captured one's layout: to see what a setting does to
/// a captured run.
///
/// # Errors
///
/// As [`replay`].
pub fn replay_with(
    tunnel: &Path,
    nic: &Path,
    options: &Options,
    report: &mut Report,
    adjust: impl FnOnce(&mut NetConfig),
) -> Result<(), Error> {
    let survey = survey(tunnel, nic, options)?;
    if !survey.has_tunnel() {
        let why = "the capture of the tunnel has no tunnel channel";
        report.add(Difference::not_comparable(Part::Netstack, Subject::Capture, Place::default(), why));
        return Ok(());
    }
    let mut config = survey.config();
    adjust(&mut config);
    let mut stage = Stage::new(options, survey, config, report);
    let mut tunnel = Tunnel::new(open(tunnel)?, options);
    let mut card = open(nic)?;
    loop {
        let packet = match card.next() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(error) => {
                stage.not_comparable(
                    Place::default(),
                    &format!("the capture of the card is damaged: {error}"),
                );
                break;
            }
        };
        while tunnel.time().is_some_and(|time| time <= packet.time) {
            tunnel.step(&mut |item| stage.item(item));
        }
        stage.packet(&packet);
    }
    while tunnel.time().is_some() {
        tunnel.step(&mut |item| stage.item(item));
    }
    tunnel.finish(&mut |item| stage.item(item));
    if let Some(error) = tunnel.damage {
        stage.not_comparable(Place::default(), &format!("the capture of the tunnel is damaged: {error}"));
    }
    stage.finish();
    Ok(())
}

/// The first reading.
fn survey(tunnel: &Path, nic: &Path, options: &Options) -> Result<Survey, Error> {
    let mut survey = Survey::default();
    let mut card = open(nic)?;
    // Damage is said at the second reading.
    while let Ok(Some(packet)) = card.next() {
        survey.frame(packet.bytes);
    }
    let mut tunnel = Tunnel::new(open(tunnel)?, options);
    while tunnel.time().is_some() {
        tunnel.step(&mut |item| survey.item(item));
    }
    tunnel.finish(&mut |item| survey.item(item));
    Ok(survey)
}

fn open(path: &Path) -> Result<Reader, Error> {
    Reader::open(path).map_err(|error| Error::File { path: path.to_owned(), source: error })
}

/// The tunnel's capture, which tells the time of its next packet before it gives what is in it.
struct Tunnel {
    reader: Reader,
    reassembler: Reassembler,
    dissector: Dissector,
    /// The next packet.
    ahead: Option<Ahead>,
    /// Why nothing more comes.
    damage: Option<FileError>,
}

struct Ahead {
    number: u64,
    time: Duration,
    link_type: u32,
    original_len: usize,
    bytes: Vec<u8>,
}

impl Tunnel {
    fn new(reader: Reader, options: &Options) -> Self {
        let options = dissect::Options { port: options.port, ..dissect::Options::default() };
        let mut tunnel = Tunnel {
            reader,
            reassembler: Reassembler::new(Limits::default()),
            dissector: Dissector::new(options),
            ahead: None,
            damage: None,
        };
        tunnel.look_ahead(Vec::new());
        tunnel
    }

    /// When the next packet was captured; `None`: there is none.
    fn time(&self) -> Option<Duration> {
        self.ahead.as_ref().map(|ahead| ahead.time)
    }

    /// Gives what the next packet completes.
    fn step(&mut self, sink: &mut impl FnMut(&Item<'_>)) {
        let Some(Ahead { number, time, link_type, original_len, bytes }) = self.ahead.take() else { return };
        let packet = Packet { number, time, link_type, original_len, bytes: &bytes };
        // A packet that cannot be read is a hole in its connection.
        if let Ok(Some(segment)) = packet::segment(&packet) {
            let dissector = &mut self.dissector;
            self.reassembler
                .handle(time, &segment, &mut |event| dissector.handle(event, &mut |item| sink(&item)));
        }
        self.look_ahead(bytes);
    }

    /// The capture is over.
    fn finish(&mut self, sink: &mut impl FnMut(&Item<'_>)) {
        let dissector = &mut self.dissector;
        self.reassembler.finish(&mut |event| dissector.handle(event, &mut |item| sink(&item)));
        self.dissector.finish(&mut |item| sink(&item));
    }

    fn look_ahead(&mut self, mut storage: Vec<u8>) {
        match self.reader.next() {
            Ok(Some(Packet { number, time, link_type, original_len, bytes })) => {
                storage.clear();
                storage.extend_from_slice(bytes);
                self.ahead = Some(Ahead { number, time, link_type, original_len, bytes: storage });
            }
            Ok(None) => {}
            Err(error) => self.damage = Some(error),
        }
    }
}
