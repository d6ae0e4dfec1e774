//! Files that change while a service runs: secrets, keys, policies.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Tells when any of some files is another one than before. A name that leads elsewhere (as Kubernetes mounts secrets) is followed.
pub struct Watched {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
}

/// Device, inode, length, time of the last change.
type Stamp = (u64, u64, u64, Option<SystemTime>);

impl Watched {
    /// Empty paths are left out.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<PathBuf> = paths.into_iter().filter(|path| !path.as_os_str().is_empty()).collect();
        let seen = stamps(&paths);
        Self { paths, seen }
    }

    /// Whether something changed since the last call.
    pub fn changed(&mut self) -> bool {
        let now = stamps(&self.paths);
        let changed = now != self.seen;
        self.seen = now;
        changed
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &Path| {
        let data = fs::metadata(path).ok()?;
        Some((data.dev(), data.ino(), data.len(), data.modified().ok()))
    };
    paths.iter().map(|path| stamp(path)).collect()
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_file_that_is_written_replaced_or_linked_elsewhere_has_changed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("one"), "1").unwrap();
        fs::write(at("other"), "2").unwrap();
        std::os::unix::fs::symlink(at("one"), at("link")).unwrap();
        let mut files = Watched::new([at("link"), PathBuf::new(), at("later")]);
        assert!(!files.changed());
        fs::write(at("one"), "11").unwrap();
        assert!(files.changed() && !files.changed());
        std::os::unix::fs::symlink(at("other"), at("next")).unwrap();
        fs::rename(at("next"), at("link")).unwrap();
        assert!(files.changed() && !files.changed());
        fs::write(at("later"), "").unwrap();
        assert!(files.changed());
        fs::remove_file(at("later")).unwrap();
        assert!(files.changed() && !files.changed());
    }
}
