//! What the two directions of a connection know of each other.

use spice_proto::base::FIRST_OF_CHANNEL;
use spice_proto::frame::HeaderForm;
use spice_proto::link::ChannelType;
use spice_proto::names::Sender;
use spice_proto::tunnel::{ClientMessage, Layout};

use super::resync::Types;
use super::{Channel, Head};
use crate::capture::reassembly::Way;

/// What is known of a connection's messages.
#[derive(Debug)]
pub(super) struct Knowledge {
    pub(super) channel: Option<Channel>,
    /// Which direction is the client's.
    pub(super) client: Option<Way>,
    pub(super) form: Option<HeaderForm>,
    pub(super) layout: Option<Layout>,
    pub(super) channel_caps: Vec<u32>,
    /// What the channel can be, if [`Way::Forth`] is the client's, and if [`Way::Back`] is.
    pub(super) if_forth: Types,
    pub(super) if_back: Types,
    /// Messages that told something about it, while it was not known.
    hints: u32,
}

impl Knowledge {
    /// Nothing but who connected, if that.
    pub(super) fn new(client: Option<Way>) -> Self {
        let mut know = Self {
            channel: None,
            client: None,
            form: None,
            layout: None,
            channel_caps: Vec::new(),
            if_forth: Types::ALL,
            if_back: Types::ALL,
            hints: 0,
        };
        if let Some(client) = client {
            know.set_client(client);
        }
        know
    }

    pub(super) fn channel_type(&self) -> Option<u8> {
        self.channel.map(|channel| channel.channel_type)
    }

    pub(super) fn set_channel(&mut self, channel: Channel) {
        self.channel = Some(channel);
        let only = Types::only(channel.channel_type);
        for types in [&mut self.if_forth, &mut self.if_back] {
            if !types.is_empty() {
                *types = only;
            }
        }
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout.unwrap_or(Layout::B)
    }

    /// Narrows down what the channel can be, and the layout, if they are not known.
    pub(super) fn learn(&mut self, from: Sender, head: &Head, body: Option<&[u8]>) {
        if self.channel.is_none() {
            let types = self.types();
            let (fitting, _) = types.that_fit(from, head, body, self.layout);
            if !fitting.is_empty() {
                *types_of(self) = fitting;
                self.hints += u32::from(head.kind >= FIRST_OF_CHANNEL);
                self.infer_channel();
            }
        }
        if let (None, Some(body)) = (self.layout, body) {
            let tunnel = self.channel_type() == Some(ChannelType::TUNNEL.0);
            if tunnel && from == Sender::Client && head.kind == SERVICE_ADD {
                let reads = |layout| ClientMessage::parse(layout, SERVICE_ADD, body).is_ok();
                self.layout = [Layout::B, Layout::A].into_iter().find(|layout| reads(*layout));
            }
        }
    }

    pub(super) fn set_client(&mut self, client: Way) {
        self.client = Some(client);
        match client {
            Way::Forth => self.if_back = Types::NONE,
            Way::Back => self.if_forth = Types::NONE,
        }
        if self.types().is_empty() {
            *types_of(self) = self.channel.map_or(Types::ALL, |channel| Types::only(channel.channel_type));
        }
    }

    /// The channel is known once only one is possible. Where all that speaks for it is the length of messages, several have
    /// to.
    pub(super) fn infer_channel(&mut self) {
        if let (None, Some(channel_type)) = (self.channel, self.types().single()) {
            let parsed = [ChannelType::MAIN, ChannelType::TUNNEL].contains(&ChannelType(channel_type));
            if parsed || self.hints >= HINTS {
                self.channel = Some(Channel { channel_type, id: None });
            }
        }
    }

    fn types(&mut self) -> Types {
        *types_of(self)
    }
}

/// What the channel can be, given who the client is.
fn types_of(know: &mut Knowledge) -> &mut Types {
    match know.client {
        Some(Way::Back) => &mut know.if_back,
        Some(Way::Forth) | None => &mut know.if_forth,
    }
}

/// Messages of a channel that is not parsed, from which it is known.
const HINTS: u32 = 3;

/// Number of the message that the two layouts differ in.
const SERVICE_ADD: u16 = 101;
