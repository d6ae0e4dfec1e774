//! Gathers what [`crate::topics::lint`] judges a topic by: its settings, who reads it, how much comes in, whether records have keys.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use service_kit::kafka::{Bounds as Ends, Isolation, RangeReader, TopicPartition};

use crate::{
    auth::{self, Kind, Verb},
    error::Result,
    lag::{GroupLag, Lag, now_ms},
    session::Clients,
    topics::{
        Described, Measured, Topics,
        lint::{Facts, Finding, lint},
    },
};

/// Topics that are looked at side by side.
const AT_ONCE: usize = 8;
/// Offsets at a partition's end in which records are looked at for keys.
const SAMPLE: i64 = 20;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Linter {
    pub(crate) topics: Topics,
    pub(crate) lag: Lag,
    pub(crate) clients: Arc<dyn Clients>,
}

impl Linter {
    /// These topics, or all but Kafka's own; ascending by name. `consumers` of 0: as many as are there.
    pub(crate) async fn lint(&self, names: &[String], consumers: u32, producers: u32) -> Result<Vec<(Facts, Vec<Finding>)>> {
        let names: Vec<String> = match names {
            [] => self.topics.list().await?.into_iter().map(|topic| topic.name).filter(|name| !name.starts_with("__")).collect(),
            names => {
                names.iter().try_for_each(|name| auth::check(Verb::DescribeConfigs, Kind::Topic, name))?;
                names.to_vec()
            }
        };
        let names: Vec<String> = names.into_iter().filter(|name| auth::sees(Verb::DescribeConfigs, Kind::Topic, name)).collect();
        let groups = self.lag.all().await?;
        let brokers = u32::try_from(self.topics.cluster().await?.brokers.len()).unwrap_or(u32::MAX);
        // Made for this only: a reader goes on fetching what it has read.
        let reader = self.clients.reader(Isolation::ReadUncommitted).await?;
        let allowed = self.topics.allowed();
        stream::iter(names)
            .map(async |name| {
                let found = self.topics.describe(&name).await?;
                let ends = found.bounds.clone();
                let mut facts = self.facts(found, &groups, brokers);
                facts.producers = producers;
                facts.consumers = if consumers == 0 { facts.consumers } else { consumers };
                facts.keyed = keyed(reader.as_ref(), ends).await;
                let findings = lint(&facts, allowed);
                Ok((facts, findings))
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    /// How busy a topic is, for advice on it or on one like it.
    pub(crate) async fn measured(&self, topic: &str) -> Result<Measured> {
        auth::check(Verb::Describe, Kind::Topic, topic)?;
        self.topics.get(topic).await.map_err(|error| error.of_missing(topic))?;
        Ok(Measured { topic: topic.to_owned(), rate: self.lag.watch().table().rate(topic) })
    }

    fn facts(&self, found: Described, groups: &[GroupLag], brokers: u32) -> Facts {
        let name = found.topic.name.clone();
        let as_u32 = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (mut consumers, mut behind, mut lost) = (0, BTreeMap::new(), BTreeMap::new());
        let table = self.lag.watch().table();
        for group in groups {
            let reads = |partition: &TopicPartition| *partition.topic == *name;
            let members = group.group.members.iter().filter(|member| member.assignment.iter().any(reads)).count();
            // Members without a partition are of the group all the same, where it reads nothing else.
            let only = group.group.members.iter().all(|member| member.assignment.iter().all(reads));
            let members = if members > 0 && only { group.group.members.len() } else { members };
            consumers = consumers.max(as_u32(members));
            for row in group.partitions.iter().filter(|row| reads(&row.partition)) {
                let earliest = found.bounds.get(&row.partition).map_or(0, |bounds| bounds.earliest);
                if let Some(committed) = row.committed.filter(|committed| *committed < earliest) {
                    *lost.entry(group.group.id.clone()).or_insert(0) += earliest - committed;
                }
                if let Some(seconds) = table.pace(&group.group.id, &row.partition, row.committed, now_ms()).lag_seconds {
                    let oldest = behind.entry(group.group.id.clone()).or_insert(0.0_f64);
                    *oldest = oldest.max(seconds);
                }
            }
        }
        Facts {
            partitions: as_u32(found.topic.partitions.len()),
            replicas: found.topic.partitions.iter().map(|partition| as_u32(partition.replicas.len())).collect(),
            brokers,
            config: found.config,
            consumers,
            producers: 0,
            rate: table.rate(&name),
            keyed: None,
            behind,
            lost,
            name,
        }
    }
}

/// By the newest records of the partition that holds most.
async fn keyed(reader: &dyn RangeReader, ends: BTreeMap<TopicPartition, Ends>) -> Option<bool> {
    let (partition, ends) = ends.into_iter().max_by_key(|(_, ends)| ends.latest - ends.earliest)?;
    let mut keyed = None;
    let mut chunks = reader.read(partition, ends.earliest.max(ends.latest - SAMPLE), ends.latest);
    while let Some(Ok(records)) = chunks.next().await {
        for record in records {
            keyed = Some(keyed.unwrap_or(false) || record.key.is_some());
        }
    }
    keyed
}
