//! A validating scanner over one JSON text: it finds values, and checks the syntax of those nobody wants.

use super::Malformed;

/// Nested deeper than this is refused, so that a hostile line cannot exhaust the stack.
const DEPTH_MAX: usize = 128;

pub(crate) struct Scanner<'a> {
    pub(crate) text: &'a [u8],
    pub(crate) at: usize,
}

/// A string's range without its quotes.
pub(crate) struct Str {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Has backslashes: [`unescape`] it.
    pub(crate) escaped: bool,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.at) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                byte => return Some(*byte),
            }
        }
        None
    }

    pub(crate) fn error(&self, wanted: &str) -> Malformed {
        match self.text.get(self.at) {
            Some(byte) if byte.is_ascii_graphic() => {
                Malformed(format!("not JSON at byte {}: found `{}`, expected {wanted}", self.at, char::from(*byte)))
            }
            Some(byte) => Malformed(format!("not JSON at byte {}: found byte 0x{byte:02x}, expected {wanted}", self.at)),
            None => Malformed(format!("not JSON: ends at byte {}, expected {wanted}", self.at)),
        }
    }

    pub(crate) fn expect(&mut self, byte: u8, wanted: &str) -> Result<(), Malformed> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(self.error(wanted))
    }

    /// A string; the scanner stands on its opening quote.
    pub(crate) fn string(&mut self) -> Result<Str, Malformed> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        let mut escaped = false;
        loop {
            let Some(byte) = self.text.get(self.at) else { return Err(self.error("the end of the string")) };
            match byte {
                b'"' => {
                    let end = self.at;
                    self.at += 1;
                    return Ok(Str { start, end, escaped });
                }
                b'\\' => {
                    escaped = true;
                    self.escape()?;
                }
                0..=0x1f => return Err(self.error("the control character escaped")),
                _ => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<(), Malformed> {
        self.at += 1;
        match self.text.get(self.at) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                let digits = self.text.get(self.at + 1..self.at + 5);
                if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    return Err(self.error("four hexadecimal digits"));
                }
                self.at += 5;
            }
            _ => return Err(self.error("an escape sequence")),
        }
        Ok(())
    }

    /// A number's range; whether it is whole comes with it.
    pub(crate) fn number(&mut self) -> Result<(usize, usize, bool), Malformed> {
        let start = self.at;
        let mut whole = true;
        if self.text.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        match self.text.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(self.error("a value")),
        }
        if self.text.get(self.at) == Some(&b'.') {
            whole = false;
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            whole = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.text.get(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok((start, self.at, whole))
    }

    fn digits(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at == start { Err(self.error("a digit")) } else { Ok(()) }
    }

    pub(crate) fn literal(&mut self, literal: &'static str) -> Result<(), Malformed> {
        if self.text[self.at..].starts_with(literal.as_bytes()) {
            self.at += literal.len();
            return Ok(());
        }
        Err(self.error("a value"))
    }

    /// Checks a value of any kind and gives its range.
    pub(crate) fn skip(&mut self) -> Result<(usize, usize), Malformed> {
        self.skip_at(0)
    }

    fn skip_at(&mut self, depth: usize) -> Result<(usize, usize), Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed(format!("JSON nested deeper than {DEPTH_MAX}")));
        }
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'"') => {
                self.string()?;
            }
            Some(b't') => self.literal("true")?,
            Some(b'f') => self.literal("false")?,
            Some(b'n') => self.literal("null")?,
            Some(b'{') => {
                self.at += 1;
                if self.peek() == Some(b'}') {
                    self.at += 1;
                    return Ok((start, self.at));
                }
                loop {
                    self.peek();
                    self.string()?;
                    self.expect(b':', "`:`")?;
                    self.skip_at(depth + 1)?;
                    if self.next_or_close(b'}')? {
                        break;
                    }
                }
            }
            Some(b'[') => {
                self.at += 1;
                if self.peek() == Some(b']') {
                    self.at += 1;
                    return Ok((start, self.at));
                }
                loop {
                    self.skip_at(depth + 1)?;
                    if self.next_or_close(b']')? {
                        break;
                    }
                }
            }
            _ => {
                self.number()?;
            }
        }
        Ok((start, self.at))
    }

    /// After a member: true at the closing bracket, false at a comma.
    pub(crate) fn next_or_close(&mut self, close: u8) -> Result<bool, Malformed> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(false)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(true)
            }
            _ => Err(self.error(if close == b'}' { "`,` or `}`" } else { "`,` or `]`" })),
        }
    }
}

/// Resolves the escapes of a string that the scanner accepted. A lone surrogate becomes U+FFFD, as in Java.
pub(crate) fn unescape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(slash) = rest.iter().position(|byte| *byte == b'\\') {
        out.extend_from_slice(&rest[..slash]);
        let escape = rest.get(slash + 1).copied().unwrap_or(b'\\');
        rest = rest.get(slash + 2..).unwrap_or_default();
        match escape {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let (unit, after) = code_unit(rest);
                rest = after;
                let mut code = unit;
                if (0xd800..0xdc00).contains(&unit) && rest.starts_with(b"\\u") {
                    let (low, after) = code_unit(&rest[2..]);
                    if (0xdc00..0xe000).contains(&low) {
                        code = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                        rest = after;
                    }
                }
                let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other => out.push(other),
        }
    }
    out.extend_from_slice(rest);
}

fn code_unit(text: &[u8]) -> (u32, &[u8]) {
    let (digits, rest) = text.split_at(text.len().min(4));
    (digits.iter().fold(0, |value, digit| value * 16 + char::from(*digit).to_digit(16).unwrap_or(0)), rest)
}
