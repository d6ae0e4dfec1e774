//! Messages out of a TCP stream (RFC 6587): lines, or octets that were counted. Slices of the read buffer.

use bytes::{Buf, Bytes, BytesMut};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub text: Bytes,
    /// Longer than a message may be: what comes after it is in the next frames.
    pub cut: bool,
}

pub struct Frames {
    buffer: BytesMut,
    /// Bytes at the beginning of the buffer that hold no newline.
    searched: usize,
    max: usize,
    /// Understand `123 <34>…` as a message of 123 bytes.
    counted: bool,
    /// Bytes of a counted message that have not been given out.
    left: usize,
    /// The last read filled its buffer.
    busy: bool,
}

/// Digits of a counted message's length.
const DIGITS_MAX: usize = 8;

enum Count {
    /// The length, and the bytes that it and its blank take.
    Of(usize, usize),
    /// More bytes will tell.
    Open,
    None,
}

impl Frames {
    pub fn new(max: usize, counted: bool) -> Self {
        Self { buffer: BytesMut::new(), searched: 0, max, counted, left: 0, busy: false }
    }

    /// Where to read into: small while little comes.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.busy |= self.buffer.len() == self.buffer.capacity();
        self.buffer.reserve(if std::mem::take(&mut self.busy) { 64 * 1024 } else { 4 * 1024 });
        &mut self.buffer
    }

    /// What is there when no more comes.
    pub fn rest(&mut self) -> Option<Frame> {
        self.next().or_else(|| {
            let text = self.buffer.split().freeze();
            (self.searched, self.left) = (0, 0);
            (!text.is_empty()).then_some(Frame { text, cut: false })
        })
    }

    fn announced(&self) -> Count {
        let digits = self.buffer.iter().take(DIGITS_MAX).take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || self.buffer[0] == b'0' {
            return Count::None;
        }
        match &self.buffer[digits..] {
            [] | [b' '] => Count::Open,
            [b' ', b'<', ..] => {
                let length = std::str::from_utf8(&self.buffer[..digits]).ok().and_then(|digits| digits.parse().ok());
                length.map_or(Count::None, |length| Count::Of(length, digits + 1))
            }
            _ => Count::None,
        }
    }

    fn part_of_counted(&mut self) -> Option<Frame> {
        let length = self.left.min(self.max);
        if self.buffer.len() < length {
            return None;
        }
        self.left -= length;
        let mut text = self.buffer.split_to(length).freeze();
        let cut = self.left > 0;
        if !cut && text.last() == Some(&b'\n') {
            text.truncate(length - 1);
        }
        Some(Frame { text, cut })
    }
}

impl Iterator for Frames {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        loop {
            if self.left > 0 {
                match self.part_of_counted()? {
                    frame if frame.text.is_empty() => continue,
                    frame => return Some(frame),
                }
            }
            if self.searched == 0 {
                // After a message of full length, or one too many.
                let empty = self.buffer.iter().take_while(|&&byte| byte == b'\n').count();
                self.buffer.advance(empty);
                if self.counted {
                    match self.announced() {
                        Count::Of(length, header) => {
                            self.buffer.advance(header);
                            self.left = length;
                            continue;
                        }
                        Count::Open => return None,
                        Count::None => {}
                    }
                }
            }
            let end = self.buffer.len().min(self.max);
            let newline = memchr::memchr(b'\n', &self.buffer[self.searched..end]).map(|at| self.searched + at);
            let (length, cut) = match newline {
                Some(at) => (at, false),
                None if end == self.max => (end, true),
                None => {
                    self.searched = end;
                    return None;
                }
            };
            self.searched = 0;
            let text = self.buffer.split_to(length).freeze();
            if !cut {
                self.buffer.advance(1);
            }
            return Some(Frame { text, cut });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(input: &[u8], size: usize, max: usize, counted: bool) -> Vec<(Bytes, bool)> {
        let (mut frames, mut seen) = (Frames::new(max, counted), Vec::new());
        for piece in input.chunks(size) {
            frames.buffer().extend_from_slice(piece);
            seen.extend(frames.by_ref());
        }
        while let Some(frame) = frames.rest() {
            seen.push(frame);
        }
        seen.into_iter().map(|frame| (frame.text, frame.cut)).collect()
    }

    #[test]
    fn messages_come_out_whatever_the_pieces_were() {
        for (input, max, counted, expected) in [
            ("<1>a\n<2>b\n", 100, false, &[("<1>a", false), ("<2>b", false)][..]),
            ("\n\n<1>a\n\n\n<2>b", 100, false, &[("<1>a", false), ("<2>b", false)]),
            ("<1>a\r\n", 100, false, &[("<1>a\r", false)]),
            ("", 100, true, &[]),
            ("\n", 100, true, &[]),
            // A message of full length counts as cut: its newline comes too late.
            ("0123456789\nx\n", 10, false, &[("0123456789", true), ("x", false)]),
            ("012345678\nx\n", 10, false, &[("012345678", false), ("x", false)]),
            ("0123456789abcdefghijKL\n", 10, false, &[("0123456789", true), ("abcdefghij", true), ("KL", false)]),
            ("6 <34>ab7 <34>\ncd", 100, true, &[("<34>ab", false), ("<34>\ncd", false)]),
            ("6 <34>ab\n<35>x\n", 100, true, &[("<34>ab", false), ("<35>x", false)]),
            ("7 <34>ab\n", 100, true, &[("<34>ab", false)]),
            ("6 <34>ab", 100, false, &[("6 <34>ab", false)]),
            ("15 <34>56789abcdef5 <1>ab", 10, true, &[("<34>56789a", true), ("bcdef", false), ("<1>ab", false)]),
            // Not a count.
            ("06 <34>ab\n", 100, true, &[("06 <34>ab", false)]),
            ("6 34>ab\n", 100, true, &[("6 34>ab", false)]),
            ("123456789 <1>ab\n", 100, true, &[("123456789 <1>ab", false)]),
            ("12\n", 100, true, &[("12", false)]),
            // More was promised than came.
            ("99 <34>ab", 100, true, &[("<34>ab", false)]),
            ("99", 100, true, &[("99", false)]),
        ] {
            for size in 1..=input.len().max(1) {
                let expected: Vec<(Bytes, bool)> = expected.iter().map(|(text, cut)| (Bytes::from_static(text.as_bytes()), *cut)).collect();
                assert_eq!(frames(input.as_bytes(), size, max, counted), expected, "{input:?} in pieces of {size}");
            }
        }
    }

    proptest! {
        /// Whatever bytes come: no panic, no message above the bound, and nothing but newlines and counts is missing.
        #[test]
        fn nothing_is_lost(input in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'<'), Just(b' '), b'0'..=b'9', any::<u8>()], 0..200), size in 1usize..40, max in 10usize..60) {
            let plain = frames(&input, size, max, false);
            prop_assert!(plain.iter().all(|(text, cut)| text.len() <= max && !text.is_empty() && (!cut || text.len() == max)));
            let kept: Vec<u8> = plain.iter().flat_map(|(text, _)| text.to_vec()).filter(|byte| *byte != b'\n').collect();
            let sent: Vec<u8> = input.iter().copied().filter(|byte| *byte != b'\n').collect();
            prop_assert_eq!(kept, sent);
            let counted = frames(&input, size, max, true);
            prop_assert!(counted.iter().all(|(text, _)| text.len() <= max));
            prop_assert_eq!(&counted, &frames(&input, input.len().max(1), max, true));
        }

        #[test]
        fn counted_messages_come_out_as_they_were(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..10), size in 1usize..80) {
            let messages: Vec<Vec<u8>> = messages.into_iter().map(|mut message| { message.insert(0, b'<'); message.push(b'.'); message }).collect();
            let mut sent = Vec::new();
            for message in &messages {
                sent.extend_from_slice(format!("{} ", message.len()).as_bytes());
                sent.extend_from_slice(message);
            }
            let got: Vec<Vec<u8>> = frames(&sent, size, 1000, true).into_iter().map(|(text, _)| text.to_vec()).collect();
            prop_assert_eq!(got, messages);
        }
    }
}
