//! The grammar of `java.util.Properties`: text in, entries with their line numbers out.
//!
//! Separators are `=`, `:` or white space; `#` and `!` begin a comment only at the start of a line; a backslash continues
//! a line and escapes a character (`\\d` is `\d`, a lone `\d` is `d`); `\uXXXX` are UTF-16 units. Nothing in here fails as
//! a whole: what cannot be read becomes a [`Fault`] and the rest is still read, so that all errors are told at once.

use std::borrow::Cow;

/// One `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: String,
    /// Where the entry begins, counted from 1.
    pub line: u32,
    /// False for a line that is a key alone, without `=`, `:` or anything after it.
    pub separated: bool,
    /// Characters whose backslash was dropped although it means nothing before them: `\d` in a regular expression.
    pub lost_escapes: Vec<char>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub line: u32,
    pub message: String,
}

/// UTF-8 when the bytes are valid UTF-8, else ISO-8859-1. `strict`: ISO-8859-1 always, as Java, which mangles the former.
pub fn decode(bytes: &[u8], strict: bool) -> Cow<'_, str> {
    let latin_1 = || Cow::Owned(bytes.iter().map(|&byte| char::from(byte)).collect());
    if strict {
        return latin_1();
    }
    let text = std::str::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes));
    text.map_or_else(|_| latin_1(), Cow::Borrowed)
}

/// UTF-8 that ISO-8859-1 reads as something else.
pub fn is_mangled(bytes: &[u8]) -> bool {
    !bytes.is_ascii() && std::str::from_utf8(bytes).is_ok()
}

/// Entries in the order of the file, duplicates included.
pub fn parse(text: &str) -> (Vec<Entry>, Vec<Fault>) {
    let (mut entries, mut faults) = (Vec::new(), Vec::new());
    for logical in LogicalLines::new(text) {
        match entry(&logical) {
            Ok(entry) => entries.push(entry),
            Err(message) => faults.push(Fault { line: logical.line, message }),
        }
    }
    (entries, faults)
}

struct Logical {
    line: u32,
    /// Continuations joined, escapes still in place.
    text: Vec<char>,
}

struct LogicalLines<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    line: u32,
}

impl<'a> LogicalLines<'a> {
    fn new(text: &'a str) -> Self {
        Self { chars: text.chars().peekable(), line: 1 }
    }

    /// The rest of the natural line, and whether there was one.
    fn natural(&mut self) -> Option<Vec<char>> {
        self.chars.peek()?;
        let mut text = Vec::new();
        for char in self.chars.by_ref() {
            match char {
                '\n' => break,
                '\r' => {
                    self.chars.next_if_eq(&'\n');
                    break;
                }
                other => text.push(other),
            }
        }
        self.line += 1;
        Some(text)
    }
}

impl Iterator for LogicalLines<'_> {
    type Item = Logical;

    fn next(&mut self) -> Option<Logical> {
        loop {
            let line = self.line;
            let natural = self.natural()?;
            let mut text = without_leading_blanks(natural);
            if text.is_empty() || matches!(text.first(), Some('#' | '!')) {
                continue;
            }
            while continues(&text) {
                text.pop();
                match self.natural() {
                    Some(more) => text.extend(without_leading_blanks(more)),
                    None => break,
                }
            }
            if !text.is_empty() {
                return Some(Logical { line, text });
            }
        }
    }
}

fn is_blank(char: char) -> bool {
    matches!(char, ' ' | '\t' | '\u{c}')
}

fn without_leading_blanks(mut text: Vec<char>) -> Vec<char> {
    let blanks = text.iter().take_while(|&&char| is_blank(char)).count();
    text.drain(..blanks);
    text
}

/// An odd number of backslashes at the end: the last one is not itself escaped.
fn continues(text: &[char]) -> bool {
    text.iter().rev().take_while(|&&char| char == '\\').count() % 2 == 1
}

fn entry(logical: &Logical) -> Result<Entry, String> {
    let text = &logical.text;
    let mut escaped = false;
    let key_end = text
        .iter()
        .position(|&char| {
            let ends = !escaped && (char == '=' || char == ':' || is_blank(char));
            escaped = char == '\\' && !escaped;
            ends
        })
        .unwrap_or(text.len());
    let (key, rest) = text.split_at(key_end);
    let mut rest = rest;
    let mut sign = false;
    // One `=` or `:` at most belongs to the separator, with blanks on either side.
    while let Some((&char, tail)) = rest.split_first() {
        if is_blank(char) || (!sign && (char == '=' || char == ':')) {
            sign |= !is_blank(char);
            rest = tail;
        } else {
            break;
        }
    }
    let mut lost_escapes = Vec::new();
    Ok(Entry {
        key: unescape(key, &mut lost_escapes)?,
        value: unescape(rest, &mut lost_escapes)?,
        line: logical.line,
        separated: sign || !rest.is_empty(),
        lost_escapes,
    })
}

fn unescape(text: &[char], lost: &mut Vec<char>) -> Result<String, String> {
    let mut units: Vec<u16> = Vec::with_capacity(text.len());
    let mut buffer = [0u16; 2];
    let mut push = |units: &mut Vec<u16>, char: char| units.extend_from_slice(char.encode_utf16(&mut buffer));
    let mut chars = text.iter().copied();
    while let Some(char) = chars.next() {
        if char != '\\' {
            push(&mut units, char);
            continue;
        }
        match chars.next() {
            None => {}
            Some('t') => push(&mut units, '\t'),
            Some('n') => push(&mut units, '\n'),
            Some('r') => push(&mut units, '\r'),
            Some('f') => push(&mut units, '\u{c}'),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                let all_hex = digits.len() == 4 && digits.chars().all(|digit| digit.is_ascii_hexdigit());
                let unit = all_hex.then(|| u16::from_str_radix(&digits, 16).ok()).flatten();
                units.push(unit.ok_or_else(|| format!("`\\u{digits}` is not `\\u` and four hexadecimal digits"))?);
            }
            Some(other) => {
                if other.is_ascii_alphanumeric() || ".[](){}*+?|^$".contains(other) {
                    lost.push(other);
                }
                push(&mut units, other);
            }
        }
    }
    Ok(String::from_utf16_lossy(&units))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `text` holds one entry, which reads `key` and `value`.
    #[track_caller]
    fn check(text: &str, key: &str, value: &str) {
        let (entries, faults) = parse(text);
        assert!(faults.is_empty(), "{text:?}: {faults:?}");
        let pairs: Vec<_> = entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
        assert_eq!(pairs, [(key, value)], "{text:?}");
    }

    #[test]
    fn separators_and_blanks() {
        for separator in ["=", ":", " ", "\t", "\u{c}", " = ", " : ", "  =", "=  ", "\t:\t", "   ", " \t\u{c}", "= \t", "\t ="] {
            for begin in ["", " ", "\t", " \u{c} "] {
                for end in ["", "\n", "\r", "\r\n", "\n\n", "\n# c\n", "\n!c", "\r\n \t\r\n"] {
                    check(&format!("{begin}key{separator}value{end}"), "key", "value");
                }
            }
        }
        for (text, key, value) in [
            ("a==b", "a", "=b"),
            ("a=:b", "a", ":b"),
            ("a:=b", "a", "=b"),
            ("a = = b", "a", "= b"),
            ("a : = b", "a", "= b"),
            ("a b=c", "a", "b=c"),
            ("a b c", "a", "b c"),
            ("a=b ", "a", "b "),
            ("a=b\t", "a", "b\t"),
            ("a", "a", ""),
            ("a=", "a", ""),
            ("a =", "a", ""),
            ("a ", "a", ""),
            ("a:", "a", ""),
            ("=b", "", "b"),
            (":b", "", "b"),
            ("= b", "", "b"),
            ("a=b=c", "a", "b=c"),
            ("a=b:c", "a", "b:c"),
            ("a.b.c = d e  f", "a.b.c", "d e  f"),
            ("a=b#c", "a", "b#c"),
            ("a=b # c", "a", "b # c"),
            ("a=b !c", "a", "b !c"),
            ("a#b=c", "a#b", "c"),
            ("a!=c", "a!", "c"),
            ("鍵=値", "鍵", "値"),
            ("a=\u{85}", "a", "\u{85}"),
            ("a\u{a0}b=c", "a\u{a0}b", "c"),
        ] {
            check(text, key, value);
        }
    }

    #[test]
    fn escapes() {
        for (text, key, value) in [
            (r"a\=b=c", "a=b", "c"),
            (r"a\:b=c", "a:b", "c"),
            (r"a\ b=c", "a b", "c"),
            (r"a\ b c", "a b", "c"),
            (r"\#a=c", "#a", "c"),
            (r"\!a=c", "!a", "c"),
            (r"a=\ b", "a", " b"),
            (r"a=\tb", "a", "\tb"),
            (r"a=\nb", "a", "\nb"),
            (r"a=\rb", "a", "\rb"),
            (r"a=\fb", "a", "\u{c}b"),
            (r"a=\d+", "a", "d+"),
            (r"a=\\d+", "a", r"\d+"),
            (r"a=\\\\", "a", r"\\"),
            (r"a=\\", "a", r"\"),
            (r"a=C:\\x\\y", "a", r"C:\x\y"),
            (r"a=\u0041", "a", "A"),
            (r"a=\u00e9\u4e2d", "a", "é中"),
            (r"a=\uD83D\uDE00", "a", "😀"),
            (r"a=\ud83d", "a", "\u{fffd}"),
            (r"\u0061\u002e=x", "a.", "x"),
            (r"a\u003db=x", "a=b", "x"),
            (r"a=\uu004", "", ""),
            (r"a=\u00", "", ""),
            (r"a=\u00g1", "", ""),
            (r"a=\u+041", "", ""),
            (r"a=\u 041", "", ""),
        ] {
            if key.is_empty() {
                assert_eq!(parse(text).1.len(), 1, "{text}");
            } else {
                check(text, key, value);
            }
        }
        assert_eq!(parse(r"a=\d\\s\.\w").0[0].lost_escapes, ['d', '.', 'w']);
        assert!(parse(r"a=\t\:\=\\d").0[0].lost_escapes.is_empty());
    }

    #[test]
    fn continuations() {
        for newline in ["\n", "\r", "\r\n"] {
            for (text, key, value) in [
                ("a=b\\Nc", "a", "bc"),
                ("a=b\\N   c", "a", "bc"),
                ("a=b \\N\tc", "a", "b c"),
                ("a=b\\N#c", "a", "b#c"),
                ("a=b\\N!c", "a", "b!c"),
                ("a=b\\\\", "a", "b\\"),
                ("a=b\\\\\\N c", "a", "b\\c"),
                ("a\\Nb=c", "ab", "c"),
                ("a\\N =c", "a", "c"),
                ("a=\\Nb", "a", "b"),
                ("a=b\\N", "a", "b"),
                ("a=b\\", "a", "b"),
                ("a=b\\N\\Nc", "a", "bc"),
                ("a=b,\\N  c,\\N  d", "a", "b,c,d"),
                ("a=b\\N\n", "a", "b"),
                ("# x\\Na=b", "a", "b"),
                ("\\Na=b", "a", "b"),
            ] {
                check(&text.replace('N', newline), key, value);
            }
        }
        assert_eq!(parse("\\\n").0, []);
        assert_eq!(parse("\\").0, []);
    }

    #[test]
    fn every_entry_knows_its_line() {
        let text = "# first\n\na=1\nb=2\\\n  3\n\r\nc=4\r! x\rd=\\u12\ne";
        let (entries, faults) = parse(text);
        let lines: Vec<_> = entries.iter().map(|entry| (entry.key.as_str(), entry.line)).collect();
        assert_eq!(lines, [("a", 3), ("b", 4), ("c", 7), ("e", 10)]);
        assert_eq!(faults[0].line, 9);
        assert!(!entries[3].separated && entries[0].separated);
    }

    #[test]
    fn latin_1_is_read_where_utf_8_is_not_valid() {
        assert_eq!(decode("é=中".as_bytes(), false), "é=中");
        assert_eq!(decode("é".as_bytes(), true), "Ã©");
        assert_eq!(decode(b"\xe9=\xfc", false), "é=ü");
        assert_eq!(decode(b"\xef\xbb\xbfa=b", false), "a=b");
        assert!(is_mangled("é".as_bytes()) && !is_mangled(b"e") && !is_mangled(b"\xe9"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            parse(&text);
            parse(&decode(&bytes, false));
            parse(&decode(&bytes, true));
        }

        #[test]
        fn dense_in_special_characters_too(text in "[a\\\\=: \t\n\r#!u0d8]{0,60}") {
            let (entries, faults) = parse(&text);
            let lines = text.chars().filter(|char| matches!(char, '\n' | '\r')).count() + 1;
            prop_assert!(entries.len() + faults.len() <= lines);
        }

        #[test]
        fn what_is_escaped_is_read_back(key in "\\PC{1,20}", value in any::<String>()) {
            let mut text = String::new();
            let mut unit = [0; 2];
            for char in key.chars().chain(['\0']).chain(value.chars()) {
                if char == '\0' && !text.contains('=') {
                    text.push('=');
                    continue;
                }
                for unit in char.encode_utf16(&mut unit) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
            let (entries, faults) = parse(&text);
            prop_assert!(faults.is_empty());
            prop_assert_eq!(&entries[0].key, &key);
            prop_assert_eq!(&entries[0].value, &value);
        }
    }
}
