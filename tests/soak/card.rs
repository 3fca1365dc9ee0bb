//! A guest's network card that outlives the `serve` it is plugged into.

use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, split};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

/// Listens where `serve --nic connect:PATH` connects, one after the other; gives the guest's end of the cable. While
/// nobody is there, what the guest sends is lost. Only whole frames pass, so that the guest sees no seam.
pub(crate) fn card(path: &Path) -> DuplexStream {
    let listener = UnixListener::bind(path).unwrap();
    let (guest, ours) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let (mut from_guest, mut to_guest) = split(ours);
        let (frames, mut sent) = mpsc::channel::<Vec<u8>>(1024);
        tokio::spawn(async move {
            while let Some(frame) = frame(&mut from_guest).await {
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
        });
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted.unwrap().0,
                frame = sent.recv() => match frame {
                    Some(_) => continue,
                    None => return,
                },
            };
            let (mut read, mut write) = stream.into_split();
            let up = async {
                while let Some(frame) = sent.recv().await {
                    if write.write_all(&frame).await.is_err() {
                        // What it said at last is still to be read.
                        return std::future::pending().await;
                    }
                }
            };
            let down = async {
                while let Some(frame) = frame(&mut read).await {
                    if to_guest.write_all(&frame).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = up => return,
                () = down => {}
            }
        }
    });
    guest
}

/// A frame with QEMU's length before it.
async fn frame(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await.ok()?;
    let mut frame = length.to_vec();
    frame.resize(4 + u32::from_be_bytes(length) as usize, 0);
    from.read_exact(&mut frame[4..]).await.ok()?;
    Some(frame)
}
