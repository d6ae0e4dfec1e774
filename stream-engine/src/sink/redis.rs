//! Redis sink: rows become hashes, strings or sorted sets; each batch once.
//!
//! | option | default | |
//! |---|---|---|
//! | `url` | | `redis://[user:password@]host:port[/db]` |
//! | `mode` | hash | `hash`, `string` or `sorted-set` |
//! | `key` | | template of the key: `nginx:{window_start}:{status}` |
//! | `ttl` | none | keys expire this long after their last write |
//! | `fields` | all columns not in `key` | hash: columns that become fields, separated by `;` |
//! | `field` | | hash: template of one field per row (many rows share a key); its value is the column in `value` |
//! | `value` | the only column not in `key` | string, and hash with `field`: column that is the value |
//! | `member`, `score` | | sorted-set: template of the member, column of its score |
//! | `replace` | false | sorted-set: the rows of one write are all there is of their key; others are removed |
//! | `sink.buffer-flush.max-rows` | 1000 | rows per script call; a key's rows stay together |
//! | `sink.retry.timeout` | 1 min | how long an absent server is waited for before the batch fails |
//! | `fence.ttl` | 7 d | how long the fence outlives the last write |
//! | `sink.delivery-guarantee` | exactly-once | `at-least-once`: without the fence |
//!
//! NULL removes a field; a row with NULL as value or score is left out.
//!
//! Each call is one Lua script: if the fence of (job, checkpoint, output) is at this batch and chunk or beyond, nothing
//! happens, else all writes and the fence are applied at once. A fence at a batch that this process does not know of, or at one of its number that
//! covered other records, was raised by another one: the call is refused and the job fails ([`Fenced`]). Rows are ordered by key before they are cut, so a batch that
//! runs again is cut the same way. Values are absolute, so even without the fence a repetition would change nothing; the
//! fence keeps a process that was presumed dead from writing old values over new ones.
//! The client speaks to one server, not to a Redis Cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::StreamExt;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError, Script};
use tracing::{info, warn};

use super::template::{Template, Values, column};
use super::{Fenced, Guarantee, RowStream, Sink, SinkKind, SinkTable};
use crate::batch::BatchContext;
use crate::fault::Point;
use crate::sql::SqlError;
use crate::sql::options::Options;

pub(super) const KIND: SinkKind = SinkKind { name: "redis", upsert: true, options, build };

/// Arguments of one Redis command inside the script; Lua's stack bounds them.
const ARGUMENTS_MAX: usize = 1000;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// KEYS: the fence, then the keys of the commands. ARGV: batch, chunk, newest batch known, lifetime of the fence in ms (empty: no fence), digest of what
/// the batch covers, then per command its name, the index of its key, the number of arguments and the arguments. Gives the batch of a fence that another
/// process has raised, else -1.
const SCRIPT: &str = r"
local held = redis.call('HMGET', KEYS[1], 'batch', 'chunk', 'of')
local batch, chunk, newest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local fenced = ARGV[4] ~= ''
if fenced and held[1] then
  local held_batch, held_chunk = tonumber(held[1]), tonumber(held[2])
  if held_batch > newest then return held_batch end
  if held_batch == batch and held[3] and held[3] ~= ARGV[5] then return held_batch end
  if held_batch > batch or (held_batch == batch and held_chunk >= chunk) then return -1 end
end
local at = 6
while at <= #ARGV do
  local count = tonumber(ARGV[at + 2])
  redis.call(ARGV[at], KEYS[tonumber(ARGV[at + 1])], unpack(ARGV, at + 3, at + 2 + count))
  at = at + 3 + count
end
if fenced then
  redis.call('HSET', KEYS[1], 'batch', ARGV[1], 'chunk', ARGV[2], 'of', ARGV[5])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return -1
";

fn options() -> Vec<&'static str> {
    vec![
        "connector",
        "url",
        "mode",
        "key",
        "ttl",
        "fields",
        "field",
        "value",
        "member",
        "score",
        "replace",
        "sink.buffer-flush.max-rows",
        "sink.retry.timeout",
        "fence.ttl",
        "sink.delivery-guarantee",
    ]
}

fn build(options: &mut Options, table: &SinkTable) -> Result<Box<dyn Sink>, SqlError> {
    let url = options.required("url", "${env:REDIS_URL}")?;
    let shown = without_password(&url);
    let client = Client::open(url.as_str())
        .map_err(|error| options.error("url", format!("`{shown}` is no Redis address ({error})"), "write redis://host:port"))?;
    let rows = rows(options, table)?;
    let guarantee = options.guarantee(
        Guarantee::ExactlyOnce,
        &[(Guarantee::AtMostOnce, "rows replace each other by key, so a batch that comes again changes nothing", "leave the option out")],
    )?;
    Ok(Box::new(RedisSink {
        rows,
        guarantee,
        output: table.output.clone(),
        fence_ttl_ms: options.duration("fence.ttl")?.unwrap_or(Duration::from_secs(7 * 86_400)).as_millis(),
        retry_timeout: options.duration("sink.retry.timeout")?.unwrap_or(Duration::from_secs(60)),
        client,
        shown,
        script: Script::new(SCRIPT),
        connection: None,
        away_since: None,
    }))
}

/// How rows become commands, by the options.
fn rows(options: &Options, table: &SinkTable) -> Result<Rows, SqlError> {
    let key = template(options, "key", &format!("{}:{}", table.output, keys_of(table)), table)?;
    let others: Vec<usize> = (0..table.schema.fields().len()).filter(|index| !key.columns().any(|column| column == *index)).collect();
    let mode = match options.choice("mode", &["hash", "string", "sorted-set"], "hash")? {
        "string" => Mode::String { value: value(options, table, &others)? },
        "sorted-set" => Mode::SortedSet {
            member: template(options, "member", &keys_of(table), table)?,
            score: column(options, "score", &options.required("score", "<column>")?, &table.schema)?,
            replace: options.boolean("replace", false)?,
        },
        _ => match options.optional("field") {
            Some(field) => {
                let field = Template::parse(options, "field", &field, &table.schema)?;
                let others: Vec<usize> = others.into_iter().filter(|index| !field.columns().any(|column| column == *index)).collect();
                Mode::HashField { field, value: value(options, table, &others)? }
            }
            None => Mode::Hash { fields: fields(options, table, others)? },
        },
    };
    Ok(Rows {
        names: table.schema.fields().iter().map(|field| field.name().clone()).collect(),
        key,
        mode,
        ttl_ms: options.duration("ttl")?.map(|ttl| ttl.as_millis()),
        chunk_rows: options.number("sink.buffer-flush.max-rows", 1, 100_000, 1000)? as usize,
    })
}

fn template(options: &Options, key: &str, example: &str, table: &SinkTable) -> Result<Template, SqlError> {
    Template::parse(options, key, &options.required(key, example)?, &table.schema)
}

/// The columns that tell rows apart, as a template: those of the primary key, or the first.
fn keys_of(table: &SinkTable) -> String {
    let first = table.fields.iter().map(|field| field.name()).take(1);
    let names: Vec<&String> = if table.primary_key.is_empty() { first.collect() } else { table.primary_key.iter().collect() };
    names.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(":")
}

fn value(options: &Options, table: &SinkTable, others: &[usize]) -> Result<usize, SqlError> {
    match (options.optional("value"), others) {
        (Some(name), _) => column(options, "value", &name, &table.schema),
        (None, [only]) => Ok(*only),
        (None, _) => Err(options.error("value", "which column is the value?", "add 'value' = 'column'")),
    }
}

fn fields(options: &Options, table: &SinkTable, others: Vec<usize>) -> Result<Vec<usize>, SqlError> {
    let fields = match options.optional("fields") {
        None => others,
        Some(list) => {
            let names = list.split(';').map(str::trim).filter(|name| !name.is_empty());
            names.map(|name| column(options, "fields", name, &table.schema)).collect::<Result<_, _>>()?
        }
    };
    if fields.is_empty() {
        return Err(options.error("key", "all columns are in the key, so the hash has no fields", "add 'fields' = 'a;b'"));
    }
    Ok(fields)
}

/// For messages: `redis://***@host:6379/0`.
fn without_password(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://***@{host}"),
            None => url.to_owned(),
        },
        None => "the given text".to_owned(),
    }
}

struct RedisSink {
    rows: Rows,
    guarantee: Guarantee,
    output: String,
    fence_ttl_ms: u128,
    retry_timeout: Duration,
    client: Client,
    /// The address as it may be shown.
    shown: String,
    script: Script,
    connection: Option<ConnectionManager>,
    away_since: Option<Duration>,
}

#[async_trait]
impl Sink for RedisSink {
    fn guarantee(&self) -> Guarantee {
        self.guarantee
    }

    async fn write(&mut self, batch: &BatchContext, mut rows: RowStream) -> anyhow::Result<u64> {
        let mut count = 0;
        let mut keys = BTreeMap::new();
        while let Some(next) = rows.next().await {
            let next = next?;
            count += next.num_rows() as u64;
            self.rows.add(&next, &mut keys)?;
        }
        let fence = format!("millrace:fence:{}:{}:{}", batch.job, batch.checkpoint_id, self.output);
        for (index, chunk) in self.rows.chunks(keys).into_iter().enumerate() {
            if !Point::RedisWrite.hits()? {
                self.call(&fence, batch, index, &chunk).await?;
            }
            Point::RedisPartWritten.reach();
        }
        Point::RedisWritten.reach();
        Ok(count)
    }
}

impl RedisSink {
    /// Applies one chunk, waiting for a server that is away. The script is safe to repeat.
    async fn call(&mut self, fence: &str, batch: &BatchContext, chunk: usize, commands: &[Command]) -> anyhow::Result<()> {
        let mut invocation = self.script.prepare_invoke();
        invocation.key(fence);
        let (keys, arguments) = encode(commands);
        for key in keys {
            invocation.key(key);
        }
        let lifetime = if self.guarantee == Guarantee::ExactlyOnce { self.fence_ttl_ms.to_string() } else { String::new() };
        invocation.arg(batch.definition.id).arg(chunk).arg(batch.newest).arg(lifetime).arg(format!("{:08x}", batch.definition.digest()));
        for argument in arguments {
            invocation.arg(argument);
        }
        let clock = batch.clock();
        let began = clock.monotonic();
        let mut backoff = BACKOFF_MIN;
        loop {
            let result: Result<i64, RedisError> = match self.connection.clone() {
                Some(mut connection) => invocation.invoke_async(&mut connection).await,
                None => match connect(&self.client).await {
                    Ok(mut connection) => {
                        self.connection = Some(connection.clone());
                        invocation.invoke_async(&mut connection).await
                    }
                    Err(error) => Err(error),
                },
            };
            match result {
                Ok(ahead) => {
                    if let Some(since) = self.away_since.take() {
                        batch.not_waiting(&self.output);
                        info!(server = self.shown, away_seconds = (clock.monotonic() - since).as_secs(), "redis is back");
                    }
                    let Ok(ahead) = u64::try_from(ahead) else { return Ok(()) };
                    metrics::counter!("millrace_engine_fenced_writes_total", "output" => self.output.clone()).increment(1);
                    return Err(Fenced { output: self.output.clone(), batch: batch.definition.id, ahead }.into());
                }
                Err(error) if is_away(&error) && clock.monotonic() - began < self.retry_timeout => {
                    if self.away_since.is_none() {
                        self.away_since = Some(clock.monotonic());
                        batch.waiting(&self.output, format!("Redis at {} does not answer: {error}", self.shown));
                        warn!(server = self.shown, %error, "redis is away, waiting");
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
                Err(error) => return Err(error).with_context(|| format!("writing `{}` to {}", self.output, self.shown)),
            }
        }
    }
}

async fn connect(client: &Client) -> Result<ConnectionManager, RedisError> {
    // The loop around it waits and retries, in one place and with one bound.
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0)
        .set_connection_timeout(Some(RESPONSE_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT));
    ConnectionManager::new_with_config(client.clone(), config).await
}

/// Whether the server may answer later.
fn is_away(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || matches!(error.code(), Some("LOADING" | "BUSY" | "MASTERDOWN" | "TRYAGAIN"))
}

/// A Redis command on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Command {
    name: &'static str,
    key: String,
    arguments: Vec<String>,
}

impl Command {
    fn new(name: &'static str, key: &str, arguments: impl IntoIterator<Item = String>) -> Self {
        Self { name, key: key.to_owned(), arguments: arguments.into_iter().collect() }
    }
}

/// The commands' keys (after the fence, so the first is KEYS[2]) and arguments.
fn encode(commands: &[Command]) -> (Vec<String>, Vec<String>) {
    let mut keys: Vec<String> = Vec::new();
    let mut arguments = Vec::new();
    for command in commands {
        // Commands of one key stand together.
        if keys.last() != Some(&command.key) {
            keys.push(command.key.clone());
        }
        arguments.push(command.name.to_owned());
        arguments.push((keys.len() + 1).to_string());
        arguments.push(command.arguments.len().to_string());
        arguments.extend(command.arguments.iter().cloned());
    }
    (keys, arguments)
}

/// Rows → commands.
struct Rows {
    names: Vec<String>,
    key: Template,
    mode: Mode,
    ttl_ms: Option<u128>,
    chunk_rows: usize,
}

enum Mode {
    Hash { fields: Vec<usize> },
    HashField { field: Template, value: usize },
    String { value: usize },
    SortedSet { member: Template, score: usize, replace: bool },
}

/// What a row does to its key: pairs to set, names to remove.
type Change = (Vec<String>, Vec<String>);

impl Rows {
    /// Rows by key, in their order.
    fn add(&self, batch: &RecordBatch, keys: &mut BTreeMap<String, Vec<Change>>) -> anyhow::Result<()> {
        let values = Values::new(batch)?;
        for row in 0..batch.num_rows() {
            let mut set = Vec::new();
            let mut remove = Vec::new();
            match &self.mode {
                Mode::Hash { fields } => {
                    for field in fields {
                        match values.get(*field, row)? {
                            Some(value) => set.extend([self.names[*field].clone(), value]),
                            None => remove.push(self.names[*field].clone()),
                        }
                    }
                }
                Mode::HashField { field, value } => match values.get(*value, row)? {
                    Some(value) => set.extend([field.render(&values, row)?, value]),
                    None => remove.push(field.render(&values, row)?),
                },
                Mode::String { value } => set.extend(values.get(*value, row)?),
                Mode::SortedSet { member, score, .. } => {
                    if let Some(score) = values.get(*score, row)? {
                        set.extend([score, member.render(&values, row)?]);
                    }
                }
            }
            keys.entry(self.key.render(&values, row)?).or_default().push((set, remove));
        }
        Ok(())
    }

    /// Commands for at most `chunk_rows` rows each, in the order of the keys; the rows of a key stay together.
    fn chunks(&self, keys: BTreeMap<String, Vec<Change>>) -> Vec<Vec<Command>> {
        let mut chunks = Vec::new();
        let mut chunk = Vec::new();
        let mut rows = 0;
        for (key, changes) in keys {
            if rows > 0 && rows + changes.len() > self.chunk_rows {
                chunks.push(std::mem::take(&mut chunk));
                rows = 0;
            }
            rows += changes.len();
            self.commands(&key, changes, &mut chunk);
        }
        if !chunk.is_empty() {
            chunks.push(chunk);
        }
        chunks
    }

    fn commands(&self, key: &str, changes: Vec<Change>, commands: &mut Vec<Command>) {
        let name = match &self.mode {
            Mode::Hash { .. } | Mode::HashField { .. } => "HSET",
            Mode::String { .. } => "SET",
            Mode::SortedSet { replace, .. } => {
                if *replace {
                    commands.push(Command::new("DEL", key, []));
                }
                "ZADD"
            }
        };
        let mut pending: Vec<String> = Vec::new();
        for (set, remove) in changes {
            let alone = name == "SET";
            if !pending.is_empty() && (alone || !remove.is_empty() || pending.len() + set.len() > ARGUMENTS_MAX) {
                commands.push(Command::new(name, key, std::mem::take(&mut pending)));
            }
            if !remove.is_empty() {
                commands.push(Command::new("HDEL", key, remove));
            }
            pending.extend(set);
        }
        if !pending.is_empty() {
            commands.push(Command::new(name, key, pending));
        }
        if let Some(ttl) = self.ttl_ms {
            commands.push(Command::new("PEXPIRE", key, [ttl.to_string()]));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMillisecondArray};
    use arrow::datatypes::SchemaRef;

    use super::*;
    use crate::sql::error::Place;
    use crate::sql::options::Entry;

    fn batch() -> RecordBatch {
        let columns: Vec<(&str, ArrayRef, bool)> = vec![
            ("ws", Arc::new(TimestampMillisecondArray::from(vec![10_000, 0, 0])), true),
            ("path", Arc::new(StringArray::from(vec![Some("/b"), Some("/a"), None])), true),
            ("n", Arc::new(Int64Array::from(vec![Some(3), Some(2), None])), true),
        ];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    /// The commands of each chunk for a batch, one per line.
    fn chunks(options: &[(&str, &str)]) -> Vec<Vec<String>> {
        let schema: SchemaRef = batch().schema();
        let mut all = vec![("url", "redis://localhost")];
        all.extend(options);
        let entries: Vec<Entry> =
            all.iter().map(|(key, value)| Entry { key: (*key).into(), value: (*value).into(), at: Place::default() }).collect();
        let table = SinkTable {
            output: "t".into(),
            ordinal: 0,
            fields: schema.fields().iter().cloned().collect(),
            schema,
            primary_key: Vec::new(),
        };
        let rows = rows(&Options::new("t", Place::default(), &entries), &table).unwrap();
        let mut keys = BTreeMap::new();
        rows.add(&batch(), &mut keys).unwrap();
        let text = |command: &Command| format!("{} {} {}", command.name, command.key, command.arguments.join(" ")).trim_end().to_owned();
        rows.chunks(keys).iter().map(|chunk| chunk.iter().map(text).collect()).collect()
    }

    #[test]
    fn every_mode_writes_its_commands_in_the_order_of_the_keys() {
        assert_eq!(
            chunks(&[("key", "w:{ws}:{path}"), ("ttl", "1 min")]),
            [[
                "HDEL w:1970-01-01T00:00:00: n",
                "PEXPIRE w:1970-01-01T00:00:00: 60000",
                "HSET w:1970-01-01T00:00:00:/a n 2",
                "PEXPIRE w:1970-01-01T00:00:00:/a 60000",
                "HSET w:1970-01-01T00:00:10:/b n 3",
                "PEXPIRE w:1970-01-01T00:00:10:/b 60000",
            ]]
        );
        assert_eq!(
            chunks(&[("key", "all"), ("field", "{ws}|{path}"), ("value", "n")]).concat(),
            ["HSET all 1970-01-01T00:00:10|/b 3 1970-01-01T00:00:00|/a 2", "HDEL all 1970-01-01T00:00:00|",]
        );
        assert_eq!(chunks(&[("mode", "string"), ("key", "{{{path}}}"), ("value", "n")]).concat(), ["SET {/a} 2", "SET {/b} 3"]);
        assert_eq!(
            chunks(&[("mode", "sorted-set"), ("key", "top:{ws}"), ("member", "{path}"), ("score", "n"), ("replace", "true")]).concat(),
            [
                "DEL top:1970-01-01T00:00:00",
                "ZADD top:1970-01-01T00:00:00 2 /a",
                "DEL top:1970-01-01T00:00:10",
                "ZADD top:1970-01-01T00:00:10 3 /b"
            ]
        );
    }

    #[test]
    fn chunks_are_bounded_and_never_part_the_rows_of_a_key() {
        let sizes = |max: &str| -> Vec<usize> {
            let options = [("key", "w:{ws}"), ("field", "{path}"), ("value", "n"), ("sink.buffer-flush.max-rows", max)];
            chunks(&options).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes("1"), [2, 1], "the two rows of the first key stay together");
        assert_eq!(sizes("3"), [3]);
    }

    #[test]
    fn arguments_name_their_key_by_its_place_behind_the_fence() {
        let command = |name, key: &str, arguments: &[&str]| Command::new(name, key, arguments.iter().map(|a| (*a).to_owned()));
        let (keys, arguments) = encode(&[command("DEL", "a", &[]), command("ZADD", "a", &["1", "x"]), command("DEL", "b", &[])]);
        assert_eq!(keys, ["a", "b"]);
        assert_eq!(arguments, ["DEL", "2", "0", "ZADD", "2", "2", "1", "x", "DEL", "3", "0"]);
    }

    #[test]
    fn a_password_is_never_shown() {
        assert_eq!(without_password("redis://user:secret@host:6379/0"), "redis://***@host:6379/0");
        assert_eq!(without_password("redis://:se@cret@host"), "redis://***@host");
        assert_eq!(without_password("redis://host:6379"), "redis://host:6379");
        assert_eq!(without_password("secret"), "the given text");
    }
}
