//! Numbers with units, as people read them.

use std::time::Duration;

/// Bytes, in powers of 1024: `12 B`, `48.8 KiB`, `2.0 GiB`.
pub(super) fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    scaled(count as f64)
}

/// Bytes over a time: `1.5 MiB/s`; `-` where there was no time.
pub(super) fn rate(count: u64, time: Duration) -> String {
    match per_second(count, time) {
        Some(rate) if rate < 1024.0 => format!("{rate:.0} B/s"),
        Some(rate) => format!("{}/s", scaled(rate)),
        None => "-".to_owned(),
    }
}

/// Bytes over a time, in bytes a second; `None` where there was no time.
pub(super) fn per_second(count: u64, time: Duration) -> Option<f64> {
    (time > Duration::ZERO).then(|| count as f64 / time.as_secs_f64())
}

/// A length of time: `350 µs`, `12.3 ms`, `16.04 s`; 0 is `0`.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if time.is_zero() {
        "0".to_owned()
    } else if seconds < 0.001 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.1} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

/// From 1024 on.
fn scaled(mut number: f64) -> String {
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if number < 1024.0 {
            break;
        }
        number /= 1024.0;
        unit = larger;
    }
    format!("{number:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_unit_that_suits_them() {
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (300_000, "293.0 KiB")];
        for (count, text) in sizes {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        let times = [(0, "0"), (350, "350 µs"), (12_340, "12.3 ms"), (16_040_000, "16.04 s")];
        for (micros, text) in times {
            assert_eq!(time(Duration::from_micros(micros)), text);
        }
        assert_eq!(rate(100, Duration::ZERO), "-");
        assert_eq!(rate(100, Duration::from_secs(1)), "100 B/s");
        assert_eq!(rate(3 << 20, Duration::from_secs(2)), "1.5 MiB/s");
    }
}
