//! Decides from the template's report on its imports whether workers are forked from it.

use std::borrow::Cow;

use super::PoolDriver;
use crate::{agent::pool::Orders, escape, supervisor::pool::event::Event};

/// Maximum findings in a message. The template is not trusted to keep its report short.
const FINDINGS_MAX: usize = 8;

impl PoolDriver {
    /// Forked processes share open files and connections, and have only one thread (fork(2)). The
    /// first module that opens or starts one, and all after it, are imported in each worker.
    pub(super) fn on_template(&mut self, report: &[u8]) -> Event {
        let orders = &mut self.parts.orders;
        let Some((found, from)) = unshareable(report) else {
            return Event::TemplateReady;
        };
        if orders.warm == 0 {
            return Event::TemplateReady;
        }
        if self.parts.forks_always {
            self.parts.observer.say(&format!(
                "{found}, which forked workers cannot share. hint: without --start template, each \
                 worker imports it itself"
            ));
            return Event::TemplateReady;
        }
        // The modules of the function and of the initializer come after the imports. The number
        // shrinks each time, so that restarts end even if the template's report is wrong.
        let last = u32::try_from(orders.imports.len() + 1).unwrap_or(0);
        orders.warm = from.min(last).min(orders.warm - 1);
        let line = format!(
            "{found}, which forked workers cannot share; {}. hint: --start template forks anyway",
            imports(orders)
        );
        self.parts.observer.say(&line);
        Event::TemplateUnfit
    }
}

/// Which modules each worker imports itself.
fn imports(orders: &Orders) -> String {
    let shared = orders.warm_imports();
    if shared.is_empty() {
        return "each worker imports all modules itself".to_owned();
    }
    let shared: Vec<_> = shared.iter().map(|name| format!("`{name}`")).collect();
    format!(
        "each worker imports all modules itself, except {}",
        shared.join(", ")
    )
}

/// What forked workers cannot share, and the number of the first module that holds some of it.
fn unshareable(report: &[u8]) -> Option<(String, u32)> {
    let report: serde_json::Value = serde_json::from_slice(report).ok()?;
    let found = report.get("unshareable")?.as_array()?;
    let found: Vec<Cow<'_, str>> = found
        .iter()
        .filter_map(serde_json::Value::as_str)
        .take(FINDINGS_MAX)
        .map(escape::line)
        .collect();
    if found.is_empty() {
        return None;
    }
    let from = report.get("from").and_then(serde_json::Value::as_u64);
    let from = from.and_then(|it| u32::try_from(it).ok()).unwrap_or(0);
    Some((found.join("; "), from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(warm: u32) -> Orders {
        Orders {
            function: Some("etl:convert".to_owned()),
            call: "one".to_owned(),
            imports: vec!["numpy".to_owned(), "db".to_owned()],
            initializer: None,
            warm,
        }
    }

    #[test]
    fn the_report_of_the_template_is_escaped() {
        let words = br#"{"unshareable": ["`db` opens a pipe", "`x\n` opens\u001b[2J"], "from": 1}"#;
        let told = "`db` opens a pipe; `x\\n` opens\\u{1b}[2J".to_owned();
        assert_eq!(unshareable(words), Some((told, 1)));
        assert_eq!(unshareable(br#"{"unshareable": [], "from": null}"#), None);
        assert_eq!(unshareable(b"\xff"), None);
    }

    #[test]
    fn modules_before_the_first_unshareable_one_are_imported_once() {
        let told = "each worker imports all modules itself";
        assert_eq!(imports(&orders(0)), told);
        let told = "each worker imports all modules itself, except `numpy`";
        assert_eq!(imports(&orders(1)), told);
        // The function's module comes after them.
        let told = "each worker imports all modules itself, except `numpy`, `db`";
        assert_eq!(imports(&orders(2)), told);
        assert_eq!(imports(&orders(3)), told);
    }
}
