//! What the guest does with the services, byte for byte.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use spice_tunnel::guest::{Guest, GuestStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::random::Random;

/// No transfer may take longer, whatever happens to it.
pub(crate) const BOUND: Duration = Duration::from_secs(60);
const PIECE: usize = 8 << 10;
/// How a connection may fail to open.
const REFUSALS: [ErrorKind; 2] = [ErrorKind::ConnectionRefused, ErrorKind::HostUnreachable];

/// What a service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Echo,
    /// Sends what it is asked for: a seed and a length.
    Source,
    /// Takes a seed, a length and the bytes, and says how many were right.
    Sink,
}

pub(crate) const SERVICES: [(&str, Service); 3] =
    [("echo", Service::Echo), ("source", Service::Source), ("sink", Service::Sink)];

impl Service {
    /// Somewhere on the user's machine.
    pub(crate) async fn start(self) -> SocketAddr {
        self.start_at("127.0.0.1").await
    }

    /// On one of the user's machines.
    pub(crate) async fn start_at(self, host: &str) -> SocketAddr {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move { self.serve(stream).await });
            }
        });
        address
    }

    async fn serve(self, mut stream: TcpStream) -> io::Result<()> {
        if self == Service::Echo {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            return write.shutdown().await;
        }
        let mut bytes = Random::new(stream.read_u64().await?);
        let len = stream.read_u64().await?;
        if self == Service::Source {
            write_random(&mut stream, &mut bytes, len).await?;
        } else {
            read_random(&mut stream, &mut bytes, len).await?;
            stream.write_u64(len).await?;
        }
        stream.shutdown().await
    }
}

async fn write_random(
    to: &mut (impl AsyncWrite + Unpin),
    bytes: &mut Random,
    mut len: u64,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    while len > 0 {
        let piece = &mut piece[..PIECE.min(len as usize)];
        bytes.fill(piece);
        to.write_all(piece).await?;
        len -= piece.len() as u64;
    }
    Ok(())
}

/// Fails the whole test if one byte differs.
async fn read_random(
    from: &mut (impl AsyncRead + Unpin),
    bytes: &mut Random,
    mut len: u64,
) -> io::Result<()> {
    let (mut piece, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    while len > 0 {
        let size = PIECE.min(len as usize);
        from.read_exact(&mut piece[..size]).await?;
        bytes.fill(&mut expected[..size]);
        if piece[..size] != expected[..size] {
            eprintln!("bytes came that were never sent");
            std::process::abort();
        }
        len -= size as u64;
    }
    Ok(())
}

/// How the transfers went.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) whole: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) reset: AtomicU64,
    pub(crate) refused: AtomicU64,
    busy: AtomicUsize,
}

/// Many transfers at a time, one after the other for ever.
pub(crate) struct Traffic {
    pub(crate) tally: Arc<Tally>,
    on: watch::Sender<bool>,
    workers: JoinSet<()>,
}

impl Traffic {
    pub(crate) fn start(guest: &Guest, services: &[(Service, SocketAddr)], workers: u64, seed: u64) -> Self {
        let (on, switch) = watch::channel(true);
        let tally = Arc::new(Tally::default());
        let mut set = JoinSet::new();
        for number in 0..workers {
            let mut random = Random::new(seed ^ (number + 1).wrapping_mul(0x9e37_79b9));
            let (guest, services) = (guest.clone(), services.to_vec());
            let (tally, mut switch) = (Arc::clone(&tally), switch.clone());
            set.spawn(async move {
                while switch.wait_for(|on| *on).await.is_ok() {
                    tally.busy.fetch_add(1, Ordering::SeqCst);
                    let (service, address) = services[random.within(0..services.len() as u64) as usize];
                    transfer_to_its_end(&guest, service, address, &mut random, &tally).await;
                    tally.busy.fetch_sub(1, Ordering::SeqCst);
                    sleep(random.millis(0..300)).await;
                }
            });
        }
        Self { tally, on, workers: set }
    }

    /// Lets what is under way end, and begins nothing new.
    pub(crate) async fn pause(&mut self) {
        self.on.send_replace(false);
        while self.tally.busy.load(Ordering::SeqCst) > 0 {
            self.check();
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn go_on(&self) {
        self.on.send_replace(true);
    }

    /// Panics if a worker did.
    pub(crate) fn check(&mut self) {
        if let Some(ended) = self.workers.try_join_next() {
            panic!("a transfer went wrong: {ended:?}");
        }
    }
}

async fn transfer_to_its_end(
    guest: &Guest,
    service: Service,
    address: SocketAddr,
    random: &mut Random,
    tally: &Tally,
) {
    let len = random.within(1..200_000);
    let seed = random.next();
    let outcome = timeout(BOUND, transfer(guest, service, address, seed, len)).await;
    let counter = match outcome {
        Err(_) => panic!("a transfer of {len} bytes by {service:?} hangs for {BOUND:?}"),
        Ok(Ok(())) => {
            tally.bytes.fetch_add(len, Ordering::Relaxed);
            &tally.whole
        }
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => &tally.reset,
        Ok(Err(error)) if REFUSALS.contains(&error.kind()) => &tally.refused,
        // An end that looks clean would be taken for the whole by a guest that does not count.
        Ok(Err(error)) => panic!("a transfer of {len} bytes by {service:?} ended with {error:?}"),
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One transfer, checked to the last byte and the end behind it.
pub(crate) async fn transfer(
    guest: &Guest,
    service: Service,
    address: SocketAddr,
    seed: u64,
    len: u64,
) -> io::Result<()> {
    let mut stream = guest.connect(address.ip(), address.port()).await.map_err(io::Error::from)?;
    let mut bytes = Random::new(seed);
    match service {
        Service::Echo => {
            let (mut read, mut write) = split(stream);
            let mut sent = bytes.clone();
            let up = async {
                write_random(&mut write, &mut sent, len).await?;
                write.shutdown().await
            };
            let down = async {
                read_random(&mut read, &mut bytes, len).await?;
                ends(&mut read).await
            };
            tokio::try_join!(up, down).map(drop)
        }
        Service::Source => {
            ask(&mut stream, seed, len).await?;
            read_random(&mut stream, &mut bytes, len).await?;
            ends(&mut stream).await
        }
        Service::Sink => {
            ask(&mut stream, seed, len).await?;
            write_random(&mut stream, &mut bytes, len).await?;
            assert_eq!(stream.read_u64().await?, len);
            ends(&mut stream).await
        }
    }
}

async fn ask(stream: &mut GuestStream, seed: u64, len: u64) -> io::Result<()> {
    stream.write_u64(seed).await?;
    stream.write_u64(len).await
}

async fn ends(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    assert_eq!(stream.read(&mut [0]).await?, 0, "more came than was sent");
    Ok(())
}
