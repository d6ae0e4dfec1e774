//! All groups and their partitions as they were seen last, with what is remembered of them. Facts come in by [`Table::look`], [`Table::take`]
//! and [`Table::settle`], in this order each time; questions are answered as of now. Bounded by `[monitor]`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use service_kit::{
    kafka::{Bounds, GroupRecord, GroupView, TopicPartition, TopicView},
    offsets::StoredOffset,
};

use super::{
    GroupLag, Owner, PartitionLag,
    ring::{Ends, push_commit, slope},
    status::{self, Commit, Status},
};
use crate::config;

/// Total lags kept of a group, for its chart.
const HISTORY: usize = 120;

/// Groups without room that are told apart.
const LEFT_OUT_MAX: usize = 10_000;

pub(crate) struct Table {
    config: config::Monitor,
    groups: BTreeMap<String, Group>,
    ends: HashMap<TopicPartition, Ends>,
    /// Rings, over all groups.
    rings: usize,
    left_out: BTreeSet<String>,
    /// Up to when the log of groups is read: groups are judged as of then, since what they did later is not known. `None` before the first pass.
    seen_ms: Option<i64>,
}

#[derive(Default)]
struct Group {
    view: Option<GroupView>,
    partitions: BTreeMap<TopicPartition, Ring>,
    stored: BTreeMap<TopicPartition, StoredOffset>,
    last_commit_ms: i64,
    /// `(time in ms, total lag)`
    history: VecDeque<(i64, i64)>,
}

#[derive(Default)]
struct Ring {
    commits: VecDeque<Commit>,
    /// `(time in ms, lag)`, one a pass.
    lags: VecDeque<(i64, i64)>,
    /// Offset of the oldest unread record and the time it was written, as its timestamp says.
    written: Option<(i64, i64)>,
}

/// One partition of a group by Burrow's rules, and how its lag moves.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PartitionState {
    pub(crate) partition: TopicPartition,
    pub(crate) owner: Option<Owner>,
    pub(crate) status: Status,
    pub(crate) start: Option<Commit>,
    pub(crate) end: Option<Commit>,
    pub(crate) current_lag: u64,
    /// Share of the ring that is filled, 0 to 1.
    pub(crate) complete: f64,
    pub(crate) pace: Pace,
}

/// How a lag moves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pace {
    /// Age of the oldest unread record in seconds; 0 without lag, `None` where it is not known.
    pub(crate) lag_seconds: Option<f64>,
    /// Records a second by which the lag grows; below 0 it shrinks. `None` before the third look.
    pub(crate) trend: Option<f64>,
    /// Seconds until there is no lag if it goes on like this; `None` unless the lag shrinks.
    pub(crate) catch_up_seconds: Option<f64>,
}

impl Pace {
    fn new(lag: i64, lag_seconds: Option<f64>, trend: Option<f64>) -> Self {
        let lag_seconds = if lag <= 0 { Some(0.0) } else { lag_seconds };
        let catch_up_seconds = match trend {
            _ if lag <= 0 => Some(0.0),
            Some(trend) if trend < 0.0 => Some(lag as f64 / -trend),
            _ => None,
        };
        Self { lag_seconds, trend, catch_up_seconds }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GroupState {
    pub(crate) status: Status,
    /// Share of its partitions whose ring is full, 0 to 1.
    pub(crate) complete: f64,
    pub(crate) partitions: Vec<PartitionState>,
    pub(crate) total_lag: u64,
    /// The oldest of its partitions; their sum; by both.
    pub(crate) pace: Pace,
    pub(crate) history: Vec<(i64, i64)>,
}

impl GroupState {
    /// The partition that is furthest behind.
    pub(crate) fn worst(&self) -> Option<&PartitionState> {
        // The first of equals, as Burrow takes it.
        self.partitions.iter().rev().max_by_key(|partition| partition.current_lag)
    }
}

impl Table {
    pub(crate) fn new(config: config::Monitor) -> Self {
        Self { config, groups: BTreeMap::new(), ends: HashMap::new(), rings: 0, left_out: BTreeSet::new(), seen_ms: None }
    }

    /// Where partitions end now. Partitions that do not exist any more are forgotten, with what groups had read of them.
    pub(super) fn look(&mut self, now_ms: i64, topics: &[TopicView], bounds: &BTreeMap<TopicPartition, Bounds>) {
        let counts: HashMap<&str, usize> = topics.iter().map(|topic| (topic.name.as_str(), topic.partitions.len())).collect();
        let exists = |partition: &TopicPartition| {
            let count = counts.get(&*partition.topic).copied().unwrap_or(0);
            usize::try_from(partition.partition).is_ok_and(|partition| partition < count)
        };
        self.ends.retain(|partition, _| exists(partition));
        for group in self.groups.values_mut() {
            group.partitions.retain(|partition, _| exists(partition));
            group.stored.retain(|partition, _| exists(partition));
        }
        for (partition, bounds) in bounds {
            let ends = self.ends.entry(partition.clone()).or_default();
            ends.push(now_ms, bounds.latest, bounds.earliest, self.config.intervals);
        }
        self.rings = self.groups.values().map(|group| group.partitions.len()).sum();
    }

    /// What a group wrote into Kafka's log of groups.
    pub(super) fn take(&mut self, record: GroupRecord, now_ms: i64) {
        match record {
            GroupRecord::Gone { group } => self.forget(&group),
            GroupRecord::Offset { group, partition, commit: None } => {
                if let Some(group) = self.groups.get_mut(&group)
                    && group.partitions.remove(&partition).is_some()
                {
                    self.rings -= 1;
                }
            }
            GroupRecord::Offset { group, partition, commit: Some(commit) } => {
                if commit.timestamp_ms < now_ms - self.expire_ms() {
                    return;
                }
                if !self.groups.contains_key(&group) && self.groups.len() >= self.config.groups_max {
                    self.leave_out(group);
                    return;
                }
                let end = self.ends.get(&partition).and_then(|ends| ends.known_at(commit.timestamp_ms));
                // A commit beyond the end that is known is ahead of the last look: no lag.
                let lag = end.map(|end| u64::try_from(end - commit.offset).unwrap_or(0));
                let full = self.rings >= self.config.group_partitions_max;
                let found = self.groups.entry(group.clone()).or_default();
                if full && !found.partitions.contains_key(&partition) {
                    self.leave_out(group);
                    return;
                }
                found.last_commit_ms = found.last_commit_ms.max(commit.timestamp_ms);
                self.rings += usize::from(!found.partitions.contains_key(&partition));
                let ring = found.partitions.entry(partition).or_default();
                let commit = Commit { offset: commit.offset, timestamp_ms: commit.timestamp_ms, observed_ms: now_ms, lag };
                let distance_ms = i64::try_from(self.config.min_distance.as_millis()).unwrap_or(i64::MAX);
                push_commit(&mut ring.commits, commit, self.config.intervals, distance_ms);
            }
        }
    }

    fn leave_out(&mut self, group: String) {
        // Only to be counted.
        if self.left_out.len() < LEFT_OUT_MAX {
            self.left_out.insert(group);
        }
    }

    /// Ends a pass: who is in which group, what the offset store has, how much lag there is. Groups that have been silent for too long and have
    /// no members go.
    pub(super) fn settle(
        &mut self,
        seen_ms: i64,
        now_ms: i64,
        views: Vec<GroupView>,
        stored: BTreeMap<String, BTreeMap<TopicPartition, StoredOffset>>,
    ) {
        for group in self.groups.values_mut() {
            group.view = None;
            group.stored.clear();
        }
        for (id, offsets) in stored {
            if self.groups.contains_key(&id) || self.groups.len() < self.config.groups_max {
                self.groups.entry(id).or_default().stored = offsets;
            } else {
                self.leave_out(id);
            }
        }
        for view in views {
            if self.groups.contains_key(&view.id) || self.groups.len() < self.config.groups_max {
                let group = self.groups.entry(view.id.clone()).or_default();
                group.view = Some(view);
            } else {
                self.leave_out(view.id);
            }
        }
        let expired = now_ms - self.expire_ms();
        self.groups.retain(|_, group| {
            if group.last_commit_ms < expired && group.view.as_ref().is_none_or(|view| view.members.is_empty()) {
                group.partitions.clear();
            }
            group.view.is_some() || !group.stored.is_empty() || !group.partitions.is_empty()
        });
        self.rings = self.groups.values().map(|group| group.partitions.len()).sum();
        for group in self.groups.values_mut() {
            let mut total = 0;
            for (partition, ring) in &mut group.partitions {
                let Some(end) = self.ends.get(partition).and_then(Ends::end) else { continue };
                let stored = group.stored.get(partition).map(|stored| stored.offset);
                let Some(committed) = stored.or(ring.commits.back().map(|commit| commit.offset)) else { continue };
                let lag = (end - committed).max(0);
                total += lag;
                push(&mut ring.lags, (now_ms, lag), self.config.intervals);
            }
            push(&mut group.history, (now_ms, total), HISTORY);
        }
        self.seen_ms = Some(seen_ms);
    }

    fn expire_ms(&self) -> i64 {
        i64::try_from(self.config.expire_group.as_millis()).unwrap_or(i64::MAX)
    }

    /// A pass has ended: what is not here does not exist.
    pub(crate) fn is_complete(&self) -> bool {
        self.seen_ms.is_some()
    }

    /// Groups, their partitions, groups without room.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.groups.len(), self.rings, self.left_out.len())
    }

    /// Oldest unread records whose time is not known, one a partition, `max` at most: `(offset, end of the partition)`.
    pub(super) fn unknown_ages(&self, max: usize) -> BTreeMap<TopicPartition, (i64, i64)> {
        let mut wanted = BTreeMap::new();
        for (partition, ring) in self.groups.values().flat_map(|group| &group.partitions) {
            let (Some(ends), Some(commit)) = (self.ends.get(partition), ring.commits.back()) else { continue };
            let offset = commit.offset.max(ends.earliest);
            let known = ends.written_at(offset).is_some() || ring.written.is_some_and(|(of, _)| of == offset);
            if known || ends.end().is_none_or(|end| end <= offset) || wanted.contains_key(partition) {
                continue;
            }
            if let Some(end) = ends.end() {
                wanted.insert(partition.clone(), (offset, end));
            }
            if wanted.len() >= max {
                break;
            }
        }
        wanted
    }

    /// The answers to [`Self::unknown_ages`]: `(offset, time in ms)`.
    pub(super) fn know_ages(&mut self, found: &BTreeMap<TopicPartition, (i64, i64)>) {
        for (partition, ring) in self.groups.values_mut().flat_map(|group| &mut group.partitions) {
            let Some((offset, written_ms)) = found.get(partition) else { continue };
            let earliest = self.ends.get(partition).map_or(0, |ends| ends.earliest);
            if ring.commits.back().is_some_and(|commit| commit.offset.max(earliest) == *offset) {
                ring.written = Some((*offset, *written_ms));
            }
        }
    }

    /// Drops a group from memory; its next commit brings it back.
    pub(crate) fn forget(&mut self, group: &str) {
        if let Some(gone) = self.groups.remove(group) {
            self.rings = self.rings.saturating_sub(gone.partitions.len());
        }
    }

    pub(crate) fn forget_topic(&mut self, group: &str, topic: &str) {
        if let Some(group) = self.groups.get_mut(group) {
            let before = group.partitions.len();
            group.partitions.retain(|partition, _| *partition.topic != *topic);
            self.rings = self.rings.saturating_sub(before - group.partitions.len());
        }
    }

    /// Groups that have committed, ascending.
    pub(crate) fn committed_groups(&self) -> Vec<String> {
        self.groups.iter().filter(|(_, group)| !group.partitions.is_empty()).map(|(id, _)| id.clone()).collect()
    }

    /// Topics with their partitions' ends, ascending.
    pub(crate) fn topics(&self) -> BTreeMap<String, BTreeMap<i32, i64>> {
        let mut topics: BTreeMap<String, BTreeMap<i32, i64>> = BTreeMap::new();
        for (partition, ends) in &self.ends {
            if let Some(end) = ends.end() {
                topics.entry(partition.topic.to_string()).or_default().insert(partition.partition, end);
            }
        }
        topics
    }

    /// Records a second into a topic, as long as it has been looked at.
    pub(crate) fn rate(&self, topic: &str) -> Option<f64> {
        let rates = self.ends.iter().filter(|(partition, _)| *partition.topic == *topic).map(|(_, ends)| ends.rate());
        rates.flatten().reduce(|sum, rate| sum + rate)
    }

    /// Of every topic: records a second into it, and how many groups read it.
    pub(crate) fn use_of_topics(&self) -> (HashMap<String, f64>, HashMap<String, usize>) {
        let (mut rates, mut readers) = (HashMap::new(), HashMap::new());
        for (partition, ends) in &self.ends {
            if let Some(rate) = ends.rate() {
                *rates.entry(partition.topic.to_string()).or_insert(0.0) += rate;
            }
        }
        for group in self.groups.values() {
            let topics: BTreeSet<&str> = group.partitions.keys().map(|partition| &*partition.topic).collect();
            for topic in topics {
                *readers.entry(topic.to_owned()).or_insert(0) += 1;
            }
        }
        (rates, readers)
    }

    /// Groups that read a topic, ascending.
    pub(crate) fn readers(&self, topic: &str) -> Vec<String> {
        let reads = |group: &&Group| group.partitions.keys().any(|partition| *partition.topic == *topic);
        self.groups.iter().filter(|(_, group)| reads(group)).map(|(id, _)| id.clone()).collect()
    }

    /// The commits that are kept, by partition.
    pub(crate) fn commits(&self, group: &str) -> Option<BTreeMap<TopicPartition, Vec<Commit>>> {
        let group = self.groups.get(group)?;
        Some(group.partitions.iter().map(|(partition, ring)| (partition.clone(), ring.commits.iter().copied().collect())).collect())
    }

    /// One group by Burrow's rules; `None` where it never committed.
    pub(crate) fn state(&self, id: &str, now_ms: i64) -> Option<GroupState> {
        let group = self.groups.get(id).filter(|group| !group.partitions.is_empty())?;
        let owners = owners(group.view.as_ref());
        let partitions: Vec<PartitionState> =
            group.partitions.iter().map(|(partition, ring)| self.partition_state(group, partition, ring, &owners, now_ms)).collect();
        let total_lag = partitions.iter().map(|partition| partition.current_lag).sum();
        let full = partitions.iter().filter(|partition| partition.complete >= 1.0).count();
        let oldest = partitions.iter().filter_map(|partition| partition.pace.lag_seconds).reduce(f64::max);
        let trend = partitions.iter().filter_map(|partition| partition.pace.trend).reduce(|sum, trend| sum + trend);
        Some(GroupState {
            status: Status::of_group(partitions.iter().map(|partition| partition.status)),
            complete: full as f64 / partitions.len() as f64,
            total_lag,
            pace: Pace::new(i64::try_from(total_lag).unwrap_or(i64::MAX), oldest, trend),
            partitions,
            history: group.history.iter().copied().collect(),
        })
    }

    fn partition_state(
        &self,
        group: &Group,
        partition: &TopicPartition,
        ring: &Ring,
        owners: &BTreeMap<TopicPartition, Owner>,
        now_ms: i64,
    ) -> PartitionState {
        let commits: Vec<Commit> = ring.commits.iter().copied().collect();
        let ends = self.ends.get(partition);
        let end = ends.and_then(Ends::end);
        let current_lag = match (end, commits.last()) {
            (Some(end), Some(last)) => u64::try_from(end - last.offset).unwrap_or(0),
            _ => 0,
        };
        let complete = commits.len() as f64 / self.config.intervals as f64;
        let recent = ends.map(|ends| ends.recent(self.config.intervals)).unwrap_or_default();
        let status = if complete < self.config.minimum_complete {
            Status::Ok
        } else {
            let seen_ms = self.seen_ms.unwrap_or(now_ms);
            status::of_partition(&commits, &recent, current_lag, seen_ms / 1000, self.config.allowed_lag)
        };
        let committed = group.stored.get(partition).map(|stored| stored.offset).or(commits.last().map(|commit| commit.offset));
        PartitionState {
            partition: partition.clone(),
            owner: owners.get(partition).cloned(),
            status,
            start: commits.first().copied(),
            end: commits.last().copied(),
            current_lag,
            complete,
            pace: self.pace_of(ring, partition, committed, now_ms),
        }
    }

    fn pace_of(&self, ring: &Ring, partition: &TopicPartition, committed: Option<i64>, now_ms: i64) -> Pace {
        let (Some(ends), Some(committed)) = (self.ends.get(partition), committed) else { return Pace::default() };
        let lag = ends.end().map_or(0, |end| (end - committed).max(0));
        // What was deleted before it was read has no age.
        let oldest = committed.max(ends.earliest);
        let written = ends.written_at(oldest).or(ring.written.filter(|(offset, _)| *offset == oldest).map(|(_, at)| at));
        Pace::new(lag, written.map(|at| (now_ms - at).max(0) as f64 / 1000.0), slope(ring.lags.iter()))
    }

    /// How a partition's lag moves; all unknown where nobody has looked.
    pub(crate) fn pace(&self, group: &str, partition: &TopicPartition, committed: Option<i64>, now_ms: i64) -> Pace {
        let ring = self.groups.get(group).and_then(|group| group.partitions.get(partition));
        self.pace_of(ring.unwrap_or(&Ring::default()), partition, committed, now_ms)
    }

    /// Every group, with the store's offsets before Kafka's, partition by partition.
    pub(super) fn all(&self, now_ms: i64) -> Vec<GroupLag> {
        let lag = |(id, group): (&String, &Group)| {
            let view = group.view.clone().unwrap_or_else(|| super::without_members(id.clone()));
            let owners = owners(Some(&view));
            let partitions: BTreeSet<&TopicPartition> = group.partitions.keys().chain(group.stored.keys()).chain(owners.keys()).collect();
            let row = |partition: &TopicPartition| {
                let stored = group.stored.get(partition);
                let committed = group.partitions.get(partition).and_then(|ring| ring.commits.back()).map(|commit| commit.offset);
                Some(PartitionLag {
                    end: self.ends.get(partition)?.end()?,
                    committed: stored.map(|stored| stored.offset).or(committed),
                    metadata: stored.map(|stored| stored.metadata.clone()).unwrap_or_default(),
                    member: owners.get(partition).cloned(),
                    pace: Pace::default(),
                    partition: partition.clone(),
                })
            };
            GroupLag { partitions: partitions.into_iter().filter_map(row).collect(), group: view, state: self.state(id, now_ms) }
        };
        self.groups.iter().map(lag).collect()
    }
}

fn push<T>(ring: &mut VecDeque<T>, item: T, size: usize) {
    if ring.len() >= size {
        ring.pop_front();
    }
    ring.push_back(item);
}

pub(super) fn owners(view: Option<&GroupView>) -> BTreeMap<TopicPartition, Owner> {
    let mut owners = BTreeMap::new();
    for member in view.into_iter().flat_map(|view| &view.members) {
        for partition in &member.assignment {
            owners
                .insert(partition.clone(), Owner { id: member.id.clone(), client_id: member.client_id.clone(), host: member.host.clone() });
        }
    }
    owners
}
