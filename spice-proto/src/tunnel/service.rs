//! How the client announces a service: SERVICE_ADD (wire reference 6.4), and what SERVICE_INFO adds to it.

use nom::Parser;
use nom::combinator::recognize;
use nom::number::complete::{le_u16, le_u32};

use super::{GroupId, IpInfo, Layout, MAX_TEXT, ServiceId, ip_info, service_id};
use crate::parse::{Fault, NUL, Parsed, U32, all_behind, pointed_text, put_u16, put_u32};
use crate::service_info::ServiceInfo;

/// What SERVICE_ADD says about a service. `name` and `description` are opaque bytes, usually UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceAdd<'a> {
    /// What sort of service.
    pub kind: ServiceKind,
    /// The client's number for it.
    pub service: ServiceId,
    /// The device that it belongs to.
    pub group: GroupId,
    /// TCP port, for the guest too; never 0. The wire has 32 bits for it.
    pub port: u16,
    /// Name of the device, the same throughout a group. At most [`MAX_TEXT`] bytes, no NUL in it.
    pub name: &'a [u8],
    /// For people. At most [`MAX_TEXT`] bytes, no NUL in it.
    pub description: &'a [u8],
}

/// The sort of a service. All of them are carried in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceKind {
    /// Type 1.
    Generic,
    /// Type 2, a printer, and its real address, which only informs.
    Ipp(IpInfo),
}

/// A [`ServiceInfo`] as the wire has it, which was read and found valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InfoBody<'a>(
    /// INVARIANT: what [`ServiceInfo::parse`] takes, whole.
    &'a [u8],
);

impl<'a> InfoBody<'a> {
    /// Writes `info` in place of what is in `buffer`.
    pub fn write(info: &ServiceInfo, buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        info.write(buffer);
        InfoBody(buffer)
    }

    /// What it says.
    pub fn info(&self) -> ServiceInfo {
        ServiceInfo::parse(self.0).map(|(_, info)| info).unwrap_or_default()
    }

    /// As the wire has it.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

impl std::fmt::Debug for InfoBody<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("InfoBody").field(&self.info()).finish()
    }
}

pub(super) fn info_body(input: &[u8]) -> Parsed<'_, InfoBody<'_>> {
    recognize(ServiceInfo::parse).map(InfoBody).parse(input)
}

impl ServiceAdd<'_> {
    /// Length of what comes before the strings.
    fn fixed_len(&self, layout: Layout) -> usize {
        let ip = match self.kind {
            ServiceKind::Generic => 0,
            ServiceKind::Ipp(ip) => ip.len(),
        };
        let (kind, service, group, port, name, description) = (layout.kind_len(), U32, U32, U32, U32, U32);
        kind + service + group + port + name + description + ip
    }

    pub(super) fn len(&self, layout: Layout) -> usize {
        let (name, description) = (text(self.name).len() + NUL, text(self.description).len() + NUL);
        self.fixed_len(layout) + name + description
    }

    pub(super) fn write(&self, layout: Layout, out: &mut Vec<u8>) {
        let kind = match self.kind {
            ServiceKind::Generic => GENERIC,
            ServiceKind::Ipp(_) => IPP,
        };
        match layout {
            Layout::A => put_u32(out, u32::from(kind)),
            Layout::B => put_u16(out, kind),
        }
        put_u32(out, self.service.0);
        put_u32(out, self.group.0);
        put_u32(out, u32::from(self.port));
        let (name, description) = (text(self.name), text(self.description));
        let name_at = self.fixed_len(layout);
        let description_at = name_at + name.len() + NUL;
        for at in [name_at, description_at] {
            // Both are below MAX_CLIENT_CONTROL.
            put_u32(out, u32::try_from(at).unwrap_or(u32::MAX));
        }
        if let ServiceKind::Ipp(ip) = self.kind {
            ip.write(out);
        }
        for text in [name, description] {
            out.extend_from_slice(text);
            out.push(0);
        }
    }
}

/// SERVICE_ADD. The strings may come in either order, but they are all that follows the fixed part.
pub(super) fn service_add(layout: Layout, body: &[u8]) -> Parsed<'_, ServiceAdd<'_>> {
    let (input, kind) = match layout {
        Layout::A => le_u32(body)?,
        Layout::B => le_u16.map(u32::from).parse(body)?,
    };
    let (input, (service, group, port, name_at, description_at)) =
        (service_id, le_u32.map(GroupId), le_u32, le_u32, le_u32).parse(input)?;
    let (texts, kind) = match kind {
        kind if kind == u32::from(GENERIC) => (input, ServiceKind::Generic),
        kind if kind == u32::from(IPP) => ip_info.map(ServiceKind::Ipp).parse(input)?,
        other => return Err(Fault::value("type", other, "1 (generic) or 2 (IPP)")),
    };
    let port = match u16::try_from(port) {
        Ok(port) if port != 0 => port,
        _ => return Err(Fault::value("port", port, "1 to 65535")),
    };
    let fixed = body.len().saturating_sub(texts.len());
    let (name, name_place) = pointed_text("name", body, fixed, name_at, MAX_TEXT)?;
    let (description, description_place) =
        pointed_text("description", body, fixed, description_at, MAX_TEXT)?;
    let unread = all_behind(body, fixed, [name_place, description_place])?;
    Ok((unread, ServiceAdd { kind, service, group, port, name, description }))
}

/// What of a text can go on the wire.
fn text(bytes: &[u8]) -> &[u8] {
    let capped = bytes.get(..MAX_TEXT).unwrap_or(bytes);
    capped.split(|&byte| byte == 0).next().unwrap_or_default()
}

const GENERIC: u16 = 1;
const IPP: u16 = 2;
