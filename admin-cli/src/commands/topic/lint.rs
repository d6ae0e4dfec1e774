//! `millrace topic lint`

use proto::control::v1::{Finding, LintTopicsRequest, TopicFindings, bridge_client::BridgeClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::{Exit, Failure},
    output::{Output, Table, Tone, human, left, toned},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// All but Kafka's own when left out.
    #[arg(value_name = "TOPIC")]
    topics: Vec<String>,
    /// Consumers that will read at the same time; the members of the largest group that reads the topic when left out.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    consumers: u32,
    /// Producers that will write at the same time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    producers: u32,
}

#[derive(Serialize)]
struct Report {
    errors: usize,
    warnings: usize,
    hints: usize,
    topics: Vec<TopicView>,
}

#[derive(Serialize)]
struct TopicView {
    topic: String,
    /// `null` where it was not measured yet.
    records_per_second: Option<f64>,
    /// `null` where the topic has no records.
    keyed: Option<bool>,
    consumers: u32,
    findings: Vec<FindingView>,
}

#[derive(Serialize)]
struct FindingView {
    level: String,
    rule: String,
    message: String,
    remedy: String,
}

impl From<TopicFindings> for TopicView {
    fn from(found: TopicFindings) -> Self {
        let TopicFindings { topic, records_per_second, keyed, consumers, findings } = found;
        let view = |Finding { level, rule, message, remedy }| FindingView { level, rule, message, remedy };
        Self { topic, records_per_second, keyed, consumers, findings: findings.into_iter().map(view).collect() }
    }
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Bridge).await?;
    let request = link.request(LintTopicsRequest { topics: args.topics, consumers: args.consumers, producers: args.producers });
    let answer = link.answer(BridgeClient::new(link.channel()).lint_topics(request)).await?;
    let topics: Vec<TopicView> = answer.topics.into_iter().map(TopicView::from).collect();
    let count = |level: &str| topics.iter().flat_map(|topic| &topic.findings).filter(|finding| finding.level == level).count();
    let report = Report { errors: count("error"), warnings: count("warning"), hints: count("hint"), topics };
    session.out.show(&report, text)?;
    if report.errors > 0 { Err(Failure::shown(Exit::Failed)) } else { Ok(()) }
}

fn text(report: &Report, out: &Output) -> String {
    let many = |number: usize, what: &str| format!("{} {what}{}", human::count(number as i64), if number == 1 { "" } else { "s" });
    let sum = format!(
        "{}: {}, {}, {}",
        many(report.topics.len(), "topic"),
        many(report.errors, "error"),
        many(report.warnings, "warning"),
        many(report.hints, "hint")
    );
    let mut table = Table::plain(out);
    for topic in &report.topics {
        for finding in &topic.findings {
            let tone = match finding.level.as_str() {
                "error" => Tone::Bad,
                "warning" => Tone::Watch,
                _ => Tone::Plain,
            };
            table.row(vec![left(&topic.topic), toned(out, &finding.level, tone), left(&finding.rule), left(&finding.message)]);
            table.row(vec![left(""), left(""), left(""), left(format!("→ {}", finding.remedy))]);
        }
    }
    let findings = table.render();
    if findings.is_empty() { sum } else { format!("{findings}\n\n{sum}") }
}
