//! Questions of the guest for names of the user's domains, and their answers.

use std::time::Duration;

use spice_proto::{service_info::HostName, tunnel::QueryId};
use tokio::sync::mpsc;

use crate::offer::DeviceKey;

/// Most questions that wait for whoever answers them; what comes beyond is answered as failed. A server has as many unanswered.
const MAX_WAITING: usize = 64;

/// The guest wants to know where a name leads, in one of the domains that were [allowed](crate::Handle::add_domain). To be answered
/// once, by [`Handle::answer_name`](crate::Handle::answer_name).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What it is to be answered by.
    pub query: NameQuery,
    /// The name, in lower case.
    pub name: HostName,
}

/// The questions of one tunnel's or companion's guest, for whoever answers them.
#[derive(Debug)]
pub struct Questions {
    receiver: mpsc::Receiver<Question>,
}

impl Questions {
    /// The next one; `None` when there will be no more. Cancel safe.
    pub async fn recv(&mut self) -> Option<Question> {
        self.receiver.recv().await
    }
}

/// Where the session puts them.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    sender: mpsc::Sender<Question>,
}

impl Asker {
    /// `false`: nobody answers, or not soon enough.
    pub(crate) fn ask(&self, question: Question) -> bool {
        self.sender.try_send(question).is_ok()
    }
}

pub(crate) fn questions() -> (Asker, Questions) {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    (Asker { sender }, Questions { receiver })
}

/// Names a question of the guest, to be answered by [`Handle::answer_name`](crate::Handle::answer_name).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameQuery {
    /// Which of a companion's tunnels: the numbers begin anew with each.
    pub(crate) tunnel: u64,
    /// As the server counts.
    pub(crate) query: QueryId,
}

/// What is said to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The name leads to a device of which something is offered.
    Found {
        /// The device.
        device: DeviceKey,
        /// For how long that is known, 5 s to an hour.
        ttl: Duration,
    },
    /// There is no such name.
    NoSuchName,
    /// It could not be found out.
    Failed,
    /// The guest may not ask for it.
    Refused,
}
