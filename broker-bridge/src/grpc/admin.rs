//! Topics' partitions, settings of topics and brokers, replicas, groups' members and access control lists; what Confluent's v3 has by HTTP.

use std::collections::{BTreeMap, HashMap};

use proto::control::v1::{
    Acl as WireAcl, AddPartitionsRequest, AddPartitionsResponse, AlterBrokerConfigsRequest, AlterBrokerConfigsResponse,
    AlterTopicConfigsRequest, AlterTopicConfigsResponse, ConfigEntry, ConfigSynonym, CreateAclsRequest, CreateAclsResponse,
    CreateTopicResponse, DeleteAclsRequest, DeleteAclsResponse, DescribeBrokerConfigsRequest, DescribeBrokerConfigsResponse,
    DescribeGroupRequest, DescribeGroupResponse, DescribeTopicConfigsRequest, DescribeTopicConfigsResponse, GroupMember, ListAclsRequest,
    ListAclsResponse, ListReassignmentsRequest, ListReassignmentsResponse, ListReplicasRequest, ListReplicasResponse, Reassignment,
    Replica, ReplicaAssignment, Topic, TopicConfigs, TopicPartition,
};
use service_kit::kafka::{Acl, ConfigChange, ConfigDetail, ConfigOf};

use super::{
    Services,
    control::{wire_group, wire_topic},
};
use crate::{
    auth::{self, Kind, Verb},
    error::{BridgeError, Code, Result},
    lag::{coordinator, instances, offsets_topic},
    manage::{self, ANY, AclNames, MUST_BE_SAID},
    topics::{NewTopic, Topics},
};

fn unprocessable<T>(message: impl Into<String>) -> Result<T> {
    Err(BridgeError::new(Code::Unprocessable, message))
}

// === Partitions and replicas ===

pub(super) async fn create_assigned(topics: &Topics, new: NewTopic, assignments: Vec<ReplicaAssignment>) -> Result<CreateTopicResponse> {
    let mut by_partition: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for ReplicaAssignment { partition, brokers } in assignments {
        if by_partition.insert(partition, brokers).is_some() {
            return unprocessable(format!("assignments name partition {partition} twice; name each once"));
        }
    }
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let replication = by_partition.values().next().map_or(0, Vec::len);
    let topic =
        Topic { name: new.name.clone(), partitions: count(by_partition.len()), replication: count(replication), ..Topic::default() };
    let config = topics.create_assigned(new, &by_partition).await?;
    Ok(CreateTopicResponse { topic: Some(topic), config: config.into_iter().collect(), advice: None })
}

pub(super) async fn add_partitions(services: &Services, request: AddPartitionsRequest) -> Result<AddPartitionsResponse> {
    let AddPartitionsRequest { topic, partitions } = request;
    auth::check(Verb::Alter, Kind::Topic, &topic)?;
    Ok(AddPartitionsResponse { topic: Some(wire_topic(&services.topics.grow(&topic, partitions).await?)) })
}

pub(super) async fn list_replicas(services: &Services, request: ListReplicasRequest) -> Result<ListReplicasResponse> {
    let broker = known_broker(services, request.broker).await?;
    let mut replicas = Vec::new();
    for topic in services.topics.list().await? {
        let held = topic.partitions.iter().filter(|partition| partition.replicas.contains(&broker));
        replicas.extend(held.map(|partition| Replica {
            topic: topic.name.clone(),
            partition: partition.id,
            is_leader: partition.leader == Some(broker),
            in_sync: partition.isr.contains(&broker),
        }));
    }
    Ok(ListReplicasResponse { replicas })
}

pub(super) async fn list_reassignments(services: &Services, request: ListReassignmentsRequest) -> Result<ListReassignmentsResponse> {
    let wanted = request.topic;
    if wanted.is_empty() {
        services.topics.cluster().await?;
    } else {
        auth::check(Verb::Describe, Kind::Topic, &wanted)?;
        services.topics.check(&wanted, None).await.map_err(|error| error.of_missing(&wanted))?;
    }
    let mut under_way = services.kafka.of_caller()?.manage().reassignments().await?;
    under_way.retain(|moved| (wanted.is_empty() || wanted == moved.topic) && auth::sees(Verb::Describe, Kind::Topic, &moved.topic));
    let reassignments = under_way.into_iter().map(|moved| Reassignment {
        topic: moved.topic,
        partition: moved.partition,
        replicas: moved.replicas,
        adding: moved.adding,
        removing: moved.removing,
    });
    Ok(ListReassignmentsResponse { reassignments: reassignments.collect() })
}

/// The id, of a broker that is there.
async fn known_broker(services: &Services, id: i32) -> Result<i32> {
    let brokers = services.topics.cluster().await?.brokers;
    if brokers.iter().any(|broker| broker.id == id) {
        return Ok(id);
    }
    let known = brokers.iter().map(|broker| broker.id.to_string()).collect::<Vec<_>>().join(", ");
    Err(BridgeError::new(Code::NoRoute, format!("the cluster has no broker {id}; it has {known}")))
}

// === Settings ===

fn wire_configs(configs: Vec<ConfigDetail>) -> Vec<ConfigEntry> {
    let wire = |config: ConfigDetail| ConfigEntry {
        is_default: config.is_default(),
        name: config.name,
        value: config.value,
        read_only: config.is_read_only,
        sensitive: config.is_sensitive,
        source: config.source.to_owned(),
        synonyms: config
            .synonyms
            .into_iter()
            .map(|one| ConfigSynonym { name: one.name, value: one.value, source: one.source.to_owned() })
            .collect(),
    };
    configs.into_iter().map(wire).collect()
}

fn changes(set: HashMap<String, String>, delete: Vec<String>) -> Result<Vec<ConfigChange>> {
    if set.is_empty() && delete.is_empty() {
        return unprocessable("set and delete are empty; name at least one setting");
    }
    if let Some(name) = delete.iter().find(|name| set.contains_key(*name)) {
        return unprocessable(format!("{name:?} is in set and in delete; keep one"));
    }
    let set = set.into_iter().map(|(name, value)| ConfigChange { name, value: Some(value) });
    Ok(set.chain(delete.into_iter().map(|name| ConfigChange { name, value: None })).collect())
}

pub(super) async fn describe_topic_configs(
    services: &Services,
    request: DescribeTopicConfigsRequest,
) -> Result<DescribeTopicConfigsResponse> {
    let mut topics = request.topics;
    for topic in &topics {
        auth::check(Verb::DescribeConfigs, Kind::Topic, topic)?;
        services.topics.check(topic, None).await.map_err(|error| error.of_missing(topic))?;
    }
    if topics.is_empty() {
        topics = services.topics.list().await?.into_iter().map(|topic| topic.name).collect();
        topics.retain(|topic| auth::sees(Verb::DescribeConfigs, Kind::Topic, topic));
    }
    let of: Vec<ConfigOf<'_>> = topics.iter().map(|topic| ConfigOf::Topic(topic)).collect();
    let found = services.kafka.of_caller()?.manage().configs(&of).await?;
    let topics = topics.into_iter().zip(found).map(|(topic, configs)| TopicConfigs { topic, configs: wire_configs(configs) });
    Ok(DescribeTopicConfigsResponse { topics: topics.collect() })
}

pub(super) async fn alter_topic_configs(services: &Services, request: AlterTopicConfigsRequest) -> Result<AlterTopicConfigsResponse> {
    let AlterTopicConfigsRequest { topic, set, delete, dry_run } = request;
    auth::check(Verb::AlterConfigs, Kind::Topic, &topic)?;
    let changes = changes(set, delete)?;
    services.topics.check(&topic, None).await.map_err(|error| error.of_missing(&topic))?;
    manage::alter_configs(&services.kafka, ConfigOf::Topic(&topic), &changes, dry_run).await?;
    Ok(AlterTopicConfigsResponse {})
}

async fn of_broker(services: &Services, broker: Option<i32>) -> Result<ConfigOf<'static>> {
    match broker {
        Some(id) => Ok(ConfigOf::Broker(known_broker(services, id).await?)),
        None => {
            services.topics.cluster().await?;
            Ok(ConfigOf::AllBrokers)
        }
    }
}

pub(super) async fn describe_broker_configs(
    services: &Services,
    request: DescribeBrokerConfigsRequest,
) -> Result<DescribeBrokerConfigsResponse> {
    let of = of_broker(services, request.broker).await?;
    let found = services.kafka.of_caller()?.manage().configs(&[of]).await?.pop();
    Ok(DescribeBrokerConfigsResponse { configs: wire_configs(found.unwrap_or_default()) })
}

pub(super) async fn alter_broker_configs(services: &Services, request: AlterBrokerConfigsRequest) -> Result<AlterBrokerConfigsResponse> {
    let AlterBrokerConfigsRequest { broker, set, delete, dry_run } = request;
    let changes = changes(set, delete)?;
    manage::alter_configs(&services.kafka, of_broker(services, broker).await?, &changes, dry_run).await?;
    Ok(AlterBrokerConfigsResponse {})
}

// === Groups ===

pub(super) async fn describe_group(services: &Services, request: DescribeGroupRequest) -> Result<DescribeGroupResponse> {
    let id = request.group;
    auth::check(Verb::Describe, Kind::Group, &id)?;
    let group = services.lag.of(&id).await?.group;
    let coordinator = offsets_topic(&services.topics).await.and_then(|offsets| coordinator(&offsets, &id));
    let mut instances = instances(&services.kafka, coordinator, &group).await?;
    let members = group.members.iter().map(|member| GroupMember {
        id: member.id.clone(),
        instance_id: instances.remove(&member.id).unwrap_or_default(),
        client_id: member.client_id.clone(),
        assignment: member.assignment.iter().map(|of| TopicPartition { topic: of.topic.to_string(), partition: of.partition }).collect(),
    });
    Ok(DescribeGroupResponse { members: members.collect(), group: Some(wire_group(&group)), coordinator })
}

// === Access control lists ===

fn names(acl: WireAcl) -> AclNames {
    let WireAcl { resource_type, resource_name, pattern_type, principal, host, operation, permission } = acl;
    AclNames { resource_type, resource_name, pattern_type, principal, host, operation, permission }
}

fn wire_acl(acl: &Acl) -> WireAcl {
    let AclNames { resource_type, resource_name, pattern_type, principal, host, operation, permission } = acl.into();
    WireAcl { resource_type, resource_name, pattern_type, principal, host, operation, permission }
}

pub(super) async fn list_acls(services: &Services, request: ListAclsRequest) -> Result<ListAclsResponse> {
    let filter = names(request.filter.unwrap_or_default()).filter(ANY)?;
    services.topics.cluster().await?;
    let acls = manage::acls(&services.kafka, &filter).await?;
    Ok(ListAclsResponse { acls: acls.iter().map(wire_acl).collect() })
}

pub(super) async fn create_acls(services: &Services, request: CreateAclsRequest) -> Result<CreateAclsResponse> {
    if request.acls.is_empty() {
        return unprocessable("acls is empty; send at least one entry");
    }
    let acls = request.acls.into_iter().map(|acl| names(acl).acl()).collect::<Result<Vec<_>>>()?;
    services.topics.cluster().await?;
    manage::create_acls(&services.kafka, &acls).await?;
    Ok(CreateAclsResponse {})
}

pub(super) async fn delete_acls(services: &Services, request: DeleteAclsRequest) -> Result<DeleteAclsResponse> {
    let filter = names(request.filter.unwrap_or_default()).filter(MUST_BE_SAID)?;
    services.topics.cluster().await?;
    let acls = manage::delete_acls(&services.kafka, &filter).await?;
    Ok(DeleteAclsResponse { acls: acls.iter().map(wire_acl).collect() })
}
