//! A raw printer, port 9100: what comes over a connection is a job, and its end the job's.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use openssl::sha::Sha256;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Machine;
use crate::vm::rig::soon;

/// What came over one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) length: u64,
    pub(crate) hash: [u8; 32],
    /// How it ended.
    pub(crate) end: Result<(), ErrorKind>,
}

/// A raw printer that can be told to stop.
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    jobs: mpsc::UnboundedReceiver<Received>,
    tell: mpsc::UnboundedSender<Received>,
    paper: watch::Sender<bool>,
    progress: Arc<watch::Sender<Progress>>,
    serving: JoinSet<()>,
}

/// Of all jobs so far.
#[derive(Default)]
struct Progress {
    connections: usize,
    bytes: u64,
}

impl Sink {
    /// In the network of a machine.
    pub(crate) fn start(machine: &Machine, address: SocketAddr) -> Self {
        let (tell, jobs) = mpsc::unbounded_channel();
        let (paper, progress) = (watch::Sender::new(true), Arc::new(watch::Sender::default()));
        let mut sink = Self { address, jobs, tell, paper, progress, serving: JoinSet::new() };
        sink.switch_on(machine);
        sink
    }

    pub(crate) fn switch_on(&mut self, machine: &Machine) {
        let listener = machine.listen(self.address);
        let (tell, paper, progress) = (self.tell.clone(), self.paper.subscribe(), Arc::clone(&self.progress));
        self.serving.spawn(async move {
            let mut printing = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                progress.send_modify(|progress| progress.connections += 1);
                let (tell, paper, progress) = (tell.clone(), paper.clone(), Arc::clone(&progress));
                printing.spawn(async move {
                    let _ = tell.send(print(stream, paper, &progress).await);
                });
            }
        });
    }

    /// Pulls its plug: what it was printing is lost, and nobody listens.
    pub(crate) async fn switch_off(&mut self) {
        self.serving.shutdown().await;
    }

    /// Stops reading, and accepts what comes all the same.
    pub(crate) fn out_of_paper(&self) {
        self.paper.send_replace(false);
    }

    pub(crate) fn refill(&self) {
        self.paper.send_replace(true);
    }

    /// The next job that ended.
    pub(crate) async fn next(&mut self) -> Received {
        soon("a raw job", self.jobs.recv()).await.unwrap()
    }

    /// The next, however long it takes: the caller has a deadline.
    pub(crate) async fn next_at_leisure(&mut self) -> Received {
        self.jobs.recv().await.unwrap()
    }

    /// A job that ended and was not taken.
    pub(crate) fn more(&mut self) -> Option<Received> {
        self.jobs.try_recv().ok()
    }

    /// Waits until so many bytes have come, of all jobs.
    pub(crate) async fn has_read(&self, bytes: u64) {
        let mut progress = self.progress.subscribe();
        soon("the printer to read", progress.wait_for(|progress| progress.bytes >= bytes)).await.unwrap();
    }

    /// Waits until so many have connected, ever.
    pub(crate) async fn has_connections(&self, connections: usize) {
        let mut progress = self.progress.subscribe();
        let enough = progress.wait_for(|progress| progress.connections >= connections);
        soon("connections to the printer", enough).await.unwrap();
    }
}

async fn print(
    mut stream: TcpStream,
    mut paper: watch::Receiver<bool>,
    progress: &watch::Sender<Progress>,
) -> Received {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut length = 0;
    let end = loop {
        if paper.wait_for(|paper| *paper).await.is_err() {
            break Err(ErrorKind::Other);
        }
        match stream.read(&mut buffer).await {
            Ok(0) => break Ok(()),
            Ok(read) => {
                hash.update(&buffer[..read]);
                length += read as u64;
                progress.send_modify(|progress| progress.bytes += read as u64);
            }
            Err(error) => break Err(error.kind()),
        }
    };
    Received { length, hash: hash.finish(), end }
}
