//! Finds the command that a launcher executes, such as `uv run`, `env` or `sh -c`.

/// The command in the arguments of a launcher.
#[derive(Debug)]
pub(super) enum Inside<'a> {
    /// Another command line.
    Command(&'a [String]),
    /// A Python module.
    Module(&'a str),
    /// The simple commands of a shell script.
    Script(Vec<Vec<String>>),
    /// No command, or the program is not a known launcher.
    Nothing,
}

/// A launcher, which executes the rest of its command line.
struct Launcher {
    name: &'static str,
    /// The subcommand that executes a command. Options are allowed before it.
    subcommand: Option<&'static str>,
    /// Options whose value is the next word.
    valued: &'static [&'static str],
    /// The number of other arguments between the options and the command.
    operands: usize,
}

const fn launcher(name: &'static str, valued: &'static [&'static str]) -> Launcher {
    Launcher {
        name,
        subcommand: None,
        valued,
        operands: 0,
    }
}

const fn with(
    name: &'static str,
    subcommand: &'static str,
    valued: &'static [&'static str],
) -> Launcher {
    Launcher {
        subcommand: Some(subcommand),
        ..launcher(name, valued)
    }
}

const LAUNCHERS: [Launcher; 18] = [
    launcher("env", &["-u", "--unset", "-C", "--chdir"]),
    launcher("nice", &["-n", "--adjustment"]),
    launcher("ionice", &["-c", "--class", "-n", "--classdata"]),
    launcher("nohup", &[]),
    launcher("setsid", &[]),
    launcher(
        "stdbuf",
        &["-i", "--input", "-o", "--output", "-e", "--error"],
    ),
    Launcher {
        operands: 1,
        ..launcher("timeout", &["-s", "--signal", "-k", "--kill-after"])
    },
    launcher("exec", &["-a"]),
    launcher("dumb-init", &["-r", "--rewrite"]),
    launcher("tini", &["-p", "-e"]),
    launcher("ddtrace-run", &[]),
    launcher("opentelemetry-instrument", TELEMETRY),
    with("newrelic-admin", "run-program", &[]),
    with("uv", "run", UV),
    with("poetry", "run", &["-C", "--directory", "-P", "--project"]),
    with("pipenv", "run", &["--python", "--pypi-mirror"]),
    with("pdm", "run", &["-p", "--project"]),
    with("rye", "run", &["--pyproject"]),
];

const TELEMETRY: &[&str] = &[
    "--traces_exporter",
    "--metrics_exporter",
    "--logs_exporter",
    "--id_generator",
    "--service_name",
    "--exporter_otlp_endpoint",
];

const UV: &[&str] = &[
    "-p",
    "--python",
    "-w",
    "--with",
    "--with-editable",
    "--with-requirements",
    "--extra",
    "--group",
    "--no-group",
    "--only-group",
    "--package",
    "--project",
    "--directory",
    "--env-file",
    "--index",
    "--index-url",
    "--default-index",
    "--config-file",
    "--cache-dir",
    "--color",
    "-P",
    "--upgrade-package",
];

/// The command that `program` executes with these arguments.
pub(super) fn open<'a>(program: &str, arguments: &'a [String]) -> Inside<'a> {
    if matches!(program, "sh" | "bash" | "dash" | "ash" | "zsh" | "ksh") {
        return script(arguments).map_or(Inside::Nothing, |text| Inside::Script(commands(text)));
    }
    let Some(known) = LAUNCHERS.iter().find(|known| known.name == program) else {
        return Inside::Nothing;
    };
    let mut awaited = known.subcommand;
    let mut operands = known.operands;
    let mut at = 0;
    while let Some(word) = arguments.get(at) {
        if awaited.is_none() && matches!(word.as_str(), "-m" | "--module") {
            return arguments
                .get(at + 1)
                .map_or(Inside::Nothing, |module| Inside::Module(module));
        }
        if known.valued.contains(&word.as_str()) {
            at += 2;
        } else if word.starts_with('-') || is_assignment(word) {
            at += 1;
        } else if let Some(subcommand) = awaited.take() {
            if subcommand != word {
                return Inside::Nothing;
            }
            at += 1;
        } else if operands > 0 {
            operands -= 1;
            at += 1;
        } else {
            break;
        }
    }
    Inside::Command(arguments.get(at..).unwrap_or_default())
}

/// The script after `-c`, which may be the last letter of combined options (`-lc`).
fn script(arguments: &[String]) -> Option<&str> {
    let at = arguments.iter().position(|word| {
        !word.starts_with("--") && (word.ends_with('c') || !word.starts_with('-'))
    })?;
    let option = arguments.get(at)?;
    let text = arguments.get(at + 1)?;
    option.starts_with('-').then_some(text.as_str())
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

/// The simple commands of a shell script, without the assignments before them. Quotes and
/// backslashes are interpreted, expansions are not.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        if quote == Some(c) {
            quote = None;
        } else if c == '\\' && quote != Some('\'') {
            word.get_or_insert_default().extend(letters.next());
        } else if quote.is_some() {
            word.get_or_insert_default().push(c);
        } else if matches!(c, '\'' | '"') {
            quote = Some(c);
            word.get_or_insert_default();
        } else if c == '#' && word.is_none() {
            letters.by_ref().find(|c| *c == '\n');
            all.push(Vec::new());
        } else if c.is_whitespace() || matches!(c, ';' | '&' | '|' | '(' | ')') {
            push(&mut all, word.take());
            if c == '\n' || !c.is_whitespace() {
                all.push(Vec::new());
            }
        } else {
            word.get_or_insert_default().push(c);
        }
    }
    push(&mut all, word);
    all
}

fn push(all: &mut [Vec<String>], word: Option<String>) {
    if let (Some(command), Some(word)) = (all.last_mut(), word)
        && !(command.is_empty() && is_assignment(&word))
    {
        command.push(word);
    }
}
