//! A page of text as wide as its reader: titled lines, broken between words, and columns. What
//! others wrote is shown escaped.

use crate::escape;

/// Between two columns.
const GAP: &str = "  ";
/// Where the text of a titled line starts.
pub(super) const INDENT: usize = 11;

/// A page being written.
#[derive(Debug)]
pub(super) struct Paper {
    width: usize,
    text: String,
}

/// One column: its head, and whether it holds words or figures.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// To the left.
    Words(&'static str),
    /// To the right.
    Figures(&'static str),
}

impl Column {
    const fn head(self) -> &'static str {
        match self {
            Self::Words(head) | Self::Figures(head) => head,
        }
    }

    fn padded(self, cell: &str, width: usize) -> String {
        match self {
            Self::Words(_) => format!("{cell:<width$}"),
            Self::Figures(_) => format!("{cell:>width$}"),
        }
    }
}

impl Paper {
    /// No titled line and no row will be longer than `width` letters.
    pub(super) const fn new(width: usize) -> Self {
        Self {
            width,
            text: String::new(),
        }
    }

    /// A title and its text, broken between words.
    pub(super) fn titled(&mut self, title: &str, text: &str) {
        let title = escape::line(title);
        self.wrapped(&format!("{title:<INDENT$}"), INDENT, text);
    }

    /// A text after what its first line begins with, broken between words, and within a word that
    /// is longer than a line; the other lines begin with `indent` blanks.
    pub(super) fn wrapped(&mut self, first: &str, indent: usize, text: &str) {
        let mut line = first.to_owned();
        let text = escape::line(text);
        let mut fresh = true;
        let room = self.width.saturating_sub(indent + 1).max(1);
        for word in text.split(' ').flat_map(|word| pieces(word, room)) {
            let full = line.chars().count() + 1 + word.chars().count() > self.width;
            if full && !fresh {
                self.line(&line);
                line = " ".repeat(indent);
                fresh = true;
            }
            if !fresh || !(line.is_empty() || line.ends_with(' ')) {
                line.push(' ');
            }
            line.push_str(word);
            fresh = false;
        }
        self.line(&line);
    }

    /// Columns as wide as they need to be. What does not fit is cut off.
    pub(super) fn grid(&mut self, columns: &[Column], rows: Vec<Vec<String>>) {
        let heads = columns.iter().map(|column| column.head().to_owned());
        let safe = |row: Vec<String>| row.iter().map(|cell| escape::line(cell).into()).collect();
        let rows = rows.into_iter().map(safe);
        let rows: Vec<Vec<String>> = std::iter::once(heads.collect()).chain(rows).collect();
        let mut widths = vec![0; columns.len()];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &rows {
            let cells = row.iter().zip(&widths).zip(columns);
            let cells = cells.map(|((cell, width), column)| column.padded(cell, *width));
            let line = cells.collect::<Vec<_>>().join(GAP);
            self.line(&cut(line.trim_end(), self.width));
        }
    }

    /// One line as it is.
    pub(super) fn line(&mut self, line: &str) {
        self.text.push_str(&escape::line(line.trim_end()));
        self.text.push('\n');
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// A word in parts of at most `room` letters.
fn pieces(word: &str, room: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(word);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let Some((end, _)) = text.char_indices().nth(room) else {
            return Some(text);
        };
        let (piece, more) = text.split_at(end);
        rest = Some(more);
        Some(piece)
    })
}

/// The text, if need be without its end.
pub(super) fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let kept = line.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
}
