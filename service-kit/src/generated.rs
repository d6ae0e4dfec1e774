//! Pages under `docs/generated/` are written by tests and compared by them.

use std::{env, fs, path::Path};

/// Fails when the page differs from `text`; with `MILLRACE_BLESS=1` writes it.
#[track_caller]
pub(crate) fn check(page: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/generated").join(page);
    if env::var_os("MILLRACE_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let current = fs::read_to_string(&path).unwrap_or_default();
    assert!(current == text, "docs/generated/{page} is stale; renew it with: MILLRACE_BLESS=1 cargo test -p service-kit");
}
