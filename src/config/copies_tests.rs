//! Tests of what the number of copies, and their overlap, are derived from.

use super::{
    Facts as _,
    tests::{Pretend, load_all},
};

#[test]
fn the_replacement_of_a_single_program_with_sockets_may_start_first_unless_a_setting_forbids_it() {
    let listen = ("listen", ":8000");
    let overlaps = |flags: &[(&str, &str)], environ: &[(&str, &str)], command: &[&str]| {
        load_all(None, flags, environ, command)
            .unwrap()
            .spec
            .overlap
    };
    let python = ["python", "app.py"];
    assert!(overlaps(&[listen], &[], &python));
    assert!(overlaps(&[], &[("LISTEN_FDS", "1")], &python));
    assert!(!overlaps(&[], &[], &python));
    assert!(!overlaps(&[listen], &[], &["gunicorn", "app"]));
    let workers = ["python", "-m", "uvicorn", "--workers", "2", "app:app"];
    assert!(!overlaps(&[listen], &[], &workers));
    for other in [
        ("server", "none"),
        ("surge", "false"),
        ("restart", "never"),
        ("copies", "1"),
    ] {
        assert!(!overlaps(&[listen, other], &[], &python), "{other:?}");
    }
}

#[test]
fn an_automatic_number_of_copies_begins_with_one_and_is_at_most_that_of_the_cores() {
    let copies = |number: &str| {
        let loaded = load_all(None, &[("copies", number)], &[], &["python"]);
        loaded.map(|loaded| (loaded.spec.copies, loaded.spec.copies_up_to))
    };
    assert_eq!(copies("auto").unwrap(), (Some(1), Some(Pretend.cores())));
    assert_eq!(copies("3").unwrap(), (Some(3), None));
    assert_eq!(copies("none").unwrap(), (None, None));
    assert!(copies("many").unwrap_err().to_string().contains("copies"));
}
