//! `millrace job savepoints NAME [--delete SAVEPOINT]`

use proto::control::v1::{DeleteSavepointRequest, ListSavepointsRequest, engine_client::EngineClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, human, left, right},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job; it may be deleted already.
    name: String,
    /// Delete the savepoint of this name.
    #[arg(long, value_name = "SAVEPOINT")]
    delete: Option<String>,
}

#[derive(Serialize)]
struct Report {
    savepoints: Vec<View>,
}

#[derive(Serialize)]
struct View {
    name: String,
    location: String,
    batch_id: u64,
    time_ms: i64,
}

#[derive(Serialize)]
struct Deleted {
    name: String,
    savepoint: String,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Engine).await?;
    let mut engine = EngineClient::new(link.channel());
    let Some(savepoint) = args.delete else {
        let answer = link.answer(engine.list_savepoints(link.request(ListSavepointsRequest { name: args.name }))).await?;
        let view = |found: proto::control::v1::StoredSavepoint| View {
            name: found.name,
            location: found.location,
            batch_id: found.batch_id,
            time_ms: found.time_ms,
        };
        return session.out.show(&Report { savepoints: answer.savepoints.into_iter().map(view).collect() }, table);
    };
    let request = DeleteSavepointRequest { name: args.name.clone(), savepoint: savepoint.clone() };
    link.answer(engine.delete_savepoint(link.request(request))).await?;
    session.out.show(&Deleted { name: args.name, savepoint }, |deleted, _| {
        format!("savepoint {} of {} is deleted", human::line(&deleted.savepoint), human::line(&deleted.name))
    })
}

fn table(report: &Report, out: &Output) -> String {
    let mut table = Table::new(out, vec![left("SAVEPOINT"), right("BATCH"), left("TIME"), left("LOCATION")]);
    for found in &report.savepoints {
        table.row(vec![
            left(&found.name),
            right(human::count(found.batch_id)),
            left(human::time(Some(found.time_ms))),
            left(&found.location),
        ]);
    }
    table.render()
}
