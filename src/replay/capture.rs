//! A whole capture: each of its connections to where it is replayed.

use std::collections::BTreeMap;
use std::time::Duration;

use spice_proto::link::ChannelType;
use spice_proto::names::Sender;
use spice_proto::tunnel::{Layout, ServerMessage};
use tunnel_channel::Role;

use super::Options;
use super::channel::Driver;
use super::link::{Checked, Stage};
use super::messages::{Rewritten, rewrite};
use super::report::{Difference, Part, Place, Report, Subject};
use crate::capture::dissect::{Body, End, Hole, Item, Message, What};
use crate::capture::ledger;
use crate::capture::reassembly::StreamId;

/// Tunnel channels that are replayed at a time. No session has more than one; each holds some megabytes at most.
const MAX_TUNNELS: usize = 64;

/// Replays the items of a capture, in their order.
#[derive(Debug)]
pub struct Replay {
    options: Options,
    roles: Vec<Role>,
    start: Option<Duration>,
    streams: BTreeMap<StreamId, Stream>,
    report: Report,
    scratch: Vec<u8>,
}

/// One TCP connection.
#[derive(Debug, Default)]
struct Stream {
    stage: Stage,
    /// Why the link stage cannot be judged.
    blind: bool,
    tunnel: bool,
    layout: Option<Layout>,
    /// INIT was seen, with which a tunnel begins.
    init: bool,
    drivers: Vec<Driver>,
}

impl Replay {
    /// A replay of tunnel channels in these roles. Messages and link stages are replayed in any case.
    pub fn new(options: Options, roles: &[Role]) -> Self {
        Replay {
            options,
            roles: roles.to_vec(),
            start: options.start,
            streams: BTreeMap::new(),
            report: Report::default(),
            scratch: Vec::new(),
        }
    }

    /// The next item of the capture.
    pub fn item(&mut self, item: &Item<'_>) {
        let start = *self.start.get_or_insert(item.time);
        let place = Place {
            time: Some(item.time.saturating_sub(start)),
            stream: Some(item.stream.0),
            ..Place::default()
        };
        let is_tunnel = item.channel.is_some_and(|channel| channel.channel_type == ChannelType::TUNNEL.0);
        let stream = self.streams.entry(item.stream).or_default();
        stream.tunnel |= is_tunnel;
        stream.stage.item(&item.what);
        match &item.what {
            What::Began { from_start, .. } => stream.blind = !from_start,
            What::LinkMess { .. }
            | What::LinkReply { .. }
            | What::AuthMechanism(_)
            | What::Ticket
            | What::Sasl { .. }
            | What::LinkResult(_) => {}
            What::Linked(terms) => {
                stream.layout = Some(terms.layout);
                check_stage(stream, place, &mut self.report);
                if !stream.tunnel || self.roles.is_empty() {
                    return;
                }
                if stream.blind {
                    let why =
                        "the tunnel began before the capture, so that its services and sockets are not known";
                    self.report.add(Difference::not_comparable(Part::Server, Subject::Capture, place, why));
                    return;
                }
                let live = self.streams.values().filter(|stream| !stream.drivers.is_empty()).count();
                if live >= MAX_TUNNELS {
                    let why = format!("{MAX_TUNNELS} tunnels are being replayed already");
                    self.report.add(Difference::not_comparable(Part::Server, Subject::Channel, place, why));
                    return;
                }
                let drivers = self
                    .roles
                    .iter()
                    .map(|role| Driver::new(*role, item.stream.0, terms.clone(), start, &self.options));
                let drivers = drivers.collect();
                if let Some(stream) = self.streams.get_mut(&item.stream) {
                    stream.drivers = drivers;
                }
            }
            What::Message(message) => {
                if !stream.init && !stream.drivers.is_empty() {
                    match is_after_init(message) {
                        Some(true) => {
                            stream.drivers.clear();
                            let why = "the tunnel began before this file, so that its services and sockets are not known";
                            let subject = Subject::Capture;
                            self.report.add(Difference::not_comparable(Part::Server, subject, place, why));
                        }
                        Some(false) => stream.init = true,
                        None => {}
                    }
                }
                if let Some(from) = item.from {
                    for driver in &mut stream.drivers {
                        driver.message(item.time, from, message);
                    }
                    let layout = stream.layout.unwrap_or(Layout::B);
                    check_message(
                        from,
                        message,
                        layout,
                        self.options.strict,
                        place,
                        &mut self.scratch,
                        &mut self.report,
                    );
                }
            }
            What::Malformed { error, header, bytes } => {
                if stream.drivers.is_empty() {
                    let why = format!("what cannot be read: {error}");
                    self.report.add(Difference::not_comparable(Part::Messages, Subject::Capture, place, why));
                    stream.blind = true;
                }
                for driver in &mut stream.drivers {
                    match item.from {
                        Some(from) => driver.malformed(item.time, from, header.as_ref(), bytes, error),
                        None => driver.hole(item.time, Sender::Server, &BROKEN),
                    }
                }
            }
            What::Hole(hole) => {
                if stream.drivers.is_empty() {
                    let missing = hole.missing.map_or("an unknown number of".to_owned(), |n| n.to_string());
                    let from = item.from.map_or("connection", Sender::name);
                    let why = format!("a hole: {missing} bytes of the {from} are not in the capture");
                    self.report.add(Difference::not_comparable(Part::Messages, Subject::Capture, place, why));
                    stream.blind = true;
                }
                // INIT may be in it.
                stream.init = true;
                for driver in &mut stream.drivers {
                    match item.from {
                        Some(from) => driver.hole(item.time, from, hole),
                        None => driver.hole(item.time, Sender::Server, &BROKEN),
                    }
                }
            }
            What::Ended { how } => self.ended(item.stream, item.time, *how, place),
        }
    }

    /// The capture is over.
    pub fn finish(mut self) -> Report {
        let left: Vec<StreamId> = self.streams.keys().copied().collect();
        for stream in left {
            let place = Place { stream: Some(stream.0), ..Place::default() };
            self.ended(stream, Duration::ZERO, End::CaptureOver, place);
        }
        self.report
    }

    /// What was found so far, to which other findings can be added.
    pub fn report(&mut self) -> &mut Report {
        &mut self.report
    }

    fn ended(&mut self, stream: StreamId, time: Duration, how: End, place: Place) {
        let Some(mut stream) = self.streams.remove(&stream) else { return };
        if stream.layout.is_none() {
            check_stage(&mut stream, place, &mut self.report);
        }
        for driver in stream.drivers {
            driver.end(time, how, &mut self.report);
        }
    }
}

/// What stands where nothing is understood any more.
const BROKEN: Hole = Hole { missing: None, skipped: 0, resumed: false, cause: None };

fn check_stage(stream: &mut Stream, place: Place, report: &mut Report) {
    if stream.blind {
        return;
    }
    let stage = std::mem::take(&mut stream.stage);
    match stage.check() {
        Checked::Nothing => {}
        Checked::Equal => report.compared(Part::Link).channels += 1,
        Checked::Different { role, captured, today } => {
            report.compared(Part::Link).channels += 1;
            let captured = format!("against today's {role}: {captured}");
            report.add(Difference::new(Part::Link, Subject::Link, place, captured, today));
        }
        Checked::NotComparable(why) => {
            report.add(Difference::not_comparable(Part::Link, Subject::Link, place, why));
        }
    }
}

/// Whether a message can come only behind INIT. `Some(false)`: it is INIT; `None`: it says nothing about that.
fn is_after_init(message: &Message<'_>) -> Option<bool> {
    let said = match &message.body {
        Body::TunnelServer(ServerMessage::Init { .. }) => return Some(false),
        Body::TunnelServer(_) => return Some(true),
        Body::TunnelClient(said) => ledger::Said::Client(*said),
        Body::BaseServer(_)
        | Body::BaseClient(_)
        | Body::MainServer(_)
        | Body::MainClient(_)
        | Body::Opaque
        | Body::Incomplete => return None,
    };
    said.socket().map(|_| true)
}

fn check_message(
    from: Sender,
    message: &Message<'_>,
    layout: Layout,
    strict: bool,
    place: Place,
    scratch: &mut Vec<u8>,
    report: &mut Report,
) {
    // A list of sub-messages stands behind such a body.
    if from == Sender::Server && message.head.sub_list != 0 && !matches!(message.body, Body::Opaque) {
        return;
    }
    let name = message.name.unwrap_or("unknown");
    let outcome = rewrite(message, layout, scratch);
    if outcome != Rewritten::Unknown {
        report.compared(Part::Messages).messages += 1;
    }
    if outcome == Rewritten::Different || strict && outcome == Rewritten::Rearranged {
        let at = message.bytes.iter().zip(scratch.iter()).take_while(|(a, b)| a == b).count();
        let captured = format!("{} of the {}, {} bytes", name, from.name(), message.bytes.len());
        let today = format!("it is written in {} bytes, other from offset {at}", scratch.len());
        report.add(Difference::new(Part::Messages, Subject::Message, place, captured, today));
    }
}
