//! Java's syntax, read into a tree. What cannot be carried over exactly is refused with its name and place.

use super::set::{self, Set};
use super::tree::{Greed, Look, Node};
use super::{GROUPS_MAX, Refused};

/// The flags that an expression can switch.
#[derive(Clone, Copy, Default)]
struct Flags {
    /// `i`: the case of ASCII letters does not matter.
    fold: bool,
    /// `m`
    lines: bool,
    /// `s`
    dot_all: bool,
    /// `d`: only `\n` ends a line.
    unix: bool,
    /// `x`
    comments: bool,
}

pub(super) struct Parser {
    /// `quoted`: between `\Q` and `\E`.
    chars: Vec<(char, bool)>,
    at: usize,
    flags: Flags,
    /// Names of the groups; the first is the whole match.
    pub(super) groups: Vec<Option<String>>,
    /// Groups that are still open.
    open: Vec<usize>,
    depth: usize,
}

/// Deeper than any expression is written, and not so deep that reading it needs much stack.
const DEPTH_MAX: usize = 100;

type Parsed<T> = Result<T, Refused>;

impl Parser {
    pub(super) fn new(pattern: &str) -> Self {
        let mut chars = Vec::new();
        let mut rest = pattern;
        while let Some(char) = rest.chars().next() {
            if let Some(quoted) = rest.strip_prefix(r"\Q") {
                let end = quoted.find(r"\E").unwrap_or(quoted.len());
                chars.extend(quoted[..end].chars().map(|char| (char, true)));
                rest = quoted[end..].strip_prefix(r"\E").unwrap_or_default();
            } else if char == '\\' {
                // The escaped character is not the beginning of a `\Q`.
                let taken = rest.chars().take(2);
                chars.extend(taken.clone().map(|char| (char, false)));
                rest = &rest[taken.map(char::len_utf8).sum::<usize>()..];
            } else {
                chars.push((char, false));
                rest = &rest[char.len_utf8()..];
            }
        }
        Self { chars, at: 0, flags: Flags::default(), groups: vec![None], open: Vec::new(), depth: 0 }
    }

    pub(super) fn parse(&mut self) -> Parsed<Node> {
        let node = self.alternatives()?;
        if self.peek().is_some() {
            return Err(self.wrong("`)` without `(`"));
        }
        Ok(node)
    }

    /// Java takes it.
    fn refuse(&self, why: impl Into<String>) -> Refused {
        Refused { why: why.into(), at: self.at, by_java: false }
    }

    /// It is no expression in Java either.
    fn wrong(&self, why: impl Into<String>) -> Refused {
        Refused { by_java: true, ..self.refuse(why) }
    }

    /// The next character that is syntax.
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).map(|(char, _)| *char)
    }

    fn quoted(&self) -> bool {
        self.chars.get(self.at).is_some_and(|(_, quoted)| *quoted)
    }

    fn is(&self, char: char) -> bool {
        self.peek() == Some(char) && !self.quoted()
    }

    fn advance(&mut self) -> Option<char> {
        let char = self.peek();
        self.at += usize::from(char.is_some());
        char
    }

    fn accept(&mut self, text: &str) -> bool {
        let here = self.chars.iter().skip(self.at).filter(|(_, quoted)| !quoted).map(|(char, _)| *char);
        let found = here.take(text.chars().count()).eq(text.chars());
        let quoted = self.chars.iter().skip(self.at).take(text.chars().count()).any(|(_, quoted)| *quoted);
        if found && !quoted {
            self.at += text.chars().count();
        }
        found && !quoted
    }

    /// With `(?x)`, blanks and comments mean nothing.
    fn skip_comments(&mut self) {
        while self.flags.comments && !self.quoted() {
            match self.peek() {
                Some(char) if set_has_blank(char) => self.at += 1,
                Some('#') => {
                    while let Some(char) = self.advance() {
                        let ends = if self.flags.unix { char == '\n' } else { is_terminator(char) };
                        if ends {
                            break;
                        }
                    }
                }
                _ => return,
            }
        }
    }

    fn alternatives(&mut self) -> Parsed<Node> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.refuse(format!("groups are nested deeper than {DEPTH_MAX}")));
        }
        let mut branches = vec![self.sequence()?];
        while self.is('|') {
            self.at += 1;
            branches.push(self.sequence()?);
        }
        self.depth -= 1;
        Ok(if branches.len() == 1 { branches.remove(0) } else { Node::Either(branches) })
    }

    fn sequence(&mut self) -> Parsed<Node> {
        let mut nodes = Vec::new();
        loop {
            self.skip_comments();
            let Some(char) = self.peek() else { break };
            if self.quoted() {
                self.at += 1;
                let literal = self.literal(char);
                nodes.push(self.repeated(literal)?);
                continue;
            }
            let node = match char {
                '|' | ')' => break,
                '*' | '+' | '?' | '{' => return Err(self.wrong(format!("`{char}` has nothing to repeat"))),
                '(' => match self.group()? {
                    Some(node) => node,
                    // Flags for the rest of the group.
                    None => continue,
                },
                '[' => Node::Set(self.class()?),
                '\\' => self.escape()?,
                '^' => {
                    self.at += 1;
                    if self.flags.lines { Node::LineStart { unix: self.flags.unix } } else { Node::Start }
                }
                '$' => {
                    self.at += 1;
                    if self.flags.lines { Node::LineEnd { unix: self.flags.unix } } else { Node::FinalEnd { unix: self.flags.unix } }
                }
                '.' => {
                    self.at += 1;
                    let ends = if self.flags.unix { set::of(&[('\n', '\n')]) } else { set::of(set::TERMINATORS) };
                    Node::Set(set::not(if self.flags.dot_all { set::of(&[]) } else { ends }))
                }
                char => {
                    self.at += 1;
                    self.literal(char)
                }
            };
            nodes.push(self.repeated(node)?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Sequence(nodes) })
    }

    fn literal(&self, char: char) -> Node {
        if self.flags.fold && char.is_ascii_alphabetic() { Node::Set(set::range(char, char, true)) } else { Node::Literal(char) }
    }

    fn repeated(&mut self, node: Node) -> Parsed<Node> {
        self.skip_comments();
        if self.quoted() {
            return Ok(node);
        }
        let (min, max) = match self.peek() {
            Some('?') => (0, Some(1)),
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('{') => self.counts()?,
            _ => return Ok(node),
        };
        self.at += 1;
        if node.is_assertion() {
            return Err(self.refuse("a repetition of something that matches no text"));
        }
        self.skip_comments();
        let greed = match self.peek().filter(|_| !self.quoted()) {
            Some('?') => Greed::Lazy,
            Some('+') => Greed::Possessive,
            _ => Greed::Greedy,
        };
        self.at += usize::from(greed != Greed::Greedy);
        self.skip_comments();
        if self.is('{') {
            return Err(self.refuse("a second `{…}`, which repeats nothing"));
        }
        Ok(Node::Repeat { node: Box::new(node), min, max, greed })
    }

    /// `{n}`, `{n,}` or `{n,m}`, up to its last character.
    fn counts(&mut self) -> Parsed<(u32, Option<u32>)> {
        self.at += 1;
        let min = self.number().ok_or_else(|| self.wrong("`{` without a number; write \\\\{ for the character"))?;
        let max = if self.accept(",") { self.number() } else { Some(min) };
        if !self.is('}') {
            return Err(self.wrong("`{` without `}`"));
        }
        if max.is_some_and(|max| max < min) {
            return Err(self.wrong("the second number in `{…}` is smaller than the first"));
        }
        Ok((min, max))
    }

    fn number(&mut self) -> Option<u32> {
        let mut number: Option<u32> = None;
        while let Some(digit) = self.peek().filter(|_| !self.quoted()).and_then(|char| char.to_digit(10)) {
            number = Some(number.unwrap_or(0).saturating_mul(10).saturating_add(digit));
            self.at += 1;
        }
        number
    }

    /// From `(` to `)`; `None` where it only set flags.
    fn group(&mut self) -> Parsed<Option<Node>> {
        self.at += 1;
        let flags = self.flags;
        let opened = self.at;
        let finish = |parser: &mut Self| {
            parser.flags = flags;
            if parser.accept(")") { Ok(()) } else { Err(Refused { at: opened, ..parser.wrong("`(` without `)`") }) }
        };
        if !self.accept("?") {
            return self.capture(None, finish).map(Some);
        }
        for (text, look) in [("=", Look::AHEAD), ("!", Look::NOT_AHEAD), ("<=", Look::BEHIND), ("<!", Look::NOT_BEHIND)] {
            if self.accept(text) {
                let groups = self.groups.len();
                let node = self.alternatives()?;
                finish(self)?;
                if look.behind && node.width_max().is_none() {
                    return Err(self.refuse("a look-behind without a longest text"));
                }
                self.nothing_captured_since(groups)?;
                return Ok(Some(Node::Look { look, node: Box::new(node) }));
            }
        }
        if self.accept(">") {
            let groups = self.groups.len();
            let node = self.alternatives()?;
            finish(self)?;
            self.nothing_captured_since(groups)?;
            if matches!(&node, Node::Sequence(nodes) if nodes.is_empty()) {
                return Err(self.refuse("an empty (?>)"));
            }
            return Ok(Some(Node::Atomic(Box::new(node))));
        }
        if self.accept("<") {
            let name = self.name()?;
            if self.groups.iter().flatten().any(|known| *known == name) {
                return Err(self.wrong(format!("there are two groups `{name}`")));
            }
            return self.capture(Some(name), finish).map(Some);
        }
        let mut on = true;
        loop {
            let Some(char) = self.advance() else { return Err(self.wrong("`(?` without `)`")) };
            match char {
                ':' => {
                    let node = self.alternatives()?;
                    finish(self)?;
                    return Ok(Some(node.grouped()));
                }
                ')' => return Ok(None),
                '-' if on => on = false,
                'i' => self.flags.fold = on,
                'm' => self.flags.lines = on,
                's' => self.flags.dot_all = on,
                'd' => self.flags.unix = on,
                'x' => self.flags.comments = on,
                'u' | 'U' | 'c' => return Err(self.refuse(format!("the flag `{char}`: (?{char}) is not known here; name the characters"))),
                _ => return Err(self.wrong(format!("`(?{char}` means nothing"))),
            }
        }
    }

    /// Java leaves behind what such a group captured where the match then failed.
    fn nothing_captured_since(&self, groups: usize) -> Parsed<()> {
        if self.groups.len() > groups {
            return Err(self.refuse("a capturing group inside a look-around, (?>…) or a possessive repetition; write (?:…)"));
        }
        Ok(())
    }

    fn capture(&mut self, name: Option<String>, finish: impl Fn(&mut Self) -> Parsed<()>) -> Parsed<Node> {
        let number = self.groups.len();
        if number > GROUPS_MAX {
            return Err(self.refuse(format!("there are more than {GROUPS_MAX} groups")));
        }
        self.groups.push(name);
        self.open.push(number);
        let node = self.alternatives()?;
        self.open.pop();
        finish(self)?;
        Ok(Node::Group(Box::new(node)))
    }

    /// `name>`
    fn name(&mut self) -> Parsed<String> {
        let mut name = String::new();
        while let Some(char) = self.peek().filter(char::is_ascii_alphanumeric) {
            name.push(char);
            self.at += 1;
        }
        if !name.starts_with(|char: char| char.is_ascii_alphabetic()) || !self.accept(">") {
            return Err(self.wrong("a group's name is letters and digits: (?<name>…)"));
        }
        Ok(name)
    }

    /// From `\`, outside a class.
    fn escape(&mut self) -> Parsed<Node> {
        self.at += 1;
        let Some(char) = self.peek() else { return Err(self.wrong("`\\` at the end")) };
        let assertion = match char {
            'A' => Node::Start,
            'z' => Node::End,
            'Z' => Node::FinalEnd { unix: self.flags.unix },
            'b' => Node::Word { boundary: true },
            'B' => Node::Word { boundary: false },
            'R' => Node::LineBreak,
            'G' | 'X' | 'N' => return Err(self.refuse(format!("\\{char} is not known here"))),
            'k' => return self.named_reference(),
            '1'..='9' => return self.reference(),
            _ => {
                if let Some(set) = self.set_escape()? {
                    return Ok(Node::Set(set));
                }
                let char = self.char_escape()?;
                return Ok(self.literal(char));
            }
        };
        self.at += 1;
        if char == 'b' && self.is('{') {
            return Err(self.refuse("\\b{…} is not known here"));
        }
        Ok(assertion)
    }

    fn reference(&mut self) -> Parsed<Node> {
        let mut number = 0;
        // As many digits as make the number of a group.
        while let Some(digit) = self.peek().filter(|_| !self.quoted()).and_then(|char| char.to_digit(10)) {
            let next = number * 10 + digit as usize;
            if number > 0 && next >= self.groups.len() {
                break;
            }
            number = next;
            self.at += 1;
        }
        self.refer(number)
    }

    fn named_reference(&mut self) -> Parsed<Node> {
        self.at += 1;
        if !self.accept("<") {
            return Err(self.wrong("\\k without a name: \\k<name>"));
        }
        let name = self.name()?;
        let number = self.groups.iter().position(|known| known.as_deref() == Some(&name));
        self.refer(number.ok_or_else(|| self.wrong(format!("there is no group `{name}` before")))?)
    }

    fn refer(&self, number: usize) -> Parsed<Node> {
        if number >= self.groups.len() || self.open.contains(&number) {
            return Err(self.refuse(format!("\\{number} refers to a group that does not end before it")));
        }
        if self.flags.fold {
            return Err(self.refuse("a reference to a group without regard to case"));
        }
        Ok(Node::Reference(number))
    }

    /// `\d`, `\p{…}` and the like, after their backslash; `None` where there is another escape.
    fn set_escape(&mut self) -> Parsed<Option<Set>> {
        let Some(char) = self.peek() else { return Ok(None) };
        if matches!(char, 'p' | 'P') {
            self.at += 1;
            let name = if self.accept("{") {
                let mut name = String::new();
                while let Some(char) = self.advance().filter(|char| *char != '}') {
                    name.push(char);
                }
                name
            } else {
                self.advance().map(String::from).unwrap_or_default()
            };
            let set = set::property(&name, self.flags.fold)
                .map_err(|(by_java, why)| Refused { by_java, ..self.refuse(format!("\\{char}{{{name}}}: {why}")) })?;
            return Ok(Some(if char == 'P' { set::not(set) } else { set }));
        }
        let found = set::escape(char.to_ascii_lowercase());
        self.at += usize::from(found.is_some());
        Ok(found.map(|set| if char.is_ascii_uppercase() { set::not(set) } else { set }))
    }

    /// The character that an escape stands for, after its backslash.
    fn char_escape(&mut self) -> Parsed<char> {
        let Some(char) = self.advance() else { return Err(self.wrong("`\\` at the end")) };
        Ok(match char {
            't' => '\t',
            'n' => '\n',
            'r' => '\r',
            'f' => '\x0c',
            'a' => '\x07',
            'e' => '\x1b',
            '0' => self.octal()?,
            'x' => self.hexadecimal()?,
            'u' => self.utf16()?,
            'c' => {
                let control = self.advance().and_then(|char| char::from_u32(u32::from(char) ^ 64));
                control.ok_or_else(|| self.wrong("\\c without a character"))?
            }
            char if char.is_ascii_alphabetic() => return Err(self.wrong(format!("\\{char} means nothing in Java's expressions"))),
            char => char,
        })
    }

    fn octal(&mut self) -> Parsed<char> {
        let (mut value, mut digits) = (0, 0);
        while let Some(digit) = self.peek().and_then(|char| char.to_digit(8)) {
            if digits == 3 || (digits == 2 && value > 0o37) {
                break;
            }
            value = value * 8 + digit;
            digits += 1;
            self.at += 1;
        }
        char::from_u32(value).filter(|_| digits > 0).ok_or_else(|| self.wrong("\\0 without an octal number"))
    }

    fn hex_digits(&mut self, count: usize) -> Option<u32> {
        let digits: String = self.chars.iter().skip(self.at).take(count).map(|(char, _)| *char).collect();
        let value = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == count && !digits.starts_with('+'))?;
        self.at += count;
        Some(value)
    }

    fn hexadecimal(&mut self) -> Parsed<char> {
        let value = if self.accept("{") {
            let digits = self.chars.iter().skip(self.at).take_while(|(char, _)| char.is_ascii_hexdigit()).count();
            self.hex_digits(digits).filter(|_| self.accept("}"))
        } else {
            self.hex_digits(2)
        };
        value.and_then(char::from_u32).ok_or_else(|| self.wrong("\\x without a character's number: \\xhh or \\x{h…h}"))
    }

    /// `\uhhhh`, or two of them that are one character.
    fn utf16(&mut self) -> Parsed<char> {
        let unit = |parser: &mut Self| parser.hex_digits(4).and_then(|unit| u16::try_from(unit).ok());
        let Some(first) = unit(self) else { return Err(self.wrong("\\u without the number of a character: \\uhhhh")) };
        if let Some(char) = char::from_u32(u32::from(first)) {
            return Ok(char);
        }
        let second = self.accept("\\u").then(|| unit(self)).flatten();
        let char = second.and_then(|second| char::decode_utf16([first, second]).next()?.ok());
        char.ok_or_else(|| self.refuse("half a character: \\u with a surrogate alone"))
    }

    /// From `[` to `]`.
    fn class(&mut self) -> Parsed<Set> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.refuse(format!("classes are nested deeper than {DEPTH_MAX}")));
        }
        let opened = self.at;
        self.at += 1;
        let negated = self.accept("^");
        let mut set = set::of(&[]);
        let mut parts = 0;
        // What stands left of a `&&`.
        let mut left: Option<Set> = None;
        loop {
            let Some(char) = self.peek() else { return Err(Refused { at: opened, ..self.wrong("`[` without `]`") }) };
            let quoted = self.quoted();
            if self.flags.comments && !quoted && (set_has_blank(char) || char == '#') {
                return Err(self.refuse("a blank or # in a class with (?x); escape it"));
            }
            if char == ']' && !quoted {
                if parts == 0 && left.is_none() && !self.chars[self.at + 1..].contains(&(']', false)) {
                    return Err(Refused { at: opened, ..self.wrong("`[` without `]`") });
                }
                if parts == 0 {
                    return Err(self.refuse("`]` first in a class; write \\\\]"));
                }
                self.at += 1;
                break;
            }
            if char == '[' && !quoted {
                if negated {
                    return Err(self.refuse("a class inside a negated class, about which versions of Java differ"));
                }
                set = set::or(set, &self.class()?);
            } else if self.accept("&&") {
                if negated {
                    return Err(self.refuse("`&&` in a negated class, about which versions of Java differ"));
                }
                if parts == 0 || self.is(']') || self.is('&') {
                    return Err(self.refuse("`&&` with one side empty"));
                }
                left = Some(intersected(left, std::mem::replace(&mut set, set::of(&[]))));
                parts = 0;
                continue;
            } else {
                set = set::or(set, &self.class_item()?);
            }
            parts += 1;
        }
        self.depth -= 1;
        let set = intersected(left, set);
        Ok(if negated { set::not(set) } else { set })
    }

    /// A character, a range, or an escape for several.
    fn class_item(&mut self) -> Parsed<Set> {
        if self.is('\\') {
            self.at += 1;
            if let Some(set) = self.set_escape()? {
                return Ok(set);
            }
            self.at -= 1;
        }
        let from = self.class_char()?;
        let after = |parser: &Self, ahead: usize| parser.chars.get(parser.at + ahead).copied();
        if after(self, 0) != Some(('-', false)) || matches!(after(self, 1), None | Some((']' | '[', false))) {
            return Ok(set::range(from, from, self.flags.fold));
        }
        self.at += 1;
        if self.is('\\') && self.chars.get(self.at + 1).is_some_and(|(char, _)| "dDwWsShHvVpP".contains(*char)) {
            return Err(self.wrong("a range to a class; put the `-` last"));
        }
        let to = self.class_char()?;
        if to < from {
            return Err(self.wrong(format!("the range {from}-{to} is backwards")));
        }
        Ok(set::range(from, to, self.flags.fold))
    }

    fn class_char(&mut self) -> Parsed<char> {
        let escaped = self.is('\\');
        let Some(char) = self.advance() else { return Err(self.wrong("`[` without `]`")) };
        if escaped {
            if self.peek().is_some_and(|char| char.is_ascii_digit() && char != '0') {
                return Err(self.wrong("a reference to a group inside a class"));
            }
            return self.char_escape();
        }
        Ok(char)
    }
}

fn intersected(left: Option<Set>, mut right: Set) -> Set {
    if let Some(left) = left {
        right.intersect(&left);
    }
    right
}

fn set_has_blank(char: char) -> bool {
    matches!(char, '\t'..='\r' | ' ')
}

fn is_terminator(char: char) -> bool {
    set::TERMINATORS.iter().any(|(from, to)| (*from..=*to).contains(&char))
}
