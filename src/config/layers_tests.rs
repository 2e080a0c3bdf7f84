//! Tests of the layers: flags override the file, the file overrides variables.

use super::tests::load_all;
use crate::{
    supervisor::spec::{AgentLoad, Limit},
    units::{Bytes, Size},
};

#[test]
fn flags_override_the_file_which_overrides_variables() {
    let file = "[memory]\nceiling = \"2M\"\ncap = \"20M\"";
    let flags = [("cap", "30M")];
    let environ = [
        ("SUPERVISE_CEILING", "1M"),
        ("SUPERVISE_BUDGET", "90M"),
        ("OTHER", "x"),
    ];
    let spec = load_all(Some(file), &flags, &environ, &["python"])
        .unwrap()
        .spec;
    let at = |mib| Limit::At(Size::Bytes(Bytes::mib(mib)));
    assert_eq!(spec.memory.ceiling, at(2));
    assert_eq!(spec.memory.cap, at(30));
    assert_eq!(spec.memory.budget, at(90));
}

#[test]
fn an_error_in_a_variable_or_a_flag_names_it() {
    let environ = [("SUPERVISE_CAP", "x"), ("SUPERVISE_DRY_RUN", "maybe")];
    let error_of = |flags: &[_], environ: &[_]| {
        let error = load_all(None, flags, environ, &["python"]).unwrap_err();
        (error.to_string(), error.status())
    };
    let (text, status) = error_of(&[], &environ);
    assert!(
        text.starts_with("SUPERVISE_CAP: `x` is not a size"),
        "{text}"
    );
    assert!(
        text.contains("\nSUPERVISE_DRY_RUN: `maybe` is neither"),
        "{text}"
    );
    assert_eq!(status, 78);
    let flags = [
        ("ceiling", "300Q"),
        ("max-unavailable", "0"),
        ("rlimit.nofiles", "3"),
    ];
    let (text, status) = error_of(&flags, &[]);
    assert!(text.contains("--ceiling: `300Q` is not a size"), "{text}");
    assert!(text.contains("--max-unavailable: `0` is not"), "{text}");
    assert_eq!((text.lines().count(), status), (3, 2));
    assert_eq!(error_of(&flags, &environ).1, 78);
}

#[test]
fn an_unknown_variable_is_only_a_warning() {
    let loaded = load_all(
        None,
        &[],
        &[("SUPERVISE_CELING", "1"), ("SUPERVISE_LOG", "debug")],
        &["python"],
    )
    .unwrap();
    assert_eq!(
        loaded.warnings,
        ["unknown variable `SUPERVISE_CELING`; did you mean `SUPERVISE_CEILING`?"]
    );
}

#[test]
fn variables_that_a_service_sets_for_its_workers_are_ignored() {
    let environ = [
        ("SUPERVISE_AGENT", "/run/supervise/shop.agent"),
        ("SUPERVISE_AGENT_DRAIN", "2"),
        ("SUPERVISE_BINARY", "/bin/supervise"),
    ];
    let loaded = load_all(None, &[], &environ, &["python"]).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let off = load_all(None, &[], &[("SUPERVISE_AGENT", "off")], &["python"]);
    assert_eq!(off.unwrap().spec.agent.load, AgentLoad::Off);
}
