//! Captured link stages through today's handshake machines, in both roles.
//!
//! Nobody has the keys of a capture, so the ticket is a stand-in and the verdict over it is the captured one; all else is
//! judged: whether the link message and the reply are taken, who waits for an authentication mechanism, what a refusal
//! looks like, and on which header, layout and capabilities both ends agree.

use std::time::Instant;

use spice_proto::handshake::{
    ClientHandshake, ClientLink, ClientNeeds, Deadlines, HandshakeError, Linked, OnSasl, ServerHandshake,
    ServerNeeds,
};
use spice_proto::link::{
    HEADER_LEN, LinkError, LinkMess, LinkReply, LinkVersion, MAGIC, MECHANISM_SASL, PUBLIC_KEY_LEN,
    TICKET_LEN, WORD_LEN,
};

use crate::capture::dissect::{Terms, What};

/// What a capture holds of one link stage.
#[derive(Debug, Default)]
pub(super) struct Stage {
    mess: Option<(u32, (u32, u32), LinkMess)>,
    reply: Option<((u32, u32), LinkReply)>,
    /// A second reply, by which a server refuses the mechanism.
    second: Option<LinkError>,
    mechanism: Option<u32>,
    sasl: bool,
    ticket: bool,
    result: Option<Option<LinkError>>,
    terms: Option<Terms>,
}

/// Steps of a link stage in words, as far as it went.
type Steps = Vec<String>;

/// What came of the comparison.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// There is no link message.
    Nothing,
    Equal,
    /// In which role today's code does something else, and what.
    Different {
        role: &'static str,
        captured: String,
        today: String,
    },
    NotComparable(&'static str),
}

impl Stage {
    /// Takes an item of the link stage; others are nothing to it.
    pub(super) fn item(&mut self, what: &What<'_>) {
        match what {
            What::LinkMess { size, version, mess } => self.mess = Some((*size, *version, mess.clone())),
            What::LinkReply { reply: LinkReply::Refused(error), .. } if self.reply.is_some() => {
                self.second = Some(*error);
            }
            What::LinkReply { size: _, version, reply } => {
                let mut reply = reply.clone();
                // A recording has none: with it goes the ticket, which is not recorded either.
                if let LinkReply::Welcome(welcome) = &mut reply
                    && welcome.has_no_key()
                {
                    *welcome.public_key = STAND_IN;
                }
                self.reply = Some((*version, reply));
            }
            What::AuthMechanism(mechanism) => self.mechanism = Some(*mechanism),
            What::Ticket => self.ticket = true,
            What::Sasl { .. } => self.sasl = true,
            What::LinkResult(result) => self.result = Some(*result),
            What::Linked(terms) => self.terms = Some(terms.clone()),
            What::Began { .. }
            | What::Message(_)
            | What::Malformed { .. }
            | What::Hole(_)
            | What::Ended { .. } => {}
        }
    }

    /// Runs it through both machines.
    pub(super) fn check(&self) -> Checked {
        let Some((size, version, mess)) = &self.mess else { return Checked::Nothing };
        if self.sasl || (self.mechanism == Some(MECHANISM_SASL) && self.second.is_none()) {
            return Checked::NotComparable(
                "it authenticates by SASL, which today's code passes on and does not speak",
            );
        }
        let captured = self.steps();
        let roles =
            [("server", self.as_server(*size, *version, mess)), ("client", self.as_client(*version, mess))];
        for (role, today) in roles {
            let today = today.unwrap_or_else(|error| vec![error.to_string()]);
            let longest = captured.len().max(today.len());
            for index in 0..longest {
                let (captured, today) = (captured.get(index), today.get(index));
                if captured != today {
                    let text = |step: Option<&String>| step.map_or("nothing more", String::as_str).to_owned();
                    return Checked::Different { role, captured: text(captured), today: text(today) };
                }
            }
        }
        Checked::Equal
    }

    /// The captured story.
    fn steps(&self) -> Steps {
        let mut steps = Steps::new();
        let Some((_, reply)) = &self.reply else { return steps };
        steps.push(reply_words(reply));
        let LinkReply::Welcome(_) = reply else { return steps };
        if self.mechanism.is_some() {
            steps.push("mechanism".to_owned());
        }
        if let Some(error) = self.second {
            steps.push(reply_words(&LinkReply::Refused(error)));
            return steps;
        }
        if !self.ticket {
            return steps;
        }
        steps.push("ticket".to_owned());
        let Some(result) = self.result else { return steps };
        steps.push(result_words(result));
        if let Some(terms) = &self.terms {
            steps.push(terms_words(terms));
        }
        steps
    }

    /// What today's server makes of the captured client.
    fn as_server(&self, size: u32, version: (u32, u32), mess: &LinkMess) -> Result<Steps, HandshakeError> {
        let now = Instant::now();
        let mut steps = Steps::new();
        let mut machine = ServerHandshake::new(now, Deadlines::default(), OnSasl::Refuse);
        let mut bytes = Vec::new();
        mess.write(LinkVersion::V2, &mut bytes);
        // Bytes that nothing points at may follow.
        let written = bytes.len().saturating_sub(HEADER_LEN);
        let size = usize::try_from(size).unwrap_or(usize::MAX).clamp(written, MOST);
        bytes.resize(HEADER_LEN + size, 0);
        put_header(&mut bytes, version, size);
        if machine.handle_bytes(now, &bytes).is_err() {
            steps.extend(reply_in(machine.poll_transmit()));
            return Ok(steps);
        }
        let ServerNeeds::Decision(_) = machine.needs() else { return Ok(steps) };
        match &self.reply {
            Some((_, LinkReply::Welcome(welcome))) => machine.welcome(now, welcome.clone())?,
            Some((_, LinkReply::Refused(error))) => machine.refuse(*error)?,
            None => machine.drop_silently()?,
        }
        steps.extend(reply_in(machine.poll_transmit()));
        machine.sent(machine.poll_transmit().len());
        if machine.needs() == ServerNeeds::Bytes(WORD_LEN) {
            let Some(mechanism) = self.mechanism else {
                // Either none came, or today's server waits for what that client never sends.
                if self.ticket {
                    steps.push("mechanism".to_owned());
                }
                return Ok(steps);
            };
            steps.push("mechanism".to_owned());
            if machine.handle_bytes(now, &mechanism.to_le_bytes()).is_err() {
                steps.extend(reply_in(machine.poll_transmit()));
                return Ok(steps);
            }
        }
        if !self.ticket {
            return Ok(steps);
        }
        machine.handle_bytes(now, &[0; TICKET_LEN])?;
        let ServerNeeds::Verdict(_) = machine.needs() else { return Ok(steps) };
        steps.push("ticket".to_owned());
        match self.result {
            Some(None) => machine.permit()?,
            Some(Some(error)) => machine.refuse(error)?,
            None => return Ok(steps),
        }
        steps.extend(result_in(machine.poll_transmit()));
        if let (Some(None), Some(_)) = (self.result, &self.terms) {
            steps.push(self.linked_words(&machine.finish()?));
        }
        Ok(steps)
    }

    /// What today's client makes of the captured server.
    fn as_client(&self, version: (u32, u32), mess: &LinkMess) -> Result<Steps, HandshakeError> {
        let now = Instant::now();
        let mut steps = Steps::new();
        let Some(version) = LinkVersion::from_numbers(version.0, version.1) else {
            // Today's client does not speak it, so what it would make of the answer is no question.
            return Ok(self.steps());
        };
        let link = ClientLink {
            version,
            channel_type: mess.channel_type,
            channel_id: mess.channel_id,
            session_id: mess.session_id,
            common_caps: mess.common(),
            channel_caps: mess.channel_caps.clone(),
        };
        let mut machine = ClientHandshake::new(now, Deadlines::default(), link);
        machine.sent(machine.poll_transmit().len());
        let Some((answered, reply)) = &self.reply else { return Ok(steps) };
        let mut bytes = Vec::new();
        reply.write(version, &mut bytes);
        let size = bytes.len().saturating_sub(HEADER_LEN);
        put_header(&mut bytes, *answered, size);
        match machine.handle_bytes(now, &bytes) {
            Ok(_) => {}
            Err(HandshakeError::Refused(error)) => {
                steps.push(reply_words(&LinkReply::Refused(error)));
                return Ok(steps);
            }
            Err(error) => return Err(error),
        }
        if let Some(welcome) = machine.reply() {
            steps.push(reply_words(&LinkReply::Welcome(welcome.clone())));
        }
        if let Some(error) = self.second {
            // Today's client has chosen the ticket, and takes the reply for what it is.
            machine.ticket(now, &[0; TICKET_LEN])?;
            steps.push("mechanism".to_owned());
            if machine.handle_bytes(now, &MAGIC) == Err(HandshakeError::SecondReply) {
                steps.push(reply_words(&LinkReply::Refused(error)));
            }
            return Ok(steps);
        }
        if !self.ticket {
            if self.mechanism.is_some() {
                steps.push("mechanism".to_owned());
            }
            return Ok(steps);
        }
        let ClientNeeds::Ticket(_) = machine.needs() else { return Ok(steps) };
        machine.ticket(now, &[0; TICKET_LEN])?;
        if machine.poll_transmit().len() == WORD_LEN + TICKET_LEN {
            steps.push("mechanism".to_owned());
        }
        steps.push("ticket".to_owned());
        let Some(result) = self.result else { return Ok(steps) };
        let word = result.map_or(0, |error| error.code());
        match machine.handle_bytes(now, &word.to_le_bytes()) {
            Ok(_) => steps.push(result_words(None)),
            Err(HandshakeError::Refused(error)) => {
                steps.push(result_words(Some(error)));
                return Ok(steps);
            }
            Err(error) => return Err(error),
        }
        if self.terms.is_some() {
            steps.push(self.linked_words(&machine.finish()?));
        }
        Ok(steps)
    }

    /// What a machine agreed on, in the same words as the capture's terms.
    fn linked_words(&self, linked: &Linked) -> String {
        let words = |of: &[u32]| of.to_vec();
        let client = self.mess.as_ref().map(|(_, _, mess)| words(&mess.channel_caps)).unwrap_or_default();
        let server = match &self.reply {
            Some((_, LinkReply::Welcome(welcome))) => words(&welcome.channel_caps),
            Some((_, LinkReply::Refused(_))) | None => Vec::new(),
        };
        let channel_caps = client.iter().zip(&server).map(|(a, b)| a & b).collect();
        terms_words(&Terms { header: linked.header, layout: linked.layout, channel_caps })
    }
}

/// In the place of a key. Nothing is sealed with it.
const STAND_IN: [u8; PUBLIC_KEY_LEN] = [1; PUBLIC_KEY_LEN];

/// Longest link message that is made up.
const MOST: usize = 8192;

fn reply_words(reply: &LinkReply) -> String {
    match reply {
        LinkReply::Welcome(welcome) => {
            format!("welcome, common {:x?}, channel {:x?}", welcome.common_caps, welcome.channel_caps)
        }
        LinkReply::Refused(error) => format!("the link reply refuses: {error}"),
    }
}

fn result_words(result: Option<LinkError>) -> String {
    result.map_or("linked".to_owned(), |error| format!("the link result refuses: {error}"))
}

fn terms_words(terms: &Terms) -> String {
    let mut caps = terms.channel_caps.as_slice();
    while let Some((0, before)) = caps.split_last() {
        caps = before;
    }
    format!("{:?} headers, layout {:?}, channel capabilities {caps:x?} in common", terms.header, terms.layout)
        .to_lowercase()
}

/// The link reply that a machine has written; none where it closes without a word.
fn reply_in(bytes: &[u8]) -> Option<String> {
    let body = bytes.get(HEADER_LEN..)?;
    Some(match LinkReply::parse(body) {
        Ok(reply) => reply_words(&reply),
        Err(fault) => fault.to_string(),
    })
}

fn result_in(bytes: &[u8]) -> Option<String> {
    let word = bytes.first_chunk().copied()?;
    Some(result_words(LinkError::from_code(u32::from_le_bytes(word))))
}

/// Puts other numbers into a link header.
fn put_header(bytes: &mut [u8], version: (u32, u32), size: usize) {
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    for (at, number) in [(4, version.0), (8, version.1), (12, size)] {
        if let Some(field) = bytes.get_mut(at..at + WORD_LEN) {
            field.copy_from_slice(&number.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use spice_proto::frame::HeaderForm;
    use spice_proto::link::Welcome;
    use spice_proto::tunnel::Layout;

    use super::*;

    fn stage(items: &[What<'_>]) -> Checked {
        let mut stage = Stage::default();
        let mess = LinkMess {
            session_id: 0,
            channel_type: 7,
            channel_id: 0,
            common_caps: vec![0x0b],
            channel_caps: vec![7],
        };
        stage.item(&What::LinkMess { size: 26, version: (2, 2), mess });
        items.iter().for_each(|item| stage.item(item));
        stage.check()
    }

    fn welcome() -> What<'static> {
        let public_key = Box::new([0; PUBLIC_KEY_LEN]);
        let reply =
            LinkReply::Welcome(Welcome { public_key, common_caps: vec![0x0b], channel_caps: vec![5] });
        What::LinkReply { size: 186, version: (2, 2), reply }
    }

    fn refused(error: LinkError) -> What<'static> {
        What::LinkReply { size: 178, version: (2, 2), reply: LinkReply::Refused(error) }
    }

    fn linked(header: HeaderForm, caps: u32) -> What<'static> {
        What::Linked(Terms { header, layout: Layout::B, channel_caps: vec![caps] })
    }

    #[test]
    fn link_stages_as_they_are_are_equal() {
        assert_eq!(Stage::default().check(), Checked::Nothing);
        assert_eq!(stage(&[]), Checked::Equal, "closed without a word");
        assert_eq!(stage(&[refused(LinkError::NeedSecured)]), Checked::Equal);
        assert_eq!(stage(&[welcome()]), Checked::Equal, "the client left");
        let denied = What::LinkResult(Some(LinkError::PermissionDenied));
        assert_eq!(stage(&[welcome(), What::AuthMechanism(1), What::Ticket, denied]), Checked::Equal);
        let fine = [welcome(), What::AuthMechanism(1), What::Ticket, What::LinkResult(None)];
        assert_eq!(stage(&[&fine[..], &[linked(HeaderForm::Mini, 5)]].concat()), Checked::Equal);
        for mechanism in [0, 2, 9] {
            let second = [welcome(), What::AuthMechanism(mechanism), refused(LinkError::InvalidData)];
            assert_eq!(stage(&second), Checked::Equal, "{mechanism}");
        }
        assert!(matches!(stage(&[welcome(), What::AuthMechanism(2)]), Checked::NotComparable(_)));
    }

    #[test]
    fn another_outcome_is_a_difference() {
        let differs = |items: &[What<'_>]| matches!(stage(items), Checked::Different { .. });
        // Nobody refuses a mechanism with this code, nor mechanism 1 at all.
        assert!(differs(&[welcome(), What::AuthMechanism(9), refused(LinkError::NeedSecured)]));
        assert!(differs(&[welcome(), What::AuthMechanism(1), refused(LinkError::InvalidData)]));
        assert!(differs(&[welcome(), What::Ticket, What::LinkResult(None)]), "no mechanism");
        let fine = [welcome(), What::AuthMechanism(1), What::Ticket, What::LinkResult(None)];
        assert!(differs(&[&fine[..], &[linked(HeaderForm::Full, 5)]].concat()));
        assert!(differs(&[&fine[..], &[linked(HeaderForm::Mini, 7)]].concat()));
    }
}
