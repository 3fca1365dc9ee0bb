//! The load's far end: the service that all peers lead to.
//!
//! Many threads wait in `accept` and attend to what they get, so that a new connection is no hand-over. Connections that are to be
//! held without doing anything go to one thread that waits for all of them, and cost no other.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use socket2::{Domain, Socket, Type};

use super::wire::{CHUNK, Count, Request, after, now};

/// More than any figure has connections that are busy at once.
const ATTENDANTS: usize = 128;
/// How often one who waits looks at the clock.
const LOOK_UP: Duration = Duration::from_millis(50);
/// Seconds in which what was sent by the end of the time should come.
const GRACE: f64 = 5.0;
/// Of a thread that has its buffers elsewhere.
const STACK: usize = 64 << 10;

/// Listens with room for everybody who comes at once.
pub(crate) fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Serves as long as the process lives.
pub(crate) fn start(listener: TcpListener) -> io::Result<()> {
    let listener = Arc::new(listener);
    let waiting = Waiting::start()?;
    for _ in 0..ATTENDANTS {
        let (listener, waiting) = (listener.clone(), waiting.clone());
        spawn(move || {
            let mut buffer = vec![0; CHUNK];
            loop {
                if let Ok((stream, _)) = listener.accept() {
                    // What goes wrong with a connection, its other end sees and tells.
                    let _ = stream.set_nodelay(true).and_then(|()| attend(stream, &mut buffer, &waiting));
                }
            }
        })?;
    }
    Ok(())
}

fn spawn(act: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().stack_size(STACK).spawn(act).map(drop)
}

fn attend(mut stream: TcpStream, buffer: &mut [u8], waiting: &Arc<Waiting>) -> io::Result<()> {
    let Some(request) = Request::receive(&mut stream)? else { return Ok(()) };
    match request {
        Request::Sink { start, end } => {
            let mut count = Count::default();
            let mut told = false;
            // What a way that stalls has carried by then is told nonetheless.
            stream.set_read_timeout(Some(LOOK_UP))?;
            loop {
                let read = match stream.read(buffer) {
                    Ok(read) => Some(read),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                    Err(error) => return Err(error),
                };
                count.add(read.unwrap_or(0), (start, end));
                if !told && (now() >= after(end, GRACE) || read == Some(0)) {
                    stream.write_all(&count.counted.to_le_bytes())?;
                    told = true;
                }
                if read == Some(0) {
                    return stream.write_all(&count.total.to_le_bytes());
                }
            }
        }
        Request::Source { end } => {
            while now() < end {
                stream.write_all(buffer)?;
            }
            Ok(())
        }
        Request::Echo { size } => {
            let message = sized(buffer, size)?;
            loop {
                if stream.read(&mut message[..1])? == 0 {
                    return Ok(());
                }
                stream.read_exact(&mut message[1..])?;
                stream.write_all(message)?;
            }
        }
        Request::Hold => {
            stream.write_all(b"h")?;
            waiting.hold(stream)
        }
        Request::Burst { size } => {
            burst(&mut stream, size, buffer)?;
            waiting.hold(stream)
        }
    }
}

fn sized(buffer: &mut [u8], size: u32) -> io::Result<&mut [u8]> {
    let size = (size as usize).max(1);
    buffer.get_mut(..size).ok_or_else(|| io::Error::other(format!("no message of {size} bytes fits")))
}

fn burst(stream: &mut TcpStream, size: u32, buffer: &mut [u8]) -> io::Result<()> {
    let mut left = size as usize;
    while left > 0 {
        let most = left.min(buffer.len());
        match stream.read(&mut buffer[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => left -= read,
        }
    }
    let mut left = size as usize;
    while left > 0 {
        let part = left.min(buffer.len());
        stream.write_all(&buffer[..part])?;
        left -= part;
    }
    Ok(())
}

/// Connections that are held.
struct Waiting {
    ready: std::os::fd::OwnedFd,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    streams: BTreeMap<u64, TcpStream>,
    last: u64,
}

impl Waiting {
    fn start() -> io::Result<Arc<Self>> {
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waiting = Arc::new(Self { ready, held: Mutex::default() });
        let attended = waiting.clone();
        spawn(move || attended.run())?;
        Ok(waiting)
    }

    fn hold(&self, stream: TcpStream) -> io::Result<()> {
        let mut held = self.held.lock().unwrap();
        held.last += 1;
        let number = held.last;
        // Under the lock: what is ready at once is looked for only when it is in the table.
        epoll::add(
            &self.ready,
            &stream,
            epoll::EventData::new_u64(number),
            epoll::EventFlags::IN | epoll::EventFlags::ONESHOT,
        )?;
        held.streams.insert(number, stream);
        Ok(())
    }

    /// Gives each connection on which something came a thread of its own, for as long as that takes.
    fn run(self: Arc<Self>) {
        let mut events = Vec::with_capacity(256);
        loop {
            if epoll::wait(&self.ready, spare_capacity(&mut events), None).is_err() {
                continue;
            }
            for event in events.drain(..) {
                let stream = self.held.lock().unwrap().streams.remove(&event.data.u64());
                let Some(stream) = stream else { continue };
                let _ = epoll::delete(&self.ready, &stream);
                let mut first = [0];
                // Most of them just end.
                if matches!(stream.peek(&mut first), Ok(0) | Err(_)) {
                    continue;
                }
                let waiting = self.clone();
                // Without a thread the connection is closed, and its other end tells.
                let _ = spawn(move || {
                    let _ = attend(stream, &mut vec![0; 16 << 10], &waiting);
                });
            }
        }
    }
}
