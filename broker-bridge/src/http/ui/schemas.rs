//! The registry's pages: subjects, and one with its versions, its text and what changed. Rights are asked by the routes and by [`Registry`].
//!
//! [`Registry`]: crate::registry::Registry

use std::collections::HashMap;

use axum::{
    extract::{Path, Query, State},
    http::StatusCode,
    response::Response,
};
use maud::{Markup, html};
use serde_json::json;

use super::{
    App, JSON, Page, ROWS, Shown, Window,
    diff::{self, Line},
    json_response,
    page::{REFRESH_MS, fact, finder, layout},
    query,
    text::{bytes, count, date},
};
use crate::{
    error::Result,
    http::segment,
    registry::{SubjectView, Version, VersionView, subject},
};

const PATH: &str = "/ui/subjects";
/// Of a text that is shown; the registry's own answer has all of it.
const TEXT_BYTES_MAX: usize = 256 * 1024;

type Values = Query<HashMap<String, String>>;

pub(super) async fn subjects_page(State(app): State<App>, Query(values): Values) -> Shown {
    let window = Window::of(&values)?;
    let (rows, all) = app.registry.shown(&window.search, window.offset, ROWS).await?;
    Ok(Page(StatusCode::OK, subjects(&rows, all, &window)))
}

pub(super) async fn subjects_json(State(app): State<App>, Query(values): Values) -> Result<Response> {
    let window = Window::of(&values)?;
    let (rows, all) = app.registry.shown(&window.search, window.offset, ROWS).await?;
    Ok(json_response(StatusCode::OK, JSON, &json!({"subjects": rows, "count": all})))
}

pub(super) async fn subject_page(State(app): State<App>, Path(name): Path<String>, Query(values): Values) -> Shown {
    let (window, version) = (Window::of(&values)?, query(&values, "version")?);
    let (view, versions, chosen) = app.registry.shown_one(&subject::normal(&name), version, window.offset, ROWS).await?;
    Ok(Page(StatusCode::OK, one_subject(&view, &versions, &chosen, window.offset)))
}

pub(super) async fn subject_json(State(app): State<App>, Path(name): Path<String>, Query(values): Values) -> Result<Response> {
    let (window, version) = (Window::of(&values)?, query(&values, "version")?);
    let (view, versions, chosen) = app.registry.shown_one(&subject::normal(&name), version, window.offset, ROWS).await?;
    Ok(json_response(StatusCode::OK, JSON, &json!({"subject": view, "versions": versions, "shown": chosen})))
}

fn at(subject: &str, version: i32) -> String {
    format!("{PATH}/{}?version={version}", segment(subject))
}

/// Whose level it is, in a word.
fn compatibility(view: &SubjectView) -> Markup {
    html! { (view.compatibility) @if view.compatibility_is_its_own { " " span.muted { "own" } } }
}

fn deleted() -> Markup {
    html! { span.state.waiting { "soft-deleted" } }
}

fn subjects(rows: &[SubjectView], all: usize, window: &Window) -> Markup {
    let live = html! {
        h1 { "Schemas" }
        (finder(PATH, window, rows.len(), all))
        @if rows.is_empty() { div.empty { p { strong { "No subjects." } } p { "A subject is here when a schema was registered under it." } } } @else {
            div.scroll { table {
                thead { tr {
                    th scope="col" { "Subject" } th scope="col" { "State" } th scope="col" { "Type" } th.n scope="col" { "Versions" }
                    th.n scope="col" { "Latest" } th.n scope="col" { "Id" } th scope="col" { "Compatibility" } th.n scope="col" { "References" }
                } }
                tbody { @for row in rows { tr {
                    th.long scope="row" { a href={ (PATH) "/" (segment(&row.subject)) } { (row.subject) } }
                    td {
                        @if row.is_deleted() { (deleted()) }
                        @else if row.deleted_versions > 0 { span.state { (count(row.deleted_versions as u64)) " deleted" } }
                        @else { span.state.running { "live" } }
                    }
                    td { (row.latest.kind) }
                    td.n { (count(row.versions as u64)) }
                    td.n { (row.latest.version) }
                    td.n { (row.latest.id) }
                    td { (compatibility(row)) }
                    td.n { (count(row.latest.references.len() as u64)) }
                } } }
            } }
        }
    };
    layout("Schemas", PATH, "/ui/api/subjects", REFRESH_MS, &live)
}

fn one_subject(view: &SubjectView, versions: &[VersionView], chosen: &Version, offset: usize) -> Markup {
    let (subject, all) = (&view.subject, view.versions + view.deleted_versions);
    let page_at = |offset: usize| format!("{}&offset={offset}", at(subject, chosen.view.version));
    let live = html! {
        h1 { (subject) @if view.is_deleted() { " " (deleted()) } }
        dl.facts {
            (fact("Type", view.latest.kind.clone()))
            (fact("Versions", count(view.versions as u64)))
            @if view.deleted_versions > 0 { (fact("Soft-deleted", count(view.deleted_versions as u64))) }
            (fact("Latest id", view.latest.id.to_string()))
            div.fact { dt { "Compatibility" } dd { (compatibility(view)) } }
            (fact("Mode", view.mode.to_owned()))
        }
        div.scroll { table {
            thead { tr {
                th scope="col" { "Version" } th scope="col" { "State" } th.n scope="col" { "Id" } th scope="col" { "Type" } th.n scope="col" { "References" } th.n scope="col" { "Size" } th scope="col" { "Last written" }
            } }
            tbody { @for row in versions { tr {
                th scope="row" { a href=(at(subject, row.version)) aria-current=[(row.version == chosen.view.version).then_some("true")] { (row.version) } }
                td { @if row.deleted { (deleted()) } @else { span.state.running { "live" } } }
                td.n { (row.id) }
                td { (row.kind) }
                td.n { (count(row.references.len() as u64)) }
                td.n { (bytes(row.bytes as i64)) }
                td { @if row.timestamp > 0 { (date(row.timestamp)) } @else { "–" } }
            } } }
        } }
        @if offset > 0 || offset + versions.len() < all { p {
            span.muted { (count(all as u64)) " versions" }
            @if offset > 0 { " " a href=(page_at(offset.saturating_sub(ROWS))) { "newer" } }
            @if offset + versions.len() < all { " " a href=(page_at(offset + ROWS)) { "older" } }
        } }
        (text(subject, chosen))
    };
    layout(subject, PATH, &format!("/ui/api/subjects/{}?version={}", segment(subject), chosen.view.version), 0, &live)
}

fn text(subject: &str, chosen: &Version) -> Markup {
    let (version, raw) =
        (chosen.view.version, format!("/subjects/{}/versions/{}/schema?deleted=true", segment(subject), chosen.view.version));
    let shown = &chosen.text[..chosen.text.floor_char_boundary(TEXT_BYTES_MAX)];
    html! {
        h2 { "Version " (version) @if chosen.view.deleted { " " (deleted()) } }
        @if !chosen.view.references.is_empty() { p { "Refers to " @for (nth, reference) in chosen.view.references.iter().enumerate() {
            @if nth > 0 { ", " }
            (reference.name) " (" a href={ (PATH) "/" (segment(&subject::beside(subject, &reference.subject))) @if reference.version > 0 { "?version=" (reference.version) } } {
                (reference.subject) " " @if reference.version > 0 { (reference.version) } @else { "latest" }
            } ")"
        } } }
        @if !chosen.referring.is_empty() { p { "Referred to by " @for (nth, (other, version)) in chosen.referring.iter().enumerate() {
            @if nth > 0 { ", " }
            a href=(at(other, *version)) { (other) " " (version) }
        } } }
        div.scroll { pre tabindex="0" { (shown) } }
        p.muted { @if shown.len() < chosen.text.len() { "The first " (bytes(shown.len() as i64)) ". " } "As it is registered: " a href=(raw) { (raw) } }
        @if let Some((before, old)) = &chosen.before {
            h2 { "Changed since version " (before) }
            @match diff::diff(old, &chosen.text) {
                None => { p.muted { "More than " (diff::LINES_MAX) " lines are not compared." } }
                Some(lines) => { div.scroll { pre tabindex="0" { @for line in &lines { @match line {
                    Line::Same(text) => { span { "  " (text) } }
                    Line::Gone(text) => { del { "- " (text) } }
                    Line::New(text) => { ins { "+ " (text) } }
                } } } } }
            }
        }
    }
}
