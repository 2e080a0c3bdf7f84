//! Why a process has no agent, judged by its command line, its environment and its program.

use std::ffi::OsString;

use crate::host::memory::procfs::Proc;

/// The oldest supported version of Python.
const OLDEST: (u32, u32) = (3, 8);

/// How a process was started, as far as `/proc` shows it: this explains why it has no agent.
#[derive(Clone, Debug, Default)]
pub(in crate::host) struct AgentDiagnosis {
    /// The path of its program.
    program: String,
    cmdline: Vec<String>,
    /// The agent's directory, from its environment.
    agent: Option<String>,
    pythonpath: Option<String>,
}

impl AgentDiagnosis {
    pub(in crate::host) fn of(proc: &Proc, pid: i32) -> Self {
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

    /// Whether it is a Python interpreter, in which the agent is expected.
    pub(in crate::host) fn is_python(&self) -> bool {
        let name = self.name();
        name.starts_with("python") || name.starts_with("pypy") || name.starts_with("uwsgi")
    }

    /// The most likely reason why it has no agent.
    pub(in crate::host) fn why(&self) -> String {
        let name = self.name();
        if !self.is_python() {
            return format!("`{name}` is not a Python interpreter");
        }
        if let Some((major, minor)) = version(name).filter(|version| *version < OLDEST) {
            return format!("Python {major}.{minor} is older than 3.8");
        }
        if let Some(flag) = self.isolating_flag() {
            return format!("Python was started with -{flag}, which ignores PYTHONPATH or site");
        }
        match (&self.agent, &self.pythonpath) {
            (None, _) => "its environment was cleared: SUPERVISE_AGENT is not in it".to_owned(),
            (Some(_), None) => "PYTHONPATH was removed from its environment".to_owned(),
            (Some(agent), Some(path)) => match path.split(':').position(|one| one == agent) {
                None => "PYTHONPATH was replaced in its environment".to_owned(),
                Some(0) => "its interpreter has not started yet, or could not load it".to_owned(),
                Some(_) => {
                    let first = path.split(':').next().unwrap_or_default();
                    format!("PYTHONPATH has {first} before the agent")
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
                    // The program follows.
                    'c' | 'm' => return None,
                    // The rest of the word, or the next word, is its value.
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

/// The version in a name: `python3.11` is 3.11. A bare `python3` has none.
fn version(name: &str) -> Option<(u32, u32)> {
    let (major, minor) = name.strip_prefix("python")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(program: &str, cmdline: &str, agent: Option<&str>, path: Option<&str>) -> String {
        let diagnosis = AgentDiagnosis {
            program: program.to_owned(),
            cmdline: cmdline.split(' ').map(str::to_owned).collect(),
            agent: agent.map(str::to_owned),
            pythonpath: path.map(str::to_owned),
        };
        diagnosis.why()
    }

    #[test]
    fn each_cause_of_a_missing_agent_has_its_own_reason() {
        let (python, dir) = ("/usr/bin/python3.11", Some("/run/x.agent"));
        for (program, cmdline, agent, path, expected) in [
            (
                "/bin/sleep",
                "sleep 9",
                dir,
                dir,
                "not a Python interpreter",
            ),
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
                "PYTHONPATH was removed",
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
                "has /a before the agent",
            ),
            (python, "python a.py", dir, dir, "has not started yet"),
        ] {
            let said = why(program, cmdline, agent, path);
            assert!(said.contains(expected), "{cmdline}: {said}");
        }
    }
}
