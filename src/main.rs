//! Runs the command line. Every exit status is determined here:
//!
//! 0 success · the command's own status for a job (128 + n for signal n) · 2 wrong usage · 70
//! internal error · 75 gave up restarting · 78 bad configuration · 125 could not set up · 126, 127
//! COMMAND not executable, not found.

use std::{env, process::ExitCode};

use supervise::{
    cli,
    host::{
        self,
        process::{exec, fleet, keeper, sweeper, users},
    },
};

fn main() -> ExitCode {
    users::disable_nss_modules();
    host::fail_at_file_size_limit();
    let mut args = env::args_os();
    if args.nth(1).is_some_and(|word| word == keeper::ARGUMENT) {
        return ExitCode::from(keeper::main(args));
    }
    let mut args = env::args_os();
    if args.nth(1).is_some_and(|word| word == sweeper::ARGUMENT) {
        return ExitCode::from(sweeper::main(args));
    }
    let mut args = env::args_os();
    if args.nth(1).is_some_and(|word| word == fleet::ARGUMENT) {
        return ExitCode::from(fleet::main(args));
    }
    let mut args = env::args_os();
    if args.nth(1).is_some_and(|word| word == exec::CHECK) {
        return ExitCode::from(cli::upgrade::check(args));
    }
    let status = match cli::parse(env::args_os()) {
        Ok(command) => cli::run::run(command),
        Err(usage) => cli::run::explain(&usage),
    };
    // All statuses are below 256; another one is an internal error.
    ExitCode::from(u8::try_from(status).unwrap_or(70))
}
