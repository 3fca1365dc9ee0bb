//! The link stage of a link that is recorded from behind it, so that readers find the channel and its terms.
//!
//! It is put together of what the two ends agreed on. What is secret, or unknown behind the link stage, is zero: the
//! server's key and the ticket.

use spice_proto::handshake::Linked;
use spice_proto::link::{
    CommonCaps, LinkMess, LinkReply, LinkVersion, MECHANISM_TICKET, PUBLIC_KEY_LEN, TICKET_LEN, TunnelCaps,
    WORD_LEN, Welcome,
};
use spice_proto::names::Sender;
use spice_proto::tunnel::Layout;

use super::tcp::Both;

/// The pieces in their order.
pub(super) type Stage = Vec<(Sender, Vec<u8>)>;

/// The link stage that led to `linked`, as `ours` heard of it.
pub(super) fn synthesise(linked: &Linked, ours: Sender) -> Stage {
    let version = match linked.layout {
        Layout::A => LinkVersion::V2010,
        Layout::B => LinkVersion::V2,
    };
    // Version 2010 has no capabilities, and the ends of this program otherwise offer all that it can.
    let own = match version {
        LinkVersion::V2 => (vec![CommonCaps::OURS.bits()], vec![TunnelCaps::OURS.bits()]),
        LinkVersion::V2010 => (Vec::new(), Vec::new()),
    };
    // A peer of old sends no word, which means the same as a word without bits.
    let peer_common = Some(linked.peer_common.bits()).filter(|word| *word != 0);
    let peer = (peer_common.into_iter().collect(), linked.peer_channel_caps.clone());
    let (client, server) = match ours {
        Sender::Client => (own, peer),
        Sender::Server => (peer, own),
    };
    let (mut asked, mut reply) = (Vec::new(), Vec::new());
    let mess = LinkMess {
        session_id: linked.session_id,
        channel_type: linked.channel_type,
        channel_id: linked.channel_id,
        common_caps: client.0,
        channel_caps: client.1,
    };
    // The client says how it authenticates if both ends have the choice.
    let selects = mess.common().contains(CommonCaps::AUTH_SELECTION)
        && CommonCaps::from_words(&server.0).contains(CommonCaps::AUTH_SELECTION);
    mess.write(version, &mut asked);
    let welcome =
        Welcome { public_key: Box::new([0; PUBLIC_KEY_LEN]), common_caps: server.0, channel_caps: server.1 };
    LinkReply::Welcome(welcome).write(version, &mut reply);
    let mut stage = vec![(Sender::Client, asked), (Sender::Server, reply)];
    if selects {
        stage.push((Sender::Client, MECHANISM_TICKET.to_le_bytes().to_vec()));
    }
    stage.push((Sender::Client, vec![0; TICKET_LEN]));
    // No error.
    stage.push((Sender::Server, vec![0; WORD_LEN]));
    stage
}

/// How many bytes each end says in it.
pub(super) fn lengths(stage: &Stage) -> Both<u32> {
    let mut lengths = Both::default();
    for (from, bytes) in stage {
        *lengths.of_mut(*from) += u32::try_from(bytes.len()).unwrap_or(0);
    }
    lengths
}
