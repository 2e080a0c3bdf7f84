//! Why there is no agent in a process: what its command line, its environment and its program say.

use std::ffi::OsString;

use super::procfs::Proc;

/// What Python has to be at least.
const OLDEST: (u32, u32) = (3, 8);

/// What a process shows of how it was started.
#[derive(Clone, Debug, Default)]
pub(super) struct Absence {
    /// Its program's file.
    program: String,
    cmdline: Vec<String>,
    /// The agent's directory, as it was given to it.
    agent: Option<String>,
    pythonpath: Option<String>,
}

impl Absence {
    pub(super) fn of(proc: &Proc, pid: i32) -> Self {
        let text = |word: OsString| word.to_string_lossy().into_owned();
        let variable = |name| proc.environ(pid, name).ok().flatten().map(text);
        let exe = proc.exe(pid).unwrap_or_default();
        let cmdline = proc.cmdline(pid).unwrap_or_default();
        Self {
            program: exe.to_string_lossy().into_owned(),
            cmdline: cmdline.into_iter().map(text).collect(),
            agent: variable("SUPERVISE_AGENT"),
            pythonpath: variable("PYTHONPATH"),
        }
    }

    fn name(&self) -> &str {
        self.program.rsplit('/').next().unwrap_or_default()
    }

    /// A Python interpreter, in which the agent should be.
    pub(super) fn is_python(&self) -> bool {
        let name = self.name();
        name.starts_with("python") || name.starts_with("pypy") || name.starts_with("uwsgi")
    }

    /// The likeliest reason, and what to do about it.
    pub(super) fn why(&self) -> String {
        let name = self.name();
        if !self.is_python() {
            return format!("`{name}` is no Python interpreter");
        }
        if let Some((major, minor)) = version(name).filter(|version| *version < OLDEST) {
            return format!("Python {major}.{minor} is older than 3.8");
        }
        if let Some(flag) = self.isolating_flag() {
            return format!("Python was started with -{flag}, which ignores PYTHONPATH or site");
        }
        match (&self.agent, &self.pythonpath) {
            (None, _) => "its environment was cleared: SUPERVISE_AGENT is not in it".to_owned(),
            (Some(_), None) => "PYTHONPATH was taken out of its environment".to_owned(),
            (Some(agent), Some(path)) => match path.split(':').position(|one| one == agent) {
                None => "PYTHONPATH was replaced in its environment".to_owned(),
                Some(0) => "its interpreter has not started yet, or could not load it".to_owned(),
                Some(_) => {
                    let first = path.split(':').next().unwrap_or_default();
                    format!("{first} stands before the agent in PYTHONPATH")
                }
            },
        }
    }

    /// `-I`, `-E` or `-S` among the interpreter's own options (python(1)).
    fn isolating_flag(&self) -> Option<char> {
        let mut words = self.cmdline.iter().skip(1);
        while let Some(word) = words.next() {
            let letters = word
                .strip_prefix('-')
                .filter(|rest| !rest.starts_with('-'))?;
            for letter in letters.chars() {
                match letter {
                    'I' | 'E' | 'S' => return Some(letter),
                    // What follows is the program.
                    'c' | 'm' => return None,
                    // The rest of the word, or the next one, is its value.
                    'W' | 'X' => {
                        if letters.ends_with(letter) {
                            words.next();
                        }
                        break;
                    }
                    _ => {}
                }
            }
        }
        None
    }
}

/// `python3.11` is 3.11; a bare `python3` does not say.
fn version(name: &str) -> Option<(u32, u32)> {
    let (major, minor) = name.strip_prefix("python")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(program: &str, cmdline: &str, agent: Option<&str>, path: Option<&str>) -> String {
        let absence = Absence {
            program: program.to_owned(),
            cmdline: cmdline.split(' ').map(str::to_owned).collect(),
            agent: agent.map(str::to_owned),
            pythonpath: path.map(str::to_owned),
        };
        absence.why()
    }

    #[test]
    fn each_way_of_being_without_the_agent_has_its_reason() {
        let (python, dir) = ("/usr/bin/python3.11", Some("/run/x.agent"));
        for (program, cmdline, agent, path, expected) in [
            ("/bin/sleep", "sleep 9", dir, dir, "no Python interpreter"),
            (
                "/opt/python3.7",
                "python a.py",
                dir,
                dir,
                "Python 3.7 is older",
            ),
            (python, "python -I a.py", dir, dir, "started with -I"),
            (python, "python -uE a.py", dir, dir, "started with -E"),
            (python, "python -X dev -S a.py", dir, dir, "started with -S"),
            (
                python,
                "python a.py -S",
                None,
                None,
                "environment was cleared",
            ),
            (
                python,
                "python -m a -I",
                dir,
                None,
                "PYTHONPATH was taken out",
            ),
            (
                python,
                "python a.py",
                dir,
                Some("/a"),
                "PYTHONPATH was replaced",
            ),
            (
                python,
                "python a.py",
                dir,
                Some("/a:/run/x.agent"),
                "/a stands before",
            ),
            (python, "python a.py", dir, dir, "has not started yet"),
        ] {
            let said = why(program, cmdline, agent, path);
            assert!(said.contains(expected), "{cmdline}: {said}");
        }
    }
}
