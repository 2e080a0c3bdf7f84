//! Stacks that `faulthandler` wrote while a worker grew, and the memory of the worker at that time.
//! `faulthandler` writes them even if the interpreter is busy in a C call.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, WorkerId};

/// Size at which the file is emptied.
const SIZE_MAX: u64 = 1 << 20;
/// The maximum length of a dump (faulthandler stops after 100 frames).
const DUMP_MAX: u64 = 64 << 10;

/// The file to which all agents append, and the worker of each part of it.
#[derive(Debug)]
pub(super) struct Stacks {
    file: File,
    inode: u64,
    /// Oldest first.
    notes: Vec<Note>,
}

/// The worker of a part of the file.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Note {
    worker: WorkerId,
    memory: Bytes,
    /// The offset in the file where its stacks begin.
    from: u64,
}

/// What a worker ran, and its memory at that time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Stack {
    pub(super) memory: Bytes,
    /// The frames of the main thread, the innermost first.
    pub(super) frames: Vec<Frame>,
}

/// One line of a stack.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Frame {
    pub(super) file: String,
    pub(super) line: u32,
    pub(super) function: String,
}

impl Stacks {
    pub(super) fn create(file: File) -> io::Result<Self> {
        Self::of_file(file, Vec::new())
    }

    /// The file that the previous binary has made, and that the workers have open.
    pub(super) fn take_over(file: File, notes: Vec<Note>) -> io::Result<Self> {
        Self::of_file(file, notes)
    }

    fn of_file(file: File, notes: Vec<Note>) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self { file, inode, notes })
    }

    pub(super) fn notes(&self) -> &[Note] {
        &self.notes
    }

    pub(super) const fn inode(&self) -> u64 {
        self.inode
    }

    /// Notes that a worker is about to write its stacks.
    pub(super) fn note(&mut self, worker: WorkerId, memory: Bytes) {
        let mut from = self.size();
        if from > SIZE_MAX {
            // Workers append, so they continue at the new end.
            self.notes.clear();
            from = self.file.set_len(0).map_or(from, |()| 0);
        }
        self.notes.push(Note {
            worker,
            memory,
            from,
        });
    }

    /// The stacks of a worker while it grew, the oldest first.
    ///
    /// RACE: two workers that are asked within the same millisecond write one after the other, and
    /// the part of the first may contain both. So only the first dump of a part counts.
    pub(super) fn of(&self, worker: WorkerId) -> Vec<Stack> {
        let mut stacks = Vec::new();
        for (at, note) in self.notes.iter().enumerate() {
            if note.worker != worker {
                continue;
            }
            let next = self.notes.get(at + 1).map(|next| next.from);
            let end = next.filter(|next| *next > note.from).unwrap_or(u64::MAX);
            let length = end.min(self.size()).saturating_sub(note.from).min(DUMP_MAX);
            let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
            if self.file.read_exact_at(&mut text, note.from).is_err() {
                continue;
            }
            let frames = first(&String::from_utf8_lossy(&text));
            if !frames.is_empty() {
                stacks.push(Stack {
                    memory: note.memory,
                    frames,
                });
            }
        }
        stacks
    }

    fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len())
    }
}

/// The frames of the first dump. It is of the thread that received the signal: the main thread,
/// unless that blocks the signal.
fn first(dumps: &str) -> Vec<Frame> {
    let mut lines = dumps.lines();
    lines.find(|line| line.starts_with("Stack"));
    lines.map_while(frame).collect()
}

/// `  File "shop.py", line 7 in load`.
fn frame(line: &str) -> Option<Frame> {
    let rest = line.trim_start().strip_prefix("File \"")?;
    let (file, rest) = rest.rsplit_once("\", line ")?;
    let (line, function) = rest.split_once(" in ")?;
    Some(Frame {
        file: file.to_owned(),
        line: line.parse().ok()?,
        function: function.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    const DUMP: &str = "\
Stack (most recent call first):
  File \"/srv/etl.py\", line 7 in load
  File \"/srv/etl.py\", line 12 in <module>
";

    #[test]
    fn only_the_first_dump_is_parsed() {
        let frames = first(&[DUMP, DUMP].concat());
        let lines: Vec<_> = frames
            .iter()
            .map(|f| (f.line, f.function.as_str()))
            .collect();
        assert_eq!(lines, [(7, "load"), (12, "<module>")]);
        assert_eq!(frames[0].file, "/srv/etl.py");
        assert_eq!(first(""), []);
    }

    proptest! {
        /// Each worker can write anything into the file.
        #[test]
        fn any_text_is_frames_or_nothing(
            lines in prop::collection::vec(
                r#"Stack|( *File ")?[^\n]{0,9}(", line )?[0-9]{0,12}( in )?[^\n]{0,9}"#,
                0..6,
            ),
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = first(&lines.join("\n"));
            prop_assert_eq!(first(&String::from_utf8_lossy(&bytes)), []);
        }
    }

    #[test]
    fn each_worker_has_the_stacks_that_were_written_after_its_note() {
        let mut stacks = Stacks::create(tempfile::tempfile().unwrap()).unwrap();
        let (w1, w2) = (WorkerId::FIRST, WorkerId::FIRST.next());
        stacks.note(w1, Bytes::mib(80));
        (&stacks.file).write_all(DUMP.as_bytes()).unwrap();
        stacks.note(w2, Bytes::mib(90));
        assert_eq!(stacks.of(w2), []);
        let seen = stacks.of(w1);
        assert_eq!((seen.len(), seen[0].memory), (1, Bytes::mib(80)));
    }
}
