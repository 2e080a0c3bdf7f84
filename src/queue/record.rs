//! A line of a journal: a result, the line of its task, a hash of the input up to that line, and a
//! checksum of all this.

use std::io::{self, Write as _};

/// FNV-1a of nothing.
pub(super) const START: u64 = 0xcbf2_9ce4_8422_2325;
const LINE: &[u8] = b",\"line\":";
const INPUT: &[u8] = b",\"input\":\"";
const SUM: &[u8] = b",\"sum\":\"";
/// A hash in hexadecimal digits.
const DIGITS: usize = 16;

/// Goes on with an FNV-1a hash. It changes with each single byte that changes.
pub(super) fn hash(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What a line says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Record<'a> {
    /// The result, less its closing brace.
    pub(super) result: &'a [u8],
    /// The line of its task in the input.
    pub(super) line: u64,
    /// The hash of the input up to and with that line.
    pub(super) mark: u64,
}

/// Why a line is no record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wrong {
    /// It was not written to its end.
    Torn,
    /// It was, and has changed since.
    Corrupted,
}

/// Appends the record of a result.
pub(super) fn write(into: &mut Vec<u8>, record: Record<'_>) -> io::Result<()> {
    let start = into.len();
    into.extend_from_slice(record.result);
    write!(into, ",\"line\":{}", record.line)?;
    write!(into, ",\"input\":\"{:016x}\"", record.mark)?;
    seal(into, start)
}

/// Appends the checksum of what was appended since `start`, and the end of the line.
pub(super) fn seal(into: &mut Vec<u8>, start: usize) -> io::Result<()> {
    let sum = hash(START, into.get(start..).unwrap_or_default());
    into.extend_from_slice(SUM);
    writeln!(into, "{sum:016x}\"}}")
}

/// What a line says before its checksum.
pub(super) fn unseal(line: &[u8]) -> Result<&[u8], Wrong> {
    let sealed = line.strip_suffix(b"\"}\n").and_then(hex).and_then(|it| {
        let (rest, sum) = it;
        Some((rest.strip_suffix(SUM)?, sum))
    });
    let Some((rest, sum)) = sealed else {
        return Err(Wrong::Torn);
    };
    if hash(START, rest) == sum {
        return Ok(rest);
    }
    // A power cut may leave the end of a line without its middle, in place of which are zeros.
    Err(if rest.contains(&0) {
        Wrong::Torn
    } else {
        Wrong::Corrupted
    })
}

/// Reads a line.
pub(super) fn read(line: &[u8]) -> Result<Record<'_>, Wrong> {
    parts(unseal(line)?).ok_or(Wrong::Corrupted)
}

fn parts(text: &[u8]) -> Option<Record<'_>> {
    let (text, mark) = hex(text.strip_suffix(b"\"")?)?;
    let text = text.strip_suffix(INPUT)?;
    let is_digit = |byte: &&u8| byte.is_ascii_digit();
    let digits = text.iter().rev().take_while(is_digit).count();
    let (rest, digits) = text.split_at(text.len() - digits);
    Some(Record {
        result: rest.strip_suffix(LINE)?,
        line: str::from_utf8(digits).ok()?.parse().ok()?,
        mark,
    })
}

/// Takes a hash from the end of a text.
fn hex(text: &[u8]) -> Option<(&[u8], u64)> {
    let (rest, digits) = text.split_at_checked(text.len().checked_sub(DIGITS)?)?;
    let is_ours = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if !digits.iter().all(is_ours) {
        return None;
    }
    let hash = u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    Some((rest, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Vec<u8> {
        let mut line = Vec::new();
        let record = Record {
            result: b"{\"id\":\"a\",\"ok\":true",
            line: 12,
            mark: 0xab,
        };
        write(&mut line, record).unwrap();
        assert_eq!(read(&line), Ok(record));
        line
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(START, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(START, b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(hash(hash(START, b"foo"), b"bar"), hash(START, b"foobar"));
    }

    #[test]
    fn a_record_is_json_of_one_line() {
        let line = String::from_utf8(line()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).expect(&line);
        assert_eq!((&value["line"], &value["id"]), (&12.into(), &"a".into()));
        assert_eq!(line.find('\n'), Some(line.len() - 1));
    }

    #[test]
    fn each_changed_byte_is_seen_and_each_missing_end() {
        let whole = line();
        for at in 0..whole.len() {
            assert_eq!(read(&whole[..at]), Err(Wrong::Torn), "{at}");
            for other in 0..=u8::MAX {
                let mut line = whole.clone();
                line[at] = other;
                let is_whole = read(&line).is_ok();
                assert_eq!(is_whole, line == whole, "byte {at} is {other}");
            }
        }
    }

    #[test]
    fn a_changed_result_is_corrupted_and_one_with_a_hole_is_torn() {
        let mut line = line();
        line[3] = b'x';
        assert_eq!(read(&line), Err(Wrong::Corrupted));
        line[3] = 0;
        assert_eq!(read(&line), Err(Wrong::Torn));
    }
}
