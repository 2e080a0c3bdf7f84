//! A job: one run of a program or of a server. It is neither recycled nor restarted, and an
//! operator can only stop it. When it ends, the supervisor exits with its exit status.

use crate::supervisor::Supervisor;

impl Supervisor {
    /// Why operators' requests to recycle are refused. `None`: they are accepted.
    pub(crate) fn refuses_recycle(&self) -> Option<&'static str> {
        if self.state.service.is_stopping() {
            Some("the service is stopping")
        } else if self.is_job() {
            Some("a job is one run and is not recycled")
        } else {
            None
        }
    }
}
