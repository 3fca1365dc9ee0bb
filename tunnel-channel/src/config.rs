//! Who we are on the channel and how much we take on.

use std::time::Duration;

use spice_proto::link::TunnelCaps;
use spice_proto::tunnel::Layout;

use crate::credit::Policy;

/// Which end of the channel a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The guest's side: says INIT, maps services to addresses, opens sockets.
    Server,
    /// The services' side: announces services and dials them.
    Client,
}

/// How much one channel takes on. A peer without [`TunnelCaps::EXTENDED`], or of layout A, gets the historical numbers
/// of sockets, bytes and tokens whatever is written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Server: how many sockets there may be at a time, as INIT says it. Client: ids from here on are refused, whatever
    /// INIT said. 0 opens none.
    pub max_sockets: u16,
    /// Server: longest payload of a DATA message in bytes, both ways, as INIT says it. Client: longest payload that is
    /// sent, if INIT allows that much. Between 1 and [`MAX_DATA_LIMIT`]; other values are moved into that range.
    pub max_data: u32,
    /// Tokens that we grant for each socket when it is opened: how many DATA messages may be on their way or waiting
    /// here. At least 1.
    pub window: u32,
    /// Tokens up to which a socket's window grows where it holds up a peer that is far away. All windows together grow
    /// by no more than half of `memory_budget`, with messages of the longest length, and none by more than it leaves to the
    /// others. Not above `window`: they do not grow.
    pub max_window: u32,
    /// Services that may be announced at a time.
    pub max_services: usize,
    /// Server: time between the PINGs, which find dead peers and measure the round trip; one more is sent where a window
    /// may have to grow. `None` sends none, and then a dead client goes unnoticed. Without meaning for a client.
    pub ping_interval: Option<Duration>,
    /// Silence after which the peer is given up. Server: after a PING, nothing at all was received for this long.
    /// Client: nothing was received for this long, though the server was asked after a third of it. That needs
    /// [`TunnelCaps::PROBE`]; a server that has only [`TunnelCaps::EXTENDED`] is relied on to send PINGs, and given at
    /// least 35 s; older ones send nothing when idle and are never given up. A length beyond what `Instant` can hold
    /// means for ever.
    pub dead_after: Duration,
    /// Bytes received and not yet delivered, over all sockets, above which no credit is returned, except a token at
    /// a time for a socket that waits for nothing else. What windows have grown by counts as if it had been received. A
    /// DATA message that would go beyond twice this resets its socket.
    pub memory_budget: usize,
}

/// The longest payload of a DATA message that either role bears, in bytes. A server that announces more is refused: it
/// might send messages that we would have to hold whole.
pub const MAX_DATA_LIMIT: u32 = 1 << 20;

/// Sockets of a historical channel (wire-reference 6.5).
const HISTORICAL_SOCKETS: u16 = 20;
/// Longest payload of a historical DATA message.
const HISTORICAL_DATA: u32 = 2048;
/// Tokens that a historical server grants in OPEN.
const HISTORICAL_SERVER_WINDOW: u32 = 80;
/// Tokens that a historical client grants in OPEN_ACK.
const HISTORICAL_CLIENT_WINDOW: u32 = 60;
/// How many tokens both return at a time.
const HISTORICAL_PORTION: u32 = 20;

impl Default for Config {
    fn default() -> Self {
        Config {
            max_sockets: 16_384,
            max_data: 32_768,
            window: 64,
            max_window: 1024,
            max_services: 1024,
            ping_interval: Some(Duration::from_secs(10)),
            dead_after: Duration::from_secs(40),
            memory_budget: 64 << 20,
        }
    }
}

impl Config {
    /// The numbers of every historical end (wire-reference 6.5): 20 sockets, 2048 bytes, and 80 tokens granted by the
    /// server, 60 by the client. The rest is as in the default.
    pub fn historical(role: Role) -> Self {
        Config {
            max_sockets: HISTORICAL_SOCKETS,
            max_data: HISTORICAL_DATA,
            window: match role {
                Role::Server => HISTORICAL_SERVER_WINDOW,
                Role::Client => HISTORICAL_CLIENT_WINDOW,
            },
            ..Config::default()
        }
    }
}

/// What a channel really does, from what both ends can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) layout: Layout,
    /// None at all in layout A, which knew none.
    pub(crate) caps: TunnelCaps,
    pub(crate) config: Config,
    pub(crate) policy: Policy,
}

impl Terms {
    pub(crate) fn new(role: Role, layout: Layout, caps: TunnelCaps, config: Config) -> Self {
        let caps = match layout {
            Layout::A => TunnelCaps::empty(),
            Layout::B if caps.contains(TunnelCaps::SERVICE_INFO) => caps,
            // An answer names a device, of which nobody could be told what it is.
            Layout::B => caps.difference(TunnelCaps::NAMES),
        };
        if caps.contains(TunnelCaps::EXTENDED) {
            let max_data = config.max_data.clamp(1, MAX_DATA_LIMIT);
            let policy = Policy::growing(config.window, config.max_window);
            Terms { layout, caps, config: Config { max_data, ..config }, policy }
        } else {
            let Config { max_sockets, max_data, window, .. } = Config::historical(role);
            let config = Config { max_sockets, max_data, window, ..config };
            Terms { layout, caps, config, policy: Policy::portions_of(HISTORICAL_PORTION, window) }
        }
    }

    pub(crate) fn has(&self, cap: TunnelCaps) -> bool {
        self.caps.contains(cap)
    }
}
