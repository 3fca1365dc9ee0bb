//! spice-tunnel
