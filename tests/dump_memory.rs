//! However long a capture is, and whatever it holds, `dump` reads it with the same memory.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};

use crate::traffic::{Connection, Traffic, Tunnel, Wire};

/// What `dump` printed, and the most memory that it ever had, bytes.
struct Dumped {
    stdout: String,
    stderr: String,
    code: Option<i32>,
    peak: u64,
}

/// Feeds a capture through standard input.
fn dump(mut capture: impl Read, options: &[&str]) -> Dumped {
    let mut child = Command::new(env!("CARGO_BIN_EXE_spice-tunnel"))
        .args(["dump", "-"])
        .args(options)
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let stdout = gather(child.stdout.take().unwrap());
    let stderr = gather(child.stderr.take().unwrap());
    if let Err(error) = io::copy(&mut capture, &mut stdin) {
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
    stdin.flush().unwrap();
    // All but what is in the pipe was read by now.
    let peak = peak(&child);
    drop(stdin);
    let code = child.wait().unwrap().code();
    Dumped { stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap(), code, peak }
}

/// Reads what a child prints, of which the end is kept.
fn gather(mut output: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let mut buffer = [0; 64 << 10];
        loop {
            match output.read(&mut buffer).unwrap() {
                0 => return String::from_utf8_lossy(&kept).into_owned(),
                count => kept.extend_from_slice(&buffer[..count]),
            }
            if kept.len() > 1 << 20 {
                kept.drain(..kept.len() - (64 << 10));
            }
        }
    })
}

fn peak(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

const MIB: u64 = 1 << 20;

#[test]
fn a_longer_capture_needs_no_more_memory() {
    for options in [&["--stats"][..], &["--json"]] {
        let short = dump(Traffic::new(16 * MIB), options);
        let mut traffic = Traffic::new(256 * MIB);
        let long = dump(&mut traffic, options);
        println!("{options:?}: {} MiB, then {} MiB", short.peak / MIB, long.peak / MIB);
        assert_eq!((short.code, long.code), (Some(0), Some(0)), "{}\n{}", long.stdout, long.stderr);
        assert!(long.peak < 64 * MIB, "{} MiB", long.peak / MIB);
        assert!(long.peak < short.peak + 4 * MIB, "{} MiB after {}", long.peak / MIB, short.peak / MIB);
        // All of it was read.
        for (what, bytes) in ["guest got", "guest sent"].into_iter().zip(traffic.carried()) {
            let summary = format!("{}{}", long.stdout, long.stderr);
            let line = summary.lines().rfind(|line| line.starts_with(what)).expect(what);
            assert_eq!(line.split_whitespace().nth(2), Some(&*bytes.to_string()), "{line}");
        }
    }
}

/// As many reasons to hold something back as fit into a capture: bytes that wait for others, bodies of messages that never
/// end, connections that never do.
#[test]
fn a_hostile_capture_needs_no_more_memory_than_is_promised() {
    let hostile = dump(Hostile::default(), &["--stats"]);
    println!("{} MiB", hostile.peak / MIB);
    assert_eq!(hostile.code, Some(1), "holes were not reported: {}", hostile.stderr);
    assert!(hostile.peak < 256 * MIB, "{} MiB", hostile.peak / MIB);
}

/// Such a capture, connection by connection.
#[derive(Default)]
struct Hostile {
    wire: Wire,
    read: usize,
    connections: u32,
}

impl Hostile {
    const CONNECTIONS: u32 = 100_000;

    fn connection(&mut self) {
        let number = self.connections;
        self.connections += 1;
        let [a, b, c, d] = number.to_be_bytes();
        let (host, port) = ([10, b, c, d], 1000 + u16::from(a));
        let wire = &mut self.wire;
        match number {
            // Behind a byte that is missing, as much as may wait.
            0..8 => {
                let mut connection = Connection::connect(wire, host, port);
                connection.lose(0, 1);
                connection.say(wire, 0, &vec![1; 7 << 20]);
            }
            // Within a message, whose end never comes.
            8..72 => {
                let mut tunnel = Tunnel::connect_from(wire, host, port);
                let mut endless = Vec::new();
                endless.extend_from_slice(&106_u16.to_le_bytes());
                endless.extend_from_slice(&(2_u32 << 20).to_le_bytes());
                endless.resize((2 << 20) - 10, 0);
                tunnel.connection.say(wire, 1, &endless);
            }
            72..5000 => {
                let mut tunnel = Tunnel::connect_from(wire, host, port);
                tunnel.connection.lose(0, 1);
                tunnel.connection.say(wire, 0, &[1; 5000]);
            }
            _ => {
                Connection::connect(wire, host, port);
            }
        }
    }
}

impl Read for Hostile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.wire.bytes.len() {
            if self.connections == Self::CONNECTIONS {
                return Ok(0);
            }
            self.wire.bytes.clear();
            self.read = 0;
            self.connection();
        }
        let rest = &self.wire.bytes[self.read..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}
