//! The manual page and the completions are valid for the programs that read them: groff and shells.
#![expect(
    clippy::print_stdout,
    reason = "a test prints what it cannot test here"
)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const SUPERVISE: &str = env!("CARGO_BIN_EXE_supervise");

/// Runs `program` with `input`. `None` if it is not installed.
fn run_with_input(program: &[&str], input: &[u8]) -> Option<Output> {
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
    // The program writes little before it has read all its input, so this cannot block.
    stdin.write_all(input).unwrap();
    drop(stdin);
    Some(child.wait_with_output().unwrap())
}

/// The standard output of `supervise WORDS`.
fn stdout_of(words: &[&str]) -> Vec<u8> {
    let output = Command::new(SUPERVISE).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    output.stdout
}

/// The completions that bash offers for the last word.
#[track_caller]
fn completions(words: &[&str]) -> Vec<String> {
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
fn groff_reads_the_manual_page_without_warnings() {
    let page = stdout_of(&["man"]);
    let Some(output) = run_with_input(&["groff", "-man", "-ww", "-Tutf8", "-z"], &page) else {
        return;
    };
    let warnings = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && warnings.is_empty(), "{warnings}");
}

#[test]
fn the_manual_page_has_each_section_once_and_each_subcommand() {
    let page = String::from_utf8(stdout_of(&["man"])).unwrap();
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
    let help = String::from_utf8(stdout_of(&["--help"])).unwrap();
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
    assert!(
        page.contains(r"\-\-oom\-retries"),
        "an option that only map has"
    );
}

#[test]
fn bash_completes_options_subcommands_and_values() {
    assert_eq!(completions(&["supervise", "--ceil"]), ["--ceiling"]);
    assert_eq!(completions(&["supervise", "sta"]), ["status"]);
    let measures = completions(&["supervise", "--measure", ""]);
    assert_eq!(measures, ["private", "rss", "pss", "cgroup"]);
    assert_eq!(
        completions(&["supervise", "run", "--restart", "n"]),
        ["never"]
    );
    assert_eq!(
        completions(&["supervise", "map", "--oom"]),
        ["--oom-retries"]
    );
}

#[test]
fn the_assets_script_writes_the_files_of_the_package() {
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
    assert_syntax("bash", &dir.path().join("supervise.bash"));
    assert_syntax("zsh", &dir.path().join("_supervise"));
    assert_syntax("fish", &dir.path().join("supervise.fish"));
}

/// Asserts that the shell can parse the file, if the shell is installed.
fn assert_syntax(shell: &str, path: &PathBuf) {
    match Command::new(shell).arg("-n").arg(path).output() {
        Err(error) => println!("{shell}: {error}: not tested"),
        Ok(output) => assert!(output.status.success(), "{output:?}"),
    }
}
