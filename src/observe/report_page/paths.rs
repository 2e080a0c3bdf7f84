//! Shorter paths of source files: relative to the reader's directory, below `site-packages`, or
//! only the last parts.

use std::borrow::Cow;

/// Directories below which a path is understood without what comes before.
const ROOTS: [&str; 2] = ["/site-packages/", "/dist-packages/"];
/// Parts kept of any other absolute path.
const PARTS: usize = 3;
/// Only paths of source files and libraries are shortened, and not the path of a URL.
const ENDS: [&str; 2] = [".py", ".so"];

/// The text with shorter paths. `here`: the reader's directory.
pub(super) fn shorten<'a>(text: &'a str, here: &str) -> Cow<'a, str> {
    if !text.contains('/') {
        return Cow::Borrowed(text);
    }
    let words = text.split(' ').map(|word| shorten_word(word, here));
    Cow::Owned(words.collect::<Vec<_>>().join(" "))
}

fn shorten_word<'a>(word: &'a str, here: &str) -> Cow<'a, str> {
    let Some(start) = word.find('/') else {
        return Cow::Borrowed(word);
    };
    let (before, path) = word.split_at(start);
    let is_quote = |letter: char| "`'\"(<[".contains(letter);
    if !before.chars().all(is_quote) || !ENDS.iter().any(|end| path.contains(end)) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("{before}{}", shorten_path(path, here)))
}

fn shorten_path(path: &str, here: &str) -> String {
    let below = path.strip_prefix(here.trim_end_matches('/'));
    if let Some(relative) = below.and_then(|rest| rest.strip_prefix('/')) {
        // A virtual environment in this directory.
        return after_root(relative).unwrap_or_else(|| relative.to_owned());
    }
    after_root(path).unwrap_or_else(|| {
        let parts: Vec<_> = path.split('/').skip(1).collect();
        match parts.len().checked_sub(PARTS) {
            None | Some(0) => path.to_owned(),
            Some(skipped) => format!("…/{}", parts.get(skipped..).unwrap_or_default().join("/")),
        }
    })
}

/// `…/flask/app.py` of `/usr/lib/python3/site-packages/flask/app.py`.
fn after_root(path: &str) -> Option<String> {
    let after = |root: &&str| path.rsplit_once(*root).map(|(_, rest)| rest);
    ROOTS.iter().find_map(after).map(|rest| format!("…/{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_relative_to_the_directory_or_cut_to_its_last_parts() {
        for (text, short) in [
            ("/srv/shop/shop.py:30", "shop.py:30"),
            ("/srv/shop/views/cart.py:3 add", "views/cart.py:3 add"),
            ("/srv/shopping/shop.py:30", "/srv/shopping/shop.py:30"),
            ("/opt/app/src/shop/shop.py:30", "…/src/shop/shop.py:30"),
            ("/a.py", "/a.py"),
            (
                "/usr/lib/python3.11/site-packages/flask/app.py:9",
                "…/flask/app.py:9",
            ),
            (
                "/srv/shop/.venv/lib/python3.11/site-packages/flask/app.py:9",
                "…/flask/app.py:9",
            ),
            ("(`/srv/shop/a.py:1`, once)", "(`a.py:1`, once)"),
            ("GET /srv/shop/leak/7", "GET /srv/shop/leak/7"),
            (
                "http://x/srv/shop/a.py /srv/shop/a.py",
                "http://x/srv/shop/a.py a.py",
            ),
            ("app.py:42 remember", "app.py:42 remember"),
        ] {
            assert_eq!(shorten(text, "/srv/shop"), short, "{text}");
        }
        assert_eq!(shorten("/srv/shop/a.py", "/"), "srv/shop/a.py");
    }
}
