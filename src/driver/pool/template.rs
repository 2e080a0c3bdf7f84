//! Decides from the template's report on its imports whether workers are forked from it.

use std::borrow::Cow;

use super::PoolDriver;
use crate::{
    agent::pool::Orders, escape, protocol::template::Imports, supervisor::pool::input::Input,
};

/// Maximum findings in a message. The template is not trusted to keep its report short.
const FINDINGS_MAX: usize = 8;

impl PoolDriver {
    /// Forked processes share open files and connections, and have only one thread (fork(2)). The
    /// first module that opens or starts one, and all after it, are imported in each worker.
    pub(super) fn on_template(&mut self, report: &Imports) -> Input {
        let orders = &mut self.parts.orders;
        let Some((found, from)) = unshareable(report) else {
            return Input::TemplateReady;
        };
        if orders.warm == 0 {
            return Input::TemplateReady;
        }
        if self.parts.forks_always {
            self.parts.observer.say(&format!(
                "{found}, which forked workers cannot share. hint: without --start template, each \
                 worker imports it itself"
            ));
            return Input::TemplateReady;
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
        Input::TemplateUnfit
    }
}

/// The message about the modules that each worker imports itself.
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

/// What forked workers cannot share, and the index of the first module that has some of it.
fn unshareable(report: &Imports) -> Option<(String, u32)> {
    let found = report.unshareable.iter().take(FINDINGS_MAX);
    let found: Vec<Cow<'_, str>> = found.map(|line| escape::line(line)).collect();
    if found.is_empty() {
        return None;
    }
    let from = report.from.and_then(|it| u32::try_from(it).ok());
    let from = from.unwrap_or(0);
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
        let report = |lines: &[&str], from| Imports {
            unshareable: lines.iter().map(ToString::to_string).collect(),
            from,
        };
        let lines = ["`db` opens a pipe", "`x\n` opens\u{1b}[2J"];
        let told = "`db` opens a pipe; `x\\n` opens\\u{1b}[2J".to_owned();
        assert_eq!(unshareable(&report(&lines, Some(1))), Some((told, 1)));
        assert_eq!(unshareable(&report(&[], None)), None);
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
