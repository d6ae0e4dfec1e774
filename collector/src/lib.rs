//! The collector: Flume's agent files, run by one small process.
//!
//! | module | question it answers |
//! |---|---|
//! | [`cli`] | what was asked for on the command line |
//! | [`channel_cli`] | how a channel on disk is looked at without its agent |
//! | [`config`] | the process's own settings |
//! | [`conf_files`] | where agent files come from |
//! | [`flume_conf`] | what an agent file means, and what is wrong with it |
//! | [`event`] | what moves: events, their origin, the word that they arrived |
//! | [`source`] | where events come from; `tail/` follows files |
//! | [`escape`] | what `%{header}` and `%Y` in paths and topics stand for |
//! | [`serializer`] | events as bytes in files |
//! | [`java_regex`] | what a regular expression of an agent file matches |
//! | [`interceptor`] | what happens to events on their way to the channels |
//! | [`rpc`] | Flume's remote calls, as its Avro and Thrift components make them |
//! | [`tls`] | the TLS settings of components |
//! | [`selector`] | which channels an event goes to |
//! | [`channel`] | what stands between sources and sinks |
//! | [`sink`] | where events go |
//! | [`group`] | which of a group's sinks work now |
//! | [`agent`] | components wired, started, stopped, replaced |
//! | [`reload`] | the files read, at the start and again |
//! | [`control`] | the control port and the metrics page |
//! | [`counters`] | what is counted |
//! | [`ganglia`] | the same for Ganglia |
//! | [`tap`] | which events somebody looks at as they pass |
//! | [`pipeline_tests`] | whether a file's pipeline does what its tests say |
//! | `fault` | where a debug build is made to fail |
//!
//! Data flows one way, source → channel → sink; acknowledgements flow back through [`event::Ledger`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use service_kit::{Context, HttpEndpoint, Running, Service, config::TlsConfig};

pub mod agent;
pub mod channel;
pub mod channel_cli;
pub mod cli;
pub mod conf_files;
pub mod config;
pub mod control;
pub mod counters;
pub mod escape;
pub mod event;
mod fault;
pub mod flume_cli;
pub mod flume_conf;
pub mod ganglia;
pub mod group;
pub mod interceptor;
pub mod java_regex;
pub mod kafka_settings;
pub mod pipeline_tests;
pub mod reload;
pub mod rpc;
pub mod selector;
pub mod serializer;
pub mod sink;
pub mod source;
pub mod tap;
pub mod tls;

use agent::{Agent, Place};
use config::CollectorConfig;
use control::Operator;
use flume_conf::{Finding, Plan};
use reload::Reloader;

/// Freed memory goes back to the system soon, and small blocks are cheap: the collector's budget is 64 MB.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The collector as a service: a checked plan, and what was found in its files.
pub struct CollectorService {
    pub config: CollectorConfig,
    pub plan: Plan,
    pub findings: Vec<Finding>,
}

/// How often gauges are brought up to date for whoever scrapes the control port.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(5);

#[async_trait]
impl Service for CollectorService {
    const NAME: &'static str = "millrace-collector";

    async fn start(self, ctx: Context) -> anyhow::Result<Running> {
        reload::log(&self.findings);
        let deadline = self.config.shutdown.deadline;
        let place = Place {
            state_dir: self.config.agent.state_dir(),
            strict: self.config.agent.flume_strict,
            taps: self.config.tap.clone(),
            drain: deadline.saturating_sub((deadline / 4).min(Duration::from_secs(3))),
        };
        let agent = Agent::start(self.plan, place, ctx.tasks.clone(), ctx.readiness.latch("pipeline")).await?;
        let reloader = Arc::new(Reloader::new(self.config.clone(), agent.clone()));
        if self.config.agent.reload_conf {
            ctx.tasks.spawn(reloader.clone().watch(ctx.shutdown.clone()));
        }
        let (published, shutdown) = (agent.clone(), ctx.shutdown.clone());
        ctx.tasks.spawn(async move {
            while !shutdown.is_cancelled() {
                published.publish();
                tokio::select! {
                    () = tokio::time::sleep(PUBLISH_INTERVAL) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        });
        if !self.config.ganglia.hosts.is_empty() {
            ctx.tasks.spawn(ganglia::run(self.config.ganglia.clone(), agent.clone(), ctx.shutdown.clone()));
        }
        let operator = Operator { agent: agent.clone(), reloader, readiness: ctx.readiness.clone() };
        let shutdown = ctx.shutdown.clone();
        Ok(Running {
            grpc: operator.grpc(),
            http: vec![HttpEndpoint {
                name: "metrics",
                listen: self.config.metrics.listen,
                tls: TlsConfig::default(),
                router: operator.http(),
            }],
            control: Arc::new(operator),
            done: Box::pin(async move {
                shutdown.cancelled().await;
                agent.stop().await
            }),
        })
    }
}
