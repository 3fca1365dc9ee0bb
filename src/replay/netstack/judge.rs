//! What a replay says about a connection.

use super::twin::Differ;
use crate::replay::report::{Difference, Part, Place, Subject};

/// Something about one connection that is not as it was, or that nobody can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) subject: Subject,
    captured: String,
    /// `None`: it cannot be compared, and `captured` says why not.
    today: Option<String>,
}

impl Finding {
    pub(super) fn different(subject: Subject, captured: impl Into<String>, today: impl Into<String>) -> Self {
        Finding { subject, captured: captured.into(), today: Some(today.into()) }
    }

    pub(super) fn not_comparable(subject: Subject, why: impl Into<String>) -> Self {
        Finding { subject, captured: why.into(), today: None }
    }

    /// The first byte that differs.
    pub(super) fn bytes(which: &str, differ: Differ) -> Self {
        let Differ { at, captured, today } = differ;
        Finding::different(
            Subject::Bytes,
            format!("byte {at} {which} is 0x{captured:02x}"),
            format!("it is 0x{today:02x}"),
        )
    }

    pub(super) fn is_difference(&self) -> bool {
        self.today.is_some()
    }

    /// For the report, with the connection's name in front.
    pub(super) fn difference(self, place: Place, connection: &str) -> Difference {
        let captured = format!("{connection}: {}", self.captured);
        match self.today {
            Some(today) => Difference::new(Part::Netstack, self.subject, place, captured, today),
            None => Difference::not_comparable(Part::Netstack, self.subject, place, captured),
        }
    }
}
