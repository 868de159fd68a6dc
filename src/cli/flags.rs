//! The settings as flags, made from the table of settings.

use clap::{Arg, ArgAction, ArgMatches, Command, Error, FromArgMatches};
use rowcast::config::{Key, keys};

/// The flags that were given, by setting name.
pub(super) struct Flags(pub(super) Vec<(String, Vec<String>)>);

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        keys().iter().fold(command, |command, key| command.arg(arg(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = keys().iter().filter_map(|key| {
            let texts = matches.get_many::<String>(key.name)?;
            Some((key.name.to_owned(), texts.cloned().collect()))
        });
        Ok(Flags(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn arg(key: &'static Key) -> Arg {
    let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
    let help = format!("{} [env: {}]{default}", key.help, key.env);
    let action = if key.list { ArgAction::Append } else { ArgAction::Set };
    let arg = Arg::new(key.name).long(key.flag.as_str()).help(help).action(action).value_name("VALUE");
    let arg = arg.allow_hyphen_values(true);
    if key.switch { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Args;

    fn parse(args: &[&str]) -> Vec<(String, Vec<String>)> {
        let command = Flags::augment_args(Command::new("rowcast").no_binary_name(true));
        Flags::from_arg_matches(&command.try_get_matches_from(args).unwrap()).unwrap().0
    }

    #[test]
    fn every_setting_is_a_flag() {
        let given =
            |name: &str, texts: &[&str]| (name.to_owned(), texts.iter().map(ToString::to_string).collect());
        assert_eq!(parse(&[]), []);
        assert_eq!(parse(&["--log-max-age", "5m"]), [given("log_max_age", &["5m"])]);
        assert_eq!(parse(&["--embedded"]), [given("embedded", &["true"])]);
        assert_eq!(parse(&["--embedded=/pg"]), [given("embedded", &["/pg"])]);
        let repeated = parse(&["--grants", "a:*", "--grants", "b:*,c:*"]);
        assert_eq!(repeated, [given("grants", &["a:*", "b:*,c:*"])]);
        let help = Flags::augment_args(Command::new("rowcast")).render_long_help().to_string();
        for key in keys() {
            let documented = [&key.flag, &key.env].iter().all(|text| help.contains(text.as_str()));
            assert!(documented && help.contains(key.default), "{}", key.name);
        }
    }
}
