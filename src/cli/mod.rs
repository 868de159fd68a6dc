//! The subcommands, one file each, and what they share.

mod bench;
mod check;
mod database;
mod demo;
mod failure;
mod flags;
mod frame;
mod init;
mod logging;
mod serve;
mod sizes;
mod tables;
mod tail;
mod token;
mod track;
mod uninstall;
mod untrack;

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use rowcast::config::{Config, Purpose, Sources};

pub(crate) use failure::Failure;

const STORY: &str = "\
How it goes:
  rowcast init                        install the catalog in your database (--print shows the SQL)
  rowcast tables                      see what could be tracked, and what it would cost
  rowcast track public.orders         choose a table; its rows go to user:{user_id}:orders
  rowcast check                       see whether anything is wrong
  rowcast serve                       read the write-ahead log, serve devices on 127.0.0.1:4000
  rowcast token --sub 42              make a token for user 42, for development
  rowcast tail 'user:42:*'            watch what that user's devices are sent

Nothing at hand? `rowcast demo` brings its own PostgreSQL.";

/// A Postgres change-data-capture relay: exact, private, live sync for every device of a user.
#[derive(Parser)]
#[command(name = "rowcast", version, after_help = STORY, arg_required_else_help = true)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Configuration file [env: ROWCAST_CONFIG] [default: ./rowcast.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay
    Serve(serve::Args),
    /// Try it out: a relay with its own PostgreSQL and an example
    Demo(demo::Args),
    /// Install or update the catalog in the database
    Init(init::Args),
    /// Say what is wrong with database, roles, slot, publication and configuration, and what mends it
    Check(check::Args),
    /// List the tables: what is tracked, what could be, and what it would cost
    Tables(tables::Args),
    /// Choose a table to replicate
    Track(track::Args),
    /// Stop replicating a table
    Untrack(untrack::Args),
    /// Take everything of rowcast out of the database
    Uninstall(uninstall::Args),
    /// Make a token for development
    Token(token::Args),
    /// Show what a device would be sent
    Tail(tail::Args),
    /// Measure how fast a relay delivers, with devices and writers of its own, and check that it does so exactly
    Bench(bench::Args),
}

pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    let settings = Settings { file: cli.config };
    match cli.command {
        Command::Serve(args) => serve::run(args, settings).await,
        Command::Demo(args) => demo::run(args, settings).await,
        Command::Init(args) => init::run(args, settings).await,
        Command::Check(args) => check::run(args, settings).await,
        Command::Tables(args) => tables::run(args, settings).await,
        Command::Track(args) => track::run(args, settings).await,
        Command::Untrack(args) => untrack::run(args, settings).await,
        Command::Uninstall(args) => uninstall::run(args, settings).await,
        Command::Token(args) => token::run(args, settings),
        Command::Tail(args) => tail::run(args, settings).await,
        Command::Bench(args) => bench::run(args, settings).await,
    }
}

/// Where a command reads its configuration.
#[derive(Clone)]
struct Settings {
    file: Option<PathBuf>,
}

impl Settings {
    fn load(self, purpose: Purpose, flags: Vec<(String, Vec<String>)>) -> Result<Config, Failure> {
        Ok(Config::load(&Sources::of_process(self.file, flags), purpose)?)
    }

    /// For a command that has only some of the settings as flags.
    fn load_for_tool(self, flags: &[(&str, Option<String>)]) -> Result<Config, Failure> {
        let given = flags.iter().filter_map(|(name, text)| Some((name.to_string(), vec![text.clone()?])));
        self.load(Purpose::Tool, given.collect())
    }
}

/// Prints what was asked for.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", plain(text)).and_then(|()| out.flush()).map_err(Failure::from_output)
}

/// Tells the person at the terminal something that is not the output. Nobody may be there.
fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", plain(text));
}

/// Names in the database can hold any character: none may act on the terminal, but for line ends and tabs.
/// JSON stays JSON.
fn plain(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(acts) {
        return text.into();
    }
    let escaped = |c: char| if acts(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(escaped).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
