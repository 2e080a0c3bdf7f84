//! Programs that a test makes and executes.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
};

/// Copies a program to be executed. `cp` does it: the kernel executes no file that is open
/// for writing (ETXTBSY of execve(2)), and a child process that another test forks meanwhile would
/// inherit our open file.
pub(crate) fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// Writes a shell script to be executed.
pub(crate) fn script(to: &Path, text: &str) {
    let source = to.with_extension("source");
    fs::write(&source, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&source, Permissions::from_mode(0o755)).unwrap();
    copy(&source, to);
}
