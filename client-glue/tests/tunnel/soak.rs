//! Many connections of every sort at once, in an order that a seed decides: none may hang, lose a byte or keep its id.

use std::collections::BTreeMap;

use client_glue::Event;
use spice_proto::tunnel::SocketId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::peer::*;

const CONNECTIONS: u32 = 400;
const AT_ONCE: usize = 40;
const GREETING: usize = 100_000;

/// Numbers that look random (Knuth's MMIX generator).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(limit)) as u32
    }
}

/// What a service does, told to it by the first byte it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Echo,
    /// Says its piece, ends its side, and reads on.
    Greet,
    /// Reads a little, and then breaks off.
    Reset,
    /// Reads in small bites, and answers at the end.
    Slow,
    /// Closes at once, with something unread.
    Rude,
}

const MANNERS: [Manner; 5] = [Manner::Echo, Manner::Greet, Manner::Reset, Manner::Slow, Manner::Rude];

async fn behave(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0; 1];
    stream.read_exact(&mut first).await?;
    match MANNERS[usize::from(first[0])] {
        Manner::Echo => {
            stream.write_all(&first).await?;
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await?;
        }
        Manner::Greet => {
            stream.write_all(&pattern(GREETING)).await?;
            stream.shutdown().await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        }
        Manner::Reset => {
            let mut some = vec![0; 1000];
            let _ = stream.read(&mut some).await?;
            stream.set_zero_linger()?;
        }
        Manner::Slow => {
            let (mut bite, mut total) = (vec![0; 8192], 1u64);
            loop {
                let n = stream.read(&mut bite).await?;
                if n == 0 {
                    break;
                }
                total += n as u64;
                sleep(std::time::Duration::from_millis(1)).await;
            }
            stream.write_all(&total.to_le_bytes()).await?;
        }
        Manner::Rude => {}
    }
    Ok(())
}

/// The guest's end of one connection.
struct Guest {
    manner: Manner,
    data: Vec<u8>,
    sent: usize,
    /// After so many bytes it breaks off.
    resets_at: Option<usize>,
    said_all: bool,
    got: Vec<u8>,
    heard_all: bool,
}

enum Over {
    No,
    Clean,
    Reset,
}

impl Guest {
    fn new(dice: &mut Dice) -> Guest {
        let which = dice.below(5);
        let mut data = pattern(1 + dice.below(200_000) as usize);
        data[0] = which as u8;
        let resets_at = (dice.below(6) == 0).then(|| dice.below(data.len() as u32) as usize);
        let manner = MANNERS[which as usize];
        Guest { manner, data, sent: 0, resets_at, said_all: false, got: Vec::new(), heard_all: false }
    }

    fn advance(&mut self, peer: &mut Peer, socket: SocketId) -> Over {
        if !self.said_all {
            let end = self.resets_at.unwrap_or(self.data.len());
            self.sent = end - peer.send(socket, &self.data[self.sent..end]).len();
            if self.sent == end {
                if self.resets_at.is_some() {
                    peer.channel.reset(socket);
                    return Over::Reset;
                }
                peer.channel.finish(socket);
                self.said_all = true;
            }
        }
        if self.said_all && self.heard_all {
            peer.channel.close(socket);
            return Over::Clean;
        }
        Over::No
    }

    fn check_clean(&self) {
        match self.manner {
            Manner::Echo => assert!(self.got == self.data),
            Manner::Greet => assert!(self.got == pattern(GREETING)),
            Manner::Slow => assert_eq!(self.got, (self.data.len() as u64).to_le_bytes()),
            // Only where the guest had just that byte to say.
            Manner::Rude => assert_eq!((self.data.len(), self.got.len()), (1, 0)),
            Manner::Reset => panic!("a reset came as a clean end"),
        }
    }
}

#[tokio::test]
async fn all_sorts_at_once() {
    for seed in [1, 2] {
        timeout(6 * PATIENCE, soak(seed)).await.unwrap_or_else(|_| panic!("seed {seed} hangs"));
    }
}

async fn soak(seed: u64) {
    let mut dice = Dice(seed);
    let mut setup = setup();
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(behave(stream));
        }
    });
    let service = setup.share(address).await;
    let mut guests: BTreeMap<SocketId, Guest> = BTreeMap::new();
    let (mut opened, mut clean) = (0, 0);
    while opened < CONNECTIONS || !guests.is_empty() {
        while opened < CONNECTIONS && guests.len() < AT_ONCE {
            guests.insert(setup.peer.channel.open(service).unwrap(), Guest::new(&mut dice));
            opened += 1;
        }
        let told = setup.peer.next().await;
        let socket = match told {
            Told::Accepted(socket) | Told::Writable(socket) => socket,
            Told::Data(socket, payload) => {
                if let Some(guest) = guests.get_mut(&socket) {
                    guest.got.extend(payload);
                }
                socket
            }
            Told::Finished(socket) => {
                if let Some(guest) = guests.get_mut(&socket) {
                    guest.heard_all = true;
                }
                socket
            }
            Told::Reset(socket) => {
                let guest = guests.remove(&socket).unwrap();
                assert!(matches!(guest.manner, Manner::Reset | Manner::Rude), "{:?}", guest.manner);
                continue;
            }
            told => panic!("{told:?}"),
        };
        // A guest that found the channel congested has credit still, and is told of nothing.
        let mut over = Vec::new();
        let could = |peer: &Peer, of: &SocketId| *of == socket || peer.channel.credit(*of) > 0;
        for (socket, guest) in &mut guests {
            if !could(&setup.peer, socket) {
                continue;
            }
            match guest.advance(&mut setup.peer, *socket) {
                Over::No => {}
                Over::Clean => {
                    guest.check_clean();
                    clean += 1;
                    over.push(*socket);
                }
                Over::Reset => over.push(*socket),
            }
        }
        for socket in over {
            guests.remove(&socket);
        }
    }
    setup.peer.flush().await;
    setup.peer.silence().await;
    assert_eq!(setup.peer.channel.sockets(), 0);
    assert!(clean > CONNECTIONS / 4, "{clean}");

    // Every connection that was opened was also closed, as far as the consumer is told.
    setup.handle.shutdown();
    let (mut opened, mut closed, mut missed) = (0, 0, 0);
    while let Some(event) = setup.events.recv().await {
        match event {
            Event::Opened { .. } => opened += 1,
            Event::Closed { .. } => closed += 1,
            Event::Missed { events } => missed += events,
            _ => {}
        }
    }
    assert_eq!((opened, closed, missed), (CONNECTIONS, CONNECTIONS, 0));
}
