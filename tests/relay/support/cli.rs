//! One command of the `rowcast` program, run to its end.

use std::process::Stdio;

use tokio::process::Command;

use super::postgres::TestPostgres;
use super::wait::within;

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command against a cluster as its superuser, and waits for its end.
pub(crate) async fn rowcast(postgres: &TestPostgres, arguments: &[&str]) -> Outcome {
    rowcast_at(&postgres.url(), arguments).await
}

/// The same, by any database URL.
pub(crate) async fn rowcast_at(url: &str, arguments: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowcast"));
    command.args(arguments).env("ROWCAST_DATABASE_URL", url).env("NO_COLOR", "1");
    run(command).await
}

/// Runs any program to its end.
pub(crate) async fn run(mut command: Command) -> Outcome {
    let what = format!("{command:?}");
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = within(&what, running).await.unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Outcome {
    /// Panics with all that was said unless the command succeeded.
    pub(crate) fn expect_success(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}
