//! `rowcast token`: make a token for development.

use std::time::Duration;

use rowcast::auth::{ExtraClaims, Secret, mint};
use rowcast::config::{Config, development_secret, parse_duration};
use serde_json::value::{RawValue, to_raw_value};

use super::failure::Failure;
use super::{Settings, say};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The user (`sub`)
    #[arg(long, value_name = "USER")]
    sub: String,
    /// How long it is valid: 30s, 5m, 1h, 7d
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = ttl)]
    ttl: Duration,
    /// Another claim; a value that is JSON is taken as such: --claim 'team_ids=[1,2]'
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, Box<RawValue>)>,
    #[command(flatten)]
    secret: SecretArgs,
}

/// The secret of the relay that is to accept the token.
#[derive(Clone, clap::Args)]
pub(super) struct SecretArgs {
    /// Signing secret [env: ROWCAST_JWT_SECRET] [default: the development secret in the data directory]
    #[arg(long, value_name = "SECRET")]
    jwt_secret: Option<String>,
    /// Data directory with a development secret [env: ROWCAST_DATA_DIR]
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
}

impl SecretArgs {
    pub(super) fn load(self, settings: Settings) -> Result<Config, Failure> {
        settings.load_for_tool(&[("jwt_secret", self.jwt_secret), ("data_dir", self.data_dir)])
    }

    /// For a command that has one more setting as a flag.
    pub(super) fn load_with(
        self,
        settings: Settings,
        flag: (&str, Option<String>),
    ) -> Result<Config, Failure> {
        settings.load_for_tool(&[("jwt_secret", self.jwt_secret), ("data_dir", self.data_dir), flag])
    }
}

pub(super) fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let config = args.secret.load(settings)?;
    say(&make(&config, &args.sub, args.ttl, args.claims.into_iter().collect())?)
}

/// A token that a relay with this configuration accepts.
pub(super) fn make(
    config: &Config,
    sub: &str,
    ttl: Duration,
    mut claims: ExtraClaims,
) -> Result<String, Failure> {
    if sub.is_empty() {
        return Err(Failure::usage("--sub is empty").hint("name a user, as in --sub 42"));
    }
    for (name, accepted) in [("iss", &config.jwt_issuer), ("aud", &config.jwt_audience)] {
        if let Some(value) = accepted.first() {
            claims.entry(name.to_owned()).or_insert_with(|| raw_text(value));
        }
    }
    let secret = secret(config)?;
    mint(&secret, sub, ttl, claims).map_err(|error| Failure::caused("the token was not made", &error))
}

/// The secret that the relay of this configuration checks tokens with.
pub(super) fn secret(config: &Config) -> Result<Secret, Failure> {
    if let Some(secret) = &config.jwt_secret {
        return Ok(secret.clone());
    }
    let kept = development_secret(&config.data_dir, false);
    let kept = kept.map_err(|error| Failure::new(error.to_string()))?;
    kept.map(|(secret, _)| secret).ok_or_else(|| {
        Failure::usage("there is no secret to sign a token with")
            .hint("set ROWCAST_JWT_SECRET, or jwt_secret in rowcast.toml, to the relay's own")
    })
}

pub(super) fn ttl(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration such as 30s, 5m, 1h or 7d".to_owned())
}

fn claim(text: &str) -> Result<(String, Box<RawValue>), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    if name.is_empty() {
        return Err("expected NAME=VALUE".to_owned());
    }
    let json = serde_json::from_str::<Box<RawValue>>(value);
    Ok((name.to_owned(), json.unwrap_or_else(|_| raw_text(value))))
}

pub(super) fn raw_text(text: &str) -> Box<RawValue> {
    to_raw_value(text).expect("a text is always JSON")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rowcast::auth::Verifier;
    use rowcast::config::{Purpose, Sources};
    use rowcast::topic::Pattern;

    fn config(env: &[(&str, &str)]) -> Config {
        let env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Config::load(&Sources { env, directory: "/nonexistent".into(), ..Sources::default() }, Purpose::Tool)
            .unwrap()
    }

    #[test]
    fn a_made_token_is_one_that_the_relay_accepts() {
        let config = config(&[
            ("ROWCAST_JWT_SECRET", "0123456789abcdef0123456789abcdef"),
            ("ROWCAST_JWT_ISSUER", "https://login.example"),
            ("ROWCAST_JWT_AUDIENCE", "app"),
            ("ROWCAST_GRANTS", "user:{sub}:*,team:{team_ids}:*"),
        ]);
        let claims = ["team_ids=[9007199254740993,2]", "name=Ann"].map(|text| claim(text).unwrap());
        let token = make(&config, "42", Duration::from_secs(60), claims.into_iter().collect()).unwrap();
        let now = jiff::Timestamp::now().as_second();
        let identity = Verifier::new(config.auth().unwrap()).unwrap().verify(&token, now).unwrap();
        let granted: Vec<String> = identity.grants.patterns().iter().map(Pattern::to_string).collect();
        assert_eq!(granted, ["team:2:*", "team:9007199254740993:*", "user:42:*"]);
        assert_eq!(identity.user.issuer.as_deref(), Some("https://login.example"));
    }

    #[test]
    fn without_a_secret_it_says_what_to_do() {
        let config = config(&[("ROWCAST_DATA_DIR", "/nonexistent")]);
        let failure = make(&config, "42", Duration::from_secs(60), ExtraClaims::new()).unwrap_err();
        assert!(format!("{failure:?}").contains("ROWCAST_JWT_SECRET"));
    }

    #[test]
    fn claims_are_json_or_text() {
        for (text, json) in [
            ("a=1", "1"),
            ("a=x", "\"x\""),
            ("a=", "\"\""),
            ("a={\"b\":1}", "{\"b\":1}"),
            ("a=b=c", "\"b=c\""),
        ] {
            assert_eq!(claim(text).unwrap().1.get(), json, "{text}");
        }
        assert!(claim("a").is_err() && claim("=1").is_err());
    }
}
