//! Layout of a page of text: titled paragraphs, wrapped between words, and tables. Control and
//! invisible characters are escaped.

use crate::escape;

/// Separates two columns.
const GAP: &str = "  ";
/// The column where the text of a titled paragraph starts.
pub(super) const INDENT: usize = 11;

/// The page so far.
#[derive(Debug)]
pub(super) struct TextLayout {
    width: usize,
    text: String,
}

/// A column of a table: its heading and alignment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Aligned to the left.
    Text(&'static str),
    /// Aligned to the right.
    Number(&'static str),
}

impl Column {
    const fn head(self) -> &'static str {
        match self {
            Self::Text(head) | Self::Number(head) => head,
        }
    }

    fn padded(self, cell: &str, width: usize) -> String {
        match self {
            Self::Text(_) => format!("{cell:<width$}"),
            Self::Number(_) => format!("{cell:>width$}"),
        }
    }
}

impl TextLayout {
    /// Paragraphs and rows are at most `width` characters wide.
    pub(super) const fn new(width: usize) -> Self {
        Self {
            width,
            text: String::new(),
        }
    }

    /// Adds a title and its text, wrapped between words.
    pub(super) fn titled(&mut self, title: &str, text: &str) {
        let title = escape::line(title);
        self.wrapped(&format!("{title:<INDENT$}"), INDENT, text);
    }

    /// Adds a text, wrapped between words and within words that are longer than a line. The first
    /// line begins with `first`, the others with `indent` spaces.
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

    /// Adds a table. Each column is as wide as its widest cell; rows are cut off at the width.
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

    /// Adds one line.
    pub(super) fn line(&mut self, line: &str) {
        self.text.push_str(&escape::line(line.trim_end()));
        self.text.push('\n');
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// The parts of a word, each of at most `room` characters.
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

/// The first `width` characters; `…` replaces the end of a longer text.
pub(super) fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let kept = line.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
}
