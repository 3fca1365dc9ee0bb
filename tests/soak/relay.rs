//! The network between client and server, with its faults.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How the network is now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Where the server is.
    pub(crate) server: SocketAddr,
    /// Counts the times at which every link was cut.
    pub(crate) cuts: u32,
    /// By resets, the last time.
    pub(crate) by_reset: bool,
    /// Nothing passes.
    pub(crate) frozen: bool,
    /// Every piece takes so long.
    pub(crate) delay: Duration,
}

pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    weather: watch::Sender<Weather>,
}

impl Relay {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let calm = Weather { server, cuts: 0, by_reset: false, frozen: false, delay: Duration::ZERO };
        let (weather, seen) = watch::channel(calm);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, seen.clone()));
            }
        });
        Self { address, weather }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }

    pub(crate) fn cut(&self, by_reset: bool) {
        self.change(|weather| {
            weather.cuts += 1;
            weather.by_reset = by_reset;
        });
    }

    pub(crate) fn calm(&self) {
        self.change(|weather| {
            weather.frozen = false;
            weather.delay = Duration::ZERO;
        });
    }
}

async fn carry(mut client: TcpStream, mut weather: watch::Receiver<Weather>) {
    let (server, cuts) = {
        let weather = weather.borrow_and_update();
        (weather.server, weather.cuts)
    };
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let by_reset = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let mut seen = weather.clone();
        tokio::select! {
            () = pump(&mut from_client, &mut to_server, weather.clone()) => false,
            () = pump(&mut from_server, &mut to_client, weather.clone()) => false,
            cut = seen.wait_for(|weather| weather.cuts != cuts) => cut.is_ok_and(|weather| weather.by_reset),
        }
    };
    if by_reset {
        for stream in [&client, &server] {
            stream.set_zero_linger().unwrap();
        }
    }
}

/// Carries one way to its end.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut weather: watch::Receiver<Weather>,
) {
    let mut piece = vec![0; 32 << 10];
    while let Ok(len @ 1..) = from.read(&mut piece).await {
        let Ok(now) = weather.wait_for(|weather| !weather.frozen).await.map(|now| *now) else { return };
        if !now.delay.is_zero() {
            tokio::time::sleep(now.delay).await;
        }
        if to.write_all(&piece[..len]).await.is_err() {
            return;
        }
    }
}
