//! spice-tunnel
fn main() {}
