//! How a command fails: one line what, one line what to do.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use rowcast::config::ConfigError;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    what: String,
    hint: Option<String>,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Failed,
    /// A mistake in the command line or the configuration.
    Usage,
    /// Whoever read our output has gone, as `head` does. No failure.
    OutputClosed,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Failure { what: what.into(), hint: None, kind: Kind::Failed }
    }

    pub(super) fn usage(what: impl Into<String>) -> Self {
        Failure { kind: Kind::Usage, ..Failure::new(what) }
    }

    /// For a command whose exit code tells whether it found something, and which could not look.
    pub(super) fn cannot_tell(self) -> Self {
        Failure { kind: Kind::Usage, ..self }
    }

    /// What happened, and what to do about it where that is known.
    pub(super) fn texts(&self) -> (&str, Option<&str>) {
        (&self.what, self.hint.as_deref())
    }

    /// What to do about it.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error with its causes, and the server's DETAIL and HINT if the database is one of them.
    pub(super) fn caused(what: &str, error: &(dyn Error + 'static)) -> Self {
        let mut text = what.to_owned();
        let mut hint = None;
        let mut next = Some(error);
        while let Some(error) = next {
            next = error.source();
            if let Some(server) = error.downcast_ref::<tokio_postgres::error::DbError>() {
                text.push_str(&format!(": {}", server.message()));
                text.extend(server.detail().map(|detail| format!("\nDETAIL: {detail}")));
                hint = server.hint().map(str::to_owned);
            } else {
                append_cause(&mut text, &error.to_string(), next);
            }
        }
        Failure { hint, ..Failure::new(text) }
    }

    pub(super) fn from_output(error: io::Error) -> Self {
        let kind = if error.kind() == io::ErrorKind::BrokenPipe { Kind::OutputClosed } else { Kind::Failed };
        Failure { kind, ..Failure::new(format!("the output cannot be written: {error}")) }
    }

    /// Tells it to the person at the terminal.
    pub(crate) fn report(&self) -> ExitCode {
        let code = match self.kind {
            Kind::OutputClosed => return ExitCode::SUCCESS,
            Kind::Failed => 1,
            Kind::Usage => 2,
        };
        super::note(&format!("rowcast: {}", self.what));
        if let Some(hint) = &self.hint {
            super::note(&format!("hint: {hint}"));
        }
        ExitCode::from(code)
    }
}

/// Many errors repeat their cause in their own text; say each thing once.
fn append_cause(text: &mut String, own: &str, cause: Option<&(dyn Error + 'static)>) {
    let own = cause.map_or(own, |cause| own.strip_suffix(&cause.to_string()).unwrap_or(own));
    let own = own.trim_end_matches([':', ' ']);
    // What tokio-postgres calls every error that the server sent; its message follows.
    if !own.is_empty() && own != "db error" && !text.ends_with(own) {
        text.push_str(&format!(": {own}"));
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::usage(error.to_string()).hint("`rowcast serve --help` lists every setting")
    }
}
