//! The objects of `--stats --json`. Times are in seconds, rates in bytes a second; `kind` says what an object is about.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use spice_proto::names::Sender;
use spice_proto::tunnel::ServiceId;

use crate::capture::dissect::End;
use crate::capture::ledger::{Answer, Connection, Direction, Ending, Service};
use crate::capture::reassembly::StreamId;
use crate::describe::ChannelTypeName;
use crate::dump::books::Since;
use crate::dump::units::per_second;

use super::{ChannelTotal, Flow, Said, ServiceTotal, busy, lasted};

pub(super) fn connection(
    stream: StreamId,
    opened: Since,
    connection: &Connection,
    service: Option<&Service>,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    write(
        out,
        &SocketLine {
            kind: "socket",
            stream: stream.0,
            connection: connection.number.0,
            socket: connection.socket.0,
            service: connection.service.map(|id| id.0),
            name: service.map(|service| text(&service.name)),
            destination: connection.destination,
            opened,
            answer: match connection.answer {
                Answer::None => None,
                Answer::Accepted { .. } => Some("accepted"),
                Answer::Refused { .. } => Some("refused"),
            },
            time_to_open: connection.time_to_open().map(seconds),
            duration: lasted(connection).map(seconds),
            ending: connection.ending().key(),
            incomplete: connection.incomplete,
            up: Way::of(&connection.up),
            down: Way::of(&connection.down),
        },
    )
}

pub(super) fn service(
    id: Option<(StreamId, ServiceId)>,
    service: &ServiceTotal,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let total = &service.total;
    write(
        out,
        &ServiceLine {
            kind: "service",
            stream: id.map(|(stream, _)| stream.0),
            service: id.map(|(_, id)| id.0),
            name: id.map(|_| text(&service.name)),
            address: service.address,
            port: service.port,
            connections: total.connections,
            closed: total.ended(Ending::Clean),
            refused: total.ended(Ending::Refused),
            guest_aborted: total.ended(Ending::Guest),
            service_aborted: total.ended(Ending::Service),
            tunnel_ended: total.ended(Ending::TunnelEnded),
            not_seen: total.ended(Ending::NotSeen),
            incomplete: total.incomplete,
            mean_time_to_open: total.opening.mean().map(seconds),
            longest_time_to_open: (total.opening.count > 0).then(|| seconds(total.opening.longest)),
            up: Way::sum(&total.up),
            down: Way::sum(&total.down),
        },
    )
}

pub(super) fn channel(stream: StreamId, channel: &ChannelTotal, out: &mut Vec<u8>) -> io::Result<()> {
    write(
        out,
        &ChannelLine {
            kind: "channel",
            stream: stream.0,
            channel: channel.channel.map(|channel| ChannelTypeName(channel.channel_type).to_string()),
            channel_id: channel.channel.and_then(|channel| channel.id),
            client: channel.ends.map(|(client, _)| client),
            server: channel.ends.map(|(_, server)| server),
            from_start: channel.from_start,
            began: channel.began,
            duration: seconds(channel.lasted),
            ending: channel.end.map(|end| match end {
                End::Closed => "closed",
                End::Reset(Sender::Client) => "client_reset",
                End::Reset(Sender::Server) => "server_reset",
                End::CaptureOver => "capture_over",
            }),
            from_client: Talk::of(&channel.client),
            from_server: Talk::of(&channel.server),
            holes: channel.holes,
            malformed: channel.malformed,
            remarks: channel.remarks,
        },
    )
}

#[derive(Serialize)]
struct SocketLine {
    kind: &'static str,
    stream: u64,
    connection: u64,
    socket: u16,
    service: Option<u32>,
    name: Option<String>,
    destination: Option<SocketAddr>,
    opened: Since,
    answer: Option<&'static str>,
    time_to_open: Option<f64>,
    duration: Option<f64>,
    ending: &'static str,
    incomplete: bool,
    up: Way,
    down: Way,
}

#[derive(Serialize)]
struct ServiceLine {
    kind: &'static str,
    /// None of these: connections to services that have no line of their own.
    stream: Option<u64>,
    service: Option<u32>,
    name: Option<String>,
    address: Option<IpAddr>,
    port: Option<u16>,
    connections: u64,
    closed: u64,
    refused: u64,
    guest_aborted: u64,
    service_aborted: u64,
    tunnel_ended: u64,
    not_seen: u64,
    incomplete: u64,
    mean_time_to_open: Option<f64>,
    longest_time_to_open: Option<f64>,
    up: Way,
    down: Way,
}

#[derive(Serialize)]
struct ChannelLine {
    kind: &'static str,
    stream: u64,
    channel: Option<String>,
    channel_id: Option<u8>,
    client: Option<SocketAddr>,
    server: Option<SocketAddr>,
    from_start: bool,
    began: Since,
    duration: f64,
    ending: Option<&'static str>,
    from_client: Talk,
    from_server: Talk,
    holes: u64,
    malformed: u64,
    remarks: u64,
}

/// A direction. Stalls and violations are null where the capture does not show all of the credit.
#[derive(Serialize)]
struct Way {
    bytes: u64,
    messages: u64,
    throughput: Option<f64>,
    stalls: Option<u64>,
    stalled: Option<f64>,
    longest_stall: Option<f64>,
    violations: Option<u64>,
}

#[derive(Serialize)]
struct Talk {
    messages: u64,
    bytes: u64,
}

impl Way {
    fn of(direction: &Direction) -> Self {
        let counted = direction.counted;
        Self {
            bytes: direction.bytes,
            messages: direction.messages,
            throughput: per_second(direction.bytes, busy(direction)),
            stalls: counted.then_some(direction.stalls),
            stalled: counted.then(|| seconds(direction.stalled)),
            longest_stall: counted.then(|| seconds(direction.longest_stall)),
            violations: counted.then_some(direction.overruns),
        }
    }

    fn sum(flow: &Flow) -> Self {
        Self {
            bytes: flow.bytes,
            messages: flow.messages,
            throughput: per_second(flow.bytes, flow.busy),
            stalls: Some(flow.stalls),
            stalled: Some(seconds(flow.stalled)),
            longest_stall: Some(seconds(flow.longest_stall)),
            violations: Some(flow.overruns),
        }
    }
}

impl Talk {
    fn of(said: &Said) -> Self {
        Self { messages: said.messages, bytes: said.bytes }
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn write(out: &mut Vec<u8>, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.push(b'\n');
    Ok(())
}
