//! Patterns of topics, bounded before Kafka's client sees them: it has libc compile them, which copies what is repeated (`(a{100}){100}` is 10,000
//! letters, and `a++` two copies of two) and calls itself for every bracket.

use regex::bytes::RegexBuilder;

use crate::error::{BridgeError, Code, Result};

/// Of all patterns of a subscription.
const BYTES_MAX: usize = 1_000;
/// Letters, classes and groups after repetitions are written out.
const PARTS_MAX: u64 = 2_000;
/// Brackets in brackets.
const DEPTH_MAX: u32 = 50;
/// Of the pattern as a program that finds it.
const PROGRAM_BYTES_MAX: usize = 256 * 1024;

/// An error where a topic that begins with `^`, and so is a pattern, is none that can be used.
pub(crate) fn check(topics: &[String]) -> Result<()> {
    let wrong = |message: String| Err(BridgeError::new(Code::Unprocessable, message));
    let patterns: Vec<&str> = topics.iter().map(String::as_str).filter(|topic| topic.starts_with('^')).collect();
    let bytes: usize = patterns.iter().map(|pattern| pattern.len()).sum();
    if bytes > BYTES_MAX {
        return wrong(format!("a topic_pattern of {bytes} bytes is longer than {BYTES_MAX}; give a shorter one, or the topics"));
    }
    let mut parts: u64 = 0;
    for pattern in patterns {
        if pattern.contains(char::is_control) {
            return wrong(format!("topic_pattern {pattern:?} has a control character, which no topic has; remove it"));
        }
        if let Err(error) = RegexBuilder::new(pattern).unicode(false).nest_limit(DEPTH_MAX).size_limit(PROGRAM_BYTES_MAX).build() {
            // The last line says what is wrong; those before it show the place.
            let told = error.to_string();
            let told = told.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned();
            return wrong(format!("topic_pattern {pattern:?} is no pattern that can be used: {told}; give a simpler one, or the topics"));
        }
        parts = parts.saturating_add(written_out(pattern));
    }
    if parts > PARTS_MAX {
        return wrong(format!(
            "topic_pattern is {parts} letters and classes when its repetitions are written out, more than {PARTS_MAX}; repeat less, with * in place of + and {{…}} in brackets, or give the topics"
        ));
    }
    Ok(())
}

/// How many letters, classes and groups libc makes of a pattern, as POSIX reads it: a backslash in a class is a letter of it.
fn written_out(pattern: &str) -> u64 {
    // Of each open bracket what is before the last part of it, and that part.
    let (mut outer, mut before, mut last): (Vec<(u64, u64)>, u64, u64) = (Vec::new(), 0, 0);
    let mut rest = pattern.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            // One copy, and one of any number.
            '+' => last = last.saturating_mul(2),
            '*' | '?' => last = last.saturating_add(1),
            '{' => {
                let bounds: String = rest.by_ref().take_while(|letter| *letter != '}').collect();
                let most = bounds.split(',').filter_map(|bound| bound.trim().parse::<u64>().ok()).max();
                last = last.saturating_mul(most.unwrap_or(1).saturating_add(1));
            }
            ')' if !outer.is_empty() => {
                let inner = before.saturating_add(last).saturating_add(1);
                (before, last) = outer.pop().unwrap_or_default();
                (before, last) = (before.saturating_add(last), inner);
            }
            '(' => {
                outer.push((before, last));
                (before, last) = (0, 0);
            }
            _ => {
                if letter == '\\' {
                    rest.next();
                }
                if letter == '[' {
                    rest.next_if_eq(&'^');
                    // The first one is a letter of the class.
                    rest.next();
                    while let Some(inside) = rest.next() {
                        match inside {
                            ']' => break,
                            '[' if matches!(rest.peek(), Some(':' | '.' | '=')) => drop(rest.by_ref().find(|letter| *letter == ']')),
                            _ => {}
                        }
                    }
                }
                (before, last) = (before.saturating_add(last), 1);
            }
        }
    }
    outer.into_iter().fold(before.saturating_add(last), |sum, (before, last)| sum.saturating_add(before).saturating_add(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pattern: &str) -> Result<()> {
        check(&[format!("^{pattern}")])
    }

    #[test]
    fn patterns_of_topics_pass() {
        let topics: Vec<String> = (0..40).map(|at| format!("shop{at}[.]orders")).collect();
        for pattern in [
            ".*",
            "orders-.*",
            "(orders|bills)-[a-z0-9]+-[0-9]{1,4}$",
            "a-.+|b-.+|c-.+|d-.+|e-.+|f-.+|g-.+|h-.+|i-.+|j-.+|k-.+|l-.+",
            "[[:alpha:]]+[]^.]\\.v[0-9]{1,3}",
            &topics.join("|"),
        ] {
            of(pattern).unwrap();
        }
        check(&["(((".to_owned(), "t".repeat(2_000)]).unwrap();
    }

    #[test]
    fn patterns_that_cost_too_much_and_what_is_none_are_refused() {
        for (pattern, message) in [
            ("(".repeat(5_000) + "t" + &")".repeat(5_000), "longer than 1000"),
            ("(".repeat(300) + "t" + &")".repeat(300), "topic_pattern"),
            ("(((a{1,100}){1,100}){1,100})".to_owned(), "topic_pattern"),
            ("(a{40}){60}".to_owned(), "written out"),
            ("a{3000}".to_owned(), "written out"),
            // As POSIX reads it, the class ends at the first bracket.
            ("[\\](((b{1,90}){1,90}){1,90})]".to_owned(), "written out"),
            // Each sign copies what is before it.
            ("a".to_owned() + &"+".repeat(40), "written out"),
            ("(".repeat(15) + "a" + &"+)".repeat(15), "written out"),
            ("(t".to_owned(), "unclosed group"),
            ("(t)\\1".to_owned(), "backreferences"),
            ("t\0".to_owned(), "control character"),
        ] {
            let error = of(&pattern).unwrap_err();
            assert!(error.code == Code::Unprocessable && error.message.contains(message), "{pattern:.40}: {error}");
        }
        // All together count.
        let many: Vec<String> = (0..30).map(|at| format!("^t{at}.{{90}}")).collect();
        assert!(check(&many).unwrap_err().message.contains("written out"));
    }
}
