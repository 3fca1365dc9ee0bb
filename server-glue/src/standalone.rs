//! A Spice session without a stock server: main, and nothing but the tunnel beside it.
//!
//! Serves those who want a tunnel into a VM that has no Spice, and tests. A viewer that connects sees a session with no
//! display. As with libspice-server a second client's main ends the first one's session.

use std::io;
use std::time::{Duration, Instant};

use spice_proto::base::{BaseClientMessage, BaseServerMessage};
use spice_proto::frame::{HeaderForm, Split, put_header, split};
use spice_proto::handshake::{Linked, ServerHandshake};
use spice_proto::io::advance;
use spice_proto::link::{ChannelType, CommonCaps, LinkError, LinkMess};
use spice_proto::main_channel::{ChannelEntry, Init, MainClientMessage, MainServerMessage, MouseModes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::oracle::unused_session;
use crate::proxy::{End, Judged, Link, TunnelPolicy, refuse};
use crate::stream::{BoxStream, send_all};

/// Longest body that main takes in; libspice-server's limit.
const MAX_BODY: u32 = 4096 + 11 * 2048;
/// How often a client is asked whether it still lives.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A client that is silent for so long is gone. libspice-server's time.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a client may take to read the little that we say.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Links and runs a main channel.
pub(crate) async fn main(
    link: Link,
    mut stream: BoxStream,
    mut machine: ServerHandshake,
    mess: &LinkMess,
) -> Result<(), End> {
    let caps = (vec![CommonCaps::OURS.bits()], Vec::new());
    match link.judge(&mut stream, &mut machine, caps, None).await? {
        Judged::Right(_) => {}
        Judged::Refuse(error) => return refuse(stream, machine, error).await,
        Judged::Sasl => {
            machine.refuse_mechanism()?;
            return crate::proxy::finish_refused(stream, machine).await;
        }
    }
    if mess.session_id != 0 {
        // That would be a migration to here.
        return refuse(stream, machine, LinkError::BadConnectionId).await;
    }
    machine.permit()?;
    advance(&mut stream, &mut machine).await?;
    let linked = machine.finish()?;
    let link = link.authenticated();
    let registry = &link.inner.registry;
    registry.end_all();
    let id = unused_session(registry)?;
    let session = registry.begin(id);
    tracing::info!(peer = %link.peer, session = id, "session begins, standalone");
    let tunnel = link.inner.config.tunnel != TunnelPolicy::Disabled;
    let outcome = tokio::select! {
        outcome = run(&mut stream, &linked, id, tunnel) => outcome,
        () = session.ended().cancelled() => Ok("another client took over"),
    };
    match outcome {
        Ok(why) => tracing::info!(peer = %link.peer, session = id, why, "session over"),
        Err(error) => tracing::info!(peer = %link.peer, session = id, %error, "session over"),
    }
    drop(session);
    let _ = timeout(WRITE_LIMIT, stream.shutdown()).await;
    Ok(())
}

/// Returns why the session is over, when nothing broke.
async fn run(stream: &mut BoxStream, linked: &Linked, id: u32, tunnel: bool) -> io::Result<&'static str> {
    let mut voice = Voice { form: linked.header, serial: 0, out: Vec::new() };
    voice.main(&MainServerMessage::Init(Init {
        session_id: id,
        display_channels_hint: 0,
        supported_mouse_modes: MouseModes::SERVER,
        current_mouse_mode: MouseModes::SERVER,
        agent_connected: false,
        agent_tokens: 10,
        multi_media_time: 0,
        ram_hint: 0,
    }));
    let started = Instant::now();
    let mut heard = tokio::time::Instant::now();
    let mut pings = 0;
    let mut ticker = tokio::time::interval(PING_INTERVAL);
    let mut got = linked.leftover.clone();
    loop {
        match answer_all(&mut voice, &mut got, tunnel) {
            Ok(()) => {}
            Err(why) => return Ok(why),
        }
        timeout(WRITE_LIMIT, send_all(stream, &voice.out)).await??;
        voice.out.clear();
        let mut piece = [0; 4096];
        tokio::select! {
            n = stream.read(&mut piece) => match n? {
                0 => return Ok("the client closed main"),
                n => {
                    heard = tokio::time::Instant::now();
                    got.extend_from_slice(piece.get(..n).unwrap_or_default());
                }
            },
            _ = ticker.tick() => {
                if heard.elapsed() >= SILENCE {
                    return Ok("the client has been silent for 30 s");
                }
                pings += 1;
                let timestamp = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                voice.base(&BaseServerMessage::Ping { id: pings, timestamp, padding: &[] });
            }
        }
    }
}

/// Takes the whole messages off the front of `got` and answers them. The error says why main must end.
fn answer_all(voice: &mut Voice, got: &mut Vec<u8>, tunnel: bool) -> Result<(), &'static str> {
    let mut done = 0;
    loop {
        let rest = got.get(done..).unwrap_or_default();
        match split(voice.form, MAX_BODY, rest) {
            Ok(Split::Incomplete { .. }) => break,
            Ok(Split::Frame { frame, consumed }) => {
                if let Some(list) = answer(frame.kind, frame.body, tunnel)? {
                    voice.main(&list);
                }
                done += consumed;
            }
            Err(_) => return Err("the client's message is too large"),
        }
    }
    got.drain(..done.min(got.len()));
    Ok(())
}

/// What there is to say to a message.
fn answer(kind: u16, body: &[u8], tunnel: bool) -> Result<Option<MainServerMessage<'static>>, &'static str> {
    const MALFORMED: &str = "the client sent a malformed message";
    if BaseClientMessage::parse(kind, body).map_err(|_| MALFORMED)?.is_some() {
        // PONG says by being there what we want to know; there is nothing to flush, acknowledge or migrate.
        return Ok(None);
    }
    match MainClientMessage::parse(kind, body).map_err(|_| MALFORMED)? {
        Some(MainClientMessage::AttachChannels) => {
            let entry = ChannelEntry { channel_type: ChannelType::TUNNEL.0, channel_id: 0 };
            let channels = if tunnel { vec![entry] } else { Vec::new() };
            Ok(Some(MainServerMessage::ChannelsList { channels }))
        }
        // There is no mouse, no agent and no other host.
        Some(
            MainClientMessage::ClientInfo { .. }
            | MainClientMessage::MigrateConnected
            | MainClientMessage::MigrateConnectError
            | MainClientMessage::MouseModeRequest { .. }
            | MainClientMessage::AgentStart { .. }
            | MainClientMessage::AgentData { .. }
            | MainClientMessage::AgentToken { .. }
            | MainClientMessage::MigrateEnd
            | MainClientMessage::MigrateDstDoSeamless { .. }
            | MainClientMessage::MigrateConnectedSeamless
            | MainClientMessage::QualityIndicator { .. },
        ) => Ok(None),
        None => Err("the client sent a message that main does not have"),
    }
}

/// Our messages, with their headers.
struct Voice {
    form: HeaderForm,
    serial: u64,
    out: Vec<u8>,
}

impl Voice {
    fn main(&mut self, message: &MainServerMessage<'_>) {
        self.header(message.kind(), message.body_len());
        message.write_body(&mut self.out);
    }

    fn base(&mut self, message: &BaseServerMessage<'_>) {
        self.header(message.kind(), message.body_len());
        message.write_body(&mut self.out);
    }

    fn header(&mut self, kind: u16, length: usize) {
        self.serial += 1;
        // Our own messages are all short.
        let size = u32::try_from(length).unwrap_or(u32::MAX);
        put_header(self.form, &mut self.out, self.serial, kind, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attach_is_answered_by_the_tunnel_alone() {
        let mut voice = Voice { form: HeaderForm::Mini, serial: 0, out: Vec::new() };
        let mut got = vec![104, 0, 0, 0, 0, 0, 104, 0];
        answer_all(&mut voice, &mut got, true).unwrap();
        assert_eq!(voice.out, [104, 0, 6, 0, 0, 0, 1, 0, 0, 0, 7, 0]);
        assert_eq!(got, [104, 0]);
        got.extend([0, 0, 0, 0]);
        voice.out.clear();
        answer_all(&mut voice, &mut got, false).unwrap();
        assert_eq!(voice.out, [104, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn unknown_and_oversized_messages_end_main() {
        let mut voice = Voice { form: HeaderForm::Mini, serial: 0, out: Vec::new() };
        assert!(answer_all(&mut voice, &mut vec![200, 0, 0, 0, 0, 0], true).is_err());
        assert!(answer_all(&mut voice, &mut vec![107, 0, 255, 255, 255, 255], true).is_err());
        assert!(answer_all(&mut voice, &mut vec![3, 0, 1, 0, 0, 0, 9], true).is_err());
        assert!(answer_all(&mut voice, &mut vec![4, 0, 0, 0, 0, 0], true).is_ok());
    }
}
