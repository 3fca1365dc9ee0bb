//! DNS messages: read with suspicion, written within a size (RFC 1035, section 4; RFC 6762, section 18).
//!
//! Reading is our own. hickory reserves memory by the header's count, follows as many compression pointers as a message has room for, and gives up
//! a message for one record that it does not like. A guest chooses all three. Here counts and pointers have limits, and a record of
//! a kind that nobody here asks about is just bytes. What is read are hickory's types, and it writes them.

use hickory_proto::op::Query;
use hickory_proto::rr::rdata::{A, NULL, PTR, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// Bit of a class: of a question, "answer by unicast"; of a record, "forget what you knew" (RFC 6762, sections 5.4 and 10.2).
const TOP_BIT: u16 = 0x8000;
/// Octets of a message's header.
const HEADER: usize = 12;
/// Most compression pointers in one name. A writer needs one; what comes of forwarding and merging, few.
const MAX_POINTERS: usize = 16;

/// Bits of a message's second word.
pub(crate) mod flags {
    /// An answer, not a query.
    pub(crate) const RESPONSE: u16 = 0x8000;
    /// Whoever answers is responsible for the name.
    pub(crate) const AUTHORITATIVE: u16 = 0x0400;
    /// There is more than fitted.
    pub(crate) const TRUNCATED: u16 = 0x0200;
    /// The kind of query; 0 is an ordinary one.
    pub(crate) const OPCODE: u16 = 0x7800;
    /// What became of the query; 0 is success.
    pub(crate) const RESPONSE_CODE: u16 = 0x000f;
}

/// How much of a message is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Longest message, octets.
    pub(crate) length: usize,
    /// Most questions.
    pub(crate) questions: usize,
    /// Most records, in all sections.
    pub(crate) records: usize,
}

/// A message as it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Incoming {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) questions: Vec<Query>,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

impl Incoming {
    /// `None`: it is no message, or its questions cannot be read, or are too many. Records that cannot be read, or are too many, are
    /// left out with all that follow them.
    pub(crate) fn parse(message: &[u8], limits: Limits) -> Option<Incoming> {
        let &[i0, i1, f0, f1, q0, q1, a0, a1, n0, n1, d0, d1] = message.first_chunk::<HEADER>()?;
        let questions = usize::from(u16::from_be_bytes([q0, q1]));
        if message.len() > limits.length || questions > limits.questions {
            return None;
        }
        let mut incoming = Incoming {
            id: u16::from_be_bytes([i0, i1]),
            flags: u16::from_be_bytes([f0, f1]),
            ..Incoming::default()
        };
        let mut reader = Reader { message, at: HEADER };
        for _ in 0..questions {
            incoming.questions.push(reader.question()?);
        }
        let mut left = limits.records;
        let sections = [
            (&mut incoming.answers, [a0, a1]),
            (&mut incoming.authorities, [n0, n1]),
            (&mut incoming.additionals, [d0, d1]),
        ];
        'sections: for (section, count) in sections {
            for _ in 0..u16::from_be_bytes(count) {
                let Some(rest) = left.checked_sub(1) else { break 'sections };
                let Some(record) = reader.record() else { break 'sections };
                left = rest;
                section.push(record);
            }
        }
        Some(incoming)
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.message.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn question(&mut self) -> Option<Query> {
        let name = self.name()?;
        let mut query = Query::query(name, RecordType::from(self.u16()?));
        let class = self.u16()?;
        query
            .set_query_class(DNSClass::from(class & !TOP_BIT))
            .set_mdns_unicast_response(class & TOP_BIT != 0);
        Some(query)
    }

    fn record(&mut self) -> Option<Record> {
        let name = self.name()?;
        let kind = RecordType::from(self.u16()?);
        let class = self.u16()?;
        let ttl = u32::from_be_bytes(self.take()?);
        let length = usize::from(self.u16()?);
        let start = self.at;
        let raw = self.message.get(start..start + length)?;
        // A name may point to anywhere before it, but must end with the data.
        let end = start + length;
        let data = self.data(kind, raw).filter(|_| self.at == end);
        self.at = end;
        let unknown = || {
            let rdata = if raw.is_empty() { NULL::new() } else { NULL::with(raw.to_vec()) };
            RData::Unknown { code: kind, rdata }
        };
        let mut record = Record::from_rdata(name, ttl, data.unwrap_or_else(unknown));
        record.dns_class = DNSClass::from(class & !TOP_BIT);
        record.mdns_cache_flush = class & TOP_BIT != 0;
        Some(record)
    }

    /// `None`: of a kind that we have none of, or not as its kind should be.
    fn data(&mut self, kind: RecordType, raw: &[u8]) -> Option<RData> {
        if kind == RecordType::A {
            Some(RData::A(A(self.take::<4>()?.into())))
        } else if kind == RecordType::PTR {
            Some(RData::PTR(PTR(self.name()?)))
        } else if kind == RecordType::SRV {
            let (priority, weight, port) = (self.u16()?, self.u16()?, self.u16()?);
            Some(RData::SRV(SRV::new(priority, weight, port, self.name()?)))
        } else if kind == RecordType::TXT {
            let mut strings = Vec::new();
            let mut rest = raw;
            while let Some((length, behind)) = rest.split_first() {
                let (string, behind) = behind.split_at_checked(usize::from(*length))?;
                strings.push(string);
                rest = behind;
            }
            self.at += raw.len();
            Some(RData::TXT(TXT::from_bytes(strings)))
        } else {
            None
        }
    }

    fn name(&mut self) -> Option<Name> {
        let mut labels: Vec<&[u8]> = Vec::new();
        let mut length = 1;
        let mut pointers = 0;
        let mut at = self.at;
        // Each pointer leads to before where the last one led to, so there is no way round in a circle.
        let mut barrier = at;
        loop {
            let first = *self.message.get(at)?;
            at += 1;
            match first {
                0 => break,
                1..=0x3f => {
                    let label = self.message.get(at..at + usize::from(first))?;
                    at += label.len();
                    length += 1 + label.len();
                    if length > 255 {
                        return None;
                    }
                    labels.push(label);
                }
                0xc0.. => {
                    let low = *self.message.get(at)?;
                    if pointers == 0 {
                        self.at = at + 1;
                    }
                    let target = usize::from(u16::from_be_bytes([first & 0x3f, low]));
                    pointers += 1;
                    if target >= barrier || pointers > MAX_POINTERS {
                        return None;
                    }
                    (at, barrier) = (target, target);
                }
                0x40..=0xbf => return None,
            }
        }
        if pointers == 0 {
            self.at = at;
        }
        Name::from_labels(labels).ok()
    }
}

/// A message to be written.
#[derive(Debug, Default)]
pub(crate) struct Outgoing<'a> {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) questions: &'a [Query],
    pub(crate) answers: &'a [Record],
    pub(crate) authorities: &'a [Record],
    /// In the order of their worth; those that do not fit are left out.
    pub(crate) additionals: &'a [Record],
}

/// A message as it was written.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) bytes: Vec<u8>,
    /// How many answers fitted.
    pub(crate) answers: usize,
    /// Which additional records did.
    pub(crate) additionals: Vec<usize>,
}

impl Outgoing<'_> {
    /// Writes as much of it as fits into `size` octets, but questions, authorities and one answer in any case, if they fit into `largest`.
    /// `None`: they do not.
    pub(crate) fn write(&self, size: usize, largest: usize) -> Option<Written> {
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::try_from(largest).unwrap_or(u16::MAX));
        for _ in 0..HEADER {
            encoder.emit(0).ok()?;
        }
        for question in self.questions {
            question.emit(&mut encoder).ok()?;
        }
        let mut answers = 0;
        for answer in self.answers {
            if !try_emit(&mut encoder, answer) {
                break;
            }
            answers += 1;
            encoder.set_max_size(u16::try_from(size.max(encoder.len())).unwrap_or(u16::MAX));
        }
        if answers == 0 && !self.answers.is_empty() {
            return None;
        }
        for authority in self.authorities {
            authority.emit(&mut encoder).ok()?;
        }
        let mut additionals = Vec::new();
        // What did not fit as an answer is an answer of the next message, and not additional to this one.
        if answers == self.answers.len() {
            encoder.set_max_size(u16::try_from(size.max(encoder.len())).unwrap_or(u16::MAX));
            for (index, additional) in self.additionals.iter().enumerate() {
                if try_emit(&mut encoder, additional) {
                    additionals.push(index);
                }
            }
        }
        let words = [
            usize::from(self.id),
            usize::from(self.flags),
            self.questions.len(),
            answers,
            self.authorities.len(),
            additionals.len(),
        ];
        let header = words.into_iter().flat_map(|word| u16::try_from(word).unwrap_or(u16::MAX).to_be_bytes());
        for (byte, value) in bytes.iter_mut().zip(header) {
            *byte = value;
        }
        Some(Written { bytes, answers, additionals })
    }
}

/// False: there was no room, and nothing was written.
fn try_emit(encoder: &mut BinEncoder<'_>, record: &Record) -> bool {
    let before = encoder.offset();
    let written = record.emit(encoder).is_ok();
    if !written {
        encoder.set_offset(before);
        encoder.trim();
    }
    written
}

#[cfg(test)]
pub(crate) mod tests;
