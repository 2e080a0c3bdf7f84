//! What all components share: the settings, `/proc`, the watched descriptors, and the inputs that
//! the decider has not taken yet.

use std::{collections::VecDeque, ffi::OsString, io};

use super::{held::HeldId, kernel_events::Watches, memory::procfs::Proc};
use crate::{
    servers::profile::Profile,
    supervisor::{
        input::{Effect, Input},
        spec::{Kind, RestartWhen, Spec},
    },
    units::WorkerId,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Context {
    spec: Spec,
    proc: Proc,
    watches: Watches,
    inputs: VecDeque<Input>,
    /// The `oom_score_adj` of the command's processes. Ours is lower.
    oom_score_adj: i32,
}

impl Context {
    pub(super) fn new(spec: &Spec, oom_score_adj: i32) -> io::Result<Self> {
        Ok(Self {
            spec: spec.clone(),
            proc: Proc::default(),
            watches: Watches::new()?,
            inputs: VecDeque::new(),
            oom_score_adj,
        })
    }

    pub(super) const fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(super) const fn proc(&self) -> &Proc {
        &self.proc
    }

    pub(super) const fn watches(&self) -> &Watches {
        &self.watches
    }

    pub(super) fn watches_mut(&mut self) -> &mut Watches {
        &mut self.watches
    }

    /// The `oom_score_adj` of the command's processes (proc_pid_oom_score_adj(5)).
    pub(super) const fn oom_score_adj(&self) -> i32 {
        self.oom_score_adj
    }

    /// Changes the command line, from the next start of the command.
    pub(super) fn set_command(&mut self, argv: Vec<OsString>) {
        self.spec.command.argv = argv;
    }

    /// The command starts as one worker.
    pub(super) const fn treat_as_worker(&mut self) {
        self.spec.kind = Kind::Single;
    }

    /// The command was found to run this server.
    pub(super) const fn treat_as_server(&mut self, server: &'static Profile) {
        self.spec.kind = Kind::Server(server);
    }

    pub(super) const fn is_job(&self) -> bool {
        matches!(self.spec.restart.when, RestartWhen::Never)
    }

    pub(super) const fn is_server(&self) -> bool {
        matches!(self.spec.kind, Kind::Server(_))
    }

    /// Queues an input for the decider.
    pub(super) fn tell(&mut self, input: Input) {
        self.inputs.push_back(input);
    }

    /// Reports a failure to the decider.
    pub(super) fn fail(&mut self, what: String, worker: Option<WorkerId>, effect: Effect) {
        self.tell(Input::Failed {
            what,
            worker,
            effect,
        });
    }

    /// Reports to the decider that a cap could not be written.
    ///
    /// RACE: a worker that ends before its limits are written needs none, so no failure is
    /// reported.
    pub(super) fn fail_cap(&mut self, id: HeldId, pid: i32, what: String) {
        if !self.proc.is_ending(pid) {
            self.fail(what, id.worker(), Effect::Cap);
        }
    }

    /// Takes the oldest input.
    pub(super) fn next_input(&mut self) -> Option<Input> {
        self.inputs.pop_front()
    }
}
