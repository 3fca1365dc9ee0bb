//! A card in memory: a [`Nic`] whose other end takes and gives whole Ethernet frames, for a hypervisor in this process.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use crate::nic::{Deframer, Framer, Nic};

/// Octets in flight each way, before the sender waits.
const CABLE: usize = 256 * 1024;
/// An Ethernet frame's head, without a VLAN's.
const HEAD: usize = 14;

/// The guest's end of a cable in memory. Two tasks may use its halves: [`split`](Card::split).
#[derive(Debug)]
pub struct Card {
    sender: FrameSender,
    receiver: FrameReceiver,
}

/// Takes the guest's frames.
#[derive(Debug)]
pub struct FrameSender {
    cable: WriteHalf<DuplexStream>,
    framer: Framer,
    longest: usize,
}

/// Gives the guest its frames.
#[derive(Debug)]
pub struct FrameReceiver {
    cable: ReadHalf<DuplexStream>,
    deframer: Deframer,
}

/// Why a frame was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// The caller's mistake, or its guest's. The card goes on.
    #[error("a frame of {got} octets; expected 14 to {longest}, the MTU and an Ethernet head")]
    Length {
        /// How long it was.
        got: usize,
        /// The longest.
        longest: usize,
    },
    /// The virtual network is gone.
    #[error("the virtual network is gone")]
    Gone,
}

impl Card {
    /// A card for guests with this MTU, and the [`Nic`] for the [`network`](crate::network::network), which should be
    /// configured with the same.
    pub fn new(mtu: u16) -> (Card, Nic) {
        let (near, far) = tokio::io::duplex(CABLE);
        let (read, write) = tokio::io::split(near);
        let longest = usize::from(mtu) + HEAD;
        let sender = FrameSender { cable: write, framer: Framer::default(), longest };
        let receiver = FrameReceiver { cable: read, deframer: Deframer::new() };
        (Card { sender, receiver }, Nic::attached(far))
    }

    /// As [`FrameSender::send`].
    ///
    /// # Errors
    /// [`CardError`]
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), CardError> {
        self.sender.send(frame).await
    }

    /// As [`FrameReceiver::recv`].
    pub async fn recv(&mut self) -> Option<Vec<u8>> {
        self.receiver.recv().await
    }

    /// One half for each direction. The network is told that the guest is gone once both are dropped.
    pub fn split(self) -> (FrameSender, FrameReceiver) {
        (self.sender, self.receiver)
    }
}

impl FrameSender {
    /// Sends a frame of the guest. Waits while the network is too busy for it: leave further ones in the guest's own
    /// queue meanwhile, so that the guest's TCP slows down instead of losing them.
    ///
    /// Cancel safe in that frames stay whole: one whose call was dropped goes out with the next, or not at all.
    ///
    /// # Errors
    /// [`CardError`]
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), CardError> {
        let (got, longest) = (frame.len(), self.longest);
        if !(HEAD..=longest).contains(&got) {
            return Err(CardError::Length { got, longest });
        }
        self.flush().await?;
        self.framer.put(&[frame]);
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), CardError> {
        while !self.framer.pending().is_empty() {
            match self.cable.write(self.framer.pending()).await {
                Ok(0) | Err(_) => return Err(CardError::Gone),
                Ok(count) => self.framer.sent(count),
            }
        }
        Ok(())
    }
}

impl FrameReceiver {
    /// The next frame for the guest; `None` when the network is gone. While nobody takes frames, the network keeps
    /// what it can and returns no credit to the user's side.
    ///
    /// Cancel safe: a dropped call has taken nothing.
    pub async fn recv(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.deframer.next() {
                Ok(Some(frame)) => return Some(frame.to_vec()),
                Ok(None) => {}
                // Our own framing; it holds.
                Err(_) => return None,
            }
            match self.read().await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.deframer.filled(count),
            }
        }
    }

    async fn read(&mut self) -> io::Result<usize> {
        self.cable.read(self.deframer.spare()).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::nic::NicEvent;

    const SOON: Duration = Duration::from_secs(10);

    async fn take(nic: &mut Nic) -> Vec<Vec<u8>> {
        assert!(matches!(timeout(SOON, nic.ready()).await.unwrap(), NicEvent::Frames));
        let mut frames = Vec::new();
        while let Some(frame) = nic.next_frame() {
            frames.push(frame.to_vec());
        }
        frames
    }

    #[tokio::test]
    async fn frames_of_the_right_length_go_both_ways() {
        let (mut card, mut nic) = Card::new(1500);
        for wrong in [0, 13, 1515] {
            let error = card.send(&vec![1; wrong]).await.unwrap_err();
            assert_eq!(error, CardError::Length { got: wrong, longest: 1514 });
        }
        card.send(&[1; 14]).await.unwrap();
        card.send(&[2; 1514]).await.unwrap();
        assert_eq!(take(&mut nic).await, [vec![1; 14], vec![2; 1514]]);

        assert!(nic.queue(&[3; 60]) && nic.queue(&[4; 61]));
        tokio::select! {
            event = nic.ready() => panic!("{event:?}"),
            frame = card.recv() => assert_eq!(frame.unwrap(), [3; 60]),
        }
        assert_eq!(card.recv().await.unwrap(), [4; 61]);
    }

    #[tokio::test]
    async fn a_busy_network_makes_the_card_wait_and_nothing_is_lost() {
        let (card, mut nic) = Card::new(1500);
        let (mut sender, receiver) = card.split();
        let mut sent = 0u32;
        // Cut off wherever it is: the frame that did not fit goes out with the next.
        while timeout(Duration::from_millis(200), sender.send(&[sent as u8; 1514])).await.is_ok() {
            sent += 1;
            assert!(sent < 1000, "it takes frames without end");
        }
        let mut got = Vec::new();
        while got.len() < sent as usize {
            got.append(&mut take(&mut nic).await);
        }
        sender.send(&[0xff; 20]).await.unwrap();
        while got.last().unwrap().len() != 20 {
            got.append(&mut take(&mut nic).await);
        }
        assert_eq!(got.len(), sent as usize + 2);
        for (number, frame) in got.iter().take(sent as usize + 1).enumerate() {
            assert!(frame.len() == 1514 && frame.iter().all(|octet| *octet == number as u8));
        }
        drop((sender, receiver));
        assert!(matches!(timeout(SOON, nic.ready()).await.unwrap(), NicEvent::Lost(_)));
    }

    #[tokio::test]
    async fn a_network_that_is_gone_says_so() {
        let (mut card, nic) = Card::new(1500);
        drop(nic);
        assert_eq!(card.send(&[0; 60]).await, Err(CardError::Gone));
        assert_eq!(card.recv().await, None);
    }
}
