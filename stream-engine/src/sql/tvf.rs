//! Flink's window functions in FROM: `TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND))`, `HOP(…, slide, size)`,
//! also with named arguments (`DATA => TABLE t, TIMECOL => DESCRIPTOR(ts), SIZE => …, SLIDE => …, OFFSET => …`).
//!
//! Each becomes a subquery that adds `window_start`, `window_end` and `window_time` by internal functions which carry
//! the window's shape; `plan.rs` finds them again beneath the GROUP BY.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan, Tokenizer};

use super::error::{Place, SqlError};
use super::functions::{WINDOW_END, WINDOW_START, WINDOW_TIME};
use super::parser::{Cursor, with_end};

const FUNCTIONS: &[&str] = &["TUMBLE", "HOP", "CUMULATE", "SESSION"];

/// The query with its window functions replaced, ready for the planner's parser.
pub(crate) fn rewrite(tokens: &[TokenWithSpan]) -> Result<Vec<TokenWithSpan>, SqlError> {
    let mut out = Vec::with_capacity(tokens.len() + 1);
    let mut at = 0;
    while at < tokens.len() {
        let rest = &tokens[at..];
        // Newer Flink also takes the function without TABLE( ) around it.
        let (skip, wrapped) = match rest {
            [table, open, function, open2, ..]
                if word(table, "TABLE") && is(open, &Token::LParen) && known(function) && is(open2, &Token::LParen) =>
            {
                (2, true)
            }
            [function, open, next, ..]
                if known(function)
                    && is(open, &Token::LParen)
                    && (word(next, "TABLE") || word(next, "DATA") || is(next, &Token::LParen)) =>
            {
                (0, false)
            }
            _ => {
                out.push(rest[0].clone());
                at += 1;
                continue;
            }
        };
        let function = &rest[skip];
        let arguments = &rest[skip + 2..];
        let length = closing(arguments).ok_or_else(|| Place::from(function).error("a parenthesis is not closed", "add )"))?;
        out.extend(subquery(function, &arguments[..length])?);
        at += skip + 2 + length + 1;
        if wrapped {
            match tokens.get(at) {
                Some(token) if is(token, &Token::RParen) => at += 1,
                Some(token) => return Err(Place::from(token).error(format!("unexpected `{}`", token.token), "close TABLE(…) with )")),
                None => return Err(Place::from(function).error("TABLE( is not closed", "add )")),
            }
        }
    }
    Ok(with_end(&out))
}

fn subquery(function: &TokenWithSpan, arguments: &[TokenWithSpan]) -> Result<Vec<TokenWithSpan>, SqlError> {
    let name = function.token.to_string().to_ascii_uppercase();
    let at = Place::from(function);
    let positions: &[&str] = match name.as_str() {
        "TUMBLE" => &["DATA", "TIMECOL", "SIZE", "OFFSET"],
        "HOP" => &["DATA", "TIMECOL", "SLIDE", "SIZE", "OFFSET"],
        _ => {
            return Err(at.error(format!("{name} windows are not built yet"), "TUMBLE and HOP are; see the status table of the README"));
        }
    };
    let mut data = None;
    let mut column = None;
    let (mut size, mut slide, mut offset) = (None, None, 0);
    for (index, argument) in split(arguments).into_iter().enumerate() {
        let Some(first) = argument.first() else { return Err(at.error(format!("an empty argument of {name}"), usage(&name))) };
        let place = Place::from(first);
        let (parameter, value) = match argument {
            [parameter, arrow, value @ ..] if is(arrow, &Token::RArrow) => (parameter.token.to_string().to_ascii_uppercase(), value),
            value => match positions.get(index) {
                Some(parameter) => ((*parameter).to_owned(), value),
                None => return Err(place.error(format!("too many arguments of {name}"), usage(&name))),
            },
        };
        let mut cursor = Cursor::new(value);
        match parameter.as_str() {
            "DATA" => data = Some(table(value, place)?),
            "TIMECOL" => column = Some(descriptor(&mut cursor, place)?),
            "SIZE" => size = Some(interval(&mut cursor)?),
            "SLIDE" if name == "HOP" => slide = Some(interval(&mut cursor)?),
            "OFFSET" => offset = interval(&mut cursor)?,
            other => return Err(place.error(format!("{name} has no parameter {other}"), usage(&name))),
        }
    }
    let missing = |what: &str| at.error(format!("{name} needs {what}"), usage(&name));
    let data = data.ok_or_else(|| missing("a table"))?;
    let column = column.ok_or_else(|| missing("DESCRIPTOR(column)"))?;
    let size = size.ok_or_else(|| missing("a size"))?;
    let slide = if name == "HOP" { slide.ok_or_else(|| missing("a slide"))? } else { size };
    if size <= 0 || slide <= 0 {
        return Err(at.error("a window's size and slide must be more than 0", ""));
    }
    if size % slide != 0 {
        return Err(
            at.error(format!("HOP's size ({size} ms) is not a multiple of its slide ({slide} ms)"), "choose a slide that divides the size")
        );
    }
    let call = |function: &str| format!("{function}(`{column}`, {size}, {slide}, {offset})");
    let head = format!(
        "(SELECT *, {} AS window_start, {} AS window_end, {} AS window_time FROM ",
        call(WINDOW_START),
        call(WINDOW_END),
        call(WINDOW_TIME)
    );
    let mut out = generated(&head, function.span)?;
    out.extend(data);
    out.extend(generated(")", function.span)?);
    Ok(out)
}

fn usage(name: &str) -> &'static str {
    if name == "HOP" {
        "write HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '10' SECOND): slide, then size"
    } else {
        "write TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND)"
    }
}

/// `TABLE t`, `t` or `(SELECT …)`.
fn table(tokens: &[TokenWithSpan], at: Place) -> Result<Vec<TokenWithSpan>, SqlError> {
    let tokens = match tokens {
        [first, rest @ ..] if word(first, "TABLE") => rest,
        all => all,
    };
    match tokens {
        [] => Err(at.error("TABLE without a name", "write TABLE t")),
        [open, ..] if is(open, &Token::LParen) => {
            let mut inner = rewrite(tokens)?;
            inner.pop();
            Ok(inner)
        }
        _ => Ok(tokens.to_vec()),
    }
}

fn descriptor(cursor: &mut Cursor<'_>, at: Place) -> Result<String, SqlError> {
    if !(cursor.word("DESCRIPTOR") && cursor.consume(&Token::LParen)) {
        return Err(at.error("the event-time column must be given by DESCRIPTOR", "write DESCRIPTOR(ts)"));
    }
    let column = cursor.name("the event-time column")?;
    cursor.expect(&Token::RParen, ")")?;
    Ok(column.text)
}

/// `INTERVAL '10' SECOND` in milliseconds.
pub(crate) fn interval(cursor: &mut Cursor<'_>) -> Result<i64, SqlError> {
    const UNITS: &[(&str, f64)] =
        &[("MILLISECOND", 1.0), ("SECOND", 1e3), ("MINUTE", 60e3), ("HOUR", 3_600e3), ("DAY", 86_400e3), ("WEEK", 604_800e3)];
    let at = cursor.place();
    let remedy = "write INTERVAL '10' SECOND (or MILLISECOND, MINUTE, HOUR, DAY, WEEK)";
    if !cursor.word("INTERVAL") {
        return Err(at.error("expected an interval", remedy));
    }
    let text = cursor.string("a number in quotation marks, as in INTERVAL '10' SECOND")?;
    let unit_at = cursor.place();
    let unit = cursor.name("a unit such as SECOND")?.text.to_ascii_uppercase();
    let factor = UNITS.iter().find(|(name, _)| unit == *name || unit.strip_suffix('S') == Some(*name)).map(|(_, factor)| factor);
    let Some(factor) = factor else { return Err(unit_at.error(format!("unknown unit `{unit}`"), remedy)) };
    if cursor.consume(&Token::LParen) {
        // The precision of the interval type; it changes no value.
        cursor.advance(1);
        cursor.expect(&Token::RParen, ")")?;
    }
    let milliseconds = text.trim().parse::<f64>().ok().map(|number| number * factor);
    match milliseconds {
        Some(ms) if ms.fract() == 0.0 && ms.abs() < 9e15 => Ok(ms as i64),
        _ => Err(at.error(format!("`{text}` {unit} is not a whole number of milliseconds"), remedy)),
    }
}

/// Tokens of our own text, all at the place of the window function.
fn generated(text: &str, span: Span) -> Result<Vec<TokenWithSpan>, SqlError> {
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize().map_err(|error| Place::from(span.start).error(error.message, ""))?;
    let kept = tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_)));
    Ok(kept.map(|token| TokenWithSpan::new(token, span)).collect())
}

/// Index of the parenthesis that closes the list.
fn closing(tokens: &[TokenWithSpan]) -> Option<usize> {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate() {
        match token.token {
            Token::LParen => depth += 1,
            Token::RParen if depth == 0 => return Some(index),
            Token::RParen => depth -= 1,
            _ => {}
        }
    }
    None
}

fn split(tokens: &[TokenWithSpan]) -> Vec<&[TokenWithSpan]> {
    let mut depth = 0;
    tokens
        .split(|token| {
            match token.token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            depth == 0 && token.token == Token::Comma
        })
        .collect()
}

fn known(token: &TokenWithSpan) -> bool {
    FUNCTIONS.iter().any(|function| word(token, function))
}

fn word(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(found) if found.value.eq_ignore_ascii_case(word))
}

fn is(token: &TokenWithSpan, wanted: &Token) -> bool {
    &token.token == wanted
}
