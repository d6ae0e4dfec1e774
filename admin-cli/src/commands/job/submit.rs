//! `millrace job submit FILE`: the SQL travels as it is; an error comes back with its place, and is shown there.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use proto::control::v1::{SubmitJobRequest, engine_client::EngineClient};
use serde::Serialize;

use super::{JobView, incomplete};
use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, human},
};

/// A job is a text that people write; tonic takes at most 4 MiB a message.
const SQL_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The job in SQL; `-` reads stdin.
    file: PathBuf,
    /// Name of the job; left out, the file's name without its ending.
    #[arg(long)]
    name: Option<String>,
    /// Where the checkpoint is kept, an object store URL; left out, below the engine's own directory.
    #[arg(long, value_name = "URL")]
    checkpoint: Option<String>,
    /// Begins with this savepoint, in a checkpoint of its own: NAME of this job, JOB/NAME of another one, or an object store URL.
    ///
    /// Refused when the job has a checkpoint already: a savepoint never replaces one. Give another --name or --checkpoint, or remove the
    /// old one first: millrace job delete NAME --checkpoint.
    #[arg(long, value_name = "SAVEPOINT")]
    from_savepoint: Option<String>,
    /// Checks and plans; starts nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Report {
    /// False after `--dry-run`.
    started: bool,
    name: String,
    /// `null` after `--dry-run`: nothing was made.
    job: Option<JobView>,
    notes: Vec<String>,
    plan: String,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let sql = read(&args.file)?;
    let name = match args.name {
        Some(name) => name,
        None => default_name(&args.file)?,
    };
    let link = session.connect(Service::Engine).await?;
    let request = link.request(SubmitJobRequest {
        name: name.clone(),
        sql: sql.clone(),
        checkpoint: args.checkpoint.unwrap_or_default(),
        from_savepoint: args.from_savepoint.unwrap_or_default(),
        dry_run: args.dry_run,
    });
    let answer = match link.answer(EngineClient::new(link.channel()).submit_job(request)).await {
        Ok(answer) => answer,
        Err(failure) => return Err(point_at(&sql, &args.file, failure)),
    };
    let job = answer.job.map(JobView::from);
    if job.is_none() && !args.dry_run {
        return Err(incomplete("the job"));
    }
    let report = Report { started: !args.dry_run, name, job, notes: answer.notes, plan: answer.plan };
    if session.out.people() {
        report.notes.iter().for_each(|note| session.out.note(note));
    }
    session.out.show(&report, text)
}

fn text(report: &Report, out: &Output) -> String {
    match &report.job {
        Some(job) if report.started => {
            let mut table = Table::plain(out);
            table.fact("started", &job.name);
            table.fact("state", job.state);
            if let Some(reason) = &job.error {
                table.fact("reason", reason);
            }
            table.fact("batch interval", human::millis(job.batch_interval_ms));
            table.fact("checkpoint", &job.checkpoint);
            table.render()
        }
        _ => format!("{} can be started\n\n{}", human::line(&report.name), human::lines(&report.plan)),
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let shown = file.display();
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().lock().take(SQL_BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        fs::File::open(file).and_then(|file| file.take(SQL_BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::failed(format!("cannot read {shown}: {}", plain(&error))))?;
    if bytes.len() as u64 > SQL_BYTES_MAX {
        return Err(Failure::failed(format!("{shown} is larger than {}; is it a SQL job?", human::bytes(SQL_BYTES_MAX as i64))));
    }
    String::from_utf8(bytes)
        .map_err(|error| Failure::failed(format!("{shown} is not UTF-8 text: byte {} is wrong", error.utf8_error().valid_up_to())))
}

/// `No such file or directory (os error 2)` without what only a programmer reads.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn default_name(file: &Path) -> Result<String, Failure> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).filter(|stem| *stem != "-");
    stem.map(str::to_owned).ok_or_else(|| Failure::usage("a job from stdin needs --name"))
}

/// Adds the source line and a caret where the message names a line and a column: `line 3, column 8: unknown column …`.
fn point_at(sql: &str, file: &Path, mut failure: Failure) -> Failure {
    let Some((line, column)) = place(&failure.message) else { return failure };
    let Some(source) = sql.lines().nth(line - 1) else { return failure };
    // A tab has the width of one space here, so that the caret stays below its column.
    let source: String = source.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let number = line.to_string();
    let (margin, indent) = (" ".repeat(number.len()), " ".repeat(column.min(source.chars().count() + 1) - 1));
    failure.message = format!("{}: {}\n  {number} | {source}\n  {margin} | {indent}^", file.display(), failure.message);
    failure
}

/// Line and column, both from 1, where the message begins with them or names them in the parser's own way (`at Line: 3, Column: 8`).
fn place(message: &str) -> Option<(usize, usize)> {
    let lower = message.to_ascii_lowercase();
    let number_after = |word: &str, from: usize| -> Option<(usize, usize)> {
        let at = from + lower.get(from..)?.find(word)? + word.len();
        let rest = lower.get(at..)?;
        let skipped = rest.len() - rest.trim_start_matches([' ', ':']).len();
        let digits: &str = rest.get(skipped..)?.split(|c: char| !c.is_ascii_digit()).next()?;
        let number = digits.parse().ok().filter(|number| *number > 0)?;
        Some((number, at + skipped + digits.len()))
    };
    let (line, end) = number_after("line", 0)?;
    let (column, _) = number_after("column", end)?;
    Some((line, column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_found_in_both_spellings() {
        assert_eq!(place("line 3, column 8: unknown column hots"), Some((3, 8)));
        assert_eq!(place("Expected: an expression, found: FROM at Line: 12, Column: 40"), Some((12, 40)));
        for without in ["", "job nginx exists", "line 0, column 1", "line three, column 1", "a column in line 3"] {
            assert_eq!(place(without), None, "{without:?}");
        }
    }

    #[test]
    fn the_caret_stands_below_its_column() {
        let shown = |sql: &str, message: &str| point_at(sql, Path::new("job.sql"), Failure::failed(message)).message;
        assert_eq!(
            shown("SELECT 1;\nSELECT\thots FROM logs", "line 2, column 8: unknown column hots"),
            "job.sql: line 2, column 8: unknown column hots\n  2 | SELECT hots FROM logs\n    |        ^"
        );
        // Behind the end of a line, in a line that is not there, without a place.
        assert_eq!(
            shown("SELECT", "line 1, column 99: unexpected end"),
            "job.sql: line 1, column 99: unexpected end\n  1 | SELECT\n    |       ^"
        );
        assert_eq!(shown("SELECT", "line 9, column 1: what"), "line 9, column 1: what");
        assert_eq!(shown("SELECT", "job a exists"), "job a exists");
    }
}
