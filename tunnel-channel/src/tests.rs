mod dances;
mod flow;
mod hostile;
mod hostile_client;
mod hostile_server;
mod names;
mod nonsense;
mod scale;
mod sequences;
mod states;
mod windows;

use spice_proto::frame::{Split, split};
use spice_proto::tunnel::{GroupId, Layout, ServiceKind};

use crate::pair::describe;
use crate::{Channel, NewService, Role};

/// What a channel has to say, message by message, as [`describe`] has it; and now it was said.
fn said(channel: &mut Channel) -> Vec<String> {
    let bytes = channel.outgoing().to_vec();
    channel.sent(bytes.len());
    let to = match channel.role() {
        Role::Server => Role::Client,
        Role::Client => Role::Server,
    };
    let mut rest = &bytes[..];
    let mut lines = Vec::new();
    while !rest.is_empty() {
        let Split::Frame { frame, consumed } = split(channel.header, u32::MAX, rest).unwrap() else {
            panic!("half a message was queued")
        };
        lines.push(describe(to, Layout::B, &frame));
        rest = &rest[consumed..];
    }
    lines
}

fn new_service(group: u32, name: &[u8]) -> NewService<'_> {
    NewService {
        kind: ServiceKind::Generic,
        group: GroupId(group),
        port: 631,
        name,
        description: b"",
        info: None,
    }
}
