//! Offsets in one Redis server, for several processes.
//!
//! Promise: a commit, a reset, a deletion and the forgetting of a topic are one Lua script each. How durable they are is Redis's configuration.
//!
//! | key | |
//! |---|---|
//! | `millrace:offsets:group:GROUP` | hash: `epoch` → number, `TOPIC:PARTITION` → `OFFSET METADATA` |
//! | `millrace:offsets:groups` | set: groups with offsets |
//! | `millrace:offsets:topics` | hash: topic → its id, 32 hexadecimal digits |
//!
//! Bridges of different Kafka clusters take different databases (`redis://host:port/1`). The scripts reach keys that they find in the set, which
//! a Redis Cluster does not allow.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use redis::{
    Client, Cmd, FromRedisValue, RedisError, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::sync::OnceCell;
use tracing::warn;

use super::{
    Calls, GroupOffsets, OffsetCommit, OffsetError, OffsetStore,
    checked::{hex, name, named, valued},
    regressed, validate,
};
use crate::kafka::TopicPartition;

const GROUP: &str = "millrace:offsets:group:";
const GROUPS: &str = "millrace:offsets:groups";
const TOPICS: &str = "millrace:offsets:topics";

/// KEYS: group, groups. ARGV: group, epoch, then partition, offset and metadata of each. Lua's numbers end at 2^53: offsets are compared as digits.
const COMMIT: &str = r"
local current = redis.call('HGET', KEYS[1], 'epoch') or '0'
if ARGV[2] ~= current then return {'fenced', current} end
for at = 3, #ARGV, 3 do
  local held = redis.call('HGET', KEYS[1], ARGV[at])
  if held then
    local stored, given = string.match(held, '^%d+'), ARGV[at + 1]
    if not stored then return {'damaged', ARGV[at]} end
    if #given < #stored or (#given == #stored and given < stored) then return {'regressed', tostring((at - 3) / 3), stored} end
  end
end
for at = 3, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1] .. ' ' .. ARGV[at + 2])
  redis.call('SADD', KEYS[2], ARGV[1])
end
return {'ok'}
";

/// As `COMMIT`, without an epoch; gives the new one.
const RESET: &str = r"
for at = 2, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1] .. ' ' .. ARGV[at + 2])
  redis.call('SADD', KEYS[2], ARGV[1])
end
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
return redis.call('HGET', KEYS[1], 'epoch')
";

/// KEYS: group, groups. ARGV: group. Gives how many offsets there were. The epoch stays: it refuses a commit that is still on its way.
const DELETE: &str = r"
local removed = 0
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if field ~= 'epoch' then removed = removed + redis.call('HDEL', KEYS[1], field) end
end
if removed > 0 then
  redis.call('HINCRBY', KEYS[1], 'epoch', 1)
  redis.call('SREM', KEYS[2], ARGV[1])
end
return removed
";

/// KEYS: groups, topics. ARGV: what begins a group's key, topic, and its id where one is told. Gives the groups that lost offsets.
const FORGET: &str = r"
if ARGV[3] then
  local known = redis.call('HGET', KEYS[2], ARGV[2])
  if known == ARGV[3] then return {} end
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
  if not known then return {} end
end
local lost = {}
for _, group in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local key, removed, left = ARGV[1] .. group, 0, 0
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if field ~= 'epoch' then
      if string.match(field, '^(.*):%d+$') == ARGV[2] then removed = removed + redis.call('HDEL', key, field) else left = left + 1 end
    end
  end
  if removed > 0 then
    redis.call('HINCRBY', key, 'epoch', 1)
    if left == 0 then redis.call('SREM', KEYS[1], group) end
    lost[#lost + 1] = group
  end
end
return lost
";

/// The store at `url`: `redis://[user:password@]host:port[/database]`. It connects with the first call, and again when the server went away.
/// `bound` limits each call. A wrong address is [`OffsetError::Invalid`].
pub fn redis(url: &str, bound: Duration) -> Result<impl OffsetStore + use<>, OffsetError> {
    let wrong =
        |error: RedisError| OffsetError::Invalid(format!("no address of a Redis server ({error}); write redis://host:port/database"));
    let client = Client::open(url).map_err(wrong)?;
    let address = format!("redis://{}/{}", client.get_connection_info().addr(), client.get_connection_info().redis_settings().db());
    Ok(Redis {
        calls: Calls::new("redis", address, bound),
        client,
        connection: OnceCell::new(),
        looked: AtomicBool::new(false),
        commit: Script::new(COMMIT),
        reset: Script::new(RESET),
        delete: Script::new(DELETE),
        forget: Script::new(FORGET),
    })
}

struct Redis {
    calls: Calls,
    client: Client,
    connection: OnceCell<ConnectionManager>,
    /// Whether the server's durability was looked at.
    looked: AtomicBool,
    commit: Script,
    reset: Script,
    delete: Script,
    forget: Script,
}

impl Redis {
    fn error(&self, error: RedisError) -> OffsetError {
        let away = error.is_io_error()
            || error.is_timeout()
            || error.is_connection_dropped()
            || matches!(error.code(), Some("LOADING" | "BUSY" | "MASTERDOWN" | "TRYAGAIN" | "READONLY" | "OOM" | "MISCONF" | "NOREPLICAS"));
        if away { self.calls.away(error) } else { self.calls.storage(error) }
    }

    async fn connection(&self) -> Result<ConnectionManager, OffsetError> {
        // A call that finds no server says so; the next one tries again.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(self.calls.bound))
            .set_response_timeout(Some(self.calls.bound));
        let make = async || ConnectionManager::new_lazy_with_config(self.client.clone(), config);
        self.connection.get_or_try_init(make).await.cloned().map_err(|error| self.error(error))
    }

    async fn ask<T: FromRedisValue>(&self, command: Cmd) -> Result<T, OffsetError> {
        let mut connection = self.connection().await?;
        let answer = self.calls.run(async { command.query_async(&mut connection).await.map_err(|error| self.error(error)) }).await?;
        self.look().await;
        Ok(answer)
    }

    async fn invoke<T: FromRedisValue + Send>(&self, script: &Script, keys: &[&str], arguments: &[String]) -> Result<T, OffsetError> {
        let mut invocation = script.prepare_invoke();
        for key in keys {
            invocation.key(*key);
        }
        for argument in arguments {
            invocation.arg(argument);
        }
        let mut connection = self.connection().await?;
        let answer = self.calls.run(async { invocation.invoke_async(&mut connection).await.map_err(|error| self.error(error)) }).await?;
        self.look().await;
        Ok(answer)
    }

    /// Says once when the server may lose what it answered. One that does not let itself be asked is trusted.
    async fn look(&self) {
        if self.looked.swap(true, Ordering::Relaxed) {
            return;
        }
        let Ok(mut connection) = self.connection().await else { return };
        let told: Result<String, _> = redis::cmd("INFO").query_async(&mut connection).await;
        let Ok(told) = told else { return };
        if told.lines().any(|line| line == "aof_enabled:0") {
            warn!(
                server = self.calls.address,
                "Redis keeps no append-only file: a crash of it loses offsets; set appendonly yes and appendfsync always"
            );
        }
        if told.lines().any(|line| line.starts_with("maxmemory_policy:allkeys")) && !told.lines().any(|line| line == "maxmemory:0") {
            warn!(server = self.calls.address, "Redis may evict offsets when its memory is full; set maxmemory-policy noeviction");
        }
    }
}

#[async_trait]
impl OffsetStore for Redis {
    async fn get(&self, group: &str, partitions: Option<&[TopicPartition]>) -> Result<GroupOffsets, OffsetError> {
        let key = format!("{GROUP}{group}");
        let fields: Vec<(String, Option<String>)> = match partitions {
            None => {
                let all: Vec<(String, String)> = self.ask(redis::cmd("HGETALL").arg(key).take()).await?;
                all.into_iter().map(|(field, value)| (field, Some(value))).collect()
            }
            Some(partitions) => {
                let names: Vec<String> = std::iter::once("epoch".to_owned()).chain(partitions.iter().map(name)).collect();
                let values: Vec<Option<String>> = self.ask(redis::cmd("HMGET").arg(key).arg(&names).take()).await?;
                names.into_iter().zip(values).collect()
            }
        };
        let mut found = GroupOffsets::default();
        for (field, value) in fields {
            let Some(value) = value else { continue };
            let damaged = || self.calls.damaged(&format!("field {field} of {GROUP}{group}"));
            if field == "epoch" {
                found.epoch = value.parse().map_err(|_| damaged())?;
                continue;
            }
            let (partition, stored) = named(&field).zip(valued(&value)).ok_or_else(damaged)?;
            found.offsets.insert(partition, stored);
        }
        Ok(found)
    }

    async fn commit(&self, group: &str, epoch: u64, offsets: &[OffsetCommit]) -> Result<(), OffsetError> {
        validate(group, offsets)?;
        let arguments = [vec![group.to_owned(), epoch.to_string()], triples(offsets)].concat();
        let answer: Vec<String> = self.invoke(&self.commit, &[&format!("{GROUP}{group}"), GROUPS], &arguments).await?;
        let damaged = || self.calls.damaged(&format!("{GROUP}{group} ({})", answer.join(" ")));
        match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["ok"] => Ok(()),
            ["fenced", current] => {
                Err(OffsetError::Fenced { group: group.to_owned(), given: epoch, current: current.parse().map_err(|_| damaged())? })
            }
            ["regressed", index, stored] => {
                let commit = index.parse().ok().and_then(|index: usize| offsets.get(index)).ok_or_else(damaged)?;
                Err(regressed(group, commit, stored.parse().map_err(|_| damaged())?))
            }
            _ => Err(damaged()),
        }
    }

    async fn reset(&self, group: &str, offsets: &[OffsetCommit]) -> Result<u64, OffsetError> {
        validate(group, offsets)?;
        let arguments = [vec![group.to_owned()], triples(offsets)].concat();
        self.invoke(&self.reset, &[&format!("{GROUP}{group}"), GROUPS], &arguments).await
    }

    async fn groups(&self) -> Result<Vec<String>, OffsetError> {
        let mut groups: Vec<String> = self.ask(redis::cmd("SMEMBERS").arg(GROUPS).take()).await?;
        groups.sort_unstable();
        Ok(groups)
    }

    async fn delete(&self, group: &str) -> Result<bool, OffsetError> {
        let removed: u64 = self.invoke(&self.delete, &[&format!("{GROUP}{group}"), GROUPS], &[group.to_owned()]).await?;
        Ok(removed > 0)
    }

    async fn know_topic(&self, topic: &str, id: [u8; 16]) -> Result<Vec<String>, OffsetError> {
        let mut lost: Vec<String> = self.invoke(&self.forget, &[GROUPS, TOPICS], &[GROUP.to_owned(), topic.to_owned(), hex(id)]).await?;
        lost.sort_unstable();
        Ok(lost)
    }

    async fn forget_topic(&self, topic: &str) -> Result<Vec<String>, OffsetError> {
        let mut lost: Vec<String> = self.invoke(&self.forget, &[GROUPS, TOPICS], &[GROUP.to_owned(), topic.to_owned()]).await?;
        lost.sort_unstable();
        Ok(lost)
    }
}

fn triples(offsets: &[OffsetCommit]) -> Vec<String> {
    offsets.iter().flat_map(|commit| [name(&commit.partition), commit.offset.to_string(), commit.metadata.clone()]).collect()
}
