//! JSON with its order and its numbers as they were written: a schema's text is part of its identity.

use std::fmt::{self, Write as _};

/// Deeper nesting is refused: every walk over a schema is recursive.
const DEPTH_MAX: usize = 96;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// As it was written.
    Number(String),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { text, at: 0, depth: 0 };
        let value = parser.value()?;
        parser.space();
        if parser.at < text.len() {
            return Err(parser.wrong("nothing more"));
        }
        Ok(value)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            Json::Number(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub(super) fn as_array(&self) -> Option<&[Json]> {
        match self {
            Json::Array(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn as_object(&self) -> Option<&[(String, Json)]> {
        match self {
            Json::Object(members) => Some(members),
            _ => None,
        }
    }

    /// Equal as JSON: members in any order, numbers by value.
    pub(super) fn same(&self, other: &Json) -> bool {
        match (self, other) {
            (Json::Number(one), Json::Number(two)) => one == two || matches!((self.as_f64(), other.as_f64()), (Some(a), Some(b)) if a == b),
            (Json::Array(one), Json::Array(two)) => one.len() == two.len() && one.iter().zip(two).all(|(one, two)| one.same(two)),
            (Json::Object(one), Json::Object(two)) => {
                one.len() == two.len() && one.iter().all(|(key, value)| other.get(key).is_some_and(|two| value.same(two)))
            }
            _ => self == other,
        }
    }

    /// With the members of every object by name.
    pub(super) fn sorted(&self) -> Json {
        match self {
            Json::Array(items) => Json::Array(items.iter().map(Json::sorted).collect()),
            Json::Object(members) => {
                let mut members: Vec<(String, Json)> = members.iter().map(|(key, value)| (key.clone(), value.sorted())).collect();
                members.sort_by(|one, two| one.0.cmp(&two.0));
                Json::Object(members)
            }
            other => other.clone(),
        }
    }

    /// For people: two blanks a level, and on one line what is short and hardly nested.
    pub(super) fn pretty(&self) -> String {
        let mut out = String::new();
        self.write_pretty(0, &mut out);
        out
    }

    fn write_pretty(&self, level: usize, out: &mut String) {
        let line = self.is_simple().then(|| self.line()).filter(|line| line.len() <= LINE_MAX);
        let begin = |out: &mut String, first: bool| {
            out.push_str(if first { "\n" } else { ",\n" });
            out.extend(std::iter::repeat_n("  ", level + 1));
        };
        let close = match (line, self) {
            (Some(line), _) => return out.push_str(&line),
            (None, Json::Array(items)) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    begin(out, at == 0);
                    item.write_pretty(level + 1, out);
                }
                ']'
            }
            (None, Json::Object(members)) => {
                out.push('{');
                for (at, (key, value)) in members.iter().enumerate() {
                    begin(out, at == 0);
                    out.push_str(&quoted(key));
                    out.push_str(": ");
                    value.write_pretty(level + 1, out);
                }
                '}'
            }
            (None, other) => return out.push_str(&other.to_string()),
        };
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", level));
        out.push(close);
    }

    /// A value, a list of values, or members with these.
    fn is_simple(&self) -> bool {
        let is_value = |json: &Json| !matches!(json, Json::Array(_) | Json::Object(_));
        match self {
            Json::Array(items) => items.iter().all(is_value),
            Json::Object(members) => members.iter().all(|(_, json)| !matches!(json, Json::Object(_)) && json.is_simple()),
            _ => true,
        }
    }

    /// With blanks, on one line.
    fn line(&self) -> String {
        match self {
            Json::Array(items) => format!("[{}]", items.iter().map(Json::line).collect::<Vec<_>>().join(", ")),
            Json::Object(members) => {
                let members: Vec<String> = members.iter().map(|(key, value)| format!("{}: {}", quoted(key), value.line())).collect();
                format!("{{{}}}", members.join(", "))
            }
            other => other.to_string(),
        }
    }
}

/// Of [`Json::pretty`], indentation apart.
const LINE_MAX: usize = 80;

/// `text` between quotes, as JSON.
pub(super) fn quoted(text: &str) -> String {
    // A string has always a JSON form.
    serde_json::to_string(text).unwrap_or_default()
}

/// Without a blank.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => write!(f, "{value}"),
            Json::Number(text) => f.write_str(text),
            Json::String(text) => f.write_str(&quoted(text)),
            Json::Array(items) => {
                f.write_char('[')?;
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        f.write_char(',')?;
                    }
                    write!(f, "{item}")?;
                }
                f.write_char(']')
            }
            Json::Object(members) => {
                f.write_char('{')?;
                for (at, (key, value)) in members.iter().enumerate() {
                    if at > 0 {
                        f.write_char(',')?;
                    }
                    write!(f, "{}:{value}", quoted(key))?;
                }
                f.write_char('}')
            }
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn wrong(&self, expected: &str) -> String {
        format!("not JSON at character {}: expected {expected}", self.at + 1)
    }

    fn expect(&mut self, byte: u8) -> Result<(), String> {
        self.space();
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(self.wrong(&format!("{:?}", char::from(byte))))
    }

    fn value(&mut self) -> Result<Json, String> {
        self.space();
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for (word, value) in [("true", Json::Bool(true)), ("false", Json::Bool(false)), ("null", Json::Null)] {
                    if self.text[self.at..].starts_with(word) {
                        self.at += word.len();
                        return Ok(value);
                    }
                }
                Err(self.wrong("a value"))
            }
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Json, String>) -> Result<Json, String> {
        if self.depth == DEPTH_MAX {
            return Err(format!("nested deeper than {DEPTH_MAX} levels"));
        }
        self.at += 1;
        self.depth += 1;
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self) -> Result<Json, String> {
        let mut members: Vec<(String, Json)> = Vec::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Json::Object(members));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.wrong("a name between quotes"));
            }
            let key = self.string()?;
            self.expect(b':')?;
            let value = self.value()?;
            // The last one counts, as for every JSON library that does not refuse it.
            match members.iter_mut().find(|(known, _)| *known == key) {
                Some(member) => member.1 = value,
                None => members.push((key, value)),
            }
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Json::Object(members));
                }
                _ => return Err(self.wrong("\",\" or \"}\"")),
            }
        }
    }

    fn array(&mut self) -> Result<Json, String> {
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value()?);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Json::Array(items));
                }
                _ => return Err(self.wrong("\",\" or \"]\"")),
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
                None => return Err(self.wrong("the end of a string")),
            }
        }
        self.at += 1;
        let text = self.text.get(start..self.at).ok_or_else(|| self.wrong("a string"))?;
        serde_json::from_str(text).map_err(|error| format!("not JSON at character {}: {error}", start + 1))
    }

    fn number(&mut self) -> Result<Json, String> {
        let start = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let text = &self.text[start..self.at];
        match serde_json::from_str::<serde_json::Number>(text) {
            Ok(_) => Ok(Json::Number(text.to_owned())),
            Err(_) => Err(format!("not JSON at character {}: {text} is no number", start + 1)),
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn order_numbers_and_text_stay_as_they_were_written() {
        for text in [r#"{"z":1,"a":[1.50,-2e3,true,null],"ö":"\"\\ü"}"#, "[]", "{}", r#""x""#, "0"] {
            assert_eq!(Json::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Json::parse(" { \"b\" : [ 1 , 2 ] , \"b\" : 3 } ").unwrap().to_string(), r#"{"b":3}"#);
        assert_eq!(Json::parse(r#"{"b":{"d":1,"c":2},"a":1}"#).unwrap().sorted().to_string(), r#"{"a":1,"b":{"c":2,"d":1}}"#);
        assert!(Json::parse(r#"{"a":1.0,"b":2}"#).unwrap().same(&Json::parse(r#"{"b":2,"a":1}"#).unwrap()));
    }

    #[test]
    fn people_get_lines_and_the_same_json() {
        let text = r#"{"type":"record","name":"R","fields":[{"name":"z","type":["null","string"],"default":null},{"name":"a","doc":"DOC","type":"int"}],"x":[],"n":1.50}"#;
        let text = text.replace("DOC", &"d".repeat(60));
        let parsed = Json::parse(&text).unwrap();
        let expected = [
            "{".to_owned(),
            r#"  "type": "record","#.to_owned(),
            r#"  "name": "R","#.to_owned(),
            r#"  "fields": ["#.to_owned(),
            r#"    {"name": "z", "type": ["null", "string"], "default": null},"#.to_owned(),
            r#"    {"#.to_owned(),
            r#"      "name": "a","#.to_owned(),
            format!(r#"      "doc": "{}","#, "d".repeat(60)),
            r#"      "type": "int""#.to_owned(),
            r#"    }"#.to_owned(),
            r#"  ],"#.to_owned(),
            r#"  "x": [],"#.to_owned(),
            r#"  "n": 1.50"#.to_owned(),
            "}".to_owned(),
        ];
        assert_eq!(parsed.pretty(), expected.join("\n"));
        for text in [text.as_str(), "\"bytes\"", "[]", &format!("{}1{}", "[".repeat(90), "]".repeat(90))] {
            let parsed = Json::parse(text).unwrap();
            assert_eq!(Json::parse(&parsed.pretty()).unwrap(), parsed);
        }
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        for (text, place) in
            [("", 1), ("{", 2), ("[1,]", 4), (r#"{"a" 1}"#, 6), ("01x", 1), (r#""a"#, 3), ("1 2", 3), (r#""\q""#, 1), ("\"\\", 4)]
        {
            let error = Json::parse(text).unwrap_err();
            assert!(error.contains(&format!("at character {place}:")), "{text}: {error}");
        }
        assert!(Json::parse(&"[".repeat(10_000)).unwrap_err().contains("deeper than"));
    }
}
