//! From a URL or path to an object store. One place decides which schemes there are.

use std::{
    collections::BTreeMap,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, LazyLock},
};

use object_store::{ObjectStore, local::LocalFileSystem, memory::InMemory, path::Path};
use parking_lot::Mutex;

use super::CheckpointError;

type Opened = (Arc<dyn ObjectStore>, Path, Option<PathBuf>);

/// Stores of `memory:///name`, so that a job that is started again in the same process finds its checkpoint.
static MEMORY: LazyLock<Mutex<BTreeMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);

pub(super) fn open(location: &str) -> Result<Opened, CheckpointError> {
    let wrong = |message: String| CheckpointError::Location { location: location.into(), message };
    match location.split_once("://") {
        None if location.is_empty() => Err(wrong("is empty; give a folder or a file:// URL".into())),
        None => local(FilePath::new(location), &wrong),
        Some(("file", path)) if path.starts_with('/') => {
            if path.contains('%') {
                return Err(wrong("percent-encoding is not understood; give the plain path".into()));
            }
            local(FilePath::new(path), &wrong)
        }
        Some(("file", _)) => Err(wrong("a file URL has three slashes: file:///path".into())),
        Some(("memory", name)) => {
            let store = MEMORY.lock().entry(name.trim_matches('/').to_string()).or_default().clone();
            Ok((store, Path::default(), None))
        }
        Some((scheme, _)) => Err(wrong(format!("scheme `{scheme}` is not built in; use file:///path or a plain path"))),
    }
}

fn local(path: &FilePath, wrong: &dyn Fn(String) -> CheckpointError) -> Result<Opened, CheckpointError> {
    let path = std::path::absolute(path).map_err(|error| wrong(format!("is no usable path: {error}")))?;
    std::fs::create_dir_all(&path).map_err(|error| wrong(format!("cannot create the folder: {error}")))?;
    let store = LocalFileSystem::new_with_prefix(&path).map_err(|error| wrong(error.to_string()))?;
    Ok((Arc::new(store), Path::default(), Some(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_schemes_and_unusable_places_are_named() {
        for (location, part) in [
            ("s3://bucket/x", "scheme `s3` is not built in"),
            ("hdfs://host/x", "scheme `hdfs` is not built in"),
            ("file://relative", "three slashes"),
            ("file:///a%20b", "percent-encoding"),
            ("", "is empty"),
            ("/proc/self/nothing/here", "cannot create the folder"),
        ] {
            let error = open(location).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(location), "{error}");
        }
    }

    #[test]
    fn memory_of_the_same_name_is_the_same_store() {
        let (a, ..) = open("memory:///location-test").unwrap();
        let (b, ..) = open("memory:///location-test").unwrap();
        let (c, ..) = open("memory:///location-other").unwrap();
        assert!(Arc::ptr_eq(&a, &b));
        assert!(!Arc::ptr_eq(&a, &c));
    }
}
