//! Frames as a guest sends them, and a look at those it gets. Written apart from the netstack's own code, which it checks.

/// The guest's own addresses.
pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
pub(crate) const GUEST_IP: [u8; 4] = [198, 18, 0, 2];

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const TCP: u8 = 6;

/// A TCP segment, from or to the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tcp<'a> {
    /// The other side, not the guest's.
    pub(crate) address: [u8; 4],
    pub(crate) port: u16,
    pub(crate) guest_port: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// A multiple of 4 long.
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl Tcp<'_> {
    /// The segment in a frame from the guest.
    pub(crate) fn frame(&self, gateway: [u8; 6]) -> Vec<u8> {
        let length = 20 + 20 + self.options.len() + self.payload.len();
        let mut frame = Vec::with_capacity(ETHERNET + length);
        frame.extend_from_slice(&gateway);
        frame.extend_from_slice(&GUEST_MAC);
        frame.extend_from_slice(&IPV4.to_be_bytes());
        frame.extend_from_slice(&[0x45, 0]);
        frame.extend_from_slice(&u16::try_from(length).expect("short enough").to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0x40, 0, 64, TCP, 0, 0]);
        frame.extend_from_slice(&GUEST_IP);
        frame.extend_from_slice(&self.address);
        frame.extend_from_slice(&self.guest_port.to_be_bytes());
        frame.extend_from_slice(&self.port.to_be_bytes());
        frame.extend_from_slice(&self.sequence.to_be_bytes());
        frame.extend_from_slice(&self.acknowledged.to_be_bytes());
        let words = u8::try_from(5 + self.options.len() / 4).expect("at most 40 bytes of options");
        frame.extend_from_slice(&[words << 4, self.flags]);
        frame.extend_from_slice(&self.window.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 0]);
        frame.extend_from_slice(self.options);
        frame.extend_from_slice(self.payload);
        mend(&mut frame);
        frame
    }
}

/// Whether a frame is IPv4 and TCP as far as its first bytes tell.
pub(crate) fn is_tcp(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&IPV4.to_be_bytes()) && frame.get(23) == Some(&TCP)
}

/// Makes the checksums of an IPv4 frame right, as far as its lengths allow.
pub(crate) fn mend(frame: &mut [u8]) {
    if frame.get(12..14) != Some(&IPV4.to_be_bytes()) {
        return;
    }
    let Some(packet) = frame.get_mut(ETHERNET..) else { return };
    let header = usize::from(packet.first().copied().unwrap_or(0) & 15) * 4;
    if header < 20 || packet.len() < header {
        return;
    }
    packet[10..12].fill(0);
    let sum = checksum(0, &packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]])).clamp(header, packet.len());
    let protocol = packet[9];
    let pseudo = pseudo_header(packet, total - header);
    let upper = &mut packet[header..total];
    let (at, start) = match protocol {
        1 => (2, 0),
        TCP => (16, pseudo),
        17 => (6, pseudo),
        _ => return,
    };
    if upper.len() < at + 2 {
        return;
    }
    upper[at..at + 2].fill(0);
    let sum = checksum(start, upper);
    upper[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// What a frame for the guest holds.
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    Tcp(Tcp<'a>),
    Other,
}

/// Checks a frame for the guest, and reads it.
///
/// # Panics
///
/// When it is not one that a guest would take in.
pub(crate) fn check(frame: &[u8], mtu: usize) -> Seen<'_> {
    assert!(frame.len() >= ETHERNET, "a frame of {} bytes", frame.len());
    assert!(frame.len() <= ETHERNET + mtu, "a frame of {} bytes with an MTU of {mtu}", frame.len());
    assert_eq!(frame[6] & 1, 0, "from a group");
    match u16::from_be_bytes([frame[12], frame[13]]) {
        0x0806 => {
            assert!(frame.len() >= ETHERNET + 28);
            return Seen::Other;
        }
        IPV4 => {}
        other => panic!("a frame of type {other:#06x}"),
    }
    let packet = &frame[ETHERNET..];
    let header = usize::from(packet[0] & 15) * 4;
    assert_eq!((packet[0] >> 4, header >= 20), (4, true));
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    assert!(total >= header && total <= packet.len(), "a packet of {total} bytes in {}", packet.len());
    assert_eq!(checksum(0, &packet[..header]), 0, "checksum of IPv4");
    assert_eq!(u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff, 0, "a fragment");
    let upper = &packet[header..total];
    let pseudo = pseudo_header(packet, upper.len());
    match packet[9] {
        1 => assert_eq!(checksum(0, upper), 0, "checksum of ICMP"),
        17 => assert!(upper[6..8] == [0, 0] || checksum(pseudo, upper) == 0, "checksum of UDP"),
        TCP => {
            assert_eq!(checksum(pseudo, upper), 0, "checksum of TCP");
            let offset = usize::from(upper[12] >> 4) * 4;
            assert!((20..=upper.len()).contains(&offset));
            return Seen::Tcp(Tcp {
                address: [packet[12], packet[13], packet[14], packet[15]],
                port: u16::from_be_bytes([upper[0], upper[1]]),
                guest_port: u16::from_be_bytes([upper[2], upper[3]]),
                sequence: u32::from_be_bytes([upper[4], upper[5], upper[6], upper[7]]),
                acknowledged: u32::from_be_bytes([upper[8], upper[9], upper[10], upper[11]]),
                flags: upper[13],
                window: u16::from_be_bytes([upper[14], upper[15]]),
                options: &upper[20..offset],
                payload: &upper[offset..],
            });
        }
        other => panic!("a packet of protocol {other}"),
    }
    Seen::Other
}

/// Sum of what a TCP or UDP checksum covers besides the segment.
fn pseudo_header(packet: &[u8], length: usize) -> u32 {
    let addresses: u32 =
        packet[12..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    addresses + u32::from(packet[9]) + u32::try_from(length).expect("at most 64 KiB")
}

fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}
