//! Services in the user's network: each behaves in one way towards whoever connects.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Error;

/// What a service does with a connection.
#[derive(Clone, Copy)]
pub(crate) enum Service {
    /// Sends back what comes.
    Echo,
    /// Takes everything, then says how many bytes came.
    Count,
    /// Sends so many bytes, then ends.
    Source(usize),
    /// Waits for the other's end, then answers in capitals.
    Shout,
    /// Says goodbye first, and reads on to the other's end.
    Goodbye,
    /// Resets the connection behind the first byte.
    Reset,
    /// Resets the connection behind the other's end.
    ResetLast,
}

impl Service {
    /// Starts it on a port of its own.
    pub(crate) async fn start(self) -> Result<SocketAddr, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // One that breaks off is the guest's or the tunnel's doing, and part of the story.
                tokio::spawn(async move { self.serve(stream).await });
            }
        });
        Ok(address)
    }

    async fn serve(self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        match self {
            Self::Echo => {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await?;
            }
            Self::Count => {
                let count = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
                stream.write_all(format!("{count}\n").as_bytes()).await?;
            }
            Self::Source(length) => stream.write_all(&pattern(length)).await?,
            Self::Shout => {
                let mut heard = String::new();
                stream.read_to_string(&mut heard).await?;
                stream.write_all(heard.to_uppercase().as_bytes()).await?;
            }
            Self::Goodbye => {
                stream.write_all(b"BYE\n").await?;
                stream.shutdown().await?;
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
            }
            Self::Reset => {
                stream.read_u8().await?;
                stream.set_zero_linger()?;
            }
            Self::ResetLast => {
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
                stream.set_zero_linger()?;
            }
        }
        Ok(())
    }
}

/// A port of this machine where nobody listens.
pub(crate) async fn nobody() -> Result<SocketAddr, Error> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}

/// Bytes that do not repeat soon.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}
