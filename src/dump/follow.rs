//! `--follow N`: the bytes of one connection of the guest, both ways, in the order of the capture.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use spice_proto::names::Sender;
use spice_proto::tunnel::SocketId;

use crate::capture::dissect::{Body, What};
use crate::capture::ledger::{Connection, ConnectionNumber, said};
use crate::describe::Escaped;

use super::books::Seen;
use super::{DumpArgs, Format, units};

/// Prints them as they come.
#[derive(Debug)]
pub struct Follow {
    wanted: ConnectionNumber,
    form: Form,
    color: bool,
    /// Its socket, once it was seen.
    socket: Option<SocketId>,
    /// What is known of it, as of its last message.
    connection: Option<Connection>,
    /// The name of its service.
    service: Vec<u8>,
    /// How many connections the capture has so far: their numbers are below that.
    connections: u64,
    /// Bytes so far, from the guest and from the service.
    counts: [u64; 2],
    /// Places where some of it may be missing.
    gaps: u64,
}

#[derive(Debug)]
enum Form {
    /// `None` at the start of a line; otherwise who said what stands in it.
    Text(Option<Sender>),
    Hex,
    Raw([BufWriter<File>; 2], [PathBuf; 2]),
}

impl Follow {
    /// Nothing yet.
    ///
    /// # Errors
    ///
    /// When the files for `--raw` cannot be created.
    pub fn new(args: &DumpArgs, color: bool) -> io::Result<Self> {
        let form = match (&args.raw, args.format) {
            (Some(prefix), _) => {
                let paths = [named(prefix, "guest"), named(prefix, "service")];
                let [guest, service] = &paths;
                Form::Raw([create(guest)?, create(service)?], paths)
            }
            (None, Format::Text) => Form::Text(None),
            (None, Format::Hex) => Form::Hex,
        };
        Ok(Self::with(args.followed().unwrap_or(ConnectionNumber(0)), form, color))
    }

    fn with(wanted: ConnectionNumber, form: Form, color: bool) -> Self {
        Self {
            wanted,
            form,
            color,
            socket: None,
            connection: None,
            service: Vec::new(),
            connections: 0,
            counts: [0; 2],
            gaps: 0,
        }
    }

    /// Appends what an item says on the connection.
    ///
    /// # Errors
    ///
    /// When the files for `--raw` cannot be written.
    pub fn item(&mut self, seen: &Seen<'_, '_>, out: &mut Vec<u8>) -> io::Result<()> {
        if let Some(ConnectionNumber(number)) = seen.noted.connection {
            self.connections = self.connections.max(number.saturating_add(1));
        }
        let Some(ledger) = seen.ledger else { return Ok(()) };
        let item = seen.item;
        match (&item.what, item.from) {
            (What::Message(message), Some(from)) => {
                let mut result = Ok(());
                said(message, from, &mut |said| {
                    let Some(socket) = said.socket().filter(|socket| self.is_it(seen, *socket)) else {
                        return;
                    };
                    self.socket = Some(socket);
                    if let Some(payload) = said.payload()
                        && result.is_ok()
                    {
                        result = self.bytes(seen, from, payload, out);
                    }
                });
                result?;
                if message.body == Body::Opaque
                    && message.name == Some("socket_data")
                    && seen.noted.connection == Some(self.wanted)
                {
                    self.gap(
                        from,
                        &format!("{} bytes are too many for one message", message.head.size),
                        out,
                    )?;
                }
            }
            (What::Hole(hole), Some(from)) if self.living(seen).is_some() => {
                let missing = match hole.missing {
                    Some(missing) => format!("{} bytes of the tunnel", missing.saturating_add(hole.skipped)),
                    None => "part of the tunnel".to_owned(),
                };
                self.gap(from, &format!("the capture lacks {missing}, perhaps of this connection"), out)?;
            }
            (_, _) => {}
        }
        let over = seen.over.iter().find(|over| over.number == self.wanted);
        if let Some(connection) = over.or_else(|| self.living(seen)) {
            if let Some(service) = connection.service.and_then(|id| ledger.service(id)) {
                self.service.clone_from(&service.name);
            }
            self.connection = Some(connection.clone());
        }
        Ok(())
    }

    /// The capture is over. `false`: it does not have the connection.
    ///
    /// # Errors
    ///
    /// As [`item`](Self::item).
    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        if let Form::Text(Some(_)) = self.form {
            out.push(b'\n');
        }
        if let Form::Raw(files, _) = &mut self.form {
            for file in files {
                file.flush()?;
            }
        }
        let mut last = Vec::new();
        let found = self.conclude(&mut last)?;
        io::stderr().write_all(&last)?;
        Ok(found)
    }

    /// Says which connection that was, or which there are.
    fn conclude(&self, out: &mut Vec<u8>) -> io::Result<bool> {
        let ConnectionNumber(wanted) = self.wanted;
        let Some(connection) = &self.connection else {
            write!(out, "spice-tunnel: expected a connection #{wanted} of the guest in the capture, ")?;
            match self.connections {
                0 => writeln!(out, "which has none")?,
                1 => writeln!(out, "which has #0 only")?,
                count => writeln!(out, "which has #0 to #{}", count.saturating_sub(1))?,
            }
            return Ok(false);
        };
        write!(out, "connection #{wanted}: socket {}", connection.socket.0)?;
        match connection.service {
            Some(service) => write!(out, " to service {} \"{}\"", service.0, Escaped(&self.service))?,
            None => write!(out, " to a service that the capture does not show")?,
        }
        if let Some(destination) = connection.destination {
            write!(out, " at {destination}")?;
        }
        let [up, down] = self.counts;
        write!(
            out,
            "; {} up, {} down; {}",
            units::bytes(up),
            units::bytes(down),
            connection.ending().name()
        )?;
        if let Some(ended) = connection.ended() {
            write!(out, " after {}", units::time(ended.saturating_sub(connection.opened)))?;
        }
        if connection.incomplete {
            write!(out, "; incomplete, the capture does not have all of it")?;
        }
        if self.gaps > 0 {
            write!(out, "; something is missing at {} places", self.gaps)?;
        }
        out.push(b'\n');
        if let Form::Raw(_, [guest, service]) = &self.form {
            writeln!(out, "written to {} and {}", guest.display(), service.display())?;
        }
        Ok(true)
    }

    /// The connection, if it lives.
    fn living<'a>(&self, seen: &Seen<'a, '_>) -> Option<&'a Connection> {
        seen.ledger?.connection(self.socket?).filter(|open| open.number == self.wanted)
    }

    fn is_it(&self, seen: &Seen<'_, '_>, socket: SocketId) -> bool {
        let open = seen.ledger.and_then(|ledger| ledger.connection(socket));
        open.is_some_and(|open| open.number == self.wanted)
            // It ended with the same item.
            || seen.over.iter().any(|over| over.number == self.wanted && over.socket == socket)
    }

    fn bytes(
        &mut self,
        seen: &Seen<'_, '_>,
        from: Sender,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let [up, down] = &mut self.counts;
        let count = match from {
            Sender::Server => up,
            Sender::Client => down,
        };
        let offset = *count;
        *count = count.saturating_add(u64::try_from(payload.len()).unwrap_or(u64::MAX));
        let (color, plain) = if self.color { (color(from), PLAIN) } else { ("", "") };
        match &mut self.form {
            Form::Text(line) => {
                for piece in payload.split_inclusive(|byte| *byte == b'\n') {
                    if line.is_some_and(|last| last != from) {
                        out.push(b'\n');
                        *line = None;
                    }
                    out.extend_from_slice(color.as_bytes());
                    if line.is_none() {
                        write!(out, "{} ", mark(from))?;
                    }
                    let (text, ended) = match piece.strip_suffix(b"\n") {
                        Some(text) => (text, true),
                        None => (piece, false),
                    };
                    printable(text, out)?;
                    out.extend_from_slice(plain.as_bytes());
                    *line = Some(from);
                    if ended {
                        out.push(b'\n');
                        *line = None;
                    }
                }
            }
            Form::Hex => {
                writeln!(out, "{color}{} {}  {} bytes{plain}", mark(from), seen.since, payload.len())?;
                hex(from, offset, payload, out)?;
            }
            Form::Raw([guest, service], _) => {
                let file = match from {
                    Sender::Server => guest,
                    Sender::Client => service,
                };
                file.write_all(payload)?;
            }
        }
        Ok(())
    }

    /// Something may be missing here.
    fn gap(&mut self, from: Sender, text: &str, out: &mut Vec<u8>) -> io::Result<()> {
        self.gaps += 1;
        let (color, plain) = if self.color { (GAP, PLAIN) } else { ("", "") };
        match &mut self.form {
            Form::Text(line) => {
                if line.take().is_some() {
                    out.push(b'\n');
                }
                writeln!(out, "{color}{} [{text}]{plain}", mark(from))
            }
            Form::Hex => writeln!(out, "{color}{} [{text}]{plain}", mark(from)),
            Form::Raw(_, _) => Ok(()),
        }
    }
}

/// Text as it is, but nothing that a terminal would obey.
fn printable(bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' | '\'' | '\t' => write!(out, "{character}")?,
                other => write!(out, "{}", other.escape_debug())?,
            }
        }
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// Lines of sixteen bytes, with their place in the direction.
fn hex(from: Sender, offset: u64, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut place = offset;
    for row in bytes.chunks(16) {
        write!(out, "{} {place:08x} ", mark(from))?;
        for column in 0..16 {
            if column == 8 {
                out.push(b' ');
            }
            match row.get(column) {
                Some(byte) => write!(out, " {byte:02x}")?,
                None => out.extend_from_slice(b"   "),
            }
        }
        out.extend_from_slice(b"  |");
        out.extend(row.iter().map(|byte| if (0x20..0x7f).contains(byte) { *byte } else { b'.' }));
        out.extend_from_slice(b"|\n");
        place = place.saturating_add(16);
    }
    Ok(())
}

/// The guest's bytes go to the right, the service's to the left.
fn mark(from: Sender) -> char {
    match from {
        Sender::Server => '>',
        Sender::Client => '<',
    }
}

fn color(from: Sender) -> &'static str {
    match from {
        Sender::Server => "\x1b[32m",
        Sender::Client => "\x1b[36m",
    }
}

const GAP: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

fn named(prefix: &Path, end: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

fn create(path: &Path) -> io::Result<BufWriter<File>> {
    File::create(path)
        .map(BufWriter::new)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
