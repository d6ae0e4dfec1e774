//! What people are shown of the registry: subjects, and one of them with its versions. As the caller may see it.

use serde::Serialize;

use super::{
    Registry,
    record::Reference,
    schema::Kind,
    state::{Filter, LEVEL, State, Stored},
    text::Json,
};
use crate::{
    auth::{Kind::Subject, Verb::Read, sees},
    error::{BridgeError, Code, Result},
};

/// Texts above this are not made readable, nor compared.
const READABLE_BYTES_MAX: usize = 128 * 1024;
/// Those that refer to one version, shown.
const REFERRING_MAX: usize = 100;

/// One of the list.
#[derive(Debug, Serialize)]
pub(crate) struct SubjectView {
    pub(crate) subject: String,
    /// Versions that are not deleted.
    pub(crate) versions: usize,
    /// Softly deleted ones. A subject with no others is deleted itself.
    pub(crate) deleted_versions: usize,
    /// Of its newest version that is not deleted, else of its newest.
    pub(crate) latest: VersionView,
    /// What holds for it, and whether that is set for it alone.
    pub(crate) compatibility: String,
    pub(crate) compatibility_is_its_own: bool,
    pub(crate) mode: &'static str,
}

impl SubjectView {
    pub(crate) fn is_deleted(&self) -> bool {
        self.versions == 0
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct VersionView {
    pub(crate) version: i32,
    pub(crate) id: i32,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) references: Vec<Reference>,
    pub(crate) bytes: usize,
    /// When its record was written, at the registration or at a deletion; milliseconds since 1970, 0 where that is not known.
    pub(crate) timestamp: i64,
    pub(crate) deleted: bool,
}

/// One version with its text.
#[derive(Debug, Serialize)]
pub(crate) struct Version {
    #[serde(flatten)]
    pub(crate) view: VersionView,
    /// JSON with its members in their order and lines of their own; Protobuf as it stands.
    pub(crate) text: String,
    /// Subject and version of those that refer to it, the first of them.
    pub(crate) referring: Vec<(String, i32)>,
    /// The version before it, and its text, where both are small enough to compare.
    #[serde(skip)]
    pub(crate) before: Option<(i32, String)>,
}

fn version_view(stored: &Stored) -> VersionView {
    VersionView {
        version: stored.version,
        id: stored.id,
        kind: stored.kind.clone(),
        references: stored.references.clone(),
        bytes: stored.schema.len(),
        timestamp: stored.timestamp_ms,
        deleted: stored.deleted,
    }
}

fn subject_view(state: &State, subject: &str) -> Option<SubjectView> {
    let latest = state.version(subject, -1, Filter::Live).or_else(|| state.version(subject, -1, Filter::WithDeleted))?;
    let deleted_versions = state.versions(subject).filter(|stored| stored.deleted).count();
    Some(SubjectView {
        subject: subject.to_owned(),
        versions: state.versions(subject).count() - deleted_versions,
        deleted_versions,
        latest: version_view(latest),
        compatibility: state.config_in_scope(Some(subject))[LEVEL].as_str().unwrap_or_default().to_owned(),
        compatibility_is_its_own: state.config(Some(subject)).is_some_and(|config| config.contains_key(LEVEL)),
        mode: state.mode_in_scope(Some(subject)).name(),
    })
}

fn readable(kind: &str, schema: &str) -> String {
    let is_json = Kind::of(kind) != Some(Kind::Protobuf) && schema.len() <= READABLE_BYTES_MAX;
    let json = if is_json { Json::parse(schema).ok() } else { None };
    json.map_or_else(|| schema.to_owned(), |json| json.pretty())
}

impl Registry {
    /// Subjects whose name contains `search`, in any case; ascending, softly deleted ones too. With how many there are in all.
    pub(crate) async fn shown(&self, search: &str, offset: usize, most: usize) -> Result<(Vec<SubjectView>, usize)> {
        let search = search.to_lowercase();
        let read = |state: &State| {
            let found = state.subjects.keys().filter(|subject| sees(Read, Subject, subject) && subject.to_lowercase().contains(&search));
            let found: Vec<&String> = found.collect();
            let rows = found.iter().skip(offset).take(most).filter_map(|subject| subject_view(state, subject)).collect();
            Ok((rows, found.len()))
        };
        Ok(self.0.read(read).await?)
    }

    /// A subject; its versions, the newest first; and the one that is asked for, else its latest.
    pub(crate) async fn shown_one(
        &self,
        subject: &str,
        version: Option<i32>,
        offset: usize,
        most: usize,
    ) -> Result<(SubjectView, Vec<VersionView>, Version)> {
        let read = |state: &State| {
            let Some(view) = subject_view(state, subject) else { return Ok(Err(missing(subject))) };
            let version = version.unwrap_or(view.latest.version);
            let Some(stored) = state.version(subject, version, Filter::WithDeleted) else { return Ok(Err(no_version(&view, version))) };
            let referring = state.referring(subject, stored.version, Filter::Live).filter(|one| sees(Read, Subject, &one.subject));
            let referring = referring.take(REFERRING_MAX).map(|one| (one.subject.clone(), one.version)).collect();
            let before = state.versions(subject).rev().find(|one| one.version < stored.version);
            let before = before.filter(|one| one.schema.len().max(stored.schema.len()) <= READABLE_BYTES_MAX);
            let versions: Vec<VersionView> = state.versions(subject).rev().skip(offset).take(most).map(version_view).collect();
            Ok(Ok((view, versions, stored.clone(), referring, before.cloned())))
        };
        let (view, versions, stored, referring, before) = self.0.read(read).await??;
        // While others read on.
        let before = before.map(|one| (one.version, readable(&one.kind, &one.schema)));
        let chosen = Version { view: version_view(&stored), text: readable(&stored.kind, &stored.schema), referring, before };
        Ok((view, versions, chosen))
    }
}

fn missing(subject: &str) -> BridgeError {
    BridgeError::new(Code::NoRoute, format!("subject {subject:?} is not there; /ui/subjects shows those that are"))
}

fn no_version(view: &SubjectView, version: i32) -> BridgeError {
    let subject = &view.subject;
    BridgeError::new(Code::NoRoute, format!("subject {subject:?} has no version {version}; its latest is {}", view.latest.version))
}
