//! One app under the real `supervise`: served, loaded, waited for, and asked why.

use std::{any::Any, fmt, time::Duration};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    answer::Answer,
    app::{App, Outcome, folder},
    clock,
    house::{House, Plan, free_port, recycles},
    load::Load,
    venv::NEWEST,
};

/// So long an app may take from its first request to its report.
const LIMIT: Duration = Duration::from_secs(45);
/// Between two looks at a service: a look costs it and the machine a millisecond.
const LOOK: Duration = Duration::from_millis(200);
/// A worker that stays is seen to stay so often.
const RESCUES: u64 = 3;

/// What came of an app.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The app.
    pub name: String,
    /// Whether its place has to be found.
    pub asks_for_place: bool,
    /// Why it is not as it is to be, apart from what the report says.
    pub trouble: Option<String>,
    expected: String,
    answer: Option<Answer>,
    lost: u32,
    seconds: f64,
}

impl Row {
    /// The head of the table.
    pub(crate) const HEAD: &str = "app                    verdict  expected  rank  growth  \
                                   explained  lost  seconds";

    fn of(app: &App) -> Self {
        Self {
            name: app.name.clone(),
            asks_for_place: app.asks_for_place,
            trouble: None,
            expected: app.verdicts.join(" "),
            answer: None,
            lost: 0,
            seconds: 0.0,
        }
    }

    /// Of an app whose run panicked.
    pub(crate) fn failed(app: &App, panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Self {
            trouble: Some(text.unwrap_or_else(|| "it panicked".to_owned())),
            ..Self::of(app)
        }
    }

    /// Whether the verdict is right.
    pub(crate) fn is_right(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.is_right)
    }

    /// Whether the place was asked for, and is among the first three suspects.
    pub(crate) fn is_found(&self) -> bool {
        let rank = self.answer.as_ref().and_then(|answer| answer.rank);
        self.asks_for_place && rank.is_some_and(|rank| rank <= 3)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answer = self.answer.as_ref();
        let verdict = answer.map_or("-", |answer| &answer.verdict);
        let rank = match answer.and_then(|answer| answer.rank) {
            Some(rank) => rank.to_string(),
            None if self.asks_for_place => "none".to_owned(),
            None => "-".to_owned(),
        };
        write!(
            f,
            "{:22} {verdict:8} {:9} {rank:>4} {:>6}M {:>10.2} {:>5} {:>8.1}",
            self.name,
            self.expected,
            answer.map_or(0, |answer| answer.growth >> 20),
            answer.map_or(0.0, |answer| answer.explained),
            self.lost,
            self.seconds,
        )?;
        if let Some(trouble) = &self.trouble {
            write!(f, "  {}", trouble.lines().next().unwrap_or_default())?;
        }
        let is_good = self.is_right() && (self.is_found() || !self.asks_for_place);
        if let Some(answer) = answer.filter(|_| !is_good) {
            write!(f, "\n    suspects: {:?}", answer.suspects)?;
        }
        Ok(())
    }
}

/// Runs an app until it has said why it is fat, and judges that.
pub(crate) fn run(app: &App) -> Row {
    let begun = clock::now();
    let mut row = match app.outcome {
        Outcome::Capped => run_job(app, &NEWEST.bin("python")),
        Outcome::Recycled | Outcome::Stays => run_server(app),
    };
    row.seconds = (clock::now() - begun).as_secs_f64();
    row
}

fn run_server(app: &App) -> Row {
    let mut row = Row::of(app);
    let port = free_port();
    let apps = folder();
    let mut options = vec!["--directory", apps.to_str().expect("the checkout is UTF-8")];
    // A life of a few seconds is too short for the usual minimum age.
    options.extend(["--min-age", "1s"]);
    // A worker that serves is not asked by default.
    options.extend(["--leaks", "on"]);
    options.extend(app.limits.iter().map(String::as_str));
    let house = Plan::supervise(&options, &command(app, port)).start();
    house.ready(app.workers());
    let load = Load::start(port, app.rate);
    let reports = house.wait(
        "a report, and what is to become of the worker",
        LIMIT,
        || {
            clock::until(clock::now() + LOOK);
            let status = house.status()?;
            let recycled = recycles(&status, "ceiling");
            let rescues = status["totals"]["rescues"].as_u64().unwrap_or(0);
            let is_over = match app.outcome {
                Outcome::Stays => rescues >= RESCUES || recycled > 0,
                Outcome::Recycled | Outcome::Capped => recycled > 0,
            };
            if is_over { reports(&house) } else { None }
        },
    );
    let (ok, lost) = load.finish();
    row.lost = lost;
    let status = house.status().expect("the service answers after the load");
    if app.outcome == Outcome::Stays && recycles(&status, "ceiling") > 0 {
        row.trouble = Some("it was recycled, and was to stay".to_owned());
    }
    if ok == 0 {
        row.trouble = Some("no request was answered".to_owned());
    }
    row.answer = reports.last().map(|report| Answer::to(app, report));
    house.stop(Duration::from_secs(15));
    row
}

/// Runs a script with this interpreter. A job takes its control socket with it; its report is kept,
/// and the next service knows it.
pub(crate) fn run_job(app: &App, python: &str) -> Row {
    let mut row = Row::of(app);
    let kept = TempDir::new().expect("make a temporary directory");
    let kept = kept.path().to_str().expect("a temporary name is UTF-8");
    // Reports are kept by name: the next service of that name shows them.
    let mut options = vec!["--restart", "never", "--name", "job"];
    options.extend(["--leaks-directory", kept]);
    options.extend(app.limits.iter().map(String::as_str));
    let script = folder().join(format!("{}.py", app.name));
    let command = [python, &script.to_string_lossy()];
    let ended = Plan::supervise(&options, &command).run(LIMIT);
    if ended.status.success() {
        row.trouble = Some("it was not ended by its cap".to_owned());
    }
    let options = ["--name", "job", "--leaks-directory", kept];
    let next = Plan::supervise(&options, &["sleep", "60"]).start();
    let reports = next.wait(&format!("the report\n{}", ended.stderr), LIMIT / 9, || {
        clock::until(clock::now() + LOOK);
        reports(&next)
    });
    row.answer = reports.last().map(|report| Answer::to(app, report));
    next.stop(Duration::from_secs(15));
    row
}

/// The words that serve it.
fn command(app: &App, port: u16) -> Vec<String> {
    let mut words = app
        .serve
        .iter()
        .map(|word| word.replace("{module}", &app.name));
    let program = words.next().unwrap_or_default();
    let own = match program.as_str() {
        "uvicorn" => vec![NEWEST.bin("uvicorn"), "--port".to_owned(), port.to_string()],
        _ => {
            let address = format!("127.0.0.1:{port}");
            vec![NEWEST.bin(&program), "-b".to_owned(), address]
        }
    };
    own.into_iter().chain(words).collect()
}

/// The reports that are kept, oldest first; `None` as long as there is none.
fn reports(house: &House) -> Option<Vec<Value>> {
    let output = house.client(&["report", "--json"]);
    let reports: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
    Some(reports).filter(|reports| !reports.is_empty())
}
