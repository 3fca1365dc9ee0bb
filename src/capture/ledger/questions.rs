//! Questions for names, and their answers.

use std::collections::BTreeSet;

use spice_proto::names::Sender;
use spice_proto::tunnel::{MAX_QUERIES, QueryId};

use super::Noted;

/// Which questions of a tunnel are not answered.
#[derive(Debug)]
pub(super) struct Questions {
    /// INVARIANT: at most [`MAX_QUERIES`].
    asked: BTreeSet<QueryId>,
    /// Whether those are all.
    known: bool,
}

impl Questions {
    pub(super) fn new(from_start: bool) -> Self {
        Questions { asked: BTreeSet::new(), known: from_start }
    }

    /// Any may have been asked and answered.
    pub(super) fn lose_count(&mut self) {
        *self = Self::new(false);
    }

    pub(super) fn ask(&mut self, query: QueryId) -> Noted {
        if self.asked.contains(&query) {
            let text = format!("query {} is asked again, without having been answered", query.0);
            return Noted::remark(Sender::Server, text);
        }
        if self.asked.len() >= MAX_QUERIES {
            self.known = false;
            let text = format!("query {} is one more than the {MAX_QUERIES} that may be unanswered", query.0);
            return Noted::remark(Sender::Server, text);
        }
        self.asked.insert(query);
        Noted::default()
    }

    pub(super) fn answer(&mut self, query: QueryId) -> Noted {
        if self.asked.remove(&query) || !self.known {
            return Noted::default();
        }
        let text = format!("query {} is answered, which was not asked or was answered before", query.0);
        Noted::remark(Sender::Client, text)
    }
}
