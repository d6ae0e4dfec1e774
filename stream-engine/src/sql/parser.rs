//! The text of a job → statements.
//!
//! Tables are Flink's DDL, read here token by token so that every error has its place. Queries are read by the
//! planner's own parser, after window functions in FROM were replaced (`tvf.rs`).

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::sql::sqlparser::ast::{Expr, Query};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan, Tokenizer};

use super::error::{Place, SqlError, from_parser, nearest_or_all};
use super::options::Entry;
use super::{tvf, types};

/// Where `${env:NAME}` is looked up.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

#[derive(Debug)]
pub(crate) enum Statement {
    Set { entry: Entry },
    Table(TableDef),
    View { name: Name, columns: Vec<Name>, query: ParsedQuery },
    Insert(Insert),
    Explain(Explained),
}

#[derive(Debug)]
pub(crate) enum Explained {
    Insert(Insert),
    Query(ParsedQuery),
}

#[derive(Debug)]
pub(crate) struct Insert {
    pub(crate) table: Name,
    pub(crate) columns: Vec<Name>,
    pub(crate) query: ParsedQuery,
}

#[derive(Debug)]
pub(crate) struct ParsedQuery {
    pub(crate) query: Box<Query>,
    pub(crate) at: Place,
}

#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) text: String,
    pub(crate) at: Place,
}

#[derive(Debug)]
pub(crate) struct TableDef {
    pub(crate) name: Name,
    pub(crate) columns: Vec<ColumnDef>,
    pub(crate) watermark: Option<WatermarkDef>,
    pub(crate) primary_key: Vec<Name>,
    pub(crate) options: Vec<Entry>,
    /// Of `WITH`, or of the name where there is none.
    pub(crate) options_at: Place,
}

#[derive(Debug)]
pub(crate) struct ColumnDef {
    pub(crate) name: Name,
    pub(crate) kind: ColumnKind,
}

#[derive(Debug)]
pub(crate) enum ColumnKind {
    Physical(FieldRef),
    /// `TIMESTAMP(3) METADATA FROM 'timestamp' [VIRTUAL]`
    Metadata {
        field: FieldRef,
        key: String,
        is_virtual: bool,
    },
    /// `ts AS TO_TIMESTAMP_LTZ(ms, 3)`
    Computed(Box<Expr>),
}

#[derive(Debug)]
pub(crate) struct WatermarkDef {
    /// What stands behind AS.
    base: Name,
    pub(crate) column: Name,
    pub(crate) delay_ms: i64,
}

/// Statements in the order of the text.
pub(crate) fn parse(text: &str, environment: Environment<'_>) -> Result<Vec<Statement>, SqlError> {
    let tokens = tokenize(text)?;
    let mut statements = Vec::new();
    for piece in tokens.split(|token| token.token == Token::SemiColon) {
        let piece = statement_set(piece);
        if piece.is_empty() {
            continue;
        }
        let mut cursor = Cursor::new(piece);
        statements.push(statement(&mut cursor, environment)?);
        cursor.end()?;
    }
    Ok(statements)
}

fn tokenize(text: &str) -> Result<Vec<TokenWithSpan>, SqlError> {
    let tokens = Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .map_err(|error| Place::from(error.location).error(error.message.to_lowercase(), "close the quotation mark or comment"))?;
    Ok(tokens.into_iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).collect())
}

/// `BEGIN STATEMENT SET`, `EXECUTE STATEMENT SET BEGIN` and `END` only bracket INSERTs that run as one job, which all
/// INSERTs of a text do here.
fn statement_set(piece: &[TokenWithSpan]) -> &[TokenWithSpan] {
    for brackets in [&["BEGIN", "STATEMENT", "SET"][..], &["EXECUTE", "STATEMENT", "SET", "BEGIN"], &["END"]] {
        if piece.len() >= brackets.len() && piece.iter().zip(brackets).all(|(token, word)| is_word(token, word)) {
            return &piece[brackets.len()..];
        }
    }
    piece
}

fn statement(cursor: &mut Cursor<'_>, environment: Environment<'_>) -> Result<Statement, SqlError> {
    const KNOWN: &[&str] = &["SET", "CREATE TABLE", "CREATE VIEW", "INSERT INTO", "EXPLAIN"];
    let place = cursor.place();
    if cursor.word("SET") {
        return set(cursor, environment);
    }
    if cursor.word("CREATE") {
        let _temporary = cursor.word("TEMPORARY");
        return match () {
            () if cursor.word("TABLE") => table(cursor, environment).map(Statement::Table),
            () if cursor.word("VIEW") => view(cursor),
            () => Err(cursor.unexpected("TABLE or VIEW")),
        };
    }
    if cursor.word("INSERT") {
        return insert(cursor).map(Statement::Insert);
    }
    if cursor.word("EXPLAIN") {
        let _plan_for = cursor.word("PLAN") && cursor.word("FOR");
        if cursor.word("INSERT") {
            return Ok(Statement::Explain(Explained::Insert(insert(cursor)?)));
        }
        return Ok(Statement::Explain(Explained::Query(query(cursor)?)));
    }
    if cursor.is_word("SELECT") || cursor.is_word("WITH") {
        return Err(place.error("a query needs a place to write to", "put INSERT INTO table in front of it"));
    }
    let shown = cursor.shown();
    Err(place.error(format!("unknown statement {shown}"), nearest_or_all("statements", &shown, KNOWN)))
}

fn set(cursor: &mut Cursor<'_>, environment: Environment<'_>) -> Result<Statement, SqlError> {
    let at = cursor.place();
    let quoted = "the key in quotation marks: SET 'key' = 'value'";
    let key = cursor.string(quoted)?;
    cursor.expect(&Token::Eq, "=")?;
    let value_at = cursor.place();
    let value = substitute(&cursor.string("the value in quotation marks: SET 'key' = 'value'")?, value_at, environment)?;
    Ok(Statement::Set { entry: Entry { key, value, at } })
}

fn view(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.if_not_exists()?;
    let name = cursor.name("the view's name")?;
    let columns = if cursor.consume(&Token::LParen) { cursor.names()? } else { Vec::new() };
    cursor.expect_word("AS")?;
    Ok(Statement::View { name, columns, query: query(cursor)? })
}

fn insert(cursor: &mut Cursor<'_>) -> Result<Insert, SqlError> {
    if cursor.is_word("OVERWRITE") {
        return Err(cursor.place().error("INSERT OVERWRITE does not apply to streams", "write INSERT INTO"));
    }
    cursor.expect_word("INTO")?;
    let table = cursor.name("the table to write to")?;
    let is_list = cursor.is(&Token::LParen) && !["SELECT", "WITH"].iter().any(|word| cursor.is_word_at(1, word));
    let columns = if is_list && cursor.consume(&Token::LParen) { cursor.names()? } else { Vec::new() };
    Ok(Insert { table, columns, query: query(cursor)? })
}

/// The rest of the statement as a query.
fn query(cursor: &mut Cursor<'_>) -> Result<ParsedQuery, SqlError> {
    let at = cursor.place();
    let tokens = tvf::rewrite(cursor.rest())?;
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens);
    let query = parser.parse_query().map_err(|error| from_parser(&error.to_string(), at))?;
    let left = parser.peek_token();
    if left.token != Token::EOF {
        return Err(Place::from(&left).error(format!("unexpected `{}` after the query", left.token), "end a statement with `;`"));
    }
    Ok(ParsedQuery { query, at })
}

fn table(cursor: &mut Cursor<'_>, environment: Environment<'_>) -> Result<TableDef, SqlError> {
    cursor.if_not_exists()?;
    let name = cursor.name("the table's name")?;
    let mut table =
        TableDef { options_at: name.at, name, columns: Vec::new(), watermark: None, primary_key: Vec::new(), options: Vec::new() };
    cursor.expect(&Token::LParen, "( and the columns")?;
    loop {
        table_item(cursor, &mut table)?;
        if cursor.consume(&Token::Comma) {
            continue;
        }
        cursor.expect(&Token::RParen, ", or )")?;
        break;
    }
    comment(cursor)?;
    if cursor.is_word("PARTITIONED") || cursor.is_word("DISTRIBUTED") {
        return Err(cursor.unexpected("WITH (partitioning does not apply to these connectors)"));
    }
    if let Some(watermark) = &table.watermark {
        watermark.check(&table.columns)?;
    }
    table.options_at = cursor.place();
    if cursor.word("WITH") {
        cursor.expect(&Token::LParen, "( and the options")?;
        loop {
            let at = cursor.place();
            let key = cursor.string("an option 'key' = 'value'")?;
            cursor.expect(&Token::Eq, "=")?;
            let value_at = cursor.place();
            let value = substitute(&cursor.string("the option's value in quotation marks")?, value_at, environment)?;
            if table.options.iter().any(|entry: &Entry| entry.key == key) {
                return Err(at.error(format!("option `{key}` is given twice"), "remove one"));
            }
            table.options.push(Entry { key, value, at });
            if cursor.consume(&Token::Comma) {
                continue;
            }
            cursor.expect(&Token::RParen, ", or )")?;
            break;
        }
    }
    Ok(table)
}

fn table_item(cursor: &mut Cursor<'_>, table: &mut TableDef) -> Result<(), SqlError> {
    let at = cursor.place();
    if cursor.is_word("WATERMARK") && cursor.is_word_at(1, "FOR") {
        cursor.advance(2);
        if table.watermark.is_some() {
            return Err(at.error("a second WATERMARK", "a table has one event-time column"));
        }
        table.watermark = Some(watermark(cursor)?);
        return Ok(());
    }
    if cursor.is_word("CONSTRAINT") && cursor.is_word_at(2, "PRIMARY") {
        cursor.advance(2);
    }
    if cursor.is_word("PRIMARY") && cursor.is_word_at(1, "KEY") && cursor.is_at(2, &Token::LParen) {
        cursor.advance(3);
        table.primary_key = cursor.names()?;
        return not_enforced(cursor);
    }
    let name = cursor.name("a column, WATERMARK FOR or PRIMARY KEY")?;
    if let Some(other) = table.columns.iter().find(|column| column.name.text == name.text) {
        let line = other.name.at.line;
        return Err(name.at.error(format!("column `{}` is declared twice", name.text), format!("the first is in line {line}")));
    }
    let kind = column(cursor, &name, table)?;
    table.columns.push(ColumnDef { name, kind });
    Ok(())
}

fn column(cursor: &mut Cursor<'_>, name: &Name, table: &mut TableDef) -> Result<ColumnKind, SqlError> {
    if cursor.word("AS") {
        let tokens = cursor.until_list_end();
        let expr = expression(tokens, name.at)?;
        return Ok(ColumnKind::Computed(Box::new(expr)));
    }
    let data_type = data_type(cursor)?;
    let mut nullable = true;
    let mut metadata = None;
    let mut is_virtual = false;
    loop {
        if cursor.word("NOT") {
            cursor.expect_word("NULL")?;
            nullable = false;
        } else if cursor.word("NULL") {
        } else if cursor.word("METADATA") {
            let key = if cursor.word("FROM") { cursor.string("the metadata's name in quotation marks")? } else { name.text.clone() };
            metadata = Some(key);
        } else if cursor.word("VIRTUAL") {
            is_virtual = true;
        } else if cursor.word("PRIMARY") {
            cursor.expect_word("KEY")?;
            not_enforced(cursor)?;
            table.primary_key = vec![name.clone()];
        } else if !comment(cursor)? {
            break;
        }
    }
    let field = Arc::new(Field::new(&name.text, data_type, nullable));
    Ok(match metadata {
        Some(key) => ColumnKind::Metadata { field, key, is_virtual },
        None => ColumnKind::Physical(field),
    })
}

fn comment(cursor: &mut Cursor<'_>) -> Result<bool, SqlError> {
    let found = cursor.word("COMMENT");
    if found {
        cursor.string("the comment in quotation marks")?;
    }
    Ok(found)
}

fn not_enforced(cursor: &mut Cursor<'_>) -> Result<(), SqlError> {
    if cursor.word("NOT") && cursor.word("ENFORCED") {
        return Ok(());
    }
    Err(cursor.place().error("a primary key on a stream cannot be enforced", "write PRIMARY KEY (…) NOT ENFORCED"))
}

/// `column AS column [- INTERVAL '5' SECOND]`
fn watermark(cursor: &mut Cursor<'_>) -> Result<WatermarkDef, SqlError> {
    let column = cursor.name("the event-time column")?;
    cursor.expect_word("AS")?;
    let base = cursor.name("the event-time column again")?;
    let delay_ms = if cursor.consume(&Token::Minus) { tvf::interval(cursor)? } else { 0 };
    if !(cursor.is(&Token::Comma) || cursor.is(&Token::RParen)) {
        return Err(cursor.place().error("a watermark is its own column minus an interval", own_column(&column.text)));
    }
    Ok(WatermarkDef { column, base, delay_ms })
}

fn own_column(name: &str) -> String {
    format!("write WATERMARK FOR {name} AS {name} - INTERVAL '5' SECOND")
}

impl WatermarkDef {
    fn check(&self, columns: &[ColumnDef]) -> Result<(), SqlError> {
        let names: Vec<&str> = columns.iter().map(|column| column.name.text.as_str()).collect();
        for name in [&self.column, &self.base] {
            if !names.contains(&name.text.as_str()) {
                return Err(name.at.error(format!("unknown column `{}`", name.text), nearest_or_all("columns", &name.text, &names)));
            }
        }
        if self.base.text != self.column.text {
            return Err(self.base.at.error("a watermark is its own column minus an interval", own_column(&self.column.text)));
        }
        Ok(())
    }
}

fn expression(tokens: Vec<TokenWithSpan>, at: Place) -> Result<Expr, SqlError> {
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens);
    let expr = parser.parse_expr().map_err(|error| from_parser(&error.to_string(), at))?;
    let left = parser.peek_token();
    if left.token == Token::EOF || matches!(&left.token, Token::Word(word) if word.value.eq_ignore_ascii_case("COMMENT")) {
        return Ok(expr);
    }
    Err(Place::from(&left).error(format!("unexpected `{}` after the expression", left.token), "separate columns by commas"))
}

fn data_type(cursor: &mut Cursor<'_>) -> Result<DataType, SqlError> {
    let at = cursor.place();
    let written = cursor.name("a type")?;
    let name = written.text.to_ascii_uppercase();
    match name.as_str() {
        "ARRAY" => {
            cursor.expect(&Token::Lt, "<")?;
            let item = data_type(cursor)?;
            cursor.close_angle()?;
            return Ok(types::list(item));
        }
        "MAP" => {
            cursor.expect(&Token::Lt, "<")?;
            let key_at = cursor.place();
            let key = data_type(cursor)?;
            if key != DataType::Utf8 {
                return Err(key_at.error("a map's keys are STRING", "write MAP<STRING, …>"));
            }
            cursor.expect(&Token::Comma, ",")?;
            let value = data_type(cursor)?;
            cursor.close_angle()?;
            return Ok(types::map(key, value));
        }
        "ROW" => {
            cursor.expect(&Token::Lt, "<")?;
            let mut fields = Vec::new();
            loop {
                let field = cursor.name("a field")?;
                fields.push(Field::new(field.text, data_type(cursor)?, true));
                if !cursor.consume(&Token::Comma) {
                    break;
                }
            }
            cursor.close_angle()?;
            return Ok(DataType::Struct(fields.into()));
        }
        _ => {}
    }
    let _precision = name == "DOUBLE" && cursor.word("PRECISION");
    let mut arguments = Vec::new();
    if cursor.consume(&Token::LParen) {
        loop {
            arguments.push(cursor.number()?);
            if cursor.consume(&Token::Comma) {
                continue;
            }
            cursor.expect(&Token::RParen, ")")?;
            break;
        }
    }
    let mut name = name;
    if name == "TIMESTAMP" {
        if cursor.is_word("WITH") && cursor.is_word_at(1, "LOCAL") {
            cursor.advance(2);
            cursor.expect_word("TIME")?;
            cursor.expect_word("ZONE")?;
            name = "TIMESTAMP_LTZ".into();
        } else if cursor.word("WITHOUT") {
            cursor.expect_word("TIME")?;
            cursor.expect_word("ZONE")?;
        }
    }
    match types::scalar(&name, &arguments) {
        Some(Ok(data_type)) => Ok(data_type),
        Some(Err(what)) => Err(at.error(what, "")),
        None => Err(at.error(format!("unknown type `{}`", written.text), nearest_or_all("types", &name, types::TYPE_NAMES))),
    }
}

/// Replaces `${env:NAME}` by the variable's value, `${env:NAME:-text}` by `text` where it is not set.
fn substitute(text: &str, at: Place, environment: Environment<'_>) -> Result<String, SqlError> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${env:") {
        let Some(length) = rest[start..].find('}') else {
            return Err(at.error("`${env:` without its `}`", "write ${env:NAME}"));
        };
        let inner = &rest[start + "${env:".len()..start + length];
        let (name, default) = inner.split_once(":-").map_or((inner, None), |(name, default)| (name, Some(default.to_owned())));
        let value = environment(name)
            .or(default)
            .ok_or_else(|| at.error(format!("environment variable {name} is not set"), "set it, or write the value itself"))?;
        out.push_str(&rest[..start]);
        out.push_str(&value);
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn is_word(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

/// A place in the tokens of one statement.
pub(crate) struct Cursor<'a> {
    tokens: &'a [TokenWithSpan],
    at: usize,
    /// A `>>` of which the first half is consumed.
    half_angle: bool,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(tokens: &'a [TokenWithSpan]) -> Self {
        Self { tokens, at: 0, half_angle: false }
    }

    fn peek(&self) -> Option<&'a TokenWithSpan> {
        self.tokens.get(self.at)
    }

    /// Of the next token, or behind the last one.
    pub(crate) fn place(&self) -> Place {
        match self.peek() {
            Some(token) => token.into(),
            None => self.tokens.last().map(|token| Place::from(token.span.end)).unwrap_or_default(),
        }
    }

    fn shown(&self) -> String {
        self.peek().map_or_else(|| "the end of the statement".to_owned(), |token| format!("`{}`", token.token))
    }

    fn unexpected(&self, wanted: &str) -> SqlError {
        self.place().error(format!("unexpected {}", self.shown()), format!("expected {wanted}"))
    }

    pub(crate) fn advance(&mut self, count: usize) {
        self.at += count;
    }

    pub(crate) fn is_word(&self, word: &str) -> bool {
        self.is_word_at(0, word)
    }

    pub(crate) fn is_word_at(&self, ahead: usize, word: &str) -> bool {
        self.tokens.get(self.at + ahead).is_some_and(|token| is_word(token, word))
    }

    pub(crate) fn is(&self, token: &Token) -> bool {
        self.is_at(0, token)
    }

    pub(crate) fn is_at(&self, ahead: usize, token: &Token) -> bool {
        self.tokens.get(self.at + ahead).is_some_and(|found| &found.token == token)
    }

    pub(crate) fn word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn expect_word(&mut self, word: &str) -> Result<(), SqlError> {
        if self.word(word) { Ok(()) } else { Err(self.unexpected(word)) }
    }

    pub(crate) fn consume(&mut self, token: &Token) -> bool {
        let found = self.is(token);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn expect(&mut self, token: &Token, wanted: &str) -> Result<(), SqlError> {
        if self.consume(token) { Ok(()) } else { Err(self.unexpected(wanted)) }
    }

    pub(crate) fn name(&mut self, wanted: &str) -> Result<Name, SqlError> {
        match self.peek().map(|token| (&token.token, Place::from(token))) {
            Some((Token::Word(word), at)) if word.quote_style != Some('"') || !word.value.is_empty() => {
                self.at += 1;
                Ok(Name { text: word.value.clone(), at })
            }
            _ => Err(self.unexpected(wanted)),
        }
    }

    /// Names up to the closing parenthesis; the opening one is consumed.
    fn names(&mut self) -> Result<Vec<Name>, SqlError> {
        let mut names = Vec::new();
        loop {
            names.push(self.name("a column")?);
            if !self.consume(&Token::Comma) {
                break;
            }
        }
        self.expect(&Token::RParen, ", or )")?;
        Ok(names)
    }

    pub(crate) fn string(&mut self, wanted: &str) -> Result<String, SqlError> {
        match self.peek().map(|token| &token.token) {
            Some(Token::SingleQuotedString(text)) => {
                self.at += 1;
                Ok(text.clone())
            }
            _ => Err(self.unexpected(wanted)),
        }
    }

    fn number(&mut self) -> Result<u64, SqlError> {
        match self.peek().map(|token| &token.token) {
            Some(Token::Number(text, _)) if text.parse::<u64>().is_ok() => {
                self.at += 1;
                Ok(text.parse().unwrap_or_default())
            }
            _ => Err(self.unexpected("a whole number")),
        }
    }

    /// `>`, also as half of `>>`.
    fn close_angle(&mut self) -> Result<(), SqlError> {
        if self.consume(&Token::Gt) {
            return Ok(());
        }
        if self.is(&Token::ShiftRight) {
            self.at += usize::from(self.half_angle);
            self.half_angle = !self.half_angle;
            return Ok(());
        }
        Err(self.unexpected(">"))
    }

    fn if_not_exists(&mut self) -> Result<(), SqlError> {
        if self.word("IF") {
            self.expect_word("NOT")?;
            self.expect_word("EXISTS")?;
        }
        Ok(())
    }

    /// Tokens up to the comma or parenthesis that ends this item of a list.
    fn until_list_end(&mut self) -> Vec<TokenWithSpan> {
        let start = self.at;
        let mut depth = 0_i32;
        while let Some(token) = self.peek() {
            match token.token {
                Token::LParen | Token::LBracket => depth += 1,
                Token::RBracket => depth -= 1,
                Token::RParen if depth == 0 => break,
                Token::RParen => depth -= 1,
                Token::Comma if depth == 0 => break,
                _ => {}
            }
            self.at += 1;
        }
        with_end(&self.tokens[start..self.at])
    }

    /// All that is left.
    fn rest(&mut self) -> &'a [TokenWithSpan] {
        let rest = &self.tokens[self.at..];
        self.at = self.tokens.len();
        rest
    }

    fn end(&self) -> Result<(), SqlError> {
        if self.peek().is_none() { Ok(()) } else { Err(self.unexpected("; and the next statement")) }
    }
}

/// The parser reports what is missing at the place of this token.
pub(crate) fn with_end(tokens: &[TokenWithSpan]) -> Vec<TokenWithSpan> {
    let end = tokens.last().map_or(Span::empty(), |token| Span::new(token.span.end, token.span.end));
    tokens.iter().cloned().chain([TokenWithSpan::new(Token::EOF, end)]).collect()
}
