//! Message by message: what only `--strict` compares.

use std::collections::VecDeque;

use super::super::story::{Naming, Said, Word};
use crate::capture::dissect::Head;

/// What `--strict` compares: every message that the played end says, one by one, with its serial.
#[derive(Debug, Default)]
pub(super) struct Strict {
    captured: VecDeque<String>,
    today: VecDeque<String>,
    over: bool,
    count: u64,
}

/// Messages by which one side may be ahead of the other.
const MAX_AHEAD: usize = 10_000;

impl Strict {
    /// A message that the played end said in the capture.
    pub(super) fn captured(&mut self, head: &Head, word: Option<&Word<'_>>, name: Option<&'static str>) {
        self.captured.push_back(strict_line(head.serial, head.kind, word, name));
    }

    /// A message that today's channel said.
    pub(super) fn today(
        &mut self,
        serial: Option<u64>,
        kind: u16,
        word: Option<&Word<'_>>,
        name: Option<&'static str>,
    ) {
        self.today.push_back(strict_line(serial, kind, word, name));
    }

    /// The first message that is not the same. Behind it, nothing would be where it was.
    pub(super) fn compare(&mut self) -> Option<(String, String)> {
        if self.over {
            self.captured.clear();
            self.today.clear();
            return None;
        }
        while !self.captured.is_empty() && !self.today.is_empty() {
            let (captured, today) = (self.captured.pop_front()?, self.today.pop_front()?);
            self.count += 1;
            if captured != today {
                self.over = true;
                return Some((format!("message {} is {captured}", self.count), today));
            }
        }
        if self.captured.len().max(self.today.len()) > MAX_AHEAD {
            self.over = true;
            let (captured, today) = (self.captured.len(), self.today.len());
            return Some((format!("{captured} messages more"), format!("{today} messages more")));
        }
        None
    }
}

fn strict_line(
    serial: Option<u64>,
    kind: u16,
    word: Option<&Word<'_>>,
    name: Option<&'static str>,
) -> String {
    let serial = serial.map_or(String::new(), |serial| format!(" serial {serial}"));
    let name = name.unwrap_or("unknown");
    match word {
        Some(Word::Socket(socket, said)) => {
            let said = match said {
                Said::Data(payload) => format!(" {} bytes", payload.len()),
                Said::Token(tokens) | Said::Accept { tokens } => format!(" {tokens} tokens"),
                Said::Open { service, tokens } => format!(" service {} {tokens} tokens", service.0),
                Said::Refuse | Said::Fin | Said::Close | Said::Reset | Said::ClosedAck => String::new(),
            };
            format!("{name} socket {}{said}{serial}", socket.0)
        }
        Some(Word::Map { service, .. } | Word::Remove(service)) => {
            format!("{name} service {}{serial}", service.0)
        }
        Some(Word::Add(add)) => format!("{name} service {}{serial}", add.service.0),
        Some(Word::Name(Naming::Describe { service, .. })) => format!("{name} service {}{serial}", service.0),
        Some(Word::Name(Naming::AddDomain(domain) | Naming::RemoveDomain(domain))) => {
            format!("{name} {domain}{serial}")
        }
        Some(Word::Name(Naming::Ask { query, .. } | Naming::Answer { query, .. })) => {
            format!("{name} query {}{serial}", query.0)
        }
        Some(Word::Init { .. }) | None => format!("{name} ({kind}){serial}"),
    }
}
