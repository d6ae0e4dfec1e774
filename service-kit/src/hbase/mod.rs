//! HBase through its REST gateway: our own thin client, because no maintained crate speaks HBase's protocol.
//!
//! [`Hbase`] puts many rows with one request, gets, scans, deletes, increments, and compares and sets; it makes tables.
//! A put, delete or check that is tried again with the same arguments does no harm (a check that took place answers
//! `false` the second time: read the cell to know); an increment that is tried again counts again.
//!
//! Bodies are protobuf: 1,000 rows of one 160-byte cell are 223 KB, as JSON 329 KB, because there every key, column and
//! value is base64; the gateway takes 16,000 such rows a second in one form and 15,000 in the other.
//! Row keys in paths are base64, which the gateways of HBase 2.4.18, 2.5.7 and 2.6.0 were the first to understand; an
//! older one would read another row, so it is refused.
//!
//! Limits ([`HbaseConfig`]): connections, time for a connection and for an answer, bytes of a request and of an answer.
//! Metrics: `millrace_hbase_requests_total`, `millrace_hbase_request_seconds`, `millrace_hbase_connections`.

mod http;
mod wire;

use std::{fmt::Write as _, sync::Arc, time::Duration};

use ::http::{Method, StatusCode};
use bytes::Bytes;
use prost::Message as _;
use proto::ErrorKind;
use tokio_rustls::TlsConnector;

use self::http::{Answer, Http, PROTOBUF, Shared, TEXT};

/// Where the gateway is, and the limits.
#[derive(Clone)]
pub struct HbaseConfig {
    /// `http://host:port`, or https. May hold `user:password@` (Basic authentication) and a path before the gateway's own.
    pub url: String,
    /// For https.
    pub tls: Option<TlsConnector>,
    pub connect_timeout: Duration,
    /// From sending a request to the end of its answer.
    pub request_timeout: Duration,
    /// Requests at a time; more wait.
    pub connections_max: usize,
    /// A put of more goes in several requests; a row is never cut.
    pub request_bytes_max: usize,
    pub answer_bytes_max: usize,
}

impl HbaseConfig {
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            tls: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            connections_max: 4,
            request_bytes_max: 8 << 20,
            answer_bytes_max: 64 << 20,
        }
    }
}

/// What can go wrong with HBase, and what a caller may do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HbaseError {
    /// A setting is wrong.
    #[error("{0}")]
    Config(String),
    #[error("table \"{0}\" does not exist in HBase; create it, or correct the name")]
    UnknownTable(String),
    /// The message is HBase's and names the family.
    #[error("{0}")]
    UnknownFamily(String),
    /// The request can never succeed: a row key without bytes, a value larger than HBase takes, …
    #[error("{0}")]
    Refused(String),
    /// The gateway takes no such request, or the answer is beyond [`HbaseConfig::answer_bytes_max`].
    #[error("{0}")]
    TooLarge(String),
    /// Credentials are wrong, or they do not allow this.
    #[error("{0}")]
    Auth(String),
    /// This gateway does not offer it.
    #[error("{0}")]
    Unsupported(String),
    /// The gateway cannot be reached, or went away. Whether a request took effect is not known.
    #[error("{0}")]
    Unreachable(String),
    /// No answer in time. Whether the request took effect is not known.
    #[error("{0}")]
    Timeout(String),
    /// The gateway is there and HBase does not serve: a region moves, a server is down, a table is disabled.
    #[error("{0}")]
    Unavailable(String),
    /// An answer that makes no sense.
    #[error("{0}")]
    Protocol(String),
}

impl HbaseError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) | Self::Refused(_) => ErrorKind::Invalid,
            Self::TooLarge(_) => ErrorKind::LimitExceeded,
            Self::UnknownTable(_) | Self::UnknownFamily(_) => ErrorKind::NotFound,
            Self::Auth(_) => ErrorKind::Forbidden,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Unreachable(_) | Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::Timeout(_) => ErrorKind::Timeout,
            Self::Protocol(_) => ErrorKind::Internal,
        }
    }

    /// The same call may succeed later, with nothing changed here or in HBase's tables.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Timeout(_) | Self::Unavailable(_))
    }
}

/// Cells of one row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub key: Bytes,
    pub cells: Vec<Cell>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// `family:qualifier`.
    pub column: Bytes,
    /// Milliseconds since 1970; HBase's clock where none is set. A cell with an older one stays behind a newer.
    pub timestamp_ms: Option<i64>,
    pub value: Bytes,
}

impl Row {
    pub fn new(key: impl Into<Bytes>) -> Self {
        Self { key: key.into(), cells: Vec::new() }
    }

    pub fn with(mut self, column: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.cells.push(Cell { column: column.into(), timestamp_ms: None, value: value.into() });
        self
    }

    /// The newest value of a column.
    pub fn value(&self, column: &str) -> Option<&Bytes> {
        self.cells.iter().find(|cell| cell.column == column.as_bytes()).map(|cell| &cell.value)
    }

    /// At least what it takes in a request.
    fn size(&self) -> usize {
        self.key.len() + self.cells.iter().map(|cell| cell.column.len() + cell.value.len() + 24).sum::<usize>() + 8
    }
}

/// A column family to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    pub name: String,
    /// Values that are kept of each cell.
    pub versions: i32,
}

/// Which rows to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The first key; empty: from the table's first row.
    pub start: Bytes,
    /// The key before which to stop; empty: at the table's end.
    pub end: Bytes,
    /// `family:qualifier`, or a family; empty: all.
    pub columns: Vec<Bytes>,
    pub rows_max: usize,
}

/// A client. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Hbase {
    http: Shared,
    /// Set once the gateway has told that it understands keys in base64.
    keys: Arc<tokio::sync::OnceCell<()>>,
}

/// Cells of one answer of a scan.
const SCAN_CELLS: i32 = 2_000;

impl Hbase {
    /// Checks the address; connects with the first request.
    pub fn new(config: HbaseConfig) -> Result<Self, HbaseError> {
        Ok(Self { http: Arc::new(Http::new(config)?), keys: Arc::default() })
    }

    /// The address without user and password, for messages.
    pub fn address(&self) -> String {
        self.http.address()
    }

    /// The version of the HBase behind the gateway.
    pub async fn version(&self) -> Result<String, HbaseError> {
        let answer = self.http.send(Method::GET, "/version/cluster", TEXT, Bytes::new()).await?;
        let answer = self.expect(answer, "")?;
        Ok(String::from_utf8_lossy(&answer.body).trim().to_owned())
    }

    /// The table's column families; `None` where there is no such table.
    pub async fn families(&self, table: &str) -> Result<Option<Vec<String>>, HbaseError> {
        let answer = self.http.send(Method::GET, &format!("/{}/schema", encoded(table)), PROTOBUF, Bytes::new()).await?;
        match self.expect(answer, table) {
            Ok(answer) => {
                let schema = wire::TableSchema::decode(answer.body).map_err(|error| self.nonsense(&error))?;
                Ok(Some(schema.columns.into_iter().filter_map(|family| family.name).collect()))
            }
            Err(HbaseError::UnknownTable(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// False where the table exists already; it is left as it is. (Of two that create it at once, the second may add its families.)
    pub async fn create_table(&self, table: &str, families: &[Family]) -> Result<bool, HbaseError> {
        if self.families(table).await?.is_some() {
            return Ok(false);
        }
        let columns =
            families.iter().map(|family| wire::ColumnSchema { name: Some(family.name.clone()), max_versions: Some(family.versions) });
        let schema = wire::TableSchema { name: Some(table.to_owned()), columns: columns.collect() };
        let answer = self.http.send(Method::POST, &format!("/{}/schema", encoded(table)), TEXT, schema.encode_to_vec().into()).await?;
        match answer.status {
            StatusCode::NOT_MODIFIED => Ok(false),
            _ => self.expect(answer, table).map(|answer| answer.status == StatusCode::CREATED),
        }
    }

    /// Writes rows, in order; returns when HBase has all of them. After an error, it may have some of them.
    pub async fn put(&self, table: &str, rows: &[Row]) -> Result<(), HbaseError> {
        let max = self.http.config().request_bytes_max;
        let mut rest = rows;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fit = rest.iter().take_while(|row| {
                bytes += row.size();
                bytes <= max
            });
            let (now, later) = rest.split_at(fit.count().max(1));
            let cells = wire::CellSet { rows: now.iter().map(wire_row).collect() };
            self.change(table, "", cells).await?;
            rest = later;
        }
        Ok(())
    }

    /// The newest cells of a row; of `columns` (`family:qualifier`, or a family), or of all. `None` where there is none, and where
    /// there is no such table: the gateway does not tell them apart.
    pub async fn get(&self, table: &str, key: &[u8], columns: &[&str]) -> Result<Option<Row>, HbaseError> {
        let path = self.row_path(table, key, columns).await?;
        let answer = self.http.send(Method::GET, &path, PROTOBUF, Bytes::new()).await?;
        if answer.status == StatusCode::NOT_FOUND && !names(&answer.body, "Exception") {
            return Ok(None);
        }
        let answer = self.expect(answer, table)?;
        let row = self.rows(answer.body)?.into_iter().next();
        match row {
            Some(row) if row.key != key => Err(HbaseError::Protocol(format!("HBase's REST gateway {} gave another row", self.address()))),
            row => Ok(row),
        }
    }

    /// Rows in the order of their keys, with the newest cells; at most `rows_max`.
    pub async fn scan(&self, table: &str, scan: &Scan) -> Result<Vec<Row>, HbaseError> {
        let some = |bytes: &Bytes| (!bytes.is_empty()).then(|| bytes.clone());
        let scanner = wire::Scanner {
            start_row: some(&scan.start),
            end_row: some(&scan.end),
            columns: scan.columns.clone(),
            batch: Some(SCAN_CELLS),
            max_versions: Some(1),
            caching: Some(i32::try_from(scan.rows_max.saturating_add(1)).unwrap_or(i32::MAX).min(1_000)),
        };
        let path = format!("/{}/scanner", encoded(table));
        let answer = self.http.send(Method::POST, &path, TEXT, scanner.encode_to_vec().into()).await?;
        let answer = self.expect(answer, table)?;
        let location = answer.headers.get(::http::header::LOCATION).and_then(|location| location.to_str().ok());
        let id = location.and_then(|location| location.rsplit('/').next()).filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| HbaseError::Protocol(format!("HBase's REST gateway {} opened no scanner", self.address())))?;
        let path = format!("{path}/{id}");
        let rows = self.scan_on(&path, table, scan.rows_max).await;
        // The gateway closes one that is forgotten after a while; this is only sooner.
        if let Err(error) = self.http.send(Method::DELETE, &path, TEXT, Bytes::new()).await {
            tracing::debug!(%error, "a scanner was not closed");
        }
        rows
    }

    async fn scan_on(&self, path: &str, table: &str, rows_max: usize) -> Result<Vec<Row>, HbaseError> {
        let mut rows: Vec<Row> = Vec::new();
        // One row more shows that the last one is complete.
        while rows.len() <= rows_max {
            let answer = self.http.send(Method::GET, path, PROTOBUF, Bytes::new()).await?;
            match answer.status {
                StatusCode::NO_CONTENT => break,
                // It has expired, or the gateway is another one: the scan can be made anew.
                StatusCode::GONE | StatusCode::NOT_FOUND if !names(&answer.body, "Exception") => {
                    return Err(HbaseError::Unavailable(format!("HBase's REST gateway {} has lost the scanner", self.address())));
                }
                _ => {}
            }
            let answer = self.expect(answer, table)?;
            for row in self.rows(answer.body)? {
                match rows.last_mut() {
                    Some(last) if last.key == row.key => last.cells.extend(row.cells),
                    _ => rows.push(row),
                }
            }
        }
        rows.truncate(rows_max);
        Ok(rows)
    }

    /// Deletes `columns` of a row (`family:qualifier`, or a family), or the row. Nothing to delete is no error.
    pub async fn delete(&self, table: &str, key: &[u8], columns: &[&str]) -> Result<(), HbaseError> {
        let path = self.row_path(table, key, columns).await?;
        let answer = self.http.send(Method::DELETE, &path, TEXT, Bytes::new()).await?;
        self.expect(answer, table).map(drop)
    }

    /// Adds to a counter: a cell of eight bytes, the largest first. After an error it is not known whether it has been added.
    pub async fn increment(&self, table: &str, key: &[u8], column: &str, by: i64) -> Result<(), HbaseError> {
        let row = Row::new(Bytes::copy_from_slice(key)).with(column.to_owned(), by.to_string());
        self.change(table, "?check=increment", wire::CellSet { rows: vec![wire_row(&row)] }).await.map(drop)
    }

    /// Writes the row if its cell `column` holds `expected`, as one step. `column` must be among the row's cells.
    /// `None` expects that there is no such cell, or one without bytes. False: it holds something else, and nothing is written.
    pub async fn check_and_put(&self, table: &str, row: &Row, column: &str, expected: Option<&[u8]>) -> Result<bool, HbaseError> {
        if row.value(column).is_none() {
            return Err(HbaseError::Refused(format!("column {column} is compared and must be written too")));
        }
        let mut row = wire_row(row);
        row.values.push(check(column, expected));
        self.change(table, "?check=put", wire::CellSet { rows: vec![row] }).await
    }

    /// Deletes `families` of the row, or without any the cell `column` alone, if that cell holds `expected`, as one step.
    /// False: it holds something else, and nothing is deleted. (The gateway could delete other cells too, but only their
    /// newest value, and the one before would show again.)
    pub async fn check_and_delete(
        &self,
        table: &str,
        key: &[u8],
        column: &str,
        expected: Option<&[u8]>,
        families: &[&str],
    ) -> Result<bool, HbaseError> {
        if let Some(column) = families.iter().find(|family| family.contains(':')) {
            return Err(HbaseError::Refused(format!("`{column}` is no family")));
        }
        let cell = |family: &&str| wire::Cell { column: Some(family.to_string().into()), timestamp: None, data: Some(Bytes::new()) };
        let mut values: Vec<wire::Cell> = families.iter().map(cell).collect();
        values.push(check(column, expected));
        let row = wire::Row { key: Bytes::copy_from_slice(key), values };
        self.change(table, "?check=delete", wire::CellSet { rows: vec![row] }).await
    }

    /// True when it was done, false when a check did not hold. The path's row is only a form: the key is in the body.
    async fn change(&self, table: &str, query: &str, cells: wire::CellSet) -> Result<bool, HbaseError> {
        let path = format!("/{}/row{query}", encoded(table));
        let answer = self.http.send(Method::PUT, &path, TEXT, cells.encode_to_vec().into()).await?;
        match answer.status {
            StatusCode::NOT_MODIFIED => Ok(false),
            _ => self.expect(answer, table).map(|_| true),
        }
    }

    fn rows(&self, body: Bytes) -> Result<Vec<Row>, HbaseError> {
        let cells = wire::CellSet::decode(body).map_err(|error| self.nonsense(&error))?;
        let cell = |cell: wire::Cell| Cell {
            column: cell.column.unwrap_or_default(),
            timestamp_ms: cell.timestamp,
            value: cell.data.unwrap_or_default(),
        };
        Ok(cells.rows.into_iter().map(|row| Row { key: row.key, cells: row.values.into_iter().map(cell).collect() }).collect())
    }

    fn nonsense(&self, error: &prost::DecodeError) -> HbaseError {
        HbaseError::Protocol(format!("{} does not answer as HBase's REST gateway: {error}", self.address()))
    }

    async fn row_path(&self, table: &str, key: &[u8], columns: &[&str]) -> Result<String, HbaseError> {
        if key.is_empty() {
            return Err(HbaseError::Refused("a row key needs one byte at least".into()));
        }
        self.keys.get_or_try_init(|| self.understands_keys()).await?;
        let columns: Vec<String> = columns.iter().map(|column| base64(column.as_bytes())).collect();
        let slash = if columns.is_empty() { "" } else { "/" };
        Ok(format!("/{}/{}{slash}{}?e=b64", encoded(table), key_path(key), columns.join(",")))
    }

    async fn understands_keys(&self) -> Result<(), HbaseError> {
        let version = self.version().await?;
        if understands_keys(&version) {
            return Ok(());
        }
        Err(HbaseError::Unsupported(format!(
            "HBase {version} behind {} does not read row keys as they must be sent; it takes 2.4.18, 2.5.7, 2.6.0 or later",
            self.address()
        )))
    }

    /// The answer of something that went well, or what went wrong.
    fn expect(&self, answer: Answer, table: &str) -> Result<Answer, HbaseError> {
        if answer.status.is_success() {
            return Ok(answer);
        }
        let told = told(&answer.body);
        let message = || format!("HBase's REST gateway {} answered {}: {told}", self.address(), answer.status.as_u16());
        Err(match answer.status {
            StatusCode::NOT_FOUND if names(&answer.body, "NoSuchColumnFamilyException") => HbaseError::UnknownFamily(format!(
                "table \"{table}\" has not every column family that is written; create it, or correct the name ({told})"
            )),
            StatusCode::NOT_FOUND if names(&answer.body, "TableNotFoundException") => HbaseError::UnknownTable(table.to_owned()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => HbaseError::Auth(message()),
            StatusCode::PAYLOAD_TOO_LARGE => HbaseError::TooLarge(message()),
            // A region server that refuses a cell says so, and the gateway calls it unavailable.
            status if status.is_server_error() && told.starts_with("org.apache.hadoop.hbase.DoNotRetryIOException") => {
                HbaseError::Refused(message())
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT => {
                HbaseError::Unavailable(message())
            }
            status if status.is_client_error() => HbaseError::Refused(message()),
            _ => HbaseError::Protocol(message()),
        })
    }
}

/// The exception's line of an answer: its status in words comes first, the stack after.
fn told(body: &[u8]) -> String {
    const CHARS_MAX: usize = 300;
    let text = String::from_utf8_lossy(&body[..body.len().min(4096)]);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("\tat "));
    let first = lines.next().unwrap_or("nothing");
    lines.next().unwrap_or(first).trim().chars().take(CHARS_MAX).collect()
}

fn names(body: &[u8], exception: &str) -> bool {
    memchr::memmem::find(body, exception.as_bytes()).is_some()
}

fn wire_row(row: &Row) -> wire::Row {
    let cell = |cell: &Cell| wire::Cell { column: Some(cell.column.clone()), timestamp: cell.timestamp_ms, data: Some(cell.value.clone()) };
    wire::Row { key: row.key.clone(), values: row.cells.iter().map(cell).collect() }
}

/// HBase compares the last cell of a request; no bytes stand for no cell.
fn check(column: &str, expected: Option<&[u8]>) -> wire::Cell {
    let expected = Bytes::copy_from_slice(expected.unwrap_or_default());
    wire::Cell { column: Some(column.to_owned().into()), timestamp: None, data: Some(expected) }
}

fn understands_keys(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let mut next = || parts.next().flatten().unwrap_or(0);
    match (next(), next(), next()) {
        (2, 4, patch) => patch >= 18,
        (2, 5, patch) => patch >= 7,
        (major, minor, _) => (major, minor) >= (2, 6),
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// The first character is written as a percent code: a key that happens to read `schema` or `multiget…` would mean something else to the gateway.
fn key_path(key: &[u8]) -> String {
    let text = base64(key);
    let mut path = String::with_capacity(text.len() + 2);
    for (at, char) in text.chars().enumerate() {
        match at {
            0 => write!(path, "%{:02X}", u32::from(char)).unwrap_or_default(),
            _ => path.push(char),
        }
    }
    path
}

/// A table's name in a path. Names are letters, digits, `_`, `-`, `.` and the `:` after a namespace.
fn encoded(table: &str) -> String {
    let mut path = String::with_capacity(table.len());
    for byte in table.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b':' => path.push(char::from(byte)),
            other => write!(path, "%{other:02X}").unwrap_or_default(),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_checked_before_it_is_used() {
        let fault = |url: &str| Hbase::new(HbaseConfig::new(url)).err().map(|error| error.kind());
        for url in ["http://h", "http://h:8080/", "http://u:p@h:1/gateway/hbase", "http://[::1]:8080"] {
            assert_eq!(fault(url), None, "{url}");
        }
        for url in ["h:8080", "ftp://h", "", "http://", "https://h", "http://a b"] {
            assert_eq!(fault(url), Some(ErrorKind::Invalid), "{url}");
        }
        let client = Hbase::new(HbaseConfig::new("http://user:secret@h:1")).unwrap();
        assert_eq!(client.address(), "h:1");
    }

    #[test]
    fn answers_become_errors_that_say_what_to_do() {
        let client = Hbase::new(HbaseConfig::new("http://h")).unwrap();
        let error = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            client.expect(Answer { status, headers: Default::default(), body: Bytes::copy_from_slice(body.as_bytes()) }, "t").err().unwrap()
        };
        let family =
            "Not found\r\norg.apache.hadoop.hbase.regionserver.NoSuchColumnFamilyException: Column family no does not exist\n\tat x";
        assert!(matches!(error(404, family), HbaseError::UnknownFamily(message) if message.contains("family no does not exist")));
        assert_eq!(error(404, "Not found\r\norg.apache.hadoop.hbase.TableNotFoundException: t"), HbaseError::UnknownTable("t".into()));
        for (status, body, kind, retryable) in [
            (400, "Bad request\r\njava.lang.IllegalArgumentException: KeyValue size too large\n\tat x", ErrorKind::Invalid, false),
            (503, "Unavailable\r\norg.apache.hadoop.hbase.DoNotRetryIOException: Cell exceeds limit", ErrorKind::Invalid, false),
            (503, "Unavailable\r\norg.apache.hadoop.hbase.TableNotEnabledException: t", ErrorKind::Unavailable, true),
            (503, "", ErrorKind::Unavailable, true),
            (500, "oops", ErrorKind::Unavailable, true),
            (429, "", ErrorKind::Unavailable, true),
            (403, "Forbidden", ErrorKind::Forbidden, false),
            (401, "", ErrorKind::Forbidden, false),
            (413, "", ErrorKind::LimitExceeded, false),
            (302, "", ErrorKind::Internal, false),
        ] {
            let error = error(status, body);
            assert_eq!((error.kind(), error.retryable()), (kind, retryable), "{status} {body}: {error}");
        }
        assert!(error(400, "Bad request\r\nwhy it is\n\tat x").to_string().ends_with("answered 400: why it is"));
    }

    #[test]
    fn versions_that_read_keys_in_base64() {
        for (version, expected) in [
            ("2.6.1", true),
            ("2.6.0-hadoop3", true),
            ("3.0.0-beta-1", true),
            ("2.5.7", true),
            ("2.5.6", false),
            ("2.4.18", true),
            ("2.4.17", false),
            ("2.3.9", false),
            ("1.4.13", false),
            ("", false),
        ] {
            assert_eq!(understands_keys(version), expected, "{version}");
        }
    }

    #[test]
    fn paths_hold_any_key_and_name() {
        assert_eq!(key_path(b"a"), "%59Q");
        assert_eq!(key_path(&[0xff, 0xfe]), "%5F_4");
        assert_eq!((encoded("ns:t_1.x-y"), encoded("a/b é")), ("ns:t_1.x-y".into(), "a%2Fb%20%C3%A9".into()));
    }

    #[test]
    fn a_message_reads_as_hbase_writes_it() {
        // key "k", column "f:q", timestamp 5, data "v"
        let bytes = b"\x0a\x11\x0a\x01k\x12\x0c\x12\x03f:q\x18\x05\x22\x03abc";
        let cells = wire::CellSet::decode(&bytes[..]).unwrap();
        assert_eq!((cells.rows[0].key.as_ref(), cells.rows[0].values[0].timestamp), (&b"k"[..], Some(5)));
        assert_eq!(cells.encode_to_vec(), bytes);
        let empty = wire::CellSet { rows: vec![wire::Row { key: Bytes::new(), values: vec![check("f:q", None)] }] };
        // A key and a value without bytes are written all the same: HBase asks for the first and compares the second.
        assert_eq!(empty.encode_to_vec(), b"\x0a\x0b\x0a\x00\x12\x07\x12\x03f:q\x22\x00");
    }
}
