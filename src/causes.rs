//! Errors with their causes, on one line.

use std::error::Error;

/// What happened and why, parted by colons. What only repeats the one before is left out.
pub fn in_line(error: &dyn Error) -> String {
    let mut last = error.to_string();
    let mut line = last.clone();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if text != last {
            line = format!("{line}: {text}");
        }
        last = text;
        cause = error.source();
    }
    line
}
