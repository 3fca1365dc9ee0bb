//! x
mod domains;
mod message;
