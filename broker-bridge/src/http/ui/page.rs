//! The pages.

use maud::{DOCTYPE, Markup, html};

use super::{
    GroupRow, ROWS, TopicRow, Window, chart,
    text::{bytes, count, seconds, short, trend},
};
use crate::{
    error::BridgeError,
    http::segment,
    lag::{GroupState, Status},
    topics::{Brokers, Kind},
};

/// How often the live part is fetched again.
pub(super) const REFRESH_MS: u64 = 5_000;
/// Partitions that need a look, shown at a time; the JSON has more.
const PROBLEMS: usize = 100;

const PLACES: [(&str, &str); 4] = [("/ui", "Cluster"), ("/ui/topics", "Topics"), ("/ui/groups", "Groups"), ("/ui/subjects", "Schemas")];

pub(super) fn layout(title: &str, here: &str, json: &str, refresh_ms: u64, live: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Millrace" }
                link rel="stylesheet" href="/ui/assets/style.css";
                script src="/ui/assets/page.js" defer {}
            }
            body {
                a.skip href="#live" { "Skip to content" }
                header {
                    nav aria-label="Pages" {
                        a.brand href="/ui" { "Millrace" } span.muted { "broker bridge" }
                        @for (path, name) in PLACES { a href=(path) aria-current=[(path == here).then_some("page")] { (name) } }
                    }
                    span #fresh.muted role="status" {}
                }
                main #live data-refresh=(refresh_ms) { (live) }
                footer.muted { "JSON: " a href=(json) { (json) } " · " a href="/metrics" { "/metrics" } " · " a href="/openapi" { "/openapi" } " · times in UTC" }
            }
        }
    }
}

pub(super) fn failed(error: &BridgeError) -> Markup {
    let title = if error.code.status().is_server_error() { "Not now" } else { "Not found" };
    let refresh_ms = if error.retryable() { REFRESH_MS } else { 0 };
    layout(title, "", "/openapi", refresh_ms, &html! { h1 { (title) } p { (error.message) } p { a href="/ui" { "The cluster" } } })
}

pub(super) fn fact(name: &str, value: String) -> Markup {
    html! { div.fact { dt { (name) } dd { (value) } } }
}

/// 0 is good, all else is not.
fn alarm(name: &str, number: u32, class: &'static str) -> Markup {
    let class = if number == 0 { "running" } else { class };
    html! { div.fact { dt { (name) } dd { span class={ "state " (class) } { (count(number.into())) } } } }
}

fn status(status: Status) -> Markup {
    let class = match status {
        Status::Ok => "running",
        Status::Warn => "waiting",
        Status::NotFound => "",
        Status::Error | Status::Stop | Status::Stall | Status::Rewind => "failed",
    };
    html! { span class={ "state " (class) } { (status.name()) } }
}

pub(super) fn cluster(found: &Brokers, (groups, _, left_out): (usize, usize, usize)) -> Markup {
    let health = &found.health;
    let live = html! {
        h1 { "Cluster" }
        dl.facts {
            (fact("Id", found.cluster.id.clone().unwrap_or_else(|| "–".into())))
            (fact("Brokers", count(found.cluster.brokers.len() as u64)))
            (fact("Partitions", count(health.partitions.into())))
            (alarm("Offline", health.offline, "failed"))
            (alarm("Under min ISR", health.under_min_isr, "failed"))
            (alarm("Under-replicated", health.under_replicated, "waiting"))
            (alarm("Not led by the preferred", health.not_preferred, "waiting"))
            (fact("Groups watched", count(groups as u64)))
            @if left_out > 0 { (fact("Groups left out", count(left_out as u64))) }
        }
        h2 { "Brokers" }
        div.scroll { table {
            thead { tr {
                th scope="col" { "Broker" } th scope="col" { "Address" } th scope="col" { "Controller" }
                th.n scope="col" { "Replicas" } th.n scope="col" { "Leads" } th.n scope="col" { "Should lead" } th.n scope="col" { "Imbalance" } th.n scope="col" { "Log" }
            } }
            tbody { @for broker in &found.cluster.brokers {
                @let load = found.load.get(&broker.id).copied().unwrap_or_default();
                @let balance = health.balance.get(&broker.id).copied().unwrap_or_default();
                tr {
                    th scope="row" { (broker.id) }
                    td { (broker.host) ":" (broker.port) }
                    td { @if found.cluster.controller == Some(broker.id) { "yes" } @else { "no" } }
                    td.n { (count(load.partitions.into())) }
                    td.n { (count(load.leaders.into())) }
                    td.n { (count(balance.preferred.into())) }
                    td.n { (format!("{:.0} %", balance.imbalance() * 100.0)) }
                    td.n { (load.log_bytes.map_or_else(|| "–".into(), bytes)) }
                }
            } }
        } }
        h2 { "Partitions that need a look" }
        @if health.problems.is_empty() {
            div.empty { p { strong { "None." } } p { "Every partition has a leader and all of its replicas." } }
        } @else {
            div.scroll { table {
                @if health.problems.len() > PROBLEMS { caption { "The first " (PROBLEMS) "; the JSON below has more." } }
                thead { tr {
                    th scope="col" { "Partition" } th scope="col" { "State" } th.n scope="col" { "Leader" } th scope="col" { "Replicas" } th scope="col" { "In sync" } th.n scope="col" { "Min ISR" }
                } }
                tbody { @for problem in health.problems.iter().take(PROBLEMS) {
                    @let class = if matches!(problem.kind, Kind::Offline | Kind::UnderMinIsr) { "failed" } else { "waiting" };
                    tr {
                        th scope="row" { (problem.topic) "-" (problem.partition) }
                        td { span class={ "state " (class) } { (problem.kind.name()) } }
                        td.n { (problem.leader.map_or_else(|| "–".into(), |leader| leader.to_string())) }
                        td { (ids(&problem.replicas)) }
                        td { (ids(&problem.isr)) }
                        td.n { (problem.min_isr) }
                    }
                } }
            } }
        }
    };
    layout("Cluster", "/ui", "/ui/api/cluster", REFRESH_MS, &live)
}

fn ids(ids: &[i32]) -> String {
    if ids.is_empty() { "none".to_owned() } else { ids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ") }
}

/// A field to search, and the way to the other rows.
pub(super) fn finder(path: &str, window: &Window, shown: usize, all: usize) -> Markup {
    let at = |offset: usize| format!("{path}?search={}&offset={offset}", segment(&window.search));
    html! {
        form.find method="get" action=(path) role="search" {
            label { "Name " input type="search" name="search" value=(window.search); }
            button { "Search" }
            span.muted { (count(all as u64)) " found" @if shown < all { ", " (count(shown as u64)) " shown" } }
            @if window.offset > 0 { a href=(at(window.offset.saturating_sub(ROWS))) { "previous" } }
            @if window.offset + shown < all { a href=(at(window.offset + ROWS)) { "next" } }
        }
    }
}

pub(super) fn topics(rows: &[TopicRow], all: usize, window: &Window) -> Markup {
    let live = html! {
        h1 { "Topics" }
        (finder("/ui/topics", window, rows.len(), all))
        @if rows.is_empty() { div.empty { p { strong { "No topics." } } p { "Create one: " code { "millrace topic create NAME" } } } } @else {
            div.scroll { table {
                thead { tr {
                    th scope="col" { "Topic" } th.n scope="col" { "Partitions" } th.n scope="col" { "Replication" } th scope="col" { "State" } th.n scope="col" { "Records in" } th.n scope="col" { "Groups" }
                } }
                tbody { @for row in rows { tr {
                    th scope="row" { (row.name) }
                    td.n { (count(row.partitions as u64)) }
                    td.n { (row.replication) }
                    td {
                        @if row.state.offline > 0 { span.state.failed { (row.state.offline) " offline" } " " }
                        @if row.state.under_replicated > 0 { span.state.waiting { (row.state.under_replicated) " under-replicated" } }
                        @else if row.state.offline == 0 { span.state.running { "healthy" } }
                    }
                    td.n { (row.rate.map_or_else(|| "–".into(), |rate| format!("{}/s", short(rate)))) }
                    td.n { (count(row.readers as u64)) }
                } } }
            } }
        }
    };
    layout("Topics", "/ui/topics", "/ui/api/topics", REFRESH_MS, &live)
}

pub(super) fn groups(rows: &[GroupRow], all: usize, window: &Window) -> Markup {
    let live = html! {
        h1 { "Groups" }
        (finder("/ui/groups", window, rows.len(), all))
        @if rows.is_empty() { div.empty { p { strong { "No groups." } } p { "A group is here when it has committed an offset." } } } @else {
            div.scroll { table {
                thead { tr {
                    th scope="col" { "Group" } th scope="col" { "Status" } th.n scope="col" { "Lag" } th.n scope="col" { "Oldest unread" } th.n scope="col" { "Trend" } th.n scope="col" { "Caught up in" }
                } }
                tbody { @for row in rows { tr {
                    th scope="row" { a href={ "/ui/groups/" (segment(&row.id)) } { (row.id) } }
                    td { (status(row.state.status)) }
                    td.n { (count(row.state.total_lag)) }
                    td.n { (seconds(row.state.pace.lag_seconds)) }
                    td.n { (trend(row.state.pace.trend)) }
                    td.n { (seconds(row.state.pace.catch_up_seconds)) }
                } } }
            } }
        }
    };
    layout("Groups", "/ui/groups", "/ui/api/groups", REFRESH_MS, &live)
}

pub(super) fn group(id: &str, state: &GroupState) -> Markup {
    let live = html! {
        h1 { (id) " " (status(state.status)) }
        dl.facts {
            (fact("Lag", count(state.total_lag)))
            (fact("Oldest unread record", seconds(state.pace.lag_seconds)))
            (fact("Trend", trend(state.pace.trend)))
            (fact("Caught up in", seconds(state.pace.catch_up_seconds)))
            (fact("History", format!("{:.0} % complete", state.complete * 100.0)))
        }
        (chart::lag(&state.history))
        div.scroll { table {
            thead { tr {
                th scope="col" { "Partition" } th scope="col" { "Status" } th.n scope="col" { "Committed" } th.n scope="col" { "Lag" } th.n scope="col" { "Oldest unread" } th.n scope="col" { "Trend" } th scope="col" { "Client" }
            } }
            tbody { @for row in &state.partitions { tr {
                th scope="row" { (row.partition) }
                td { (status(row.status)) }
                td.n { (row.end.map_or_else(|| "–".into(), |commit| count(u64::try_from(commit.offset).unwrap_or(0)))) }
                td.n { (count(row.current_lag)) }
                td.n { (seconds(row.pace.lag_seconds)) }
                td.n { (trend(row.pace.trend)) }
                td { (row.owner.as_ref().map_or("–", |owner| owner.client_id.as_str())) }
            } } }
        } }
    };
    layout(id, "/ui/groups", &format!("/ui/api/groups/{}", segment(id)), REFRESH_MS, &live)
}
