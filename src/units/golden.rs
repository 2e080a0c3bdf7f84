//! Interfaces for other programs, as files under `tests/golden`, so that a change of them is
//! visible in a diff.

use std::{env, fs, path::Path};

/// Compares `found` with the golden file of this name. `GOLDEN=write` writes the file instead.
pub(crate) fn check(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        fs::write(&path, found).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    assert!(
        golden == found,
        "{} differs. If this change is intended for the tools that read it, run the test \
         again with GOLDEN=write.\n{found}",
        path.display()
    );
}
