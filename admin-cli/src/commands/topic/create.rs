//! `millrace topic create NAME`

use std::collections::BTreeMap;

use proto::control::v1::{CreateTopicRequest, bridge_client::BridgeClient};
use serde::Serialize;

use super::{super::settings::setting, AdviceView, TopicView, incomplete};
use crate::{
    cli::{self, Service, Session},
    failure::Failure,
    output::{Output, Table, human},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    name: String,
    /// Partitions; left out, the advice for --consumers, --producers and --like is taken.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
    /// Copies of each partition; left out, 3, or as many as there are brokers.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    replication: Option<u32>,
    /// How long records are kept, e.g. `12h` or `7d`, or `-1` for ever; left out, a week.
    #[arg(long, value_name = "DURATION", value_parser = retention_ms, allow_negative_numbers = true)]
    retention: Option<i64>,
    /// `min.insync.replicas`; left out, 2 of three copies or more, else 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    min_isr: Option<u32>,
    /// Consumers that will read at the same time, for the advice.
    #[arg(long, value_name = "N", default_value_t = 1)]
    consumers: u32,
    /// Producers that will write at the same time, for the advice.
    #[arg(long, value_name = "N", default_value_t = 1)]
    producers: u32,
    /// A topic that is used as this one will be: the advice carries the records that are measured into it.
    #[arg(long, value_name = "TOPIC")]
    like: Option<String>,
    /// A topic setting by Kafka's name; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    config: Vec<(String, String)>,
    /// Checks and advises; creates nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Report {
    /// False after `--dry-run`.
    created: bool,
    topic: TopicView,
    config: BTreeMap<String, String>,
    advice: Option<AdviceView>,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let mut config = BTreeMap::new();
    for (key, value) in args.config {
        if let Some((flag, given)) =
            [("--retention", "retention.ms", args.retention.is_some()), ("--min-isr", "min.insync.replicas", args.min_isr.is_some())]
                .into_iter()
                .find_map(|(flag, name, given)| (name == key).then_some((flag, given)))
            && given
        {
            return Err(Failure::usage(format!("{key} is given twice, by {flag} and by --config; keep one")));
        }
        if config.insert(key.clone(), value).is_some() {
            return Err(Failure::usage(format!("--config gives {key} twice; keep one")));
        }
    }
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(CreateTopicRequest {
        name: args.name,
        partitions: args.partitions.unwrap_or(0),
        replication: args.replication.unwrap_or(0),
        consumers: args.consumers,
        producers: args.producers,
        retention_ms: args.retention.unwrap_or(0),
        min_insync_replicas: args.min_isr.unwrap_or(0),
        config: config.into_iter().collect(),
        dry_run: args.dry_run,
        like: args.like.unwrap_or_default(),
        ..CreateTopicRequest::default()
    });
    let answer = link.answer(BridgeClient::new(link.channel()).create_topic(request)).await?;
    let report = Report {
        created: !args.dry_run,
        topic: answer.topic.ok_or_else(|| incomplete("the topic"))?.into(),
        config: answer.config.into_iter().collect(),
        advice: answer.advice.map(AdviceView::from),
    };
    session.out.show(&report, text)
}

fn text(report: &Report, out: &Output) -> String {
    let mut table = Table::plain(out);
    table.fact(if report.created { "created" } else { "would create" }, &report.topic.name);
    table.fact("partitions", human::count(report.topic.partitions));
    table.fact("replication", human::count(report.topic.replication));
    for (name, value) in &report.config {
        table.fact(name, human::setting(name, value));
    }
    match &report.advice {
        Some(advice) if !report.created => advice.fill(&mut table),
        Some(advice) => {
            if let Some(wish) = advice.instead_of(&report.topic) {
                table.fact("advised", wish);
            }
        }
        None => {}
    }
    table.render()
}

/// `retention.ms`; 0 would be no retention at all, and is what the service takes for not given.
fn retention_ms(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    match i64::try_from(cli::duration(text)?.as_millis()) {
        Ok(0) => Err("records must be kept for 1ms at least; for ever is -1".to_owned()),
        Ok(ms) => Ok(ms),
        Err(_) => Err("it is longer than Kafka can count; for ever is -1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_a_time_or_for_ever() {
        assert_eq!(retention_ms("-1"), Ok(-1));
        assert_eq!(retention_ms("12h"), Ok(43_200_000));
        for wrong in ["-2", "0s", "soon"] {
            assert!(retention_ms(wrong).is_err(), "{wrong}");
        }
    }
}
