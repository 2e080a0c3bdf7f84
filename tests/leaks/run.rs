//! Runs an app under the real `supervise` and load until it has made a memory report.

use std::{any::Any, fmt, time::Duration};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    answer::Answer,
    app::{App, Outcome, folder},
    clock,
    load::Load,
    service::{Plan, Service, free_port, recycles},
    venv::NEWEST,
};

/// The time limit of an app, from its first request to its report.
const LIMIT: Duration = Duration::from_secs(45);
/// The time between two requests for a status. Each of them costs a millisecond of CPU time.
const INTERVAL: Duration = Duration::from_millis(200);
/// How many rescues a worker that stays must have.
const RESCUES: u64 = 3;

/// The result of an app.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The name of the app.
    pub name: String,
    /// Whether the report must name the line or the holder.
    pub needs_place: bool,
    /// What went wrong, apart from the report.
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
            needs_place: app.needs_place,
            trouble: None,
            expected: app.verdicts.join(" "),
            answer: None,
            lost: 0,
            seconds: 0.0,
        }
    }

    /// The result of an app whose run panicked.
    pub(crate) fn failed(app: &App, panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Self {
            trouble: Some(text.unwrap_or_else(|| "it panicked".to_owned())),
            ..Self::of(app)
        }
    }

    /// Judges the newest report.
    fn judge(&mut self, app: &App, reports: &[Value]) {
        self.answer = reports.last().map(|report| Answer::to(app, report));
        if let Some(answer) = &self.answer {
            if app.needs_first && !answer.is_first {
                self.trouble = Some("the first suspect is not the line".to_owned());
            }
            if !answer.advice.contains(&app.advice) {
                self.trouble = Some(format!("its advice: {}", answer.advice));
            }
        }
    }

    /// Whether the verdict is right.
    pub(crate) fn is_right(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.is_right)
    }

    /// Whether the place is needed, and is among the first three suspects.
    pub(crate) fn is_found(&self) -> bool {
        let rank = self.answer.as_ref().and_then(|answer| answer.rank);
        self.needs_place && rank.is_some_and(|rank| rank <= 3)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answer = self.answer.as_ref();
        let verdict = answer.map_or("-", |answer| &answer.verdict);
        let rank = match answer.and_then(|answer| answer.rank) {
            Some(rank) => rank.to_string(),
            None if self.needs_place => "none".to_owned(),
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
        let is_good = self.is_right() && (self.is_found() || !self.needs_place);
        if let Some(answer) = answer.filter(|_| !is_good) {
            write!(f, "\n    suspects: {:?}", answer.suspects)?;
        }
        Ok(())
    }
}

/// Runs an app until it has made a memory report, and judges the report.
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
    // Workers live for a few seconds only, less than the default minimum age.
    options.extend(["--min-age", "1s"]);
    // By default a worker that serves makes no reports.
    options.extend(["--leaks", "on"]);
    options.extend(app.limits.iter().map(String::as_str));
    let service = Plan::supervise(&options, &command(app, port)).start();
    service.ready(app.workers());
    let load = Load::start(port, app.rate);
    let reports = service.wait(
        "a report and the expected fate of the worker",
        LIMIT,
        || {
            clock::until(clock::now() + INTERVAL);
            let status = service.status()?;
            let recycled = recycles(&status, "ceiling");
            let rescues = status["totals"]["rescues"].as_u64().unwrap_or(0);
            let is_over = match app.outcome {
                Outcome::Stays => rescues >= RESCUES || recycled > 0,
                Outcome::Recycled | Outcome::Capped => recycled > 0,
            };
            if is_over { reports(&service) } else { None }
        },
    );
    let (ok, lost) = load.finish();
    row.lost = lost;
    let status = service
        .status()
        .expect("the service answers after the load");
    if app.outcome == Outcome::Stays && recycles(&status, "ceiling") > 0 {
        row.trouble = Some("it was recycled, and should have stayed".to_owned());
    }
    if ok == 0 {
        row.trouble = Some("no request was answered".to_owned());
    }
    row.judge(app, &reports);
    service.stop(Duration::from_secs(15));
    row
}

/// Runs a script with this interpreter. The control socket ends with the job, so its report is read
/// from the next service of the same name.
pub(crate) fn run_job(app: &App, python: &str) -> Row {
    let mut row = Row::of(app);
    let kept = TempDir::new().expect("make a temporary directory");
    let kept = kept.path().to_str().expect("a temporary name is UTF-8");
    // Reports are kept by the name of the service.
    let mut options = vec!["--restart", "never", "--name", "job"];
    options.extend(["--leaks-directory", kept]);
    options.extend(app.limits.iter().map(String::as_str));
    let script = folder().join(format!("{}.py", app.name));
    let command = [python, &script.to_string_lossy()];
    let ended = Plan::supervise(&options, &command).run(LIMIT);
    if ended.status.success() {
        row.trouble = Some("it was not killed at its cap".to_owned());
    }
    let options = ["--name", "job", "--leaks-directory", kept];
    let next = Plan::supervise(&options, &["sleep", "60"]).start();
    let reports = next.wait(&format!("the report\n{}", ended.stderr), LIMIT / 9, || {
        clock::until(clock::now() + INTERVAL);
        reports(&next)
    });
    row.judge(app, &reports);
    next.stop(Duration::from_secs(15));
    row
}

/// The command that serves the app.
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

/// The kept reports, oldest first. `None` if there is none.
fn reports(service: &Service) -> Option<Vec<Value>> {
    let output = service.client(&["report", "--json"]);
    let reports: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
    Some(reports).filter(|reports| !reports.is_empty())
}
