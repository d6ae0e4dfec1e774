//! The operators' API: topics, groups, brokers.

use std::collections::HashMap;

use proto::control::v1::{
    self as wire, Advice as WireAdvice, AdviseTopicRequest, AdviseTopicResponse, Broker, BrokersRequest, BrokersResponse,
    CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest, DeleteTopicResponse, DescribeTopicRequest, DescribeTopicResponse, Finding,
    Group, GroupLagRequest, GroupLagResponse, GroupLagsRequest, GroupLagsResponse, LagPace, LintTopicsRequest, LintTopicsResponse,
    ListGroupsRequest, ListGroupsResponse, ListTopicsRequest, ListTopicsResponse, OffsetChange, Partition, PartitionLag, PartitionProblem,
    ResetOffsetsRequest, ResetOffsetsResponse, Topic, TopicFindings, bridge_server::Bridge, reset_offsets_request::To,
};
use service_kit::kafka::{GroupView, TopicPartition, TopicView};
use tonic::{Request, Response, Status};

use super::{Services, admin};
use crate::auth::{self, Kind, Verb};
use crate::lag::{GroupLag, Pace, Place, Status as GroupStatus};
use crate::manage;
use crate::topics::{Advice, MIN_ISR, NewTopic, RETENTION, ReplicaState};

#[tonic::async_trait]
impl Bridge for Services {
    async fn list_topics(&self, request: Request<ListTopicsRequest>) -> Result<Response<ListTopicsResponse>, Status> {
        let internal = request.into_inner().include_internal;
        let topics = self.topics.list().await?;
        let topics = topics.iter().filter(|topic| internal || !is_internal(&topic.name)).map(wire_topic).collect();
        Ok(Response::new(ListTopicsResponse { topics }))
    }

    async fn describe_topic(&self, request: Request<DescribeTopicRequest>) -> Result<Response<DescribeTopicResponse>, Status> {
        let name = request.into_inner().name;
        auth::check(Verb::Describe, Kind::Topic, &name)?;
        let found = self.topics.describe(&name).await?;
        let partitions = found.topic.partitions.iter().map(|partition| {
            let bounds = found.bounds.get(&TopicPartition::new(found.topic.name.as_str(), partition.id));
            Partition {
                id: partition.id,
                leader: partition.leader.unwrap_or(-1),
                replicas: partition.replicas.clone(),
                isr: partition.isr.clone(),
                begin_offset: bounds.map_or(-1, |bounds| bounds.earliest),
                end_offset: bounds.map_or(-1, |bounds| bounds.latest),
            }
        });
        let shown = auth::sees(Verb::DescribeConfigs, Kind::Topic, &name);
        let config = found.config.iter().filter(|entry| shown && !entry.is_default);
        let config = config.map(|entry| (entry.name.clone(), entry.value.clone().unwrap_or_else(|| "***".to_owned()))).collect();
        Ok(Response::new(DescribeTopicResponse { partitions: partitions.collect(), topic: Some(wire_topic(&found.topic)), config }))
    }

    async fn create_topic(&self, request: Request<CreateTopicRequest>) -> Result<Response<CreateTopicResponse>, Status> {
        let wanted = request.into_inner();
        let mut config = wanted.config.into_iter().collect::<std::collections::BTreeMap<_, _>>();
        if wanted.retention_ms != 0 {
            config.insert(RETENTION.to_owned(), wanted.retention_ms.to_string());
        }
        if wanted.min_insync_replicas != 0 {
            config.insert(MIN_ISR.to_owned(), wanted.min_insync_replicas.to_string());
        }
        let like = match wanted.like.as_str() {
            "" => None,
            topic => Some(self.linter.measured(topic).await?),
        };
        let name = wanted.name.clone();
        let new = NewTopic {
            name: wanted.name,
            partitions: wanted.partitions,
            replication: wanted.replication,
            consumers: wanted.consumers,
            producers: wanted.producers,
            like,
            config,
            dry_run: wanted.dry_run,
        };
        if !wanted.assignments.is_empty() {
            return Ok(Response::new(admin::create_assigned(&self.topics, new, wanted.assignments).await?));
        }
        let created = self.topics.create(new).await?;
        let topic = Topic { name, partitions: created.partitions, replication: created.replication, ..Topic::default() };
        let config: HashMap<String, String> = created.config.into_iter().collect();
        Ok(Response::new(CreateTopicResponse { topic: Some(topic), config, advice: Some(wire_advice(created.advice)) }))
    }

    async fn delete_topic(&self, request: Request<DeleteTopicRequest>) -> Result<Response<DeleteTopicResponse>, Status> {
        let name = request.into_inner().name;
        auth::check(Verb::Delete, Kind::Topic, &name)?;
        self.topics.delete(&name).await?;
        Ok(Response::new(DeleteTopicResponse {}))
    }

    async fn advise_topic(&self, request: Request<AdviseTopicRequest>) -> Result<Response<AdviseTopicResponse>, Status> {
        let wanted = request.into_inner();
        let measured = match wanted.topic.as_str() {
            "" => None,
            topic => Some(self.linter.measured(topic).await?),
        };
        let advice = self.topics.advise(wanted.consumers, wanted.producers, measured.as_ref()).await?;
        Ok(Response::new(AdviseTopicResponse { advice: Some(wire_advice(advice)) }))
    }

    async fn list_groups(&self, _request: Request<ListGroupsRequest>) -> Result<Response<ListGroupsResponse>, Status> {
        let groups = self.lag.groups().await?.iter().map(wire_group).collect();
        Ok(Response::new(ListGroupsResponse { groups }))
    }

    async fn group_lag(&self, request: Request<GroupLagRequest>) -> Result<Response<GroupLagResponse>, Status> {
        let group = request.into_inner().group;
        auth::check(Verb::Describe, Kind::Group, &group)?;
        let lag = self.lag.of(&group).await?;
        let partitions = lag.partitions.iter().map(|row| PartitionLag {
            topic: row.partition.topic.to_string(),
            partition: row.partition.partition,
            committed: row.committed.unwrap_or(-1),
            end_offset: row.end,
            lag: row.lag().unwrap_or(-1),
            member: row.member.as_ref().map(|owner| owner.id.clone()).unwrap_or_default(),
            pace: Some(wire_pace(row.pace)),
            status: lag.status_of(&row.partition).map_or("", GroupStatus::name).to_owned(),
        });
        Ok(Response::new(GroupLagResponse { partitions: partitions.collect(), ..wire_lag(&lag) }))
    }

    async fn group_lags(&self, _request: Request<GroupLagsRequest>) -> Result<Response<GroupLagsResponse>, Status> {
        let groups = self.lag.all().await?;
        Ok(Response::new(GroupLagsResponse { groups: groups.iter().map(wire_lag).collect() }))
    }

    async fn reset_offsets(&self, request: Request<ResetOffsetsRequest>) -> Result<Response<ResetOffsetsResponse>, Status> {
        let ResetOffsetsRequest { group, topic, to, dry_run } = request.into_inner();
        let place = match to {
            Some(To::Earliest(true)) => Place::Earliest,
            Some(To::Latest(true)) => Place::Latest,
            Some(To::Offset(offset)) if offset >= 0 => Place::Offset(offset),
            Some(To::TimestampMs(timestamp_ms)) if timestamp_ms >= 0 => Place::Time(timestamp_ms),
            _ => return Err(Status::invalid_argument("to is missing: give earliest, latest, an offset or a time, 0 or above")),
        };
        let changes = self.resets.reset(&group, &topic, place, dry_run).await?.into_iter();
        let partitions =
            changes.map(|change| OffsetChange { partition: change.partition, from: change.from, to: change.to, end_offset: change.end });
        Ok(Response::new(ResetOffsetsResponse { partitions: partitions.collect() }))
    }

    async fn brokers(&self, _request: Request<BrokersRequest>) -> Result<Response<BrokersResponse>, Status> {
        let found = self.topics.brokers().await?;
        let racks = manage::racks(&self.kafka).await?;
        let brokers = found.cluster.brokers.iter().map(|broker| {
            let load = found.load.get(&broker.id).copied().unwrap_or_default();
            let balance = found.health.balance.get(&broker.id).copied().unwrap_or_default();
            Broker {
                id: broker.id,
                host: broker.host.clone(),
                port: i32::from(broker.port),
                controller: found.cluster.controller == Some(broker.id),
                partitions: load.partitions,
                leaders: load.leaders,
                log_bytes: load.log_bytes.unwrap_or(-1),
                preferred: balance.preferred,
                leader_imbalance: balance.imbalance(),
                rack: racks.get(&broker.id).cloned().unwrap_or_default(),
            }
        });
        let problems = found.health.problems.iter().map(|problem| PartitionProblem {
            topic: problem.topic.clone(),
            partition: problem.partition,
            kind: problem.kind.name().to_owned(),
            leader: problem.leader.unwrap_or(-1),
            replicas: problem.replicas.clone(),
            isr: problem.isr.clone(),
            min_isr: problem.min_isr,
        });
        Ok(Response::new(BrokersResponse {
            brokers: brokers.collect(),
            cluster_id: found.cluster.id.clone().unwrap_or_default(),
            under_replicated: found.health.under_replicated,
            offline: found.health.offline,
            under_min_isr: found.health.under_min_isr,
            not_preferred: found.health.not_preferred,
            problems: problems.collect(),
        }))
    }

    async fn lint_topics(&self, request: Request<LintTopicsRequest>) -> Result<Response<LintTopicsResponse>, Status> {
        let LintTopicsRequest { topics, consumers, producers } = request.into_inner();
        let found = self.linter.lint(&topics, consumers, producers).await?.into_iter().map(|(facts, findings)| TopicFindings {
            topic: facts.name,
            records_per_second: facts.rate,
            keyed: facts.keyed,
            consumers: facts.consumers,
            findings: findings
                .into_iter()
                .map(|finding| Finding {
                    level: finding.level.name().to_owned(),
                    rule: finding.rule.to_owned(),
                    message: finding.message,
                    remedy: finding.remedy,
                })
                .collect(),
        });
        Ok(Response::new(LintTopicsResponse { topics: found.collect() }))
    }

    async fn add_partitions(&self, request: Request<wire::AddPartitionsRequest>) -> Result<Response<wire::AddPartitionsResponse>, Status> {
        Ok(Response::new(admin::add_partitions(self, request.into_inner()).await?))
    }

    async fn describe_topic_configs(
        &self,
        request: Request<wire::DescribeTopicConfigsRequest>,
    ) -> Result<Response<wire::DescribeTopicConfigsResponse>, Status> {
        Ok(Response::new(admin::describe_topic_configs(self, request.into_inner()).await?))
    }

    async fn alter_topic_configs(
        &self,
        request: Request<wire::AlterTopicConfigsRequest>,
    ) -> Result<Response<wire::AlterTopicConfigsResponse>, Status> {
        Ok(Response::new(admin::alter_topic_configs(self, request.into_inner()).await?))
    }

    async fn describe_broker_configs(
        &self,
        request: Request<wire::DescribeBrokerConfigsRequest>,
    ) -> Result<Response<wire::DescribeBrokerConfigsResponse>, Status> {
        Ok(Response::new(admin::describe_broker_configs(self, request.into_inner()).await?))
    }

    async fn alter_broker_configs(
        &self,
        request: Request<wire::AlterBrokerConfigsRequest>,
    ) -> Result<Response<wire::AlterBrokerConfigsResponse>, Status> {
        Ok(Response::new(admin::alter_broker_configs(self, request.into_inner()).await?))
    }

    async fn list_replicas(&self, request: Request<wire::ListReplicasRequest>) -> Result<Response<wire::ListReplicasResponse>, Status> {
        Ok(Response::new(admin::list_replicas(self, request.into_inner()).await?))
    }

    async fn list_reassignments(
        &self,
        request: Request<wire::ListReassignmentsRequest>,
    ) -> Result<Response<wire::ListReassignmentsResponse>, Status> {
        Ok(Response::new(admin::list_reassignments(self, request.into_inner()).await?))
    }

    async fn describe_group(&self, request: Request<wire::DescribeGroupRequest>) -> Result<Response<wire::DescribeGroupResponse>, Status> {
        Ok(Response::new(admin::describe_group(self, request.into_inner()).await?))
    }

    async fn list_acls(&self, request: Request<wire::ListAclsRequest>) -> Result<Response<wire::ListAclsResponse>, Status> {
        Ok(Response::new(admin::list_acls(self, request.into_inner()).await?))
    }

    async fn create_acls(&self, request: Request<wire::CreateAclsRequest>) -> Result<Response<wire::CreateAclsResponse>, Status> {
        Ok(Response::new(admin::create_acls(self, request.into_inner()).await?))
    }

    async fn delete_acls(&self, request: Request<wire::DeleteAclsRequest>) -> Result<Response<wire::DeleteAclsResponse>, Status> {
        Ok(Response::new(admin::delete_acls(self, request.into_inner()).await?))
    }
}

/// A group without its partitions.
fn wire_lag(lag: &GroupLag) -> GroupLagResponse {
    GroupLagResponse {
        group: Some(wire_group(&lag.group)),
        total_lag: lag.total(),
        partitions: Vec::new(),
        pace: Some(wire_pace(lag.pace())),
        status: lag.state.as_ref().map_or("", |state| state.status.name()).to_owned(),
    }
}

fn wire_pace(pace: Pace) -> LagPace {
    LagPace { lag_seconds: pace.lag_seconds, trend: pace.trend, catch_up_seconds: pace.catch_up_seconds }
}

/// Kafka's own topics begin so.
fn is_internal(name: &str) -> bool {
    name.starts_with("__")
}

pub(super) fn wire_topic(topic: &TopicView) -> Topic {
    let state = ReplicaState::of([topic]);
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Topic {
        name: topic.name.clone(),
        partitions: count(topic.partitions.len()),
        replication: count(topic.partitions.first().map_or(0, |partition| partition.replicas.len())),
        under_replicated: state.under_replicated,
        offline: state.offline,
        internal: is_internal(&topic.name),
    }
}

fn wire_advice(advice: Advice) -> WireAdvice {
    WireAdvice {
        partitions: advice.partitions,
        replication: advice.replication,
        min_insync_replicas: advice.min_insync_replicas,
        reasons: advice.reasons,
    }
}

pub(super) fn wire_group(group: &GroupView) -> Group {
    Group {
        id: group.id.clone(),
        state: group.state.clone(),
        members: u32::try_from(group.members.len()).unwrap_or(u32::MAX),
        protocol: group.protocol.clone(),
    }
}
