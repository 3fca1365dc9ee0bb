//! The link to the server: the channel's outgoing bytes into it. Frames out of it are [`FrameStream`]'s business.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use spice_proto::frame_stream::FrameStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tunnel_channel::Channel;

/// Writes what the channel has for the server. Gives whether anything moved; what is left waits for the stream.
pub(crate) fn poll_send<S: AsyncRead + AsyncWrite + Unpin>(
    link: &mut FrameStream<S>,
    cx: &mut Context<'_>,
    channel: &mut Channel,
) -> io::Result<bool> {
    let mut moved = false;
    loop {
        match link.poll_send(cx, channel.outgoing())? {
            Poll::Pending | Poll::Ready(0) => return Ok(moved),
            Poll::Ready(written) => {
                channel.sent(written);
                moved = true;
            }
        }
    }
}

/// Sends the rest and closes our direction.
///
/// Not cancel safe: a dropped call may have sent a part.
pub(crate) async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    link: &mut FrameStream<S>,
    channel: &mut Channel,
) -> io::Result<()> {
    poll_fn(|cx| {
        poll_send(link, cx, channel)?;
        // Nothing is left to be written: this flushes.
        if !channel.outgoing().is_empty() || link.poll_send(cx, &[])?.is_pending() {
            return Poll::Pending;
        }
        link.poll_shutdown(cx)
    })
    .await
}
