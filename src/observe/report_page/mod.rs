//! A memory report as one page of text. The answer comes first: the verdict, the line, what holds
//! the memory, and what to do. Then come the worker, all suspects and the details.

mod document;
mod dot;
mod paths;
mod phrases;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::Path, time::Duration};

use serde::Deserialize as _;
use serde_json::Value;

use crate::supervisor::event_format::span;

use super::text_layout::{INDENT, TextLayout};

use document::{Report, Suspect, Text, Thread};
use phrases::{bytes, grouped, positive};

/// Maximum suspects shown.
const SUSPECTS: usize = 8;
/// Maximum lines shown of each other list.
const LINES: usize = 6;
/// Threads are listed if they are a suspect or at least this many.
const THREADS: usize = 16;

/// The page. No line is longer than `width` characters. Paths are relative to `here`, the reader's
/// directory.
pub fn report(document: &Value, width: usize, here: &Path) -> String {
    let report = read(document);
    let mut page = Page {
        layout: TextLayout::new(width),
        room: width.saturating_sub(INDENT),
        here: here.to_string_lossy().into_owned(),
    };
    page.answer(&report);
    page.worker(&report);
    page.suspects(&report.suspects.0);
    page.rest(&report);
    page.layout.into_text()
}

/// The references that hold the suspects, as a graph for graphviz.
pub fn dot(document: &Value) -> String {
    dot::graph(&read(document))
}

fn read(document: &Value) -> Report {
    // Only a value that is not an object fails: it is shown as an empty report.
    Report::deserialize(document).unwrap_or_default()
}

#[derive(Debug)]
struct Page {
    layout: TextLayout,
    /// The width of the text beside a title.
    room: usize,
    /// The reader's directory.
    here: String,
}

impl Page {
    /// What grew, where, what holds it, and what to do. The first suspect is the largest.
    fn answer(&mut self, report: &Report) {
        self.layout.titled("verdict", &phrases::verdict(report));
        let first = report.suspects.0.first();
        if let Some(place) = first.and_then(phrases::place) {
            let place = self.short(&place);
            self.layout.titled("line", &place);
        }
        if let Some(holder) = first.and_then(|suspect| suspect.holder.text()) {
            self.layout.titled("held by", holder);
        }
        let next = report.next.text();
        let next = self.short(next.unwrap_or_else(|| phrases::next(&report.verdict.0)));
        self.layout.titled("what to do", &next);
    }

    fn worker(&mut self, report: &Report) {
        self.layout.line("");
        let id = phrases::cut(report.id.text().unwrap_or("report"), INDENT - 1);
        self.layout.titled(
            &id,
            &format!("{}: {}", phrases::subject(report), phrases::figures(report)),
        );
    }

    fn short(&self, text: &str) -> String {
        paths::shorten(text, &self.here).into_owned()
    }

    fn suspects(&mut self, suspects: &[Suspect]) {
        if suspects.is_empty() {
            return;
        }
        self.layout.line("");
        self.layout.line("suspects");
        for (at, suspect) in suspects.iter().take(SUSPECTS).enumerate() {
            self.suspect(at + 1, suspect);
        }
        let others = suspects.len().saturating_sub(SUSPECTS);
        if others > 0 {
            self.layout
                .titled("", &format!("and {others} more, see --json"));
        }
    }

    fn suspect(&mut self, number: usize, suspect: &Suspect) {
        let mut text = phrases::things(suspect);
        if let Some(place) = phrases::place(suspect) {
            text = format!("{}: {text}", self.short(&place));
        }
        if let (Some(_), Some(all)) = (suspect.growth_bytes.0, suspect.bytes.0) {
            text.push_str(&format!(", {} in all", bytes(all)));
        }
        let first = format!("{number:>2}. {:>6} ", phrases::size(suspect));
        self.layout.wrapped(&first, INDENT, &text);
        if let Some(holder) = suspect.holder.text() {
            self.layout.titled("", &format!("held by {holder}"));
        }
        if !suspect.chain.0.is_empty() {
            let links = self.links(&suspect.chain.0);
            let chain = phrases::chain(&links, self.room.saturating_sub(2));
            self.layout.line(&format!("{:INDENT$}  {chain}", ""));
        }
        if let Some(note) = suspect.note.text() {
            let note = self.short(note);
            self.layout.titled("", &note);
        }
    }

    fn links(&self, links: &[Text]) -> Vec<String> {
        links.iter().map(|link| self.short(&link.0)).collect()
    }

    fn rest(&mut self, report: &Report) {
        self.layout.line("");
        self.each("running", &texts(&report.request.0));
        let routes: Vec<_> = report.routes.0.iter().filter_map(phrases::route).collect();
        self.each("routes", &routes);
        self.tasks(report);
        self.threads(report);
        self.parts(report);
        self.cost(report);
        let missing = texts(&report.missing.0).into_iter();
        let mut missing: Vec<_> = missing.map(|text| self.short(&text)).collect();
        if report.base.0 == "none" {
            let base = "a census from before the growth: sizes are totals, not growth";
            missing.insert(0, base.to_owned());
        }
        self.each("missing", &missing);
    }

    fn tasks(&mut self, report: &Report) {
        let tasks = &report.tasks.0;
        let Some(count) = positive(tasks.count) else {
            return;
        };
        let grew = positive(tasks.growth).map_or_else(String::new, |growth| {
            format!(", {} more than after warm-up", grouped(growth))
        });
        let text = format!("{} asyncio tasks{grew}", grouped(count));
        self.layout.titled("tasks", &text);
    }

    /// Shown if threads are a suspect, are many, or are all that is known.
    fn threads(&mut self, report: &Report) {
        let threads = &report.threads.0;
        let suspected = (report.suspects.0.iter()).any(|suspect| suspect.kind.0.contains("Thread"));
        if threads.is_empty()
            || (threads.len() < THREADS && !suspected && report.verdict.is_present())
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
            format!("{who}: {}", phrases::chain(&self.links(&stack.0), room))
        });
        let lines: Vec<_> = lines.collect();
        self.each("threads", &lines);
    }

    fn parts(&mut self, report: &Report) {
        let parts = phrases::parts(&report.grew.0);
        if !parts.is_empty() {
            self.layout.titled("grew by", &parts);
        }
        let gc = &report.gc.0;
        let mut said = Vec::new();
        if let Some(collected) = positive(gc.collected) {
            let freed = positive(gc.freed_bytes).map_or_else(String::new, |freed| {
                format!(", which freed {}", bytes(freed))
            });
            said.push(format!("collected {} objects{freed}", grouped(collected)));
        }
        if let Some(stuck) = positive(gc.uncollectable) {
            said.push(format!("could not collect {} objects", grouped(stuck)));
        }
        if gc.enabled.0 == Some(false) {
            said.push("it is switched off".to_owned());
        }
        if !said.is_empty() {
            self.layout.titled("gc", &said.join("; "));
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
            self.layout.titled("malloc", &text);
        }
    }

    fn cost(&mut self, report: &Report) {
        let cost = &report.cost.0;
        let time = |seconds| span(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        let mut said = Vec::new();
        if let Some(traced) = positive(cost.traced_s) {
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
            self.layout.titled("cost", &said.join("; "));
        }
    }

    /// Shows each line on its own, with the title before the first.
    fn each(&mut self, title: &str, lines: &[String]) {
        let mut title = title;
        for line in lines.iter().take(LINES) {
            self.layout.titled(title, line);
            title = "";
        }
        let others = lines.len().saturating_sub(LINES);
        if others > 0 {
            self.layout
                .titled("", &format!("and {others} more, see --json"));
        }
    }
}

/// Threads with the same stack, the largest group first.
fn grouped_threads(threads: &[Thread]) -> Vec<(&document::List<Text>, Vec<&str>)> {
    let mut groups: BTreeMap<&[Text], (&document::List<Text>, Vec<&str>)> = BTreeMap::new();
    for thread in threads {
        let stack = &thread.stack;
        let group = groups.entry(&stack.0).or_insert((stack, Vec::new()));
        group.1.push(thread.name.text().unwrap_or("a thread"));
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    groups
}

fn texts(list: &[Text]) -> Vec<String> {
    let said = list.iter().filter_map(Text::text);
    said.map(str::to_owned).collect()
}
