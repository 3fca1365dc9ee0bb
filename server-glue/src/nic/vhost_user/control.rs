//! The control connection: QEMU's requests are followed as they come, and answered.
//!
//! All of it happens in the task of the card, between two looks at the rings. So when GET_VRING_BASE is answered, no ring is in use.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::device::Device;
use super::error::VhostUserError;
use super::message::{
    F_PROTOCOL_FEATURES, HEADER, Header, MAX_PAYLOAD, MAX_REGIONS, PROTOCOL_F_REPLY_ACK, Request,
    RequestError, RingDescriptor, RingState, answer,
};

/// Requests followed at once, before others have their turn.
const BATCH: usize = 64;
/// Octets of answers that wait to be read.
const MAX_ANSWERS: usize = 4096;

/// A connection to QEMU.
pub(super) struct Control {
    stream: UnixStream,
    pub(super) device: Device,
    /// The message that comes: what is here of it, and the descriptors beside it.
    message: [u8; HEADER + MAX_PAYLOAD],
    have: usize,
    files: Vec<File>,
    /// Answers that are not sent yet.
    answers: Vec<u8>,
    /// REPLY_ACK is agreed on.
    acknowledge: bool,
}

impl Control {
    pub(super) fn new(stream: UnixStream) -> Control {
        Control {
            stream,
            device: Device::default(),
            message: [0; HEADER + MAX_PAYLOAD],
            have: 0,
            files: Vec::new(),
            answers: Vec::new(),
            acknowledge: false,
        }
    }

    /// Follows what has come. Ready: the connection is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<VhostUserError> {
        let mut followed = 0;
        loop {
            match self.poll_receive(cx) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Ready(Ok(header)) => {
                    let outcome = self.follow(header);
                    let sent = self.send(cx);
                    if let Err(error) = outcome.map_err(VhostUserError::Request).and(sent) {
                        return Poll::Ready(error);
                    }
                }
            }
            followed += 1;
            if followed == BATCH {
                cx.waker().wake_by_ref();
                break;
            }
        }
        match self.send(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }

    /// Ready: a whole message is there.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Header, VhostUserError>> {
        loop {
            let header = match self.message.first_chunk::<HEADER>() {
                Some(header) if self.have >= HEADER => Some(Header::parse(header)?),
                Some(_) | None => None,
            };
            // Never further than to the end of a message: the descriptors of the next come with its first octet.
            let end = header.map_or(HEADER, |header| HEADER + header.size);
            if let Some(header) = header.filter(|_| self.have >= end) {
                self.have = 0;
                return Poll::Ready(Ok(header));
            }
            let Some(space) = self.message.get_mut(self.have..end) else { break };
            ready!(self.stream.poll_read_ready(cx)).map_err(VhostUserError::Connection)?;
            let files = &mut self.files;
            let stream = &self.stream;
            let received = stream.try_io(Interest::READABLE, || receive(stream, space, files));
            match received {
                Ok(0) => break,
                Ok(count) => self.have += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => return Poll::Ready(Err(VhostUserError::Connection(error))),
            }
        }
        Poll::Ready(Err(VhostUserError::Closed))
    }

    fn follow(&mut self, header: Header) -> Result<(), RequestError> {
        let Header { request: number, need_reply, size } = header;
        let payload = self.message.get(HEADER..HEADER + size).unwrap_or_default();
        let files = std::mem::take(&mut self.files);
        let outcome = Request::parse(number, payload).and_then(|request| {
            let (came, expected) = (files.len(), request.descriptors());
            if came != expected {
                return Err(RequestError::Descriptors { came, expected });
            }
            self.obey(request, files)
        });
        let answered = match &outcome {
            Ok(Some(word)) => Some(*word),
            Ok(None) | Err(_) if !(need_reply && self.acknowledge) => None,
            Ok(None) => Some(0),
            Err(_) => Some(1),
        };
        if let Some(word) = answered {
            self.answers.extend(answer(number, word));
        }
        outcome.map(drop)
    }

    /// Gives the answer of a request that always has one.
    fn obey(&mut self, request: Request, files: Vec<File>) -> Result<Option<u64>, RequestError> {
        let file = |files: Vec<File>, of: RingDescriptor| match files.into_iter().next() {
            Some(file) if of.comes => unblocked(file).map(Some),
            Some(_) | None => Ok(None),
        };
        match request {
            Request::GetFeatures => return Ok(Some(Device::OFFERED | F_PROTOCOL_FEATURES)),
            Request::SetFeatures(features) => self.device.set_features(features)?,
            // That we belong to the connection goes without saying, and RESET_OWNER is not used any more.
            Request::SetOwner | Request::ResetOwner => {}
            Request::SetMemTable(regions) => self.device.set_memory(regions, files)?,
            Request::SetVringNum(RingState { ring, value }) => self.device.set_size(ring, value)?,
            Request::SetVringAddr { ring, addresses } => self.device.set_addresses(ring, addresses)?,
            Request::SetVringBase(RingState { ring, value }) => self.device.set_base(ring, value)?,
            Request::GetVringBase { ring } => {
                let value = self.device.take_base(ring)?.into();
                return Ok(Some(RingState { ring, value }.word()));
            }
            Request::SetVringKick(of) => self.device.set_kick(of.ring, file(files, of)?)?,
            Request::SetVringCall(of) => self.device.set_call(of.ring, file(files, of)?)?,
            // Nobody needs to be told of a broken ring: it is logged.
            Request::SetVringErr(_) => {}
            Request::GetProtocolFeatures => return Ok(Some(PROTOCOL_F_REPLY_ACK)),
            Request::SetProtocolFeatures(features) => {
                let unknown = features & !PROTOCOL_F_REPLY_ACK;
                if unknown != 0 {
                    return Err(RequestError::Features(unknown));
                }
                self.acknowledge = features & PROTOCOL_F_REPLY_ACK != 0;
            }
            Request::SetVringEnable(RingState { ring, value }) => match value {
                0 | 1 => self.device.set_enabled(ring, value == 1)?,
                _ => return Err(RequestError::Enable(value)),
            },
        }
        Ok(None)
    }

    /// Sends the answers that can be sent now.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), VhostUserError> {
        while !self.answers.is_empty() {
            if self.answers.len() > MAX_ANSWERS {
                return Err(VhostUserError::Request(RequestError::Deaf));
            }
            match self.stream.poll_write_ready(cx) {
                Poll::Pending => break,
                Poll::Ready(ready) => ready.map_err(VhostUserError::Connection)?,
            }
            match self.stream.try_write(&self.answers) {
                Ok(count) => drop(self.answers.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // What it said before may still be read.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.answers.clear(),
                Err(error) => return Err(VhostUserError::Connection(error)),
            }
        }
        Ok(())
    }
}

/// Reads octets, and the descriptors beside them.
fn receive(stream: &UnixStream, space: &mut [u8], files: &mut Vec<File>) -> io::Result<usize> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REGIONS))];
    let mut beside = RecvAncillaryBuffer::new(&mut room);
    let received = recvmsg(stream, &mut [IoSliceMut::new(space)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for descriptor in descriptors {
                // One more than any message has is as wrong as many.
                if files.len() <= MAX_REGIONS {
                    files.push(File::from(descriptor));
                }
            }
        }
    }
    Ok(received.bytes)
}

/// Reading and writing it must not block, whatever it is.
fn unblocked(file: File) -> Result<File, RequestError> {
    let made = rustix::io::ioctl_fionbio(&file, true);
    made.map(|()| file).map_err(|error| RequestError::Descriptor(error.to_string()))
}
