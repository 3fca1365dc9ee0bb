//! What is asked and what is answered, as octets (RFC 1035, RFC 6891).
//!
//! Of a query only its header, its question and its OPT record are looked at; other records are stepped over, never
//! parsed. An answer is made of records that we made.

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Octets of a message's header.
const HEADER: usize = 12;
/// Largest answer over UDP to who does not know EDNS (RFC 1035, 2.3.4).
const SMALL: u16 = 512;
/// Largest message over UDP to and from who does: what everybody agreed on in 2020 (DNS flag day), so that nothing is fragmented.
const LARGE: u16 = 1232;
/// Octets of IPv4's and UDP's headers.
const HEADERS: u16 = 28;
/// Most records behind the question; a query has at most an OPT and a signature.
const MAX_ADDITIONAL: u16 = 4;

const TYPE_OPT: u16 = 41;
const TYPE_TSIG: u16 = 250;

/// How an answer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp {
        /// Largest packet on the link, 576 at least.
        mtu: u16,
    },
    Tcp,
}

/// What is needed to answer a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    id: u16,
    op_code: u8,
    recursion_desired: bool,
    checking_disabled: bool,
    question: Option<Question>,
    edns: Option<Asker>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// As it was asked, and so it is repeated: who mixes cases to know its answers finds them again.
    pub(crate) name: Name,
    pub(crate) kind: RecordType,
    pub(crate) class: u16,
}

/// What an OPT record says of who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asker {
    payload: u16,
    version: u8,
    dnssec_ok: bool,
}

/// What is said about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    /// We are who knows.
    pub(crate) authoritative: bool,
    /// It was, or could be, asked of somebody else.
    pub(crate) recursion: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

impl Reply {
    /// Nothing but a code.
    pub(crate) fn bare(code: ResponseCode) -> Reply {
        Reply {
            code,
            authoritative: false,
            recursion: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

impl Request {
    /// Reads a query. `None`: nothing that may be answered. The error is what to answer where there is nothing to think about.
    pub(crate) fn parse(message: &[u8]) -> Option<(Request, Result<(), ResponseCode>)> {
        let mut header = message.first_chunk::<HEADER>()?.chunks_exact(2).map(|pair| match pair {
            [high, low] => u16::from_be_bytes([*high, *low]),
            _ => 0,
        });
        let mut next = || header.next().unwrap_or(0);
        let (id, flags) = (next(), next());
        let counts = [next(), next(), next(), next()];
        // An answer to an answer would go to and fro for ever.
        if flags & 0x8000 != 0 {
            return None;
        }
        let mut request = Request {
            id,
            op_code: (flags >> 11 & 0xf) as u8,
            recursion_desired: flags & 0x0100 != 0,
            checking_disabled: flags & 0x0010 != 0,
            question: None,
            edns: None,
        };
        if request.op_code != 0 {
            return Some((request, Err(ResponseCode::NotImp)));
        }
        let read = request.read_sections(message, counts);
        Some((request, read))
    }

    fn read_sections(&mut self, message: &[u8], counts: [u16; 4]) -> Result<(), ResponseCode> {
        let [questions, answers, authorities, additionals] = counts;
        if questions != 1 || answers != 0 {
            return Err(ResponseCode::FormErr);
        }
        let body = message.get(HEADER..).unwrap_or_default();
        let (name, rest) = plain_name(body).ok_or(ResponseCode::FormErr)?;
        let (kind, rest) = take_u16(rest).ok_or(ResponseCode::FormErr)?;
        let (class, rest) = take_u16(rest).ok_or(ResponseCode::FormErr)?;
        self.question = Some(Question { name, kind: RecordType::from(kind), class });
        // An incremental transfer says there what it has already; it is refused in any case.
        if authorities != 0 {
            let transfer = RecordType::from(kind) == RecordType::IXFR;
            return Err(if transfer { ResponseCode::Refused } else { ResponseCode::FormErr });
        }
        if additionals > MAX_ADDITIONAL {
            return Err(ResponseCode::FormErr);
        }
        self.read_additional(rest, additionals)
    }

    fn read_additional(&mut self, mut rest: &[u8], count: u16) -> Result<(), ResponseCode> {
        let mut signed = false;
        for _ in 0..count {
            let ((kind, asker), behind) = record(rest).ok_or(ResponseCode::FormErr)?;
            rest = behind;
            if kind == TYPE_OPT && self.edns.replace(asker).is_some() {
                return Err(ResponseCode::FormErr);
            }
            signed |= kind == TYPE_TSIG;
        }
        if !rest.is_empty() {
            return Err(ResponseCode::FormErr);
        }
        if self.edns.is_some_and(|asker| asker.version > 0) {
            return Err(ResponseCode::BADVERS);
        }
        // We share no key with anybody.
        if signed { Err(ResponseCode::Refused) } else { Ok(()) }
    }

    /// The question, if one could be read.
    pub(crate) fn question(&self) -> Option<&Question> {
        self.question.as_ref()
    }

    /// The answer's octets. What does not fit is left out: first what was not asked for, then all of it, with the advice to ask over TCP.
    pub(crate) fn encode(&self, reply: Reply, transport: Transport) -> Option<Vec<u8>> {
        let limit = match (transport, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp { mtu }, Some(asker)) => {
                asker.payload.clamp(SMALL, LARGE).min(mtu.saturating_sub(HEADERS))
            }
            (Transport::Udp { .. }, None) => SMALL,
        };
        let fits = |octets: &Vec<u8>| octets.len() <= usize::from(limit);
        let mut message = Message::response(self.id, OpCode::from_u8(self.op_code));
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.recursion_available = reply.recursion;
        message.metadata.authoritative = reply.authoritative;
        message.metadata.response_code = reply.code;
        if let Some(Question { name, kind, class }) = &self.question {
            let mut query = Query::query(name.clone(), *kind);
            query.set_query_class((*class).into());
            message.add_query(query);
        }
        if let Some(asker) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGE).set_version(0).set_dnssec_ok(asker.dnssec_ok);
            message.set_edns(edns);
        }
        message.answers = reply.answers;
        message.authorities = reply.authorities;
        message.additionals = reply.additionals;
        if let Some(whole) = message.to_vec().ok().filter(fits) {
            return Some(whole);
        }
        message.additionals.clear();
        if let Some(enough) = message.to_vec().ok().filter(fits) {
            return Some(enough);
        }
        message.truncate().to_vec().ok().filter(fits)
    }
}

/// A name without compression: in a question there is nothing before it that it could point to.
fn plain_name(octets: &[u8]) -> Option<(Name, &[u8])> {
    let mut decoder = BinDecoder::new(octets);
    let name = Name::read(&mut decoder).ok()?;
    let octets_of_name: usize = 1 + name.iter().map(|label| 1 + label.len()).sum::<usize>();
    let rest = octets.get(decoder.index()..)?;
    (octets_of_name == decoder.index()).then_some((name, rest))
}

/// Steps over a record of the additional section. Gives its type, and what it says if it is an OPT record.
fn record(octets: &[u8]) -> Option<((u16, Asker), &[u8])> {
    let owner = skip_name(octets)?;
    let (kind, rest) = take_u16(owner)?;
    let (payload, rest) = take_u16(rest)?;
    let ([_, version, flags, _], rest) = rest.split_first_chunk::<4>()?;
    let (len, rest) = take_u16(rest)?;
    let rest = rest.get(usize::from(len)..)?;
    // RFC 6891, 6.1.2: the root's.
    if kind == TYPE_OPT && octets.first() != Some(&0) {
        return None;
    }
    let asker = Asker { payload, version: *version, dnssec_ok: flags & 0x80 != 0 };
    Some(((kind, asker), rest))
}

/// What stands behind a name, which may end in a pointer; where that leads does not matter.
fn skip_name(mut octets: &[u8]) -> Option<&[u8]> {
    loop {
        let (&len, rest) = octets.split_first()?;
        match len {
            0 => return Some(rest),
            1..=63 => octets = rest.get(usize::from(len)..)?,
            0xc0.. => return rest.get(1..),
            64..0xc0 => return None,
        }
    }
}

fn take_u16(octets: &[u8]) -> Option<(u16, &[u8])> {
    let (taken, rest) = octets.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*taken), rest))
}
