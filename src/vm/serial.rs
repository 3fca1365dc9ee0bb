//! The guest's serial ports: one runs commands, the other one talks; and what QEMU complains.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openssl::base64;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{oneshot, watch};

use super::Error;

/// Lines of the guest's console and of QEMU's complaints that are kept for error messages.
const KEPT_LINES: usize = 60;

/// What a command in the guest came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its exit status.
    pub status: i32,
    /// What it wrote to standard output and standard error.
    pub output: String,
}

/// Who waits for which command's answer.
type Waiting = Arc<Mutex<BTreeMap<u32, oneshot::Sender<Answer>>>>;

/// The serial port that runs commands.
#[derive(Debug)]
pub(super) struct Commands {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    next: AtomicU32,
    pub(super) ready: watch::Receiver<bool>,
    waiting: Waiting,
}

impl Commands {
    pub(super) fn new(port: UnixStream) -> (Self, impl Future<Output = ()>) {
        let (reader, writer) = port.into_split();
        let (ready, is_ready) = watch::channel(false);
        let waiting = Waiting::default();
        let commands = Self {
            writer: tokio::sync::Mutex::new(writer),
            next: AtomicU32::new(1),
            ready: is_ready,
            waiting: Arc::clone(&waiting),
        };
        let answers = async move {
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Some((id, answer)) = parse_answer(&line) else { continue };
                if id == 0 {
                    ready.send_replace(true);
                } else if let Some(waiter) = lock(&waiting).remove(&id) {
                    // Whoever asked may have given up meanwhile.
                    let _ = waiter.send(answer);
                }
            }
            // Dropping the senders tells everybody that nothing comes any more.
            lock(&waiting).clear();
        };
        (commands, answers)
    }

    /// `None` when the port is closed.
    pub(super) async fn run(&self, command: &str) -> Option<Answer> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let line = format!("{id} {}\n", base64::encode_block(command.as_bytes()));
        lock(&self.waiting).insert(id, sender);
        let mut writer = self.writer.lock().await;
        if writer.write_all(line.as_bytes()).await.is_err() {
            lock(&self.waiting).remove(&id);
            return None;
        }
        drop(writer);
        receiver.await.ok()
    }
}

fn parse_answer(line: &str) -> Option<(u32, Answer)> {
    let mut words = line.trim_end().split(' ');
    let id = words.next()?.parse().ok()?;
    let status = words.next()?.parse().ok()?;
    let output = base64::decode_block(words.next().unwrap_or_default()).ok()?;
    Some((id, Answer { status, output: String::from_utf8_lossy(&output).into_owned() }))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last lines of what the machine said.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Log {
    pub(super) async fn keep(self, who: &str, from: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(from).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let line = String::from_utf8_lossy(&line);
            let line: String = line.chars().filter(|c| !c.is_control()).collect();
            tracing::debug!(who, line, "virtual machine");
            let mut kept = lock(&self.lines);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(format!("{who}: {line}"));
        }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        lock(&self.lines).iter().cloned().collect()
    }

    pub(super) fn deadline(&self, what: &str, after: Duration) -> Error {
        Error::Deadline { what: what.to_owned(), after, log: self.lines() }
    }

    pub(super) async fn ended(&self, status: io::Result<ExitStatus>) -> Error {
        // What it complained last may still be on its way to us.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let mut log = self.lines();
        let text = log.join("\n");
        if text.contains("spice") && (text.contains("not compiled") || text.contains("module")) {
            log.push(
                "install QEMU's Spice with: apt-get install qemu-system-modules-spice (Debian 13)".to_owned(),
            );
        }
        Error::Ended { status, log }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed_and_nonsense_is_not_taken_for_one() {
        let answer = Answer { status: 3, output: "two\nlines".to_owned() };
        assert_eq!(parse_answer("7 3 dHdvCmxpbmVz"), Some((7, answer)));
        assert_eq!(parse_answer("0 0 "), Some((0, Answer { status: 0, output: String::new() })));
        for nonsense in ["", "x 0 ", "7", "7 x", "7 0 ***"] {
            assert_eq!(parse_answer(nonsense), None, "{nonsense:?}");
        }
    }
}
