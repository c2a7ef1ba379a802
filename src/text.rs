//! Text on its way to people: what a terminal shows and does not obey, and names that stay what
//! they are.
//!
//! Names of files and classes are strings of bytes, which need not be UTF-8, and may hold anything
//! a terminal takes for a command. So may whatever was read from a file.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::{self, Write as _};

/// Text with every character that a terminal would obey written out as Rust writes it: escape
/// sequences begin with `\u{1b}`. Line ends and tabs stay.
///
/// # Example
/// ```
/// assert_eq!(aavae::text::clean("red: \u{1b}[31m\n"), "red: \\u{1b}[31m\n");
/// ```
pub fn clean(text: &str) -> Cow<'_, str> {
    let stays = |c: char| !is_command(c) || c == '\n' || c == '\t';
    if text.chars().all(stays) {
        return text.into();
    }
    let mut cleaned = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if stays(c) {
            cleaned.push(c);
        } else {
            cleaned.extend(c.escape_default());
        }
    }
    cleaned.into()
}

/// JSON with every character that a terminal would obey written as `\uXXXX`: the same value.
///
/// Serialisers escape what JSON forbids, which leaves DEL, the controls U+0080 to U+009F and those
/// of direction. Outside of strings JSON has none of them.
pub fn clean_json(json: &str) -> Cow<'_, str> {
    let stays = |c: char| !is_command(c) || c.is_ascii_whitespace();
    if json.chars().all(stays) {
        return json.into();
    }
    let mut cleaned = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if stays(c) {
            cleaned.push(c);
        } else {
            // None is beyond U+FFFF. Writing to a string cannot fail.
            write!(cleaned, "\\u{:04x}", u32::from(c)).ok();
        }
    }
    cleaned.into()
}

/// Controls, and the marks that reorder what follows them.
fn is_command(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text of a path for a program to open, as it stands in JSON, which escapes what it must;
/// bytes that are not UTF-8 as [`name`] writes them.
pub fn path(path: &std::path::Path) -> String {
    path.to_str().map_or_else(|| name(path).to_string(), str::to_owned)
}

/// The name of a file or class, or a path, in one line: bytes that are not UTF-8 as `\xff`,
/// commands to a terminal and line ends written out.
pub fn name<T: AsRef<OsStr> + ?Sized>(name: &T) -> Name<'_> {
    Name(name.as_ref())
}

/// See [`name`].
#[derive(Clone, Copy, Debug)]
pub struct Name<'a>(&'a OsStr);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.as_encoded_bytes().utf8_chunks() {
            for c in chunk.valid().chars() {
                if is_command(c) {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    f.write_char(c)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// A name as a string of JSON; see [`json_names`].
fn json_name(name: &OsStr) -> String {
    let mut json = String::from('"');
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        // A string of JSON, of which the quotes are left out.
        let text = serde_json::Value::from(chunk.valid()).to_string();
        json.push_str(&clean_json(&text[1..text.len() - 1]));
        for byte in chunk.invalid() {
            write!(json, "\\udc{byte:02x}").ok();
        }
    }
    json.push('"');
    json
}

/// Names as an array of JSON that loses nothing, in the manner of Python's `surrogateescape` (PEP
/// 383): a byte XX that is not UTF-8 becomes `\udcXX`. Python's `json.loads` and `os.fsencode` give
/// the bytes back, and `open` takes them as they are.
pub fn json_names<'a>(names: impl Iterator<Item = &'a OsStr>) -> String {
    format!("[{}]", names.map(json_name).collect::<Vec<_>>().join(","))
}

/// Text as Markdown that reads as the text, in one line: nothing of it is markup or a command.
pub fn markdown(text: &str) -> String {
    let text = clean(text);
    let mut escaped = String::with_capacity(text.len());
    let (mut within, mut rest) = (false, text.chars());
    while let Some(c) = rest.next() {
        // An underscore within a word is one.
        let word = c == '_' && within && rest.as_str().starts_with(char::is_alphanumeric);
        match c {
            '\n' | '\t' => escaped.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '&' | '~' | '|' | '#' | '!' | '$'
                if !word =>
            {
                escaped.extend(['\\', c]);
            }
            _ => escaped.push(c),
        }
        within = c.is_alphanumeric();
    }
    escaped
}

/// Text as code in a line of Markdown, whatever backticks it holds.
pub fn markdown_code(text: &str) -> String {
    let text = clean(text).replace(['\n', '\t'], " ");
    let fence = "`".repeat(longest_fence(&text) + 1);
    let blank = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{blank}{text}{blank}{fence}")
}

/// The most backticks in a row.
pub fn longest_fence(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// Whether a stream shows more than lines: it is a terminal, and `TERM` does not say that it
/// understands no escapes. On Unix it must say something.
pub fn understands_escapes(stream: &impl std::io::IsTerminal) -> bool {
    let term = std::env::var_os("TERM");
    let speaks = term.map_or(cfg!(not(unix)), |term| term != "dumb" && !term.is_empty());
    speaks && stream.is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_out() {
        assert!(matches!(clean("plain, é, 猫\n\tline"), Cow::Borrowed(_)));
        let nasty = "a\u{1b}[2Jb\rc\u{9b}31md\u{7f}\u{202e}e\u{7}";
        assert_eq!(clean(nasty), r"a\u{1b}[2Jb\rc\u{9b}31md\u{7f}\u{202e}e\u{7}");
    }

    #[test]
    fn clean_json_is_the_same_value() {
        let value = serde_json::json!({ "a\u{9b}": ["\u{1b}[2J", "\u{7f}\u{202e}é\n"] });
        for text in [value.to_string(), format!("{value:#}")] {
            let cleaned = clean_json(&text);
            assert!(cleaned.chars().all(|c| !is_command(c) || c == '\n'), "{cleaned}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&cleaned).expect("JSON"), value);
        }
        assert!(matches!(clean_json("{\"a\": 1}"), Cow::Borrowed(_)));
    }

    #[test]
    fn markdown_reads_as_the_text() {
        assert_eq!(
            markdown("a*b_c _d <x> [y](z) | `w`\n\u{1b}#"),
            r"a\*b_c \_d \<x\> \[y\](z) \| \`w\` \\u{1b}\#"
        );
        assert_eq!(markdown_code("plain"), "`plain`");
        assert_eq!(markdown_code("a ``b`` c`"), "``` a ``b`` c` ```");
    }

    #[test]
    fn names_that_are_text_stay_what_they_are() {
        assert_eq!(name(OsStr::new("é \"x\"\n")).to_string(), r#"é "x"\n"#);
        assert_eq!(json_names(["a", "é"].map(OsStr::new).into_iter()), r#"["a","é"]"#);
    }

    /// On Unix, where names are any bytes.
    #[cfg(unix)]
    #[test]
    fn names_lose_nothing() {
        use std::os::unix::ffi::OsStrExt;
        let odd = OsStr::from_bytes(b"caf\xe9\"\\\x1b\nz\xff");
        assert_eq!(name(odd).to_string(), r#"caf\xe9"\\u{1b}\nz\xff"#);
        assert_eq!(json_name(odd), r#""caf\udce9\"\\\u001b\nz\udcff""#);
    }
}
