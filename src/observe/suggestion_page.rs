//! Suggested limits as a page of text: the limits, what they are based on, and how to set them.

use std::time::Duration;

use crate::{
    supervisor::{
        event_format::span,
        history::suggestion::{Limits, Seen, Suggestion, TASKS_WANTED},
    },
    units::{Bytes, scaled},
};

use super::text_layout::TextLayout;

/// The page. No line is longer than `width` characters.
pub fn page(suggestion: &Suggestion, width: usize) -> String {
    let mut page = TextLayout::new(width);
    match &suggestion.limits {
        Some(limits) => show_limits(&mut page, suggestion, limits),
        None => {
            page.titled("limits", "none: too little seen");
            page.titled("needed", &suggestion.missing.join("; "));
        }
    }
    page.line("");
    if suggestion.now.is_job() {
        show_runs(&mut page, &suggestion.seen);
    } else {
        show_seen(&mut page, &suggestion.seen);
    }
    if let Some(limits) = suggestion.limits {
        page.line("");
        page.titled("try", &format!("supervise {}", limits.flags()));
    }
    page.into_text()
}

fn show_limits(page: &mut TextLayout, suggestion: &Suggestion, limits: &Limits) {
    let now = |limit: Option<Bytes>| match limit {
        Some(limit) => format!("(now {limit})"),
        None => "(now none)".to_owned(),
    };
    let in_force = &suggestion.now;
    if let Some(ceiling) = limits.ceiling {
        let most = suggestion.seen.most;
        let text = format!("{ceiling}: 1.25 times the {most} that workers need");
        page.titled("ceiling", &format!("{text} {}", now(in_force.ceiling())));
    }
    let why = match limits.ceiling {
        Some(ceiling) if limits.cap == ceiling.plus(ceiling) => "twice the ceiling",
        Some(_) => "1.25 times what a start needs, but not more than all may have",
        None => "1.25 times the highest peak of a run",
    };
    let text = format!("{}: {why} {}", limits.cap, now(in_force.cap()));
    page.titled("cap", &text);
    if let Some(workers) = limits.workers {
        let (room, name) = in_force.room();
        let replacement = if in_force.replaces_first() {
            ", and one replacement"
        } else {
            ""
        };
        let text = format!("{workers} fit into the {name} of {room}{replacement}");
        page.titled("workers", &format!("{text} (now {})", in_force.workers()));
    }
    if !in_force.is_job() {
        page.titled("life", &life(suggestion, limits));
    }
    if limits.lower_bound {
        let text = format!(
            "the kernel killed {} of {} for memory. More may have been needed, so these figures \
             are a lower bound: set a higher cap, and look again later",
            suggestion.seen.cut, suggestion.seen.workers
        );
        page.titled("WARNING", &text);
    }
}

/// How long a worker lives until it reaches the suggested ceiling.
fn life(suggestion: &Suggestion, limits: &Limits) -> String {
    let seen = &suggestion.seen;
    let size = |growth: f64| Bytes(scaled(1, growth));
    match (limits.tasks_per_life, limits.life_s) {
        (Some(tasks), _) => {
            let each = size(seen.growth_per_task.unwrap_or_default());
            let longer = suggestion.ceiling_for_longer().map(|ceiling| {
                format!(". For {TASKS_WANTED} requests a life, set --ceiling {ceiling}")
            });
            format!(
                "{tasks} requests: a worker leaks {each} with each, and is then replaced at this \
                 ceiling{}",
                longer.unwrap_or_default()
            )
        }
        (None, Some(seconds)) => format!(
            "{}: a worker leaks {} a second, and is then replaced at this ceiling",
            span(Duration::from_secs(seconds)),
            size(seen.growth_per_s.unwrap_or_default())
        ),
        (None, None) => "unlimited: workers do not keep growing".to_owned(),
    }
}

fn show_runs(page: &mut TextLayout, seen: &Seen) {
    page.titled(
        "seen",
        &format!("{} runs, {} of them to their end", seen.workers, seen.ended),
    );
    page.titled("peak", &seen.peak.to_string());
}

fn show_seen(page: &mut TextLayout, seen: &Seen) {
    let watched = span(Duration::from_secs(seen.watched_s));
    let tasks = match seen.tasks {
        Some(tasks) => format!(", {tasks} requests"),
        None => String::new(),
    };
    let text = format!(
        "{} workers for {watched} after their warm-up, {} of them to their end{tasks}",
        seen.workers, seen.ended
    );
    page.titled("seen", &text);
    if seen.workers > 0 {
        let (most, median, warm) = (seen.most, seen.median, seen.warm);
        let text = format!(
            "{most} at most in 99.9% of the time, {median} typically, {warm} after warm-up; leaks \
             are not included"
        );
        page.titled("need", &text);
    }
    page.titled("peak", &format!("{}, with leaks", seen.peak));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suggestion() -> Suggestion {
        let mib = Bytes::mib;
        Suggestion {
            missing: Vec::new(),
            limits: Some(Limits {
                ceiling: Some(mib(253)),
                cap: mib(506),
                workers: Some(6),
                tasks_per_life: Some(510),
                life_s: None,
                lower_bound: false,
            }),
            seen: Seen {
                workers: 14,
                ended: 10,
                cut: 0,
                watched_s: 11_520,
                tasks: Some(41_000),
                warm: mib(200),
                median: mib(200),
                most: mib(202),
                peak: mib(500),
                growth_per_task: Some(104_448.0),
                growth_per_s: None,
            },
            now: serde_json::from_str(
                r#"{"mode":"server","available":4294967296,"budget":2147483648,
                    "ceiling":524288000,"cap":null,"server":0,"workers":4}"#,
            )
            .unwrap(),
        }
    }

    #[test]
    fn limits_come_first_with_their_reasons_and_the_limits_in_force() {
        let expected = "\
ceiling    253M: 1.25 times the 202M that workers need (now 500M)
cap        506M: twice the ceiling (now none)
workers    6 fit into the budget of 2G, and one replacement (now 4)
life       510 requests: a worker leaks 102K with each, and is then replaced at
           this ceiling. For 1000 requests a life, set --ceiling 300M

seen       14 workers for 3h 12m after their warm-up, 10 of them to their end,
           41000 requests
need       202M at most in 99.9% of the time, 200M typically, 200M after
           warm-up; leaks are not included
peak       500M, with leaks

try        supervise --ceiling 253M --cap 506M
";
        assert_eq!(page(&suggestion(), 80), expected);
    }

    #[test]
    fn figures_after_kills_are_a_lower_bound() {
        let mut suggestion = suggestion();
        suggestion.seen.cut = 2;
        suggestion.limits.as_mut().unwrap().lower_bound = true;
        let text = page(&suggestion, 200);
        assert!(
            text.contains("WARNING    the kernel killed 2 of 14"),
            "{text}"
        );
        assert!(text.contains("these figures are a lower bound"), "{text}");
    }

    #[test]
    fn a_job_has_runs_and_no_life() {
        let mut suggestion = suggestion();
        suggestion.now = serde_json::from_str(
            r#"{"mode":"job","available":4294967296,"budget":null,"ceiling":null,
                "cap":83886080,"server":0,"workers":0}"#,
        )
        .unwrap();
        suggestion.limits = Some(Limits {
            cap: Bytes::mib(100),
            ..Limits::default()
        });
        let expected = "\
cap        100M: 1.25 times the highest peak of a run (now 80M)

seen       14 runs, 10 of them to their end
peak       500M

try        supervise --cap 100M
";
        assert_eq!(page(&suggestion, 80), expected);
    }

    #[test]
    fn too_little_is_said_with_what_is_needed() {
        let mut suggestion = suggestion();
        suggestion.limits = None;
        suggestion.missing = vec!["3 workers".to_owned(), "1000 requests".to_owned()];
        let text = page(&suggestion, 80);
        let expected = "limits     none: too little seen\nneeded     3 workers; 1000 requests\n\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(!text.contains("try "), "{text}");
    }
}
