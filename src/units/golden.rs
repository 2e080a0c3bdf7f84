//! What programs read of us, as files under `tests/golden`: a change of it shows in a diff.

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
        "not as in {}. If tools that read it may see this change, run the test again with \
         GOLDEN=write.\n{found}",
        path.display()
    );
}
