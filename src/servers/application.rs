//! The name of the application that a command line runs: `shop` in
//! `gunicorn -w 4 shop.wsgi`, `etl` in `python /srv/etl.py`.

use super::{basename, is_versioned, launcher};

/// Programs that run an application named in their arguments.
const RUNNERS: [&str; 17] = [
    "arq",
    "bjoern",
    "celery",
    "daphne",
    "dramatiq",
    "fastapi",
    "flask",
    "granian",
    "gunicorn",
    "huey_consumer",
    "hypercorn",
    "pyuwsgi",
    "streamlit",
    "uvicorn",
    "uwsgi",
    "waitress",
    "waitress-serve",
];
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "zsh", "ksh"];
const INTERPRETERS: [&str; 2] = ["python", "pypy"];
/// Options whose value is the application.
const OPTIONS: [&str; 6] = ["-A", "--app", "--module", "-w", "--wsgi-file", "--ini"];

/// The name of the application; `None` if the command line does not contain it (`python -c`).
pub fn application(argv: &[String]) -> Option<String> {
    let (program, rest) = argv.split_first()?;
    let name = basename(program);
    match launcher::open(name, rest) {
        launcher::Inside::Command(inner) => return application(inner),
        launcher::Inside::Module(module) => {
            let after = rest.iter().position(|word| word == module)? + 1;
            return of_module(module, &rest[after..]);
        }
        launcher::Inside::Script(commands) => {
            let runs = |command: &&Vec<String>| {
                let first = command.first().map(|word| basename(word));
                first
                    .is_some_and(|first| !matches!(first, "cd" | "set" | "export" | "." | "source"))
            };
            return commands
                .iter()
                .rev()
                .find(runs)
                .and_then(|it| application(it));
        }
        launcher::Inside::Nothing => {}
    }
    if SHELLS.contains(&name) {
        return rest
            .iter()
            .find(|word| !word.starts_with('-'))
            .map(|it| stem(it));
    }
    if INTERPRETERS.iter().any(|known| is_versioned(name, known)) {
        return of_interpreter(rest);
    }
    if is_runner(name) {
        return target(name, rest);
    }
    Some(stem(name))
}

fn is_runner(name: &str) -> bool {
    let name = name.strip_suffix(".py").unwrap_or(name);
    RUNNERS.iter().any(|known| is_versioned(name, known))
}

fn of_module(module: &str, rest: &[String]) -> Option<String> {
    let top = module.split('.').next().unwrap_or(module);
    if is_runner(top) {
        return target(top, rest);
    }
    Some(top.to_owned())
}

/// The application that an interpreter with these arguments runs: a script, or the module of `-m`.
/// `-m` and `-c` end the options of python(1), and may be the last letter of combined options
/// (`-um`). `-W` and `-X` have a value.
fn of_interpreter(rest: &[String]) -> Option<String> {
    let mut at = 0;
    while let Some(word) = rest.get(at) {
        at += 1;
        let Some(option) = word.strip_prefix('-').filter(|option| !option.is_empty()) else {
            let name = basename(word);
            return match word.as_str() {
                "-" => None,
                _ if is_runner(name) => target(name, &rest[at..]),
                _ => Some(stem(word)),
            };
        };
        let Some(index) = option
            .find(['m', 'c', 'W', 'X'])
            .filter(|_| !option.starts_with('-'))
        else {
            // The only long option with a value; its first dash is stripped.
            if option == "-check-hash-based-pycs" {
                at += 1;
            }
            continue;
        };
        let (letter, attached) = option.split_at(index).1.split_at(1);
        let value = if attached.is_empty() {
            at += 1;
            rest.get(at - 1).map(String::as_str)
        } else {
            Some(attached)
        };
        match letter {
            "m" => return of_module(value?, rest.get(at..).unwrap_or_default()),
            "c" => return None,
            _ => {}
        }
    }
    None
}

/// The application in the arguments of a runner: the value of an option, `MODULE:NAME`, a file, or
/// a module.
fn target(runner: &str, rest: &[String]) -> Option<String> {
    let is_valued = |word: &str| {
        // For gunicorn and others, `-w` is the number of workers.
        OPTIONS.contains(&word) && (word != "-w" || runner.ends_with("uwsgi"))
    };
    for (at, word) in rest.iter().enumerate() {
        if let Some((option, value)) = word.split_once('=')
            && is_valued(option)
        {
            return module(value);
        }
        if is_valued(word) {
            return rest.get(at + 1).and_then(|value| module(value));
        }
    }
    // A word after an option may be its value.
    let free = |at: usize| at == 0 || rest.get(at - 1).is_none_or(|it| !it.starts_with('-'));
    let found = |wanted: fn(&str) -> bool| {
        let all = || rest.iter().enumerate().filter(|(_, word)| wanted(word));
        let word = all().find(|(at, _)| free(*at)).or_else(|| all().next());
        word.and_then(|(_, word)| module(word))
    };
    let last = || {
        let word = rest.last().filter(|word| is_module(word));
        word.filter(|_| free(rest.len() - 1))
    };
    let first = || rest.first().filter(|word| is_module(word));
    found(is_attribute).or_else(|| found(is_file)).or_else(|| {
        last()
            .or_else(first)
            .or(rest.last())
            .and_then(|word| module(word))
    })
}

/// `shop.wsgi:app`, `shop:make()`; not `127.0.0.1:8000`, `unix:/run/x` or `localhost:80`.
fn is_attribute(word: &str) -> bool {
    let Some((module, name)) = word.split_once(':') else {
        return false;
    };
    let name = name.split('(').next().unwrap_or_default();
    is_module(module) && is_module(name)
}

fn is_file(word: &str) -> bool {
    !word.starts_with('-') && (word.ends_with(".py") || word.ends_with(".ini"))
}

fn is_module(word: &str) -> bool {
    word.split('.').all(|part| {
        part.starts_with(|c: char| c == '_' || c.is_alphabetic())
            && part.chars().all(|c| c == '_' || c.is_alphanumeric())
    })
}

/// The name of the top-level module, or the stem of a file.
fn module(word: &str) -> Option<String> {
    if is_file(word) {
        return Some(stem(word));
    }
    let path = word.split(':').next().unwrap_or(word);
    let top = path.split('.').next().filter(|top| is_module(top))?;
    Some(top.to_owned())
}

/// `etl` of `/srv/etl.py`.
fn stem(path: &str) -> String {
    let name = basename(path);
    match name.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem.to_owned(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(line: &str) -> Option<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        application(&words)
    }

    #[test]
    fn the_name_is_that_of_the_application_and_not_of_its_server() {
        for line in [
            "gunicorn shop:app",
            "/venv/bin/gunicorn -w 4 -b 127.0.0.1:8000 shop.wsgi",
            "gunicorn shop.wsgi:application --reload",
            "gunicorn shop -k gevent",
            "gunicorn -k uvicorn.workers.UvicornWorker shop.main:make()",
            "gunicorn --reload shop:app",
            "gunicorn -b unix:/run/x.sock shop:app",
            "python -m gunicorn -w 2 shop:app",
            "python3.11 -um uvicorn --workers 2 shop:app",
            "/x/bin/python /x/bin/gunicorn shop:app",
            "uvicorn --host 0.0.0.0 shop.asgi:app --port 80",
            "hypercorn -b localhost:80 shop:app",
            "granian --interface wsgi shop:app",
            "daphne -p 80 shop.asgi:application",
            "waitress-serve --listen=*:80 shop.wsgi:app",
            "uwsgi --http :80 --module shop.wsgi",
            "uwsgi --ini /etc/shop.ini",
            "uwsgi --wsgi-file=/srv/shop.py",
            "celery -A shop.tasks worker -c 4",
            "celery --app=shop worker",
            "flask --app shop run",
            "fastapi run src/shop.py",
            "dramatiq shop.tasks",
            "env A=1 uv run gunicorn shop:app",
            "opentelemetry-instrument python -m uvicorn shop:app",
            "uv run -m shop.serve",
        ] {
            assert_eq!(named(line).as_deref(), Some("shop"), "{line}");
        }
    }

    #[test]
    fn the_name_of_a_script_is_its_stem() {
        for line in [
            "python etl.py",
            "python3 -u -X dev /srv/etl.py --fast 2025.csv",
            "python -m etl.convert",
            "pypy3 -W ignore etl.py",
            "sh /srv/etl.sh x",
            "bash -x etl.sh",
            "/srv/bin/etl --all",
            "./etl.py",
            "timeout 60 python etl.py",
        ] {
            assert_eq!(named(line).as_deref(), Some("etl"), "{line}");
        }
        let of_script = |script: &str| application(&["sh", "-c", script].map(str::to_owned));
        for script in [
            "cd /srv && exec gunicorn etl:app",
            "exec python etl.py",
            "etl",
        ] {
            assert_eq!(of_script(script).as_deref(), Some("etl"), "{script}");
        }
    }

    #[test]
    fn a_command_line_without_an_application_has_no_name() {
        for line in [
            "python",
            "python -c pass",
            "python -",
            "gunicorn",
            "flask -A",
            "sh",
            "bash -l",
        ] {
            assert_eq!(named(line), None, "{line}");
        }
        assert_eq!(application(&[]), None);
        assert_eq!(application(&["sh", "-c", ""].map(str::to_owned)), None);
    }
}
