//! What a stream keeps from batch to batch, and how it stands in a checkpoint.
//!
//! Values are MessagePack with the names of their fields. So a type may gain fields that have `#[serde(default)]`, lose
//! fields, and widen its integers, and what older programs stored is still read.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use super::rdd::{Data, Key, Rdd};
use super::shuffle;

/// What can be kept in a checkpoint: keys and values of streams with state.
pub trait StateValue: Data + Serialize + DeserializeOwned {}
impl<T: Data + Serialize + DeserializeOwned> StateValue for T {}

/// What a stream's state is called in checkpoints.
pub(super) struct Uid {
    /// `<operation>-<n>`: the n-th of its kind in the program.
    default: String,
    given: OnceLock<String>,
}

impl Uid {
    pub(super) fn new(default: String) -> Self {
        Self { default, given: OnceLock::new() }
    }

    pub(super) fn name(&self) -> &str {
        self.given.get().unwrap_or(&self.default)
    }

    /// False when it has another one already.
    pub(super) fn give(&self, name: &str) -> bool {
        self.given.get_or_init(|| name.into()) == name
    }
}

type Encode<T> = fn(&T, &mut Vec<u8>) -> anyhow::Result<()>;
type Decode<T> = Box<dyn Fn(&[u8]) -> anyhow::Result<Rdd<T>> + Send + Sync>;

/// Makes a stream's values last: what it had at the times that may be asked for again goes into each checkpoint.
pub(super) struct Durable<T> {
    pub(super) uid: Arc<Uid>,
    /// A second stream over the same state has a name of its own.
    pub(super) part: &'static str,
    /// A time's values are computed from those of the time before.
    pub(super) chained: bool,
    encode: Encode<T>,
    decode: Decode<T>,
    /// By time, so that values that stay are encoded once.
    encoded: Mutex<BTreeMap<i64, Bytes>>,
}

impl<T: Data> Durable<T> {
    pub(super) fn new(uid: Arc<Uid>, encode: Encode<T>, decode: impl Fn(&[u8]) -> anyhow::Result<Rdd<T>> + Send + Sync + 'static) -> Self {
        Self { uid, part: "", chained: true, encode, decode: Box::new(decode), encoded: Mutex::default() }
    }

    /// Not the state itself but what else a stream gives of it.
    pub(super) fn beside(self, part: &'static str) -> Self {
        Self { part, chained: false, ..self }
    }

    pub(super) fn name(&self) -> String {
        format!("{}{}", self.uid.name(), self.part)
    }

    /// The values of these times, which must have been computed.
    pub(super) fn save(&self, times: &BTreeMap<i64, Rdd<T>>) -> anyhow::Result<BTreeMap<i64, Bytes>> {
        let mut encoded = self.encoded.lock();
        encoded.retain(|time_ms, _| times.contains_key(time_ms));
        for (time_ms, rdd) in times {
            if encoded.contains_key(time_ms) {
                continue;
            }
            let mut bytes = Vec::new();
            let mut result = Ok(());
            let complete = rdd.data.visit(&mut |value| {
                if result.is_ok() {
                    result = (self.encode)(value, &mut bytes);
                }
            });
            result.map_err(|error| error.context(format!("state `{}` cannot be written", self.name())))?;
            anyhow::ensure!(complete, "state `{}` at {time_ms} ms was not computed", self.name());
            encoded.insert(*time_ms, bytes.into());
        }
        Ok(encoded.clone())
    }

    pub(super) fn load(&self, saved: &BTreeMap<i64, Bytes>) -> anyhow::Result<BTreeMap<i64, Rdd<T>>> {
        let decode = |bytes| {
            (self.decode)(bytes).map_err(|error| {
                error.context(format!(
                    "state `{}` in the checkpoint cannot be read as this program's type (a new field needs #[serde(default)])",
                    self.name()
                ))
            })
        };
        let times = saved.iter().map(|(time_ms, bytes)| Ok((*time_ms, decode(bytes)?))).collect::<anyhow::Result<_>>()?;
        *self.encoded.lock() = saved.clone();
        Ok(times)
    }
}

impl<K: Key + StateValue, V: StateValue> Durable<(K, V)> {
    /// Pairs, by their keys in `partitions` partitions.
    pub(super) fn pairs(uid: Arc<Uid>, partitions: usize) -> Self {
        Self::new(uid, write, move |bytes| Ok(Rdd::from_partitions(shuffle::place(read(bytes)?, partitions))))
    }
}

/// One value after the others.
pub(super) fn write<R: Serialize>(value: &R, bytes: &mut Vec<u8>) -> anyhow::Result<()> {
    Ok(value.serialize(&mut rmp_serde::Serializer::new(bytes).with_struct_map())?)
}

/// Every value that [`write`] wrote.
pub(super) fn read<R: DeserializeOwned>(mut bytes: &[u8]) -> anyhow::Result<Vec<R>> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        values.push(rmp_serde::from_read(&mut bytes)?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Serialize)]
    enum KindThen {
        _Open,
        Closed { at: u32 },
    }

    #[derive(Serialize)]
    struct Then {
        count: u8,
        gone: String,
        kind: KindThen,
        by_host: BTreeMap<(u8, u8), f64>,
    }

    #[derive(Debug, Deserialize)]
    enum KindNow {
        _New,
        Closed { at: u64 },
    }

    #[derive(Debug, Deserialize)]
    struct Now {
        #[serde(default = "seven")]
        added: u32,
        kind: KindNow,
        by_host: BTreeMap<(u8, u8), f64>,
        count: u64,
    }

    fn seven() -> u32 {
        7
    }

    #[test]
    fn a_type_may_gain_lose_move_and_widen_fields() {
        let mut bytes = Vec::new();
        for count in [1, 2] {
            let by_host = BTreeMap::from([((1, 2), f64::NAN)]);
            write(&Then { count, gone: "x".into(), kind: KindThen::Closed { at: 5 }, by_host }, &mut bytes).unwrap();
        }
        let now: Vec<Now> = read(&bytes).unwrap();
        assert_eq!(now.len(), 2);
        let second = &now[1];
        assert_eq!((second.added, second.count), (7, 2));
        assert!(matches!(second.kind, KindNow::Closed { at: 5 }));
        assert!(second.by_host[&(1, 2)].is_nan());
    }

    #[test]
    fn a_field_without_default_is_named() {
        let mut bytes = Vec::new();
        write(&BTreeMap::from([("count", 1)]), &mut bytes).unwrap();
        let error = read::<Now>(&bytes).err().unwrap().to_string();
        assert!(error.contains("missing field `kind`"), "{error}");
        assert!(read::<u64>(&bytes[..bytes.len() - 1]).is_err());
    }
}
