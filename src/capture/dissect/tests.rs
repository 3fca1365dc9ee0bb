use std::collections::BTreeMap;
use std::path::PathBuf;

use spice_proto::names;

use super::*;
use crate::capture::file;
use crate::capture::reader::SpiceReader;

fn capture(name: &str) -> file::Reader {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("captures").join(name);
    file::Reader::open(&path).unwrap()
}

/// Channel, sender and name of an item that is a line of a dump.
fn label(item: &Item<'_>) -> Option<String> {
    let name = match &item.what {
        What::LinkMess { .. } => "link_mess",
        What::LinkReply { .. } => "link_reply",
        What::AuthMechanism(_) => "auth_mechanism",
        What::Ticket => "ticket",
        What::Sasl { name, .. } => name,
        What::LinkResult(_) => "link_result",
        What::Message(message) => message.name.unwrap_or("unknown"),
        What::Malformed { .. } => "malformed",
        What::Hole(_) => "hole",
        What::Began { .. } | What::Linked(_) | What::Ended { .. } => return None,
    };
    let channel = item.channel.and_then(|channel| names::channel(channel.channel_type)).unwrap_or("?");
    let from = item.from.map_or("-", Sender::name);
    Some(format!("{channel} {from} {name}"))
}

fn counts(name: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let mut reader = SpiceReader::new(capture(name), Options::default());
    while reader
        .step(&mut |item| {
            if let Some(label) = label(&item) {
                *counts.entry(label).or_default() += 1;
            }
        })
        .unwrap()
    {}
    counts
}

#[test]
fn a_refused_ticket_is_followed_to_its_end() {
    let expected = ["auth_mechanism", "link_mess", "ticket"].map(|name| (format!("main client {name}"), 1));
    let answers = ["link_reply", "link_result"].map(|name| (format!("main server {name}"), 1));
    assert_eq!(counts("wrong-ticket.pcap"), expected.into_iter().chain(answers).collect());
}
