//! Stands between `connect` and a server, and can swallow everything without closing anything.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(super) struct Relay {
    pub(super) address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    hole: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub(super) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (target, to) = watch::channel(target);
        let (hole, is_hole) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut links = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (to, hole) = (*to.borrow(), is_hole.clone());
                links.spawn(async move {
                    // Nobody there: closed at once.
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_in, far_out, hole.clone()), carry(far_in, near_out, hole));
                });
            }
        });
        Self { address, target, hole, _tasks: tasks }
    }

    /// Links from now on lead there.
    pub(super) fn lead_to(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Whether what comes from either side goes nowhere, and is kept: neither side is told.
    pub(super) fn swallow(&self, all: bool) {
        self.hole.send_replace(all);
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut hole: watch::Receiver<bool>) {
    let mut buffer = [0; 4096];
    loop {
        let read = from.read(&mut buffer).await;
        if hole.wait_for(|hole| !hole).await.is_err() {
            return;
        }
        match read {
            Ok(0) => {
                let _ = to.shutdown().await;
                return;
            }
            Ok(count) if to.write_all(&buffer[..count]).await.is_ok() => {}
            Ok(_) | Err(_) => {
                // As the other end had it: broken.
                let _ = to.as_ref().set_zero_linger();
                return;
            }
        }
    }
}
