//! A line of a journal: a result, the input line of its task, a hash of the input up to the end of
//! that line, and a checksum.

use std::io::{self, Write as _};

/// The FNV-1a hash of an empty text.
pub(super) const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;
const LINE: &[u8] = b",\"line\":";
const INPUT: &[u8] = b",\"input\":\"";
const SUM: &[u8] = b",\"sum\":\"";
/// The length of a hash in hexadecimal digits.
const DIGITS: usize = 16;

/// Continues an FNV-1a hash. A change of any single byte changes the hash.
pub(super) fn hash(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The fields of a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Record<'a> {
    /// The result, a JSON object without its closing brace.
    pub(super) result: &'a [u8],
    /// The line of the task in the input.
    pub(super) line: u64,
    /// The hash of the input up to the end of that line.
    pub(super) input_hash: u64,
}

/// Why a line is not a valid record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Damage {
    /// The line was not completely written.
    Torn,
    /// The line was changed after it was written.
    Corrupted,
}

/// Appends a record.
pub(super) fn write(into: &mut Vec<u8>, record: Record<'_>) -> io::Result<()> {
    let start = into.len();
    into.extend_from_slice(record.result);
    write!(into, ",\"line\":{}", record.line)?;
    write!(into, ",\"input\":\"{:016x}\"", record.input_hash)?;
    seal(into, start)
}

/// Appends the checksum of the bytes from `start` on, and ends the line.
pub(super) fn seal(into: &mut Vec<u8>, start: usize) -> io::Result<()> {
    let sum = hash(HASH_START, into.get(start..).unwrap_or_default());
    into.extend_from_slice(SUM);
    writeln!(into, "{sum:016x}\"}}")
}

/// The text of a line before its checksum.
pub(super) fn unseal(line: &[u8]) -> Result<&[u8], Damage> {
    let (text, sum) = split_sum(line).ok_or(Damage::Torn)?;
    if hash(HASH_START, text) == sum {
        return Ok(text);
    }
    // After a power failure, the end of a line may be on disk, with zeros instead of its middle.
    Err(if text.contains(&0) {
        Damage::Torn
    } else {
        Damage::Corrupted
    })
}

fn split_sum(line: &[u8]) -> Option<(&[u8], u64)> {
    let (text, sum) = split_hash(line.strip_suffix(b"\"}\n")?)?;
    Some((text.strip_suffix(SUM)?, sum))
}

/// Parses a line.
pub(super) fn read(line: &[u8]) -> Result<Record<'_>, Damage> {
    parse(unseal(line)?).ok_or(Damage::Corrupted)
}

fn parse(text: &[u8]) -> Option<Record<'_>> {
    let (text, input_hash) = split_hash(text.strip_suffix(b"\"")?)?;
    let text = text.strip_suffix(INPUT)?;
    let is_digit = |byte: &&u8| byte.is_ascii_digit();
    let digits = text.iter().rev().take_while(is_digit).count();
    let (rest, digits) = text.split_at(text.len() - digits);
    Some(Record {
        result: rest.strip_suffix(LINE)?,
        line: str::from_utf8(digits).ok()?.parse().ok()?,
        input_hash,
    })
}

/// Splits a hash off the end of a text.
fn split_hash(text: &[u8]) -> Option<(&[u8], u64)> {
    let (rest, digits) = text.split_at_checked(text.len().checked_sub(DIGITS)?)?;
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if !digits.iter().all(is_hex) {
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
            input_hash: 0xab,
        };
        write(&mut line, record).unwrap();
        assert_eq!(read(&line), Ok(record));
        line
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(HASH_START, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(HASH_START, b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(
            hash(hash(HASH_START, b"foo"), b"bar"),
            hash(HASH_START, b"foobar")
        );
    }

    #[test]
    fn a_record_is_one_line_of_json() {
        let line = String::from_utf8(line()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).expect(&line);
        assert_eq!((&value["line"], &value["id"]), (&12.into(), &"a".into()));
        assert_eq!(line.find('\n'), Some(line.len() - 1));
    }

    #[test]
    fn a_changed_byte_or_a_missing_end_is_always_found() {
        let whole = line();
        for at in 0..whole.len() {
            assert_eq!(read(&whole[..at]), Err(Damage::Torn), "{at}");
            for other in 0..=u8::MAX {
                let mut line = whole.clone();
                line[at] = other;
                let is_whole = read(&line).is_ok();
                assert_eq!(is_whole, line == whole, "byte {at} is {other}");
            }
        }
    }

    #[test]
    fn a_changed_record_is_corrupted_and_one_with_zeros_is_torn() {
        let mut line = line();
        line[3] = b'x';
        assert_eq!(read(&line), Err(Damage::Corrupted));
        line[3] = 0;
        assert_eq!(read(&line), Err(Damage::Torn));
    }
}
