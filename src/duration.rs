//! Durations as people write them: a number with its unit, `10s`, or several, `1h30m`.

use std::time::Duration;

/// The units, in milliseconds.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It is none.
    #[error("expected a duration such as 500ms, 10s, 5m, 1h30m or 2d, got {0:?}")]
    Text(String),
    /// Of those wanted here it is none.
    #[error("expected between {} and {}, got {text}", show(*.least), show(*.most))]
    Range {
        /// As it was given.
        text: String,
        /// The shortest that will do.
        least: Duration,
        /// The longest.
        most: Duration,
    },
}

/// Reads a duration. The unit is not optional, not even for `0s`.
///
/// # Errors
/// [`DurationError::Text`].
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let wrong = || DurationError::Text(text.to_owned());
    let mut millis: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, behind) = rest.split_at(digits);
        let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let part = number.checked_mul(*factor).ok_or_else(wrong)?;
        millis = millis.checked_add(part).ok_or_else(wrong)?;
        rest = behind;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(Duration::from_millis(millis)) }
}

/// Reads a duration that must not be shorter or longer than these.
///
/// # Errors
/// [`DurationError`].
pub fn parse_within(text: &str, least: Duration, most: Duration) -> Result<Duration, DurationError> {
    let duration = parse(text)?;
    if (least..=most).contains(&duration) {
        Ok(duration)
    } else {
        Err(DurationError::Range { text: text.to_owned(), least, most })
    }
}

/// A duration as [`parse`] reads it, in whole milliseconds.
pub fn show(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = |(_, factor): &&(&str, u64)| millis >= *factor && millis.is_multiple_of(*factor);
    match UNITS.iter().rev().find(fits) {
        Some((unit, factor)) => format!("{}{unit}", millis / factor),
        None => "0s".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1m1ms", 60_001),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "10 s",
            "-1s",
            "1.5s",
            "1h30",
            "10S",
            "99999999999999999999s",
            "18446744073709551615s",
        ] {
            assert_eq!(parse(text), Err(DurationError::Text(text.to_owned())));
        }
    }

    #[test]
    fn they_are_shown_as_they_are_read() {
        for text in ["0s", "1ms", "1500ms", "10s", "90s", "90m", "2h", "2d"] {
            assert_eq!(show(parse(text).unwrap()), text);
        }
    }

    #[test]
    fn a_range_is_told() {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(120));
        assert_eq!(parse_within("2m", least, most), Ok(most));
        let error = parse_within("3m", least, most).unwrap_err();
        assert_eq!(error.to_string(), "expected between 1s and 2m, got 3m");
    }
}
