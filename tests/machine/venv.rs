//! Python environments with real servers, made once from PyPI and kept in `.venvs/`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use nix::fcntl::{Flock, FlockArg};

/// A Python environment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Venv {
    name: &'static str,
    requirements: &'static str,
    /// The interpreter. Without one, [`python()`].
    python: Option<&'static str>,
}

/// The newest version of every package.
pub(crate) const NEWEST: Venv = Venv {
    name: "newest",
    requirements: "gunicorn flask django gevent uvicorn uvicorn-worker fastapi-cli fastapi \
                   packaging uv numpy pyyaml cloudpickle lxml orjson protobuf",
    python: None,
};

/// A gunicorn whose gthread workers lose requests at TERM. Its processes are renamed, as those of
/// many services are: `gunicorn: master [leaky_flask:app]`.
pub(crate) const G23: Venv = Venv {
    name: "g23",
    requirements: "gunicorn==23.0.0 setproctitle flask gevent uvicorn uvicorn-worker packaging",
    python: None,
};

/// The oldest supported gunicorn. It needs `pkg_resources`, which newer setuptools do not have.
pub(crate) const G20: Venv = Venv {
    name: "g20",
    requirements: "gunicorn==20.1.0 setuptools<80 flask gevent uvicorn uvicorn-worker packaging",
    python: None,
};

/// Servers other than gunicorn and uvicorn.
pub(crate) const OTHERS: Venv = Venv {
    name: "others",
    requirements: "hypercorn waitress daphne flask pyuwsgi granian",
    python: None,
};

/// Workers of queues.
pub(crate) const QUEUES: Venv = Venv {
    name: "queues",
    requirements: "rq huey taskiq taskiq-redis dramatiq redis",
    python: None,
};

/// celery with a broker that needs no other process.
pub(crate) const CELERY: Venv = Venv {
    name: "celery",
    requirements: "celery",
    python: None,
};

/// The options of a gunicorn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gunicorn {
    /// `-w`.
    pub workers: u32,
    /// `-k`.
    pub class: &'static str,
    /// `MODULE:APP`, in `tests/programs`.
    pub app: &'static str,
}

/// Two gthread workers with the leaking Flask application.
pub(crate) const FLASK: Gunicorn = Gunicorn {
    workers: 2,
    class: "gthread",
    app: "leaky_flask:app",
};

/// The class of `uvicorn-worker`.
pub(crate) const UVICORN: &str = "uvicorn_worker.UvicornWorker";

impl Gunicorn {
    /// The leaking application for `class`.
    pub(crate) fn of(class: &'static str) -> Self {
        let is_asgi = class == "asgi" || class == UVICORN;
        Self {
            class,
            app: if is_asgi {
                "leaky_asgi:app"
            } else {
                "leaky_flask:app"
            },
            ..FLASK
        }
    }
}

impl Venv {
    /// The newest versions that this interpreter can run.
    pub(crate) fn of(python: &str) -> Self {
        let version = run(
            python,
            &["-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        );
        Self {
            name: format!("newest-{}", version.trim()).leak(),
            python: Some(python.to_owned().leak()),
            ..NEWEST
        }
    }

    /// The command line of a gunicorn on `port`.
    pub(crate) fn gunicorn(self, port: u16, gunicorn: Gunicorn) -> Vec<String> {
        let mut words = vec![self.bin("gunicorn")];
        let workers = gunicorn.workers.to_string();
        let address = format!("127.0.0.1:{port}");
        words.extend(
            ["-w", &workers, "-b", &address, "-k", gunicorn.class]
                .iter()
                .map(ToString::to_string),
        );
        if gunicorn.class == "gthread" {
            words.extend(["--threads", "4"].map(str::to_owned));
        }
        words.push(gunicorn.app.to_owned());
        words
    }

    /// The path of one of its programs.
    pub(crate) fn bin(self, program: &str) -> String {
        let path = self.directory().join("bin").join(program);
        path.into_os_string()
            .into_string()
            .expect("the path of the checkout is UTF-8")
    }

    /// The version of one of its packages.
    pub(crate) fn version(self, package: &str) -> String {
        let code = format!("from importlib.metadata import version; print(version('{package}'))");
        let output = run(&self.bin("python"), &["-c", &code]);
        output.trim().to_owned()
    }

    /// The version of its interpreter.
    pub(crate) fn python_version(self) -> String {
        let code = "import platform; print(platform.python_version())";
        run(&self.bin("python"), &["-c", code]).trim().to_owned()
    }

    /// Whether its gunicorn has workers of this class: `asgi` needs Python 3.10.
    pub(crate) fn has_class(self, class: &str) -> bool {
        let code = format!("from gunicorn.util import load_class; load_class('{class}')");
        Command::new(self.bin("python"))
            .args(["-c", &code])
            .output()
            .is_ok_and(|output| output.status.success())
    }

    /// Its directory. Makes it if it does not exist or its requirements have changed.
    fn directory(self) -> PathBuf {
        static MADE: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
        let mut made = MADE.lock().expect("no environment could be made before");
        let place = made.entry(self.name).or_insert_with(|| self.made());
        place.clone()
    }

    fn made(self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venvs");
        fs::create_dir_all(&root).expect("create .venvs");
        let lock = fs::File::create(root.join(format!("{}.lock", self.name)))
            .expect("create the lock file in .venvs");
        // Two test binaries may make the same environment at the same time.
        let _guard = Flock::lock(lock, FlockArg::LockExclusive).expect("lock .venvs");
        let place = root.join(self.name);
        let made_of = place.join("requirements");
        if fs::read_to_string(&made_of).is_ok_and(|text| text == self.requirements) {
            return place;
        }
        let _ = fs::remove_dir_all(&place);
        self.make(&place);
        fs::write(&made_of, self.requirements).expect("write .venvs/*/requirements");
        place
    }

    fn make(self, place: &Path) {
        let path = place.to_str().expect("the path of the checkout is UTF-8");
        let python = self.python.map_or_else(python, str::to_owned);
        run(&python, &["-m", "venv", path]);
        let pip = place.join("bin/python");
        let mut words = vec!["-m", "pip", "install", "--quiet"];
        words.push("--disable-pip-version-check");
        words.extend(self.requirements.split(' '));
        run(pip.to_str().expect("as above"), &words);
    }
}

/// The directory of the programs of the tests.
pub(crate) fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}

/// A Python of at least 3.11 that can make environments. Panics with what to install if there is
/// none.
pub(crate) fn python() -> String {
    first(
        &["python3", "/usr/bin/python3"],
        "import sys, venv, ensurepip; assert sys.version_info >= (3, 11)",
    )
    .expect(
        "no python3 of at least 3.11 with venv and ensurepip: \
         install python3 and python3-venv (apt-get install python3-venv)",
    )
}

/// The first of these that exists and runs `probe` without an error.
pub(crate) fn first(pythons: &[&str], probe: &str) -> Option<String> {
    pythons
        .iter()
        .find(|python| {
            Command::new(python)
                .args(["-c", probe])
                .output()
                .is_ok_and(|output| output.status.success())
        })
        .map(|&python| python.to_owned())
}

fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {words:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
