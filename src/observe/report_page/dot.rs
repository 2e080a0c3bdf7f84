//! The references that hold the suspects, as a graph for graphviz.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

use crate::escape;

use super::{
    document::{Report, Suspect},
    phrases,
};

/// Maximum characters of a line of a label.
const LABEL: usize = 80;

/// The references of all suspects as one graph. Chains with the same beginning share it.
pub(super) fn graph(report: &Report) -> String {
    let mut graph = Graph::default();
    let name = report.id.text().unwrap_or("report");
    let title = format!("{}: {}", report.worker.0, phrases::verdict(report));
    graph.push(format_args!("digraph {} {{\n", quoted(&[name])));
    graph.push("    rankdir=LR;\n    node [shape=box];\n");
    graph.push(format_args!("    label={};\n", quoted(&[&title])));
    for (at, suspect) in report.suspects.0.iter().enumerate() {
        graph.suspect(at + 1, suspect);
    }
    graph.push("}\n");
    graph.text
}

#[derive(Debug, Default)]
struct Graph {
    text: String,
    /// By parent and name: the same name below another parent is another object.
    nodes: BTreeMap<(Option<usize>, String), usize>,
}

impl Graph {
    fn suspect(&mut self, number: usize, suspect: &Suspect) {
        let chain = suspect.chain.0.iter().map(|link| link.0.as_str());
        // The holder begins the chain unless the chain names it already.
        let holder = suspect.holder.text();
        let holder = holder.filter(|holder| !chain.clone().any(|link| link.contains(holder)));
        let mut above = None;
        for link in holder.into_iter().chain(chain) {
            above = Some(self.node(above, link));
        }
        let mut lines = vec![phrases::things(suspect), phrases::size(suspect)];
        lines.extend(phrases::place(suspect));
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        let label = quoted(&lines);
        self.push(format_args!("    s{number} [label={label}, style=bold];\n"));
        if let Some(above) = above {
            self.push(format_args!("    n{above} -> s{number};\n"));
        }
    }

    fn node(&mut self, above: Option<usize>, link: &str) -> usize {
        let key = (above, link.to_owned());
        if let Some(node) = self.nodes.get(&key) {
            return *node;
        }
        let node = self.nodes.len() + 1;
        self.nodes.insert(key, node);
        self.push(format_args!("    n{node} [label={}];\n", quoted(&[link])));
        if let Some(above) = above {
            self.push(format_args!("    n{above} -> n{node};\n"));
        }
        node
    }

    fn push(&mut self, text: impl Display) {
        // Writing to a string does not fail.
        let _written = write!(self.text, "{text}");
    }
}

/// A string of the DOT language with one line for each part. Backslashes are escaped.
fn quoted(lines: &[&str]) -> String {
    let line = |line: &&str| {
        let line = phrases::cut(&escape::line(line), LABEL);
        line.replace('\\', "\\\\").replace('"', "\\\"")
    };
    let lines: Vec<_> = lines.iter().map(line).collect();
    format!("\"{}\"", lines.join("\\n"))
}
