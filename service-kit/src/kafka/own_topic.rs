//! Topics that a service keeps its own records in.

use std::time::{Duration, Instant};

use super::{Admin, KafkaError};

/// Between two looks whether a broker knows a topic that was just made.
const KNOWN_INTERVAL: Duration = Duration::from_millis(20);

/// One of them, as it is to be.
pub struct OwnTopic<'a> {
    pub name: &'a str,
    /// The setting that names it.
    pub setting: &'a str,
    pub partitions: i32,
    /// -1: as the brokers' default says.
    pub replication: i32,
    /// Of a topic that is made.
    pub config: &'a [(&'a str, &'a str)],
    /// A topic that is there is refused unless its `cleanup.policy` is this.
    pub policy: Option<&'a str>,
}

/// Makes it where it is missing, waits until the broker that is asked knows it, `patience` at most, and refuses one that does not fit.
pub async fn own_topic(admin: &dyn Admin, topic: &OwnTopic<'_>, patience: Duration) -> Result<(), KafkaError> {
    let OwnTopic { name, setting, .. } = *topic;
    let deadline = Instant::now() + patience;
    let mut found = admin.topic(name).await;
    if matches!(found, Err(KafkaError::UnknownTopic(_))) {
        let config = topic.config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        match admin.create_topic(name, topic.partitions, topic.replication, &config, false).await {
            Ok(()) => tracing::info!(topic = name, setting, "topic created"),
            // Somebody was faster; or the broker that was asked has just started, and does not know its topics yet.
            Err(KafkaError::AlreadyExists(_)) => {}
            Err(error) => return Err(error),
        }
        found = loop {
            match admin.topic(name).await {
                Err(KafkaError::UnknownTopic(_)) if Instant::now() < deadline => tokio::time::sleep(KNOWN_INTERVAL).await,
                Err(KafkaError::UnknownTopic(_)) => {
                    return Err(KafkaError::Retryable(format!("topic {name:?} was made, and the broker does not know it yet")));
                }
                found => break found,
            }
        };
    }
    let partitions = found?.partitions.len();
    if usize::try_from(topic.partitions) != Ok(partitions) {
        let message = format!("topic {name:?} has {partitions} partitions and needs {}: name another one with {setting}", topic.partitions);
        return Err(KafkaError::Invalid(message));
    }
    if let Some(wanted) = topic.policy {
        let config = admin.topic_config(name).await?;
        let policy = config.iter().find(|entry| entry.name == "cleanup.policy").and_then(|entry| entry.value.as_deref());
        if policy != Some(wanted) {
            let policy = policy.unwrap_or("unknown");
            let message = format!(
                "topic {name:?} has cleanup.policy = {policy} and would lose what is kept in it: set it to {wanted}, or name another one with {setting}"
            );
            return Err(KafkaError::Invalid(message));
        }
    }
    Ok(())
}
