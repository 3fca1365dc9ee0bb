//! How large a recording may become, on the command line.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use clap::Args;

use super::Options;

/// Smallest limit: room for a link stage and some messages.
const LEAST: u64 = 64 << 10;

/// The options that every recording has.
#[derive(Debug, Clone, Args)]
pub struct RotationArgs {
    /// Begin a new file when the recording has this size: bytes, or with K, M or G behind it. `none`: never. A
    /// recording that somebody forgot must not fill the disk of a host
    #[arg(long, value_name = "SIZE", default_value_t = Limit::DEFAULT)]
    pub capture_limit: Limit,

    /// Keep so many files: FILE, and the ones before it as FILE.1, FILE.2 and so on. Older ones are removed
    #[arg(long, value_name = "N", default_value_t = DEFAULT_FILES, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub capture_files: u32,
}

const DEFAULT_FILES: u32 = 2;

impl Default for RotationArgs {
    fn default() -> Self {
        Self { capture_limit: Limit::DEFAULT, capture_files: DEFAULT_FILES }
    }
}

impl RotationArgs {
    /// For the file `path`.
    pub fn options(&self, path: &Path) -> Options {
        Options { limit: self.capture_limit.0, files: self.capture_files, ..Options::new(path) }
    }
}

/// How long a file may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

impl Limit {
    /// 1 GiB. With two files that is more than anybody reads, and less than a host's disk.
    const DEFAULT: Self = Self(Some(1 << 30));
}

/// Not a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a size of at least 64K, such as 100M or 2G, or none, got {0:?}")]
pub struct LimitError(String);

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        if text == "none" {
            return Ok(Self(None));
        }
        let wrong = || LimitError(text.to_owned());
        let (digits, shift) = match text.strip_suffix(['K', 'k']) {
            Some(digits) => (digits, 10),
            None => match text.strip_suffix(['M', 'm']) {
                Some(digits) => (digits, 20),
                None => match text.strip_suffix(['G', 'g']) {
                    Some(digits) => (digits, 30),
                    None => (text, 0),
                },
            },
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes >= LEAST).ok_or_else(wrong)?;
        Ok(Self(Some(bytes)))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(bytes) = self.0 else { return f.write_str("none") };
        for (unit, name) in [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")] {
            if bytes % unit == 0 {
                return write!(f, "{}{name}", bytes / unit);
            }
        }
        write!(f, "{bytes}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        for (text, bytes) in
            [("64K", 64 << 10), ("100M", 100 << 20), ("2g", 2 << 30), ("65536", 65_536), ("70001", 70_001)]
        {
            assert_eq!(text.parse(), Ok(Limit(Some(bytes))), "{text}");
        }
        assert_eq!("none".parse(), Ok(Limit(None)));
        for text in
            ["", "K", "63K", "-1G", "+100M", "1.5G", "1T", "99999999999999999999", "18446744073709551615G"]
        {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
        for text in ["none", "1G", "100M", "64K", "70001"] {
            assert_eq!(text.parse::<Limit>().unwrap().to_string(), text);
        }
    }
}
