//! The manual page and the completions are what their readers take: groff, man and bash.
#![expect(clippy::print_stdout, reason = "what is not tested is said")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const SUPERVISE: &str = env!("CARGO_BIN_EXE_supervise");

/// What `program` says of `input`; `None` if it is not here.
fn fed(program: &[&str], input: &[u8]) -> Option<Output> {
    let child = Command::new(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            println!("{}: {error}: not tested", program[0]);
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    // Neither of them writes much before it has read all.
    stdin.write_all(input).unwrap();
    drop(stdin);
    Some(child.wait_with_output().unwrap())
}

/// `supervise WORDS`.
fn said(words: &[&str]) -> Vec<u8> {
    let output = Command::new(SUPERVISE).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    output.stdout
}

/// What bash offers for a line whose last word is being written.
#[track_caller]
fn offered(words: &[&str]) -> Vec<String> {
    let line = words.join("' '");
    let before = words[words.len() - 2];
    let last = words[words.len() - 1];
    let script = format!(
        ". <('{SUPERVISE}' completions bash)\n\
         COMP_WORDS=('{line}') COMP_CWORD={}\n\
         _supervise supervise '{last}' '{before}'\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        words.len() - 1
    );
    let output = Command::new("bash")
        .args(["--norc", "-c", &script])
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn groff_has_nothing_to_complain_of() {
    let page = said(&["man"]);
    let Some(output) = fed(&["groff", "-man", "-ww", "-Tutf8", "-z"], &page) else {
        return;
    };
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && complaints.is_empty(),
        "{complaints}"
    );
}

#[test]
fn the_page_shows_each_section_once_and_each_subcommand() {
    let page = String::from_utf8(said(&["man"])).unwrap();
    let sections: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".SH "))
        .map(|name| name.trim_matches('"'))
        .collect();
    for name in [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "RECYCLING",
        "SUBCOMMANDS",
        "EXAMPLES",
        "SIGNALS",
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "SEE ALSO",
    ] {
        let times = sections.iter().filter(|section| **section == name).count();
        assert_eq!(times, 1, "{name} in {sections:?}");
    }
    let help = String::from_utf8(said(&["--help"])).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|word| !word.is_empty() && *word != "help")
        .collect();
    assert!(commands.len() > 8, "{commands:?}");
    for word in commands {
        assert!(page.contains(&format!("\n.SS {word}\n")), "{word}");
    }
    assert!(page.contains(r"\-\-oom\-retries"), "an option of map alone");
}

#[test]
fn bash_completes_options_subcommands_and_values() {
    assert_eq!(offered(&["supervise", "--ceil"]), ["--ceiling"]);
    assert_eq!(offered(&["supervise", "sta"]), ["status"]);
    let measures = offered(&["supervise", "--measure", ""]);
    assert_eq!(measures, ["private", "rss", "pss", "cgroup"]);
    assert_eq!(offered(&["supervise", "run", "--restart", "n"]), ["never"]);
    assert_eq!(offered(&["supervise", "map", "--oom"]), ["--oom-retries"]);
}

#[test]
fn a_package_finds_its_files_where_the_script_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/assets");
    let output = Command::new(script)
        .arg(SUPERVISE)
        .env("ASSETS", dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(read("supervise.1").contains(".TH SUPERVISE 1"));
    assert!(read("_supervise").starts_with("#compdef supervise"));
    assert!(read("supervise.fish").contains("complete -c supervise"));
    sound("bash", &dir.path().join("supervise.bash"));
    sound("zsh", &dir.path().join("_supervise"));
    sound("fish", &dir.path().join("supervise.fish"));
}

/// The shell reads it without running it, if the shell is here.
fn sound(shell: &str, path: &PathBuf) {
    match Command::new(shell).arg("-n").arg(path).output() {
        Err(error) => println!("{shell}: {error}: not tested"),
        Ok(output) => assert!(output.status.success(), "{output:?}"),
    }
}
