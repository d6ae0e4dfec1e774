//! Why a broker refuses a topic's settings. Asked after the refusal only, so that a setting this table does not know yet still gets through.

use std::collections::BTreeMap;

enum Kind {
    Int(i64),
    Ratio,
    Bool,
    OneOf(&'static [&'static str]),
    /// `compact`, `delete`, or both.
    Cleanup,
    Text,
}

use Kind::{Bool, Cleanup, Int, OneOf, Ratio, Text};

/// Kafka 4's topic settings; a number with the least it may be.
const TABLE: &[(&str, Kind)] = &[
    ("cleanup.policy", Cleanup),
    ("compression.gzip.level", Int(-1)),
    ("compression.lz4.level", Int(1)),
    ("compression.type", OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"])),
    ("compression.zstd.level", Int(-131_072)),
    ("delete.retention.ms", Int(0)),
    ("file.delete.delay.ms", Int(0)),
    ("flush.messages", Int(1)),
    ("flush.ms", Int(0)),
    ("follower.replication.throttled.replicas", Text),
    ("index.interval.bytes", Int(0)),
    ("leader.replication.throttled.replicas", Text),
    ("local.retention.bytes", Int(-2)),
    ("local.retention.ms", Int(-2)),
    ("max.compaction.lag.ms", Int(1)),
    ("max.message.bytes", Int(0)),
    ("message.timestamp.after.max.ms", Int(0)),
    ("message.timestamp.before.max.ms", Int(0)),
    ("message.timestamp.type", OneOf(&["CreateTime", "LogAppendTime"])),
    ("min.cleanable.dirty.ratio", Ratio),
    ("min.compaction.lag.ms", Int(0)),
    ("min.insync.replicas", Int(1)),
    ("preallocate", Bool),
    ("remote.copy.disable", Bool),
    ("remote.log.delete.on.disable", Bool),
    ("remote.storage.enable", Bool),
    ("retention.bytes", Int(i64::MIN)),
    ("retention.ms", Int(-1)),
    ("segment.bytes", Int(1_048_576)),
    ("segment.index.bytes", Int(4)),
    ("segment.jitter.ms", Int(0)),
    ("segment.ms", Int(1)),
    ("unclean.leader.election.enable", Bool),
];

/// What is wrong with these settings, all of it, as far as this table can tell.
pub(super) fn reasons(config: &BTreeMap<String, String>) -> String {
    let wrong: Vec<String> = config.iter().filter_map(|(key, value)| reason(key, value)).collect();
    if wrong.is_empty() {
        let keys: Vec<&str> = config.keys().map(String::as_str).collect();
        return format!("the broker refuses one of the settings {}; its own log says which", keys.join(", "));
    }
    wrong.join("; ")
}

fn reason(key: &str, value: &str) -> Option<String> {
    let Some((_, kind)) = TABLE.iter().find(|(name, _)| *name == key) else {
        let (distance, nearest) = TABLE.iter().map(|(name, _)| (strsim::damerau_levenshtein(name, key), *name)).min()?;
        let hint = if distance <= 4 { format!("; did you mean {nearest}?") } else { String::new() };
        return Some(format!("{key} is not a setting of topics{hint}"));
    };
    let expected = match kind {
        Text => return None,
        Int(min) => match value.trim().parse::<i64>() {
            Ok(number) if number >= *min => return None,
            _ if *min == i64::MIN => "a whole number".to_owned(),
            _ => format!("a whole number, {min} or more"),
        },
        Ratio => match value.trim().parse::<f64>() {
            Ok(number) if (0.0..=1.0).contains(&number) => return None,
            _ => "a number from 0 to 1".to_owned(),
        },
        Bool if ["true", "false"].contains(&value.trim()) => return None,
        Bool => "true or false".to_owned(),
        OneOf(choices) if choices.contains(&value.trim()) => return None,
        OneOf(choices) => format!("one of {}", choices.join(", ")),
        Cleanup if value.split(',').all(|part| ["compact", "delete"].contains(&part.trim())) => return None,
        Cleanup => "compact, delete, or compact,delete".to_owned(),
    };
    Some(format!("{key} = {value:?}: expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_setting_is_named_with_what_would_be_right() {
        let config = [
            ("retention.ms", "abc"),
            ("retenton.ms", "1"),
            ("bogus.thing", "1"),
            ("min.cleanable.dirty.ratio", "2"),
            ("cleanup.policy", "burn"),
            ("segment.ms", "0"),
            ("preallocate", "true"),
            ("retention.bytes", "-1"),
        ];
        let text = reasons(&config.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        for part in [
            "retention.ms = \"abc\": expected a whole number, -1 or more",
            "retenton.ms is not a setting of topics; did you mean retention.ms?",
            "bogus.thing is not a setting of topics",
            "min.cleanable.dirty.ratio = \"2\": expected a number from 0 to 1",
            "cleanup.policy = \"burn\": expected compact, delete",
            "segment.ms = \"0\": expected a whole number, 1 or more",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("preallocate") && !text.contains("retention.bytes"), "{text}");
        assert!(reasons(&BTreeMap::from([("retention.ms".to_owned(), "1".to_owned())])).contains("one of the settings retention.ms"));
    }
}
