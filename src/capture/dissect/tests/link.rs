//! Link stages that no capture shows.
