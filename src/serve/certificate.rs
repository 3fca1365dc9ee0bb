//! The certificate that `serve` shows, from files that can be read again.

use std::io;
use std::path::{Path, PathBuf};

use spice_proto::tls::{Acceptor, TlsError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info};

use super::manager;
use crate::causes;

/// A certificate and its key, which are in files and change there now and then.
#[derive(Debug)]
pub(super) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: watch::Sender<Acceptor>,
}

impl Certificate {
    /// Reads both.
    ///
    /// # Errors
    /// They cannot be used, or do not belong together.
    pub(super) fn load(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let (current, _) = watch::channel(Acceptor::load(chain, key)?);
        Ok(Self { chain: chain.to_owned(), key: key.to_owned(), current })
    }

    /// What to shake hands with; always that of the last good pair.
    pub(super) fn acceptor(&self) -> watch::Receiver<Acceptor> {
        self.current.subscribe()
    }

    /// Reads both again on every SIGHUP, until the returned guard is dropped.
    ///
    /// # Errors
    /// The signal cannot be had.
    pub(super) fn reload_on_hangup(self) -> io::Result<JoinSet<()>> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            while hangup.recv().await.is_some() {
                manager::reloading();
                self.reload();
                manager::ready();
            }
        });
        Ok(task)
    }

    /// Reads both again, for the handshakes to come. A pair that cannot be used changes nothing.
    fn reload(&self) {
        match Acceptor::load(&self.chain, &self.key) {
            Ok(acceptor) => {
                self.current.send_replace(acceptor);
                info!(certificate = %self.chain.display(), "certificate read again");
            }
            Err(problem) => {
                let problem = causes::in_line(&problem);
                error!("the new certificate is unusable, the old one stays: {problem}");
            }
        }
    }
}
