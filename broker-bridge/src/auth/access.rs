//! What an operation needs: a verb on a kind of thing. The verbs are Kafka's.

/// What is done. Reading, writing, deleting and altering include describing; altering configurations includes reading them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    Read,
    Write,
    Describe,
    Create,
    Delete,
    Alter,
    DescribeConfigs,
    AlterConfigs,
}

impl Verb {
    pub(crate) const ALL: [Self; 8] =
        [Self::Read, Self::Write, Self::Describe, Self::Create, Self::Delete, Self::Alter, Self::DescribeConfigs, Self::AlterConfigs];

    /// As policies write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Describe => "describe",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Alter => "alter",
            Self::DescribeConfigs => "describe-configs",
            Self::AlterConfigs => "alter-configs",
        }
    }
}

/// To what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Topic,
    Group,
    Subject,
    /// There is one, and it has no name.
    Cluster,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Topic, Self::Group, Self::Subject, Self::Cluster];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Group => "group",
            Self::Subject => "subject",
            Self::Cluster => "cluster",
        }
    }
}

/// What a route or a gRPC method needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nobody is asked who they are.
    Open,
    /// Anybody who is known.
    Known,
    Cluster(Verb),
    /// The thing that this parameter of the path names.
    Of(Verb, Kind, &'static str),
    /// At least one thing of the kind. Which ones, the body says, or the answer holds: they are asked about where they are used.
    Any(Verb, Kind),
    /// All there are and will be.
    All(Verb, Kind),
}

pub(crate) const OPEN: Access = Access::Open;
pub(crate) const KNOWN: Access = Access::Known;

pub(crate) fn on_topic(verb: Verb) -> Access {
    Access::Of(verb, Kind::Topic, "topic")
}

pub(crate) fn on_group(verb: Verb) -> Access {
    Access::Of(verb, Kind::Group, "group")
}

pub(crate) fn on_subject(verb: Verb) -> Access {
    Access::Of(verb, Kind::Subject, "subject")
}

pub(crate) fn on_cluster(verb: Verb) -> Access {
    Access::Cluster(verb)
}

pub(crate) fn on_any(verb: Verb, kind: Kind) -> Access {
    Access::Any(verb, kind)
}

pub(crate) fn on_all(verb: Verb, kind: Kind) -> Access {
    Access::All(verb, kind)
}

/// Every gRPC method of the control port. One that is not here is refused. The messages name topics and groups, so those are asked about where
/// they are used.
#[rustfmt::skip] // a table: one line a method
pub(crate) const METHODS: &[(&str, Access)] = &[
    ("/millrace.data.v1.BridgeData/Produce", Access::Any(Verb::Write, Kind::Topic)),
    ("/millrace.data.v1.BridgeData/ProduceStream", Access::Any(Verb::Write, Kind::Topic)),
    ("/millrace.data.v1.BridgeData/Consume", Access::Any(Verb::Read, Kind::Topic)),
    ("/millrace.data.v1.BridgeData/ProduceAtomically", Access::Any(Verb::Write, Kind::Topic)),
    ("/millrace.data.v1.BridgeData/BeginTransaction", Access::Any(Verb::Write, Kind::Topic)),
    ("/millrace.data.v1.BridgeData/TransactionProduce", Access::Any(Verb::Write, Kind::Topic)),
    ("/millrace.data.v1.BridgeData/TransactionOffsets", Access::Any(Verb::Read, Kind::Group)),
    ("/millrace.data.v1.BridgeData/EndTransaction", Access::Any(Verb::Write, Kind::Topic)),

    ("/millrace.control.v1.Bridge/ListTopics", Access::Any(Verb::Describe, Kind::Topic)),
    ("/millrace.control.v1.Bridge/DescribeTopic", Access::Any(Verb::Describe, Kind::Topic)),
    ("/millrace.control.v1.Bridge/CreateTopic", Access::Any(Verb::Create, Kind::Topic)),
    ("/millrace.control.v1.Bridge/DeleteTopic", Access::Any(Verb::Delete, Kind::Topic)),
    ("/millrace.control.v1.Bridge/AdviseTopic", Access::Known),
    ("/millrace.control.v1.Bridge/ListGroups", Access::Any(Verb::Describe, Kind::Group)),
    ("/millrace.control.v1.Bridge/GroupLag", Access::Any(Verb::Describe, Kind::Group)),
    ("/millrace.control.v1.Bridge/GroupLags", Access::Any(Verb::Describe, Kind::Group)),
    ("/millrace.control.v1.Bridge/ResetOffsets", Access::Any(Verb::Alter, Kind::Group)),
    ("/millrace.control.v1.Bridge/Brokers", Access::Cluster(Verb::Describe)),
    ("/millrace.control.v1.Bridge/LintTopics", Access::Any(Verb::DescribeConfigs, Kind::Topic)),
    ("/millrace.control.v1.Bridge/AddPartitions", Access::Any(Verb::Alter, Kind::Topic)),
    ("/millrace.control.v1.Bridge/DescribeTopicConfigs", Access::Any(Verb::DescribeConfigs, Kind::Topic)),
    ("/millrace.control.v1.Bridge/AlterTopicConfigs", Access::Any(Verb::AlterConfigs, Kind::Topic)),
    ("/millrace.control.v1.Bridge/DescribeBrokerConfigs", Access::Cluster(Verb::DescribeConfigs)),
    ("/millrace.control.v1.Bridge/AlterBrokerConfigs", Access::Cluster(Verb::AlterConfigs)),
    ("/millrace.control.v1.Bridge/ListReplicas", Access::Cluster(Verb::Describe)),
    ("/millrace.control.v1.Bridge/ListReassignments", Access::Any(Verb::Describe, Kind::Topic)),
    ("/millrace.control.v1.Bridge/DescribeGroup", Access::Any(Verb::Describe, Kind::Group)),
    ("/millrace.control.v1.Bridge/ListAcls", Access::Cluster(Verb::Describe)),
    ("/millrace.control.v1.Bridge/CreateAcls", Access::Cluster(Verb::Alter)),
    ("/millrace.control.v1.Bridge/DeleteAcls", Access::Cluster(Verb::Alter)),

    ("/millrace.control.v1.Control/Status", Access::Cluster(Verb::Describe)),
    ("/millrace.control.v1.Control/Reload", Access::Cluster(Verb::Alter)),
    ("/millrace.control.v1.Control/Pause", Access::Cluster(Verb::Alter)),
    ("/millrace.control.v1.Control/Resume", Access::Cluster(Verb::Alter)),
    ("/millrace.control.v1.Control/Drain", Access::Cluster(Verb::Alter)),
    ("/millrace.control.v1.Control/SetLogLevel", Access::Cluster(Verb::AlterConfigs)),
    ("/millrace.control.v1.Control/EffectiveConfig", Access::Cluster(Verb::DescribeConfigs)),

    // Probes have no credentials.
    ("/grpc.health.v1.Health/Check", Access::Open),
    ("/grpc.health.v1.Health/Watch", Access::Open),
    ("/grpc.health.v1.Health/List", Access::Open),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Known),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Access::Known),
    ("/", Access::Open),
    ("/metrics", Access::Cluster(Verb::Describe)),
];

/// What a call on the control port needs; `None` refuses it.
pub(super) fn of_method(path: &str) -> Option<Access> {
    METHODS.iter().find(|(method, _)| *method == path).map(|(_, access)| *access)
}
