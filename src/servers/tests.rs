//! The command lines of servers.

use super::*;

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

#[test]
fn several_workers_are_those_of_a_server_that_has_such_an_option() {
    for line in [
        "uvicorn --workers 2 app",
        "uv run uvicorn app --workers=4",
        "hypercorn -w 2 app",
        "python -m fastapi run --workers 2 app.py",
    ] {
        assert!(has_several_workers(&words(line)), "{line}");
    }
    for line in [
        "uvicorn --workers 1 app",
        "uvicorn app",
        "huey_consumer app -w 4",
    ] {
        assert!(!has_several_workers(&words(line)), "{line}");
    }
}

#[test]
fn gunicorn_is_recognised_behind_every_launcher() {
    for line in [
        "gunicorn app",
        "/srv/x/bin/gunicorn -w 2 app",
        "gunicorn3 app",
        "python -m gunicorn app",
        "python3.11 -u -m gunicorn app",
        "python -um gunicorn app",
        "python -mgunicorn.app.wsgiapp app",
        "python -X dev -Wignore -W default -m gunicorn app",
        "/x/bin/python /x/bin/gunicorn app",
        "uv run gunicorn app",
        "uv run --python 3.12 --frozen -- gunicorn app",
        "uv --quiet run --with gunicorn -m gunicorn app",
        "poetry run gunicorn app",
        "pipenv run python -m gunicorn app",
        "env -i -u HOME A=B C= gunicorn app",
        "nice -n 5 ionice -c 2 gunicorn app",
        "nice -5 gunicorn app",
        "nohup setsid gunicorn app",
        "timeout -s TERM 60 gunicorn app",
        "dumb-init -v -- gunicorn app",
        "tini -g -- gunicorn app",
        "ddtrace-run gunicorn app",
        "opentelemetry-instrument --traces_exporter console gunicorn app",
        "newrelic-admin run-program gunicorn app",
    ] {
        assert_eq!(recognise(&words(line)), Some(&gunicorn::PROFILE), "{line}");
    }
}

#[test]
fn gunicorn_is_recognised_in_a_script_of_a_shell() {
    for script in [
        "exec gunicorn app",
        "cd /srv && exec 'gunicorn' -w 2 app",
        "set -e; PORT=80 gunicorn app",
        ". venv/bin/activate\nexec uv run \"gunicorn\" app",
    ] {
        for flags in ["-c", "-lc", "-ec"] {
            let argv = ["bash", flags, script].map(str::to_owned);
            assert_eq!(recognise(&argv), Some(&gunicorn::PROFILE), "{script}");
        }
    }
}

#[test]
fn a_command_line_that_only_mentions_gunicorn_is_not_recognised() {
    for line in [
        "",
        "python app.py gunicorn",
        "python -c gunicorn",
        "python -m pytest gunicorn",
        "python",
        "./start.sh gunicorn",
        "gunicorn-reloader app",
        "pip install gunicorn",
        "uv pip install gunicorn",
        "env",
        "bash start.sh gunicorn",
        "uv run",
    ] {
        assert_eq!(recognise(&words(line)), None, "{line}");
    }
    let argv = ["sh", "-c", "echo gunicorn # gunicorn"].map(str::to_owned);
    assert_eq!(recognise(&argv), None);
}

#[test]
fn uvicorn_gets_its_socket_by_a_variable() {
    for line in [
        "uvicorn shop:app",
        "python -m uvicorn shop:app",
        "uv run uvicorn shop:app",
    ] {
        assert_eq!(socket_variable(&words(line)), Some("UVICORN_FD"), "{line}");
    }
    for line in [
        "gunicorn -k uvicorn.workers.UvicornWorker a",
        "uvicorn_x",
        "",
    ] {
        assert_eq!(socket_variable(&words(line)), None, "{line}");
    }
}

#[test]
fn a_server_of_tasks_is_a_main_process_only_with_a_word_that_says_so() {
    for (line, server, is_one) in [
        ("rq worker-pool -n 2", &rq::PROFILE, true),
        ("/x/bin/python /x/bin/rq worker", &rq::PROFILE, false),
        (
            "huey_consumer.py shop.huey -k process",
            &huey::PROFILE,
            true,
        ),
        (
            "python -m huey.bin.huey_consumer shop.huey -kprocess",
            &huey::PROFILE,
            true,
        ),
        // Its workers are threads, and a child belongs to a task.
        ("huey_consumer shop.huey", &huey::PROFILE, false),
        ("python /x/bin/pyuwsgi --ini a.ini", &uwsgi::PROFILE, true),
    ] {
        assert_eq!(is_main(server, &words(line)), is_one, "{line}");
    }
}

#[test]
fn uvicorn_is_not_recognised_by_its_command_line() {
    let line = words("/x/bin/python /x/bin/uvicorn --workers 4 shop:app");
    assert_eq!(recognise(&line), None);
    assert!(is_main(&uvicorn::PROFILE, &line));
    let spawned = "/x/bin/python -c spawn_main(tracker_fd=5) --multiprocessing-fork";
    assert!(!is_main(&uvicorn::PROFILE, &words(spawned)));
}

#[test]
fn a_main_process_of_gunicorn_is_recognised_by_its_command_line() {
    for line in [
        "gunicorn: master [shop:app]",
        "/x/bin/python3.11 /x/bin/gunicorn -w 2 shop:app",
        "python -m gunicorn shop:app",
    ] {
        let argv = match line.strip_prefix("gunicorn:") {
            Some(_) => vec![line.to_owned()],
            None => words(line),
        };
        assert!(is_main(&gunicorn::PROFILE, &argv), "{line}");
    }
    for line in [
        "uv run gunicorn shop:app",
        "sh -c gunicorn",
        "python x.py",
        "",
    ] {
        assert!(!is_main(&gunicorn::PROFILE, &words(line)), "{line}");
    }
}
