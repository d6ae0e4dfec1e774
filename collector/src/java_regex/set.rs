//! Sets of characters, as Java's classes and escapes mean them.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, HirKind};

pub(super) type Set = ClassUnicode;

/// What ends a line for `.`, `^` and `$`.
pub(super) const TERMINATORS: &[(char, char)] = &[('\n', '\n'), ('\r', '\r'), ('\u{85}', '\u{85}'), ('\u{2028}', '\u{2029}')];

pub(super) fn of(ranges: &[(char, char)]) -> Set {
    ClassUnicode::new(ranges.iter().map(|&(from, to)| ClassUnicodeRange::new(from, to)))
}

pub(super) fn not(mut set: Set) -> Set {
    set.negate();
    set
}

pub(super) fn or(mut set: Set, other: &Set) -> Set {
    set.union(other);
    set
}

/// `from` to `to`; without regard to case where `fold` is set, which Java understands as the case of ASCII letters alone.
pub(super) fn range(from: char, to: char, fold: bool) -> Set {
    let mut set = of(&[(from, to)]);
    if fold {
        for letter in 'a'..='z' {
            let upper = letter.to_ascii_uppercase();
            if [letter, upper].iter().any(|char| (from..=to).contains(char)) {
                set.union(&of(&[(letter, letter), (upper, upper)]));
            }
        }
    }
    set
}

/// `\d`, `\w`, … by their lower-case letter; only ASCII characters are digits, letters and blanks.
pub(super) fn escape(letter: char) -> Option<Set> {
    Some(of(match letter {
        'd' => &[('0', '9')],
        'w' => &[('a', 'z'), ('A', 'Z'), ('0', '9'), ('_', '_')],
        's' => &[('\t', '\r'), (' ', ' ')],
        'v' => &[('\n', '\r'), ('\u{85}', '\u{85}'), ('\u{2028}', '\u{2029}')],
        'h' => &[
            ('\t', '\t'),
            (' ', ' '),
            ('\u{a0}', '\u{a0}'),
            ('\u{1680}', '\u{1680}'),
            ('\u{180e}', '\u{180e}'),
            ('\u{2000}', '\u{200a}'),
            ('\u{202f}', '\u{202f}'),
            ('\u{205f}', '\u{205f}'),
            ('\u{3000}', '\u{3000}'),
        ],
        _ => return None,
    }))
}

/// `\p{name}`. The error says whether Java refuses it too, and why.
pub(super) fn property(name: &str, fold: bool) -> Result<Set, (bool, String)> {
    if let Some(ascii) = posix(name) {
        return if fold && ["Lower", "Upper"].contains(&name) { Err((false, CASED.into())) } else { Ok(ascii) };
    }
    if let Some((kind, value)) = name.split_once('=') {
        return match kind.to_ascii_lowercase().as_str() {
            "gc" | "general_category" => category(value, fold).ok_or_else(|| (true, format!("there is no general category `{value}`")))?,
            "sc" | "script" => unicode(&format!(r"\p{{sc={value}}}")).ok_or_else(|| (true, format!("there is no script `{value}`"))),
            "blk" | "block" => Err((false, BLOCK.into())),
            _ => Err((true, format!("there is no property `{kind}`"))),
        };
    }
    if let Some(name) = name.strip_prefix("Is") {
        let expression = match name.to_ascii_uppercase().as_str() {
            "ALPHABETIC" => r"\p{Alphabetic}",
            "LETTER" => r"\p{L}",
            "LOWERCASE" | "UPPERCASE" | "TITLECASE" if fold => return Err((false, CASED.into())),
            "LOWERCASE" => r"\p{Lowercase}",
            "UPPERCASE" => r"\p{Uppercase}",
            "TITLECASE" => r"\p{Lt}",
            "PUNCTUATION" => r"\p{P}",
            "CONTROL" => r"\p{Cc}",
            "WHITE_SPACE" | "WHITESPACE" => r"\p{White_Space}",
            "DIGIT" => r"\p{Nd}",
            "ASSIGNED" => r"\P{Cn}",
            _ => "",
        };
        if let Some(set) = unicode(expression).filter(|_| !expression.is_empty()) {
            return Ok(set);
        }
        if let Some(set) = category(name, fold) {
            return set;
        }
        return unicode(&format!(r"\p{{sc={name}}}")).ok_or_else(|| (true, format!("there is no script or property `{name}`")));
    }
    if name.starts_with("In") {
        return Err((false, BLOCK.into()));
    }
    if name.starts_with("java") {
        let why = "the classes of java.lang.Character are not known here; write a Unicode category, e.g. \\\\p{L}";
        return Err((false, why.into()));
    }
    category(name, fold).ok_or_else(|| (true, format!("there is no character class `{name}`")))?
}

const CASED: &str = "with (?i), versions of Java differ about letters by case; write \\\\p{L} or the letters";
const BLOCK: &str = "Unicode blocks are not known here; write a script (\\\\p{IsGreek}) or a range";

/// A general category by its Java name.
fn category(name: &str, fold: bool) -> Option<Result<Set, (bool, String)>> {
    const NAMES: &[&str] = &[
        "Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Me", "Mc", "Nd", "Nl", "No", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Pd", "Ps", "Pe", "Pc",
        "Po", "Sm", "Sc", "Sk", "So", "Pi", "Pf", "L", "M", "N", "Z", "C", "P", "S", "LC",
    ];
    if !NAMES.contains(&name) {
        return None;
    }
    if fold && ["Lu", "Ll", "Lt"].contains(&name) {
        return Some(Err((false, CASED.into())));
    }
    unicode(&format!(r"\p{{gc={name}}}")).map(Ok)
}

/// The POSIX classes, which are ASCII.
fn posix(name: &str) -> Option<Set> {
    Some(of(match name {
        "Lower" => &[('a', 'z')],
        "Upper" => &[('A', 'Z')],
        "ASCII" => &[('\0', '\x7f')],
        "Alpha" => &[('a', 'z'), ('A', 'Z')],
        "Digit" => &[('0', '9')],
        "Alnum" => &[('a', 'z'), ('A', 'Z'), ('0', '9')],
        "Punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
        "Graph" => &[('!', '~')],
        "Print" => &[(' ', '~')],
        "Blank" => &[(' ', ' '), ('\t', '\t')],
        "Cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
        "XDigit" => &[('0', '9'), ('a', 'f'), ('A', 'F')],
        "Space" => &[('\t', '\r'), (' ', ' ')],
        _ => return None,
    }))
}

/// What one of the library's own expressions stands for.
fn unicode(expression: &str) -> Option<Set> {
    match regex_syntax::parse(expression).ok()?.into_kind() {
        HirKind::Class(Class::Unicode(set)) => Some(set),
        _ => None,
    }
}
