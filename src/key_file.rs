//! The syntax of GLib's key files, in which `.vv` files are written: groups, keys, escapes and lists.
//!
//! Readers of INI files at hand are no help: they know quotes, comments behind values or keys in any case, none of which
//! a key file has, and none reads its escapes and lists.

/// A key file in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyFile {
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    group: String,
    key: String,
    value: String,
}

/// A line that has no place in a key file. What stands in it is not shown: it may be a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct LineError {
    /// The line's number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl KeyFile {
    /// Reads `text` as GLib does, except that a NUL is an error instead of an end.
    ///
    /// # Errors
    /// The first line that is neither a group, nor a key with its value, nor a comment.
    pub fn parse(text: &str) -> Result<KeyFile, LineError> {
        let mut entries = Vec::new();
        let mut group: Option<&str> = None;
        for (number, line) in (1..).zip(text.split('\n')) {
            let wrong = |problem| Err(LineError { line: number, problem });
            if line.contains('\0') {
                return wrong("expected text, found a NUL byte");
            }
            let line = line.strip_suffix('\r').unwrap_or(line).trim_ascii_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(rest) = line.strip_prefix('[') {
                match rest.trim_ascii_end().strip_suffix(']') {
                    Some(name)
                        if !name.is_empty()
                            && !name.contains(['[', ']'])
                            && !name.chars().any(char::is_control) =>
                    {
                        group = Some(name);
                    }
                    Some(_) | None => return wrong("expected a group as [NAME]"),
                }
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                return wrong("expected KEY=VALUE, [GROUP] or a comment with # before it");
            };
            let key = key.trim_ascii_end();
            if key.is_empty() {
                return wrong("expected a key before the =");
            }
            let Some(group) = group else {
                return wrong("expected a group such as [virt-viewer] before the first key");
            };
            entries.push(Entry {
                group: group.to_owned(),
                key: key.to_owned(),
                value: value.trim_ascii_start().to_owned(),
            });
        }
        Ok(KeyFile { entries })
    }

    /// Whether the group has any key.
    pub fn has_group(&self, group: &str) -> bool {
        self.entries.iter().any(|entry| entry.group == group)
    }

    /// The keys of a group, in order, and repeated as they are.
    pub fn keys(&self, group: &str) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(move |entry| entry.group == group).map(|entry| entry.key.as_str())
    }

    /// A key's value as it is written. Of several the last counts.
    pub fn raw(&self, group: &str, key: &str) -> Option<&str> {
        self.all(group, key).last()
    }

    /// Every value of a key, as written.
    pub fn all(&self, group: &str, key: &str) -> impl Iterator<Item = &str> {
        let is_it = move |entry: &&Entry| entry.group == group && entry.key == key;
        self.entries.iter().filter(is_it).map(|entry| entry.value.as_str())
    }
}

/// Not the values: one may be a password.
impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| (&entry.group, &entry.key))).finish()
    }
}

/// A value with a `\` that begins no escape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected \\s, \\n, \\t, \\r or \\\\ where a backslash is")]
pub struct EscapeError;

/// A value as a string.
///
/// # Errors
/// [`EscapeError`]
pub fn string(raw: &str) -> Result<String, EscapeError> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw.chars();
    while let Some(next) = rest.next() {
        text.push(if next == '\\' { escaped(rest.next()).ok_or(EscapeError)? } else { next });
    }
    Ok(text)
}

/// A value as a list: `;` between the items, and behind the last one where wanted; `\;` within one.
///
/// # Errors
/// [`EscapeError`]
pub fn list(raw: &str) -> Result<Vec<String>, EscapeError> {
    let mut items = Vec::new();
    let mut item = String::new();
    let mut rest = raw.chars();
    while let Some(next) = rest.next() {
        match next {
            ';' => items.push(std::mem::take(&mut item)),
            '\\' => item.push(match rest.next() {
                Some(';') => ';',
                other => escaped(other).ok_or(EscapeError)?,
            }),
            other => item.push(other),
        }
    }
    if !item.is_empty() {
        items.push(item);
    }
    Ok(items)
}

/// The value that [`string`] reads as `text`.
pub fn escape(text: &str) -> String {
    let mut raw = String::with_capacity(text.len());
    for (place, next) in text.chars().enumerate() {
        match next {
            '\\' => raw.push_str("\\\\"),
            '\n' => raw.push_str("\\n"),
            '\r' => raw.push_str("\\r"),
            '\t' => raw.push_str("\\t"),
            // A reader drops spaces before a value.
            ' ' if place == 0 => raw.push_str("\\s"),
            other => raw.push(other),
        }
    }
    raw
}

fn escaped(letter: Option<char>) -> Option<char> {
    match letter? {
        's' => Some(' '),
        'n' => Some('\n'),
        't' => Some('\t'),
        'r' => Some('\r'),
        '\\' => Some('\\'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str, key: &str) -> Option<String> {
        KeyFile::parse(text).unwrap().raw("a", key).map(str::to_owned)
    }

    /// Each as GLib 2.74 reads it.
    #[test]
    fn files_are_read_as_glib_does() {
        for (text, key, value) in [
            ("[a]\nx=1\nx=2\n", "x", Some("2")),
            ("[a]\nx=1\n[b]\nx=2\n[a]\ny=3\nx=4", "x", Some("4")),
            ("\n# c\n  # d\n[a]\nx=1\n", "x", Some("1")),
            ("[a]\r\nx=1\r\n", "x", Some("1")),
            (" [a] \n\tx = 1\t \n", "x", Some("1\t ")),
            ("[a]\n;e=5\nx=1\n", ";e", Some("5")),
            ("[a]\nx= =;\n", "x", Some("=;")),
            ("[a]\nx[de]=5\nx=6\n", "x", Some("6")),
            ("[a]\nx=\n", "x", Some("")),
            ("[a]\n#x=1\n", "x", None),
            ("[A]\nx=1\n", "x", None),
            ("[a]\nX=1\n", "x", None),
            ("[a]\nx=\"1\" # c\n", "x", Some("\"1\" # c")),
            ("", "x", None),
        ] {
            assert_eq!(raw(text, key).as_deref(), value, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_key_file_is_named_by_its_line() {
        for (text, line, problem) in [
            ("x=1\n[a]\n", 1, "before the first key"),
            ("[a]\nhunter2\n", 2, "KEY=VALUE"),
            ("[a]\n\n=hunter2\n", 3, "before the ="),
            ("[a\nx=1\n", 1, "[NAME]"),
            ("[a]b\nx=1\n", 1, "[NAME]"),
            ("[]\n", 1, "[NAME]"),
            ("[a]]\n", 1, "[NAME]"),
            ("[a]\nx=a\0b\n", 2, "NUL"),
            (";c\n[a]\n", 1, "KEY=VALUE"),
            ("\u{feff}[a]\n", 1, "KEY=VALUE"),
        ] {
            let error = KeyFile::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}");
            assert!(error.to_string().contains(problem), "{text:?}: {error}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn strings_and_lists_are_unescaped() {
        for (value, read) in
            [("a\\sb", "a b"), ("\\sa\\nb\\tc\\rd\\\\e", " a\nb\tc\rd\\e"), ("5 ;", "5 ;"), ("", "")]
        {
            assert_eq!(string(value).unwrap(), read);
        }
        for wrong in ["a\\q", "a\\", "a\\;b"] {
            assert_eq!(string(wrong), Err(EscapeError), "{wrong}");
        }
        for (value, read) in [
            ("a\\;b;c;", &["a;b", "c"][..]),
            ("a;;b", &["a", "", "b"]),
            (";a", &["", "a"]),
            ("1", &["1"]),
            ("", &[]),
        ] {
            assert_eq!(list(value).unwrap(), read, "{value}");
        }
        assert_eq!(list("a\\q"), Err(EscapeError));
    }

    proptest::proptest! {
        #[test]
        fn what_was_escaped_reads_the_same(text in "[^\\x00\\x0c]{0,40}") {
            let file = format!("[a]\nx={}\n", escape(&text));
            let file = KeyFile::parse(&file).unwrap();
            proptest::prop_assert_eq!(string(file.raw("a", "x").unwrap()).unwrap(), text);
        }

        #[test]
        fn no_text_is_too_strange(text in "(?s).{0,200}") {
            if let Ok(file) = KeyFile::parse(&text) {
                for entry in &file.entries {
                    let _ = (string(&entry.value), list(&entry.value));
                }
            }
        }
    }
}
