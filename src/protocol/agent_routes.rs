//! The requests of each route: the second part of the page of counters ([`super::agent_page`]).
//!
//! It follows the slots, at [`START`], and has an area of [`AREA`] bytes for each slot. Only the
//! process that has claimed the slot writes there. An area:
//!
//! | words | what |
//! |---|---|
//! | 0 to 63 | finished requests of a route since the process has claimed the slot |
//! | 64 | finished requests of all other routes |
//! | 66 to 71 | the path of the request, or the name of the task, that was begun last, then zeros |
//! | 72 to 967 | the names of the routes, 14 words each |
//!
//! A name begins with its length in bytes, which is written last. Then follows the text in UTF-8.
//! The name of a route does not change while the process runs. Two processes may have the same
//! route at different places. Word 5 of the page's header is [`VERSION`] if the page has this part.

use super::{WORD, agent_page, word};

/// The version of this part. Agents do not count routes on a page with another version.
pub const VERSION: u64 = 1;
/// The offset in the page's header of the word that contains the version.
pub const VERSION_AT: usize = 5 * WORD;
/// Routes of a process that have a name.
pub const NAMES: usize = 64;
/// The offset of the first area: the next page of memory after the slots.
pub const START: usize = agent_page::LENGTH.next_multiple_of(4096);
/// The length of an area.
pub const AREA: usize = 8192;
/// The length of a page with this part.
pub const LENGTH: usize = START + AREA * agent_page::SLOTS;
/// The length of the counters in an area: of each route, and of all others.
pub const COUNTS: usize = (NAMES + 1) * WORD;

const FIRST_NAME: usize = 72;
const NAME_WORDS: usize = 14;
const NAME_MAX: usize = (NAME_WORDS - 1) * WORD;
/// The length of a name with its length.
pub const NAME: usize = NAME_WORDS * WORD;

/// The offset in an area of the path of the request that was begun last.
pub const LAST_BEGUN: usize = 66 * WORD;
/// Its length.
pub const LAST_BEGUN_LENGTH: usize = 6 * WORD;

/// The offset of the area of slot `number` in a page.
#[must_use]
pub const fn offset(number: usize) -> usize {
    START + AREA * number
}

/// The offset of the name of route `number` in an area.
#[must_use]
pub const fn name_offset(number: usize) -> usize {
    (FIRST_NAME + NAME_WORDS * number) * WORD
}

/// The path of the request, or the name of the task, that was begun last. `None`: there is none, or
/// it is not text in one line. The process may write it at the same time.
#[must_use]
pub fn last_begun(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let written = bytes.get(..end.unwrap_or(bytes.len()))?;
    let text = str::from_utf8(written).or_else(|error| {
        // A long path is cut off, possibly within a character.
        str::from_utf8(written.get(..error.valid_up_to()).unwrap_or_default())
    });
    text.ok()
        .filter(|text| !text.is_empty() && !text.contains(char::is_control))
}

/// The counters of an area: of each route, and of all others.
pub fn counts(area: &[u8]) -> impl Iterator<Item = u64> {
    (0..=NAMES).map(|number| word(area, number))
}

/// A name in an area.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Name<'a> {
    /// It is not written yet.
    Missing,
    /// It is not text in one line.
    Invalid,
    /// The name.
    Valid(&'a str),
}

impl<'a> Name<'a> {
    /// Reads a name with its length.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Self {
        let length = word(bytes, 0);
        if length == 0 {
            return Self::Missing;
        }
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= NAME_MAX);
        let text = length.and_then(|length| bytes.get(WORD..WORD + length));
        let text = text.and_then(|text| str::from_utf8(text).ok());
        match text.filter(|text| !text.contains(char::is_control)) {
            Some(text) => Self::Valid(text),
            None => Self::Invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn areas_do_not_overlap_with_slots_or_with_each_other() {
        assert!(START >= agent_page::offset(agent_page::SLOTS));
        const { assert!(LAST_BEGUN >= COUNTS) };
        const { assert!(name_offset(0) >= LAST_BEGUN + LAST_BEGUN_LENGTH) };
        assert!(name_offset(NAMES) <= AREA);
        assert_eq!(offset(agent_page::SLOTS), LENGTH);
    }

    #[test]
    fn only_text_in_one_line_is_a_name() {
        let cell = |length: u64, text: &[u8]| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(text);
            bytes.resize(NAME, 0);
            bytes
        };
        assert_eq!(Name::read(&cell(0, b"/a")), Name::Missing);
        assert_eq!(Name::read(&cell(2, b"/abc")), Name::Valid("/a"));
        assert_eq!(
            Name::read(&cell(104, &[b'a'; 104])),
            Name::Valid(&"a".repeat(104))
        );
        for (length, text) in [
            (105, &[b'a'; 104][..]),
            (u64::MAX, b"/a"),
            (3, b"/a\n"),
            (3, b"/a\x1b"),
            (2, b"/\xff"),
            (5, b"/\xc2\x9b[m"),
        ] {
            assert_eq!(Name::read(&cell(length, text)), Name::Invalid, "{text:?}");
        }
    }

    #[test]
    fn the_path_that_was_begun_last_is_text_in_one_line() {
        assert_eq!(last_begun(b"/export\0\0"), Some("/export"));
        assert_eq!(last_begun(&[b'a'; 48]), Some("a".repeat(48).as_str()));
        assert_eq!(last_begun("/é".as_bytes().get(..2).unwrap()), Some("/"));
        for bytes in [&b"\0/a"[..], b"/a\x1b[m", b"/a\n", b"\xff", b""] {
            assert_eq!(last_begun(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Name::read(&bytes);
            let _ = last_begun(&bytes);
            prop_assert_eq!(counts(&bytes).count(), NAMES + 1);
        }
    }
}
