//! What the template says of its imports: whether workers can be forked from it.

use std::borrow::Cow;

use super::PoolDriver;
use crate::{agent::pool::Orders, escape, supervisor::pool::event::Event};

/// So many findings are told; the template says fewer.
const TOLD: usize = 8;

impl PoolDriver {
    /// Descriptors are shared by all forks, and a fork has only the thread that forks (fork(2)).
    /// From the first module on that opens one or starts one, each worker imports by itself.
    pub(super) fn on_template(&mut self, words: &[u8]) -> Event {
        let orders = &mut self.parts.orders;
        let Some((found, from)) = unshareable(words) else {
            return Event::TemplateReady;
        };
        if orders.warm == 0 {
            return Event::TemplateReady;
        }
        if self.parts.forks_always {
            let words = "workers are forked nevertheless; if they need their own, leave out \
                         --start template";
            self.parts.onlooker.say(&format!("{found}: {words}"));
            return Event::TemplateReady;
        }
        // Fewer each time, whatever the template says, so that it comes to an end: the function's
        // module and the initializer's come after the imports.
        let last = u32::try_from(orders.imports.len() + 1).unwrap_or(0);
        orders.warm = from.min(last).min(orders.warm - 1);
        let line = format!(
            "{found}, which forks cannot share: {} (--start template: they fork)",
            imports(orders)
        );
        self.parts.onlooker.say(&line);
        Event::TemplateUnfit
    }
}

/// Who imports what.
fn imports(orders: &Orders) -> String {
    let shared = orders.warm_imports();
    if shared.is_empty() {
        return "each worker imports by itself".to_owned();
    }
    let shared: Vec<_> = shared.iter().map(|name| format!("`{name}`")).collect();
    format!(
        "but for {} each worker imports by itself",
        shared.join(", ")
    )
}

/// What forks cannot share, in words, and the place of the first module that has brought it.
fn unshareable(words: &[u8]) -> Option<(String, u32)> {
    let words: serde_json::Value = serde_json::from_slice(words).ok()?;
    let found = words.get("unshareable")?.as_array()?;
    let found: Vec<Cow<'_, str>> = found
        .iter()
        .filter_map(serde_json::Value::as_str)
        .take(TOLD)
        .map(escape::line)
        .collect();
    if found.is_empty() {
        return None;
    }
    let from = words.get("from").and_then(serde_json::Value::as_u64);
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
    fn what_forks_cannot_share_is_told_by_name_and_cannot_forge_a_line() {
        let words = br#"{"unshareable": ["`db` opens a pipe", "`x\n` opens\u001b[2J"], "from": 1}"#;
        let told = "`db` opens a pipe; `x\\n` opens\\u{1b}[2J".to_owned();
        assert_eq!(unshareable(words), Some((told, 1)));
        assert_eq!(unshareable(br#"{"unshareable": [], "from": null}"#), None);
        assert_eq!(unshareable(b"\xff"), None);
    }

    #[test]
    fn imports_before_the_first_that_cannot_be_shared_are_shared() {
        assert_eq!(imports(&orders(0)), "each worker imports by itself");
        let told = "but for `numpy` each worker imports by itself";
        assert_eq!(imports(&orders(1)), told);
        // The function's module comes after them.
        let told = "but for `numpy`, `db` each worker imports by itself";
        assert_eq!(imports(&orders(2)), told);
        assert_eq!(imports(&orders(3)), told);
    }
}
