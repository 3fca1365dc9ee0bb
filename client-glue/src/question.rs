//! Questions of the guest for names of the user's domains, and their answers.

use std::time::Duration;

use spice_proto::tunnel::GroupId;

use crate::offer::DeviceKey;

/// Names a question of the guest, to be answered by [`Handle::answer_name`](crate::Handle::answer_name).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameQuery {
    /// Which of a companion's tunnels: the numbers begin anew with each.
    pub(crate) tunnel: u64,
    /// As the server counts.
    pub(crate) query: u32,
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

/// An [`Answer`], with the group that the server knows the device by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Found { group: GroupId, ttl: Duration },
    NoSuchName,
    Failed,
    Refused,
}
