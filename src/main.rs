//! Runs the command line. Every exit status is made here:
//!
//! 0 done · the command's own for a job (128 + n for signal n) · 2 wrong use · 70 our bug · 75 gave
//! up restarting · 78 bad configuration · 125 could not set up · 126, 127 COMMAND not executable,
//! not found.

use std::{env, process::ExitCode};

use supervise::{
    cli,
    host::{self, exec, keeper, sweeper, users},
};

fn main() -> ExitCode {
    users::look_in_files_only();
    host::fail_at_file_size_limit();
    let mut args = env::args_os();
    if args.nth(1).is_some_and(|word| word == keeper::WORD) {
        return ExitCode::from(keeper::main(args));
    }
    let mut args = env::args_os();
    if args.nth(1).is_some_and(|word| word == sweeper::WORD) {
        return ExitCode::from(sweeper::main(args));
    }
    let mut args = env::args_os();
    if args.nth(1).is_some_and(|word| word == exec::CHECK) {
        return ExitCode::from(cli::upgrade::check(args));
    }
    let status = match cli::parse(env::args_os()) {
        Ok(command) => cli::run::run(command),
        Err(usage) => cli::run::explain(&usage),
    };
    // Statuses are below 256 by their making; what is not is our bug.
    ExitCode::from(u8::try_from(status).unwrap_or(70))
}
