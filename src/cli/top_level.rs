//! The arguments before the subcommand, and how they are combined with the arguments after it.

use std::{ffi::OsString, path::PathBuf};

use super::{Client, FileArgs, ServiceArgs, Usage, usage_errors};
use crate::config::{self, CommandLine, Setting};

/// The arguments before the subcommand.
pub(super) struct TopLevel {
    pub(super) flags: Vec<Setting>,
    pub(super) config: Option<PathBuf>,
    pub(super) command: Vec<OsString>,
}

impl TopLevel {
    pub(super) fn run(self) -> Result<Box<CommandLine>, Usage> {
        if self.config.is_none() && self.command.is_empty() {
            return Err(usage_errors::nothing_to_run());
        }
        Ok(Box::new(CommandLine {
            is_pool: false,
            config: self.config,
            command: self.command,
            flags: self.flags,
        }))
    }

    pub(super) fn with_file(mut self, file: FileArgs) -> Result<Box<CommandLine>, Usage> {
        if self.config.is_some() {
            return Err(usage_errors::wrong_usage(
                "`--config` names a second file; use one file",
            ));
        }
        self.flags.extend(file.options.0);
        Ok(Box::new(CommandLine {
            is_pool: false,
            config: Some(file.config),
            command: file.command,
            flags: self.flags,
        }))
    }

    /// How a client finds its service. `--name` and `--socket` are allowed before and after the
    /// subcommand. Other options do not apply to a client.
    pub(super) fn client(
        self,
        subcommand: &str,
        service: Option<ServiceArgs>,
    ) -> Result<Client, Usage> {
        let is_client = service.is_some();
        let mut client = Client::default();
        let (mut name, mut socket) = service.map_or((None, None), |it| (it.name, it.socket));
        for setting in self.flags {
            let (config::Origin::Flag(flag), config::Value::Untyped(text)) =
                (&setting.origin, &setting.value)
            else {
                continue;
            };
            match setting.key.as_str() {
                "name" if is_client => name = name.or_else(|| Some(text.clone())),
                "control.socket" if is_client => socket = socket.or_else(|| Some(text.into())),
                "leaks.directory" if matches!(subcommand, "events" | "report" | "suggest") => {
                    client.kept = Some(text.into());
                }
                _ => return Err(usage_errors::not_applicable(flag, subcommand)),
            }
        }
        if self.config.is_some() {
            return Err(usage_errors::not_applicable("--config", subcommand));
        }
        if let Some(Err(text)) = name.as_deref().map(config::check_name) {
            return Err(usage_errors::wrong_usage(&format!("--name: {text}")));
        }
        client.name = name;
        client.socket = socket;
        Ok(client)
    }
}
