//! Why a worker is fat, as one page that is understood in ten seconds: whose, what, who holds it,
//! what to do; then what it rests on.

mod document;
mod dot;
mod words;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use serde::Deserialize as _;
use serde_json::Value;

use crate::supervisor::tell::span;

use super::paper::{INDENT, Paper};

use document::{Report, Suspect, Text, Thread};
use words::{bytes, grouped, some};

/// So many suspects are shown.
const SUSPECTS: usize = 8;
/// So many lines of other kinds are shown.
const LINES: usize = 6;
/// More threads than a server has by itself.
const THREADS: usize = 16;

/// The page. No line is longer than `width` letters.
pub fn report(document: &Value, width: usize) -> String {
    let report = read(document);
    let mut page = Page {
        paper: Paper::new(width),
        room: width.saturating_sub(INDENT),
    };
    page.head(&report);
    page.suspects(&report.suspects.0);
    page.rest(&report);
    page.paper.into_text()
}

/// The references that hold the suspects, in the language of graphviz.
pub fn dot(document: &Value) -> String {
    dot::graph(&read(document))
}

fn read(document: &Value) -> Report {
    // Only what is no object cannot be read; it says nothing then.
    Report::deserialize(document).unwrap_or_default()
}

#[derive(Debug)]
struct Page {
    paper: Paper,
    /// For the text of a titled line.
    room: usize,
}

impl Page {
    fn head(&mut self, report: &Report) {
        let id = words::cut(report.id.said().unwrap_or("report"), INDENT - 1);
        self.paper
            .titled(&id, &format!("{}: {}", whose(report), figures(report)));
        self.paper.titled("verdict", &words::verdict(report));
    }

    fn suspects(&mut self, suspects: &[Suspect]) {
        if suspects.is_empty() {
            return;
        }
        self.paper.line("");
        self.paper.line("suspects");
        for (at, suspect) in suspects.iter().take(SUSPECTS).enumerate() {
            self.suspect(at + 1, suspect);
        }
        let others = suspects.len().saturating_sub(SUSPECTS);
        if others > 0 {
            self.paper
                .titled("", &format!("and {others} more, see --json"));
        }
    }

    fn suspect(&mut self, number: usize, suspect: &Suspect) {
        let mut text = words::things(suspect);
        if let Some(place) = words::place(suspect) {
            text = format!("{place}: {text}");
        }
        if let (Some(_), Some(all)) = (suspect.growth_bytes.0, suspect.bytes.0) {
            text.push_str(&format!(", {} in all", bytes(all)));
        }
        let first = format!("{number:>2}. {:>6} ", words::size(suspect));
        self.paper.wrapped(&first, INDENT, &text);
        if let Some(holder) = suspect.holder.said() {
            self.paper.titled("", &format!("held by {holder}"));
        }
        if !suspect.chain.0.is_empty() {
            let chain = words::chain(&suspect.chain, self.room.saturating_sub(2));
            self.paper.line(&format!("{:INDENT$}  {chain}", ""));
        }
        if let Some(note) = suspect.note.said() {
            self.paper.titled("", note);
        }
    }

    fn rest(&mut self, report: &Report) {
        self.paper.line("");
        let next = report.next.said();
        let next = next.unwrap_or_else(|| words::next(&report.verdict.0));
        self.paper.titled("what to do", next);
        self.paper.line("");
        self.each("running", &texts(&report.request.0));
        self.tasks(report);
        self.threads(report);
        self.parts(report);
        self.cost(report);
        let mut missing = texts(&report.missing.0);
        if report.base.0 == "none" {
            let base = "a census from before it grew: sizes are what there is, not what grew";
            missing.insert(0, base.to_owned());
        }
        self.each("missing", &missing);
    }

    fn tasks(&mut self, report: &Report) {
        let tasks = &report.tasks.0;
        let Some(count) = some(tasks.count) else {
            return;
        };
        let grew = some(tasks.growth).map_or_else(String::new, |growth| {
            format!(", {} more than after warm-up", grouped(growth))
        });
        let text = format!("{} asyncio tasks{grew}", grouped(count));
        self.paper.titled("tasks", &text);
    }

    /// Where they are what grew, or all that is known.
    fn threads(&mut self, report: &Report) {
        let threads = &report.threads.0;
        let suspected = (report.suspects.0.iter()).any(|suspect| suspect.kind.0.contains("Thread"));
        if threads.is_empty() || (threads.len() < THREADS && !suspected && report.verdict.is_said())
        {
            return;
        }
        let lines = grouped_threads(threads).into_iter().map(|(stack, names)| {
            let who = match names.as_slice() {
                [one] => (*one).to_owned(),
                [first, ..] => format!("{} threads ({first} ...)", names.len()),
                [] => String::new(),
            };
            let room = self.room.saturating_sub(who.chars().count() + 2);
            format!("{who}: {}", words::chain(stack, room))
        });
        let lines: Vec<_> = lines.collect();
        self.each("threads", &lines);
    }

    fn parts(&mut self, report: &Report) {
        let parts = words::parts(&report.grew.0);
        if !parts.is_empty() {
            self.paper.titled("grew by", &parts);
        }
        let gc = &report.gc.0;
        let mut said = Vec::new();
        if let Some(collected) = some(gc.collected) {
            let freed = some(gc.freed_bytes).map_or_else(String::new, |freed| {
                format!(", which freed {}", bytes(freed))
            });
            said.push(format!("collected {} objects{freed}", grouped(collected)));
        }
        if let Some(stuck) = some(gc.uncollectable) {
            said.push(format!("could not collect {} objects", grouped(stuck)));
        }
        if gc.enabled.0 == Some(false) {
            said.push("it is switched off".to_owned());
        }
        if !said.is_empty() {
            self.paper.titled("gc", &said.join("; "));
        }
        let malloc = &report.malloc.0;
        if let Some(in_use) = malloc.in_use.0 {
            let mut text = format!("{} in use", bytes(in_use));
            if let Some(free) = malloc.free.0 {
                text.push_str(&format!(", {} free", bytes(free)));
            }
            match malloc.arenas.0 {
                Some(arenas) if arenas > 1.0 => {
                    text.push_str(&format!(", in {} arenas", grouped(arenas)));
                }
                _ => {}
            }
            self.paper.titled("malloc", &text);
        }
    }

    fn cost(&mut self, report: &Report) {
        let cost = &report.cost.0;
        let time = |seconds| span(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        let mut said = Vec::new();
        if let Some(traced) = some(cost.traced_s) {
            let windows = match cost.windows.0 {
                Some(windows) if windows > 1.0 => format!(" in {} windows", grouped(windows)),
                _ => String::new(),
            };
            said.push(format!("traced for {}{windows}", time(traced)));
        }
        if let Some(took) = cost.took_s.0 {
            said.push(format!("the report took {}", time(took)));
        }
        if !said.is_empty() {
            self.paper.titled("cost", &said.join("; "));
        }
    }

    /// One line for each, the title before the first.
    fn each(&mut self, title: &str, lines: &[String]) {
        let mut title = title;
        for line in lines.iter().take(LINES) {
            self.paper.titled(title, line);
            title = "";
        }
        let others = lines.len().saturating_sub(LINES);
        if others > 0 {
            self.paper
                .titled("", &format!("and {others} more, see --json"));
        }
    }
}

/// `w7 (pid 4242), ceiling, 2025-09-05T12:00:00Z`.
fn whose(report: &Report) -> String {
    let mut who = report.worker.said().unwrap_or("a worker").to_owned();
    if let Some(pid) = report.pid.said() {
        who.push_str(&format!(" (pid {pid})"));
    }
    let at = report
        .at
        .0
        .and_then(|at| Duration::try_from_secs_f64(at).ok());
    let at = at.and_then(|at| UNIX_EPOCH.checked_add(at));
    // The year 9999 is the last that has such a form.
    let at = at.filter(|at| {
        at.duration_since(UNIX_EPOCH)
            .is_ok_and(|since| since.as_secs() < 253_402_300_800)
    });
    let at = at.map(|at| humantime::format_rfc3339_seconds(at).to_string());
    let more = report.cause.said().map(str::to_owned).into_iter().chain(at);
    std::iter::once(who)
        .chain(more)
        .collect::<Vec<_>>()
        .join(", ")
}

/// `301M private (312M resident), 211M after warm-up, grew by 90M`.
fn figures(report: &Report) -> String {
    let process = &report.process.0;
    let mut said = Vec::new();
    if let Some(private) = process.private.0 {
        let rss =
            (process.rss.0).map_or_else(String::new, |rss| format!(" ({} resident)", bytes(rss)));
        said.push(format!("{} private{rss}", bytes(private)));
    }
    if let Some(baseline) = process.baseline.0 {
        said.push(format!("{} after warm-up", bytes(baseline)));
    }
    if let Some(growth) = words::growth(report) {
        said.push(format!("grew by {}", bytes(growth)));
    }
    if said.is_empty() {
        said.push("no figures".to_owned());
    }
    said.join(", ")
}

/// Threads by what they do, the most first.
fn grouped_threads(threads: &[Thread]) -> Vec<(&document::List<Text>, Vec<&str>)> {
    let mut groups: BTreeMap<&[Text], (&document::List<Text>, Vec<&str>)> = BTreeMap::new();
    for thread in threads {
        let stack = &thread.stack;
        let group = groups.entry(&stack.0).or_insert((stack, Vec::new()));
        group.1.push(thread.name.said().unwrap_or("a thread"));
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    groups
}

fn texts(list: &[Text]) -> Vec<String> {
    let said = list.iter().filter_map(Text::said);
    said.map(str::to_owned).collect()
}
