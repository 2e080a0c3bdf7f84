//! Makes text from other users and programs safe for a terminal and for a log.
//!
//! Others choose the names of programs, command lines, paths and the answers of agents. An escape
//! sequence in them would control the reader's terminal, a line feed would forge a line, and a
//! bidirectional control (U+202E) would show letters in another order.

use std::{borrow::Cow, fmt::Write as _};

/// Escapes text for one line. All control and invisible characters are written like `\n`, `\u{1b}`,
/// `\u{202e}`.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escape_except(text, &[])
}

/// Escapes text of several lines: like [`line()`], but keeps line feeds.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escape_except(text, &['\n'])
}

/// Escapes the output of a program: like [`lines()`], but keeps tabs.
#[must_use]
pub fn prints(text: &str) -> Cow<'_, str> {
    escape_except(text, &['\n', '\t'])
}

fn escape_except<'a>(text: &'a str, kept: &[char]) -> Cow<'a, str> {
    let is_unsafe = |letter| !kept.contains(&letter) && is_unsafe(letter);
    replace(text, is_unsafe, |letter, into| {
        into.extend(letter.escape_default());
    })
}

/// Escapes a JSON text without changing its meaning, because these characters occur only in
/// strings. Line feeds and tabs between the parts are kept.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    let is_unsafe = |letter| !matches!(letter, '\n' | '\t') && is_unsafe(letter);
    replace(text, is_unsafe, |letter, into| {
        for unit in letter.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(into, "\\u{unit:04x}");
        }
    })
}

/// Control characters (C0, DEL, C1), and invisible characters of Unicode, which can hide in a text
/// or change how other characters are shown.
fn is_unsafe(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

fn replace(
    text: &str,
    is_unsafe: impl Fn(char) -> bool,
    escape: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    if !text.contains(&is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_unsafe(letter) {
            escape(letter, &mut safe);
        } else {
            safe.push(letter);
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(line("shop\u{1b}[2J\nw2\r\t"), "shop\\u{1b}[2J\\nw2\\r\\t");
        assert_eq!(lines("a\u{1b}\nb\u{7f}"), "a\\u{1b}\nb\\u{7f}");
        assert_eq!(prints("a\t\u{1b}\r\n"), "a\t\\u{1b}\\r\n");
        assert_eq!(line("\u{9b}31m"), "\\u{9b}31m");
        for letter in [
            '\u{0}',
            '\u{7}',
            '\u{85}',
            '\u{9f}',
            '\u{61c}',
            '\u{200b}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            let text = format!("a{letter}b");
            assert!(!line(&text).contains(letter), "{letter:?} stays");
            assert!(!lines(&text).contains(letter), "{letter:?} stays");
        }
        let plain = "Größe: 3 × 4 — été, 日本語, 😀 …";
        assert!(matches!(line(plain), Cow::Borrowed(text) if text == plain));
    }

    #[test]
    fn escaped_json_has_the_same_meaning() {
        let value = serde_json::json!({"a\u{202e}": "\u{9b}2J\u{7f}\n\u{e0041}\u{1b}", "b": [1]});
        for text in [
            value.to_string(),
            serde_json::to_string_pretty(&value).unwrap(),
        ] {
            let safe = json(&text);
            assert!(!safe.contains(|letter| letter != '\n' && is_unsafe(letter)));
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&safe).unwrap(),
                value
            );
        }
        assert!(!json("{}\u{1b}[2J\r").contains(['\u{1b}', '\r']));
    }
}
