//! What is found becomes shares, beside the tunnel: neither a slow reader of what is printed nor the tunnel's state holds it up.

use client_glue::discover::{Discovery, Notice, Sharer, SourceState, Status, Update, complete};
use client_glue::service_info::Identity;
use client_glue::{Handle, Host, Offer, ShareId, domains};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::session_args::{Discovering, Sharing};

/// Notices that wait to be printed; later ones are dropped, as nothing depends on them.
const NOTICES: usize = 1024;

/// Failed connections that wait to be thought about.
const DOUBTS: usize = 64;

/// Where devices come from.
pub(crate) enum Feed {
    /// This network.
    Live(Box<Discovery>),
    /// A test.
    #[cfg(test)]
    Script { updates: mpsc::Receiver<Update>, doubts: mpsc::UnboundedSender<Identity> },
}

impl Feed {
    /// Begins to look.
    pub(crate) fn live(discovering: &Discovering) -> Feed {
        Feed::Live(Box::new(Discovery::start(discovering.config.clone())))
    }

    /// What becomes of a device; `None`: there will be no more. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Update> {
        match self {
            Feed::Live(discovery) => discovery.next().await,
            #[cfg(test)]
            Feed::Script { updates, .. } => updates.recv().await,
        }
    }

    fn doubt(&self, identity: &Identity) {
        match self {
            Feed::Live(discovery) => discovery.doubt(identity),
            #[cfg(test)]
            Feed::Script { doubts, .. } => {
                let _ = doubts.send(identity.clone());
            }
        }
    }

    pub(crate) fn status(&self) -> Option<watch::Receiver<Status>> {
        match self {
            Feed::Live(discovery) => Some(discovery.watch()),
            #[cfg(test)]
            Feed::Script { .. } => None,
        }
    }
}

/// What runs beside a tunnel for its shares. Dropped, it ends.
pub(super) struct Beside {
    /// What was found and what becomes of it, to be printed.
    pub(super) notices: mpsc::Receiver<Notice>,
    doubts: mpsc::Sender<ShareId>,
    _tasks: JoinSet<()>,
}

impl Beside {
    /// Starts what `sharing` asks for.
    pub(super) fn start(
        handle: &Handle,
        sharing: &Sharing,
        by_hand: Vec<(ShareId, Offer)>,
        feed: Option<Feed>,
    ) -> Beside {
        let mut tasks = JoinSet::new();
        for (share, offer) in by_hand {
            tasks.spawn(complete(handle.clone(), share, offer));
        }
        let (notice_sender, notices) = mpsc::channel(NOTICES);
        let (doubts, doubted) = mpsc::channel(DOUBTS);
        if let (Some(discovering), Some(feed)) = (&sharing.discovery, feed) {
            let by_hand: Vec<(Host, u16)> =
                sharing.offers.iter().map(|offer| (offer.share.host.clone(), offer.share.port)).collect();
            let sharer = Sharer::new(handle.clone(), discovering.policy.clone(), by_hand);
            tasks.spawn(share_found(feed, sharer, notice_sender, doubted));
        }
        if let (false, Some(questions)) = (sharing.domains.is_empty(), handle.questions()) {
            let (handle, domains) = (handle.clone(), sharing.domains.clone());
            let network = sharing.network.as_ref().map(|network| network.as_str().to_owned());
            tasks.spawn(async move {
                if let Err(error) = Box::pin(domains::serve(handle, questions, domains, network)).await {
                    warn!(%error, "the guest's questions for names are not answered any more");
                }
            });
        }
        Beside { notices, doubts, _tasks: tasks }
    }

    /// A connection to a share failed: if it was found, it may be gone.
    pub(super) fn doubt(&self, share: ShareId) {
        // So many doubts are enough.
        let _ = self.doubts.try_send(share);
    }
}

async fn share_found(
    mut feed: Feed,
    mut sharer: Sharer,
    notices: mpsc::Sender<Notice>,
    mut doubted: mpsc::Receiver<ShareId>,
) {
    let mut status = feed.status();
    let mut complaints = Complaints::default();
    loop {
        tokio::select! {
            update = feed.next() => {
                let Some(update) = update else { return };
                for notice in sharer.handle_update(update) {
                    // Nobody needs to read them.
                    let _ = notices.try_send(notice);
                }
            }
            Some(share) = doubted.recv() => {
                if let Some(identity) = sharer.device_of(share) {
                    feed.doubt(identity);
                }
            }
            Some(now) = changed(&mut status) => complaints.handle(&now),
        }
    }
}

/// How discovery goes, when that is another. Cancel safe.
pub(crate) async fn changed(status: &mut Option<watch::Receiver<Status>>) -> Option<Status> {
    let status = status.as_mut()?;
    if status.changed().await.is_err() {
        // Discovery has ended, which its feed says as well.
        return std::future::pending().await;
    }
    Some(status.borrow_and_update().clone())
}

/// What was said of sources that fail and of devices that are too many: once each, until that is over.
#[derive(Default)]
pub(crate) struct Complaints {
    said: std::collections::BTreeMap<client_glue::discover::Source, String>,
    too_many: bool,
}

impl Complaints {
    pub(crate) fn handle(&mut self, status: &Status) {
        for (source, is) in &status.sources {
            match &is.state {
                SourceState::Failed { why, .. } => {
                    if self.said.insert(*source, why.clone()).as_ref() != Some(why) {
                        warn!(%source, why, "discovery cannot look by this source");
                    }
                }
                SourceState::LookedRound => {
                    if self.said.remove(source).is_some() {
                        info!(%source, "discovery looks by this source again");
                    }
                }
                SourceState::Starting | SourceState::Looking => {}
            }
        }
        let left_out = status.left_out.devices;
        if std::mem::replace(&mut self.too_many, left_out > 0) != self.too_many {
            if self.too_many {
                warn!(left_out, "there are more devices than are kept: those that came last are not shared");
            } else {
                info!("there are no more devices than are kept");
            }
        }
    }
}
