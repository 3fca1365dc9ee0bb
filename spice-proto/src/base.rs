//! Messages that every channel has (wire reference 2.4).

/// Type of the message that holds sub-messages and nothing else, server to client.
pub const LIST: u16 = 8;
