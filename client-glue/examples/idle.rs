//! What idle connections cost in the client's process: `cargo run --release -p client-glue --example idle [COUNT]…`
//!
//! The services only let connections queue up, and the server is a few bytes written by hand, so that the growth of
//! the process is the client's alone. Kernel memory is not in it.

use std::{error::Error, net::SocketAddr, time::Duration};

use client_glue::{Linked, TunnelConfig, channel_caps, common_caps, tunnel};
use socket2::{Domain, Socket, Type};
use spice_proto::{
    frame::{HeaderForm, put_header},
    tunnel::{ServerMessage, ServiceId, SocketId},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// Connections that one listener lets wait.
const BACKLOG: u16 = 4000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut counts: Vec<u16> = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    if counts.is_empty() {
        counts = vec![1000, 10_000];
    }
    for count in counts {
        measure(count).await?;
    }
    Ok(())
}

async fn measure(count: u16) -> Result<(), Box<dyn Error>> {
    let listeners = (0..count.div_ceil(BACKLOG)).map(|_| listen()).collect::<Result<Vec<_>, _>>()?;
    let (near, mut far) = duplex(1 << 20);
    let linked = Linked::tunnel(&common_caps(), &common_caps(), &channel_caps());
    let (handle, events, run) = tunnel(near, linked, TunnelConfig::default());
    drop(events);
    let run = tokio::spawn(run);
    for (_, address) in &listeners {
        handle.add_share(format!("tcp://{address}").parse()?)?;
    }
    say(&mut far, &ServerMessage::Init { max_sockets: u16::MAX, max_data: 32_768 }).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;

    let (files, before) = (open_files()?, resident()?);
    for socket in 0..count {
        let service = ServiceId(u32::from(socket / BACKLOG));
        say(&mut far, &ServerMessage::SocketOpen { socket: SocketId(socket), service, tokens: 64 }).await?;
    }
    // Every answer is an OPEN_ACK of 12 bytes with its header; SERVICE_ADDs came before.
    let mut heard = vec![0; 1 << 16];
    while open_files()? < files + usize::from(count) {
        let _ = tokio::time::timeout(Duration::from_millis(20), far.read(&mut heard)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let grown = resident()?.saturating_sub(before);
    println!("{count} idle connections: {grown} bytes, {} bytes each", grown / usize::from(count));
    handle.shutdown();
    run.await??;
    Ok(())
}

fn listen() -> Result<(Socket, SocketAddr), Box<dyn Error>> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(i32::from(BACKLOG))?;
    let address = socket.local_addr()?.as_socket().ok_or("no address")?;
    Ok((socket, address))
}

async fn say(
    stream: &mut (impl AsyncWriteExt + Unpin),
    message: &ServerMessage<'_>,
) -> Result<(), Box<dyn Error>> {
    let mut bytes = Vec::new();
    put_header(HeaderForm::Mini, &mut bytes, 0, message.kind(), u32::try_from(message.body_len())?);
    message.write_body(&mut bytes);
    Ok(stream.write_all(&bytes).await?)
}

fn open_files() -> std::io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// Resident memory of this process in bytes.
fn resident() -> Result<usize, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    let kib: usize = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kib * 1024)
}
