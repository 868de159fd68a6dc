//! Whole configurations.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;

const URL: &str = "postgres://rowcast:hunter2@localhost/app";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn sources(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> (tempfile::TempDir, Sources) {
    let directory = tempfile::tempdir().unwrap();
    if !file.is_empty() {
        std::fs::write(directory.path().join("rowcast.toml"), file).unwrap();
    }
    let sources = Sources {
        file: None,
        env: env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        flags: flags.iter().map(|(name, value)| (name.to_string(), vec![value.to_string()])).collect(),
        directory: directory.path().to_owned(),
    };
    (directory, sources)
}

fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let (_directory, sources) = sources(file, env, flags);
    Config::load(&sources, Purpose::Serve)
}

fn needed() -> [(&'static str, &'static str); 2] {
    [("ROWCAST_DATABASE_URL", URL), ("ROWCAST_JWT_SECRET", SECRET)]
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = load("", &needed(), &[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:4000");
    assert_eq!(config.log_directory(), Path::new("./rowcast-data/log"));
    assert_eq!(config.embedded_directory(), None);
    assert_eq!(config.log_max_age, Duration::from_secs(72 * 3600));
    assert_eq!(config.log_max_size, 10 << 30);
    assert_eq!(config.group_commit_interval, Duration::from_millis(50));
    assert_eq!(config.max_sessions_per_user, 20);
    assert_eq!(config.log_format, LogFormat::Text);
    let grants: Vec<String> = config.grants.iter().map(GrantPattern::to_string).collect();
    assert_eq!(grants, ["user:{sub}:*", "global:*"]);
    let auth = config.auth().unwrap();
    assert!(auth.require_expiry && auth.leeway == Duration::from_secs(30));
    crate::auth::Verifier::new(auth).unwrap();
}

#[test]
fn flags_win_over_the_environment_over_the_file() {
    let file = "listen = \"1.1.1.1:1\"\nslot = \"of_file\"\nheartbeat = \"7s\"\nmax_sessions_per_user = 3\n\
        grants = [\"a:*\", \"b:{sub}:*\"]\nurl_token = true";
    let env = [needed().as_slice(), &[("ROWCAST_LISTEN", "2.2.2.2:2"), ("ROWCAST_SLOT", "of_env")]].concat();
    let config = load(file, &env, &[("listen", "3.3.3.3:3")]).unwrap();
    assert_eq!(config.listen.to_string(), "3.3.3.3:3");
    assert_eq!(config.slot, "of_env");
    assert_eq!(config.heartbeat, Duration::from_secs(7));
    assert_eq!(config.max_sessions_per_user, 3);
    assert_eq!(config.grants.len(), 2);
    assert!(config.url_token);
}

#[test]
fn all_mistakes_come_at_once_without_secrets() {
    let file = "listn = \"x\"\nheartbeat = 30\nlog_format = \"xml\"\nslot = [\"a\"]\njwt_secret = [\"hunter3\"]\n\
        [database]\nurl = \"hunter4\"";
    let env = [
        ("ROWCAST_LISTEN", "4000"),
        ("ROWCAST_LOG_MAX_SIZE", "10GB"),
        ("ROWCAST_GRANTS", "user:{sub}:*,oops"),
        ("ROWCAST_HARTBEAT", "1s"),
        ("ROWCAST_PORT_4000_TCP", "tcp://10.0.0.1:4000"),
        ("ROWCAST_SERVICE_HOST", "10.0.0.1"),
        ("ROWCAST_SLOT", ""),
    ];
    let error = load(file, &env, &[("max_sessions_per_user", "-1")]).unwrap_err();
    let text = error.to_string();
    let expected = [
        "listn in ",
        "did you mean listen?",
        "heartbeat in ",
        "given \"30\", expected a duration",
        "given \"xml\", expected text or json",
        "slot in ",
        "database_url (ROWCAST_DATABASE_URL): is not set",
        "jwt_secret in ",
        "database in ",
        "ROWCAST_LISTEN: given \"4000\", expected an address and a port",
        "ROWCAST_LOG_MAX_SIZE: given \"10GB\", expected a size",
        "ROWCAST_GRANTS: given \"user:{sub}:*,oops\", expected patterns",
        "ROWCAST_HARTBEAT: there is no such setting; did you mean ROWCAST_HEARTBEAT?",
        "--max-sessions-per-user: given \"-1\", expected a whole number",
    ];
    for part in expected {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert_eq!(error.mistakes().len(), 12, "{text}");
    assert!(!text.contains("hunter"), "{text}");
}

#[test]
fn values_that_cannot_be_used_come_at_once_too() {
    let env = [
        ("ROWCAST_DATABASE_URL", "hunter2"),
        ("ROWCAST_JWT_SECRET", "hunter3"),
        ("ROWCAST_JWT_ISSUER", "a, b"),
        ("ROWCAST_SLOT", "Has-Dash"),
        ("ROWCAST_HEARTBEAT", "0s"),
        ("ROWCAST_LOG_LEVEL", "rowcast=loud"),
        ("ROWCAST_MAX_SESSIONS_PER_USER", "0"),
    ];
    let error = load("", &env, &[]).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.mistakes().len(), 7, "{text}");
    for part in ["7 bytes long", "{iss}", "given \"Has-Dash\"", "more than zero", "rowcast=loud"] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(!text.contains("hunter"), "{text}");
}

#[test]
fn serving_needs_a_database_and_a_secret_unless_embedded() {
    let error = load("", &[], &[]).unwrap_err();
    let at: Vec<&str> = error.mistakes().iter().map(|mistake| mistake.at.as_str()).collect();
    assert_eq!(at, ["database_url (ROWCAST_DATABASE_URL)", "jwt_secret (ROWCAST_JWT_SECRET)"]);
    let config = load("", &[], &[("embedded", "true"), ("data_dir", "/d")]).unwrap();
    assert_eq!(config.embedded_directory(), Some("/d/postgres".into()));
    assert!(config.auth().is_none());
    assert!(load("", &needed(), &[("embedded", "/pg")]).is_err());
    let (_directory, nothing) = sources("", &[], &[]);
    assert!(Config::load(&nothing, Purpose::Tool).is_ok());
}

#[test]
fn keys_of_any_kind_will_do_and_none_is_made_up() {
    let database = ("ROWCAST_DATABASE_URL", URL);
    let config = load("", &[database, ("ROWCAST_JWKS_URL", "https://login.example/jwks")], &[]).unwrap();
    let auth = config.auth().unwrap();
    assert!(auth.secret.is_none() && auth.public_keys.is_empty());
    let jwks = auth.jwks.unwrap();
    assert_eq!(jwks.url.as_str(), "https://login.example/jwks");
    assert_eq!((jwks.refresh, jwks.ca_file), (Duration::from_secs(900), None));
    assert_eq!(jwks.kept_in, Path::new("./rowcast-data/jwks.json"));
    let pem = crate::auth::test_signer::Signer::rsa().public_pem;
    let config = load("", &[database, ("ROWCAST_JWT_PUBLIC_KEY", &pem)], &[]).unwrap();
    crate::auth::Verifier::new(config.auth().unwrap()).unwrap();
    // A list in the file: each with several lines.
    let file = format!("jwt_public_key = [\"\"\"\n{pem}\"\"\", '''{pem}''']");
    assert_eq!(load(&file, &[database], &[]).unwrap().jwt_public_key.len(), 2);
}

#[test]
fn keys_that_cannot_be_used_are_mistakes_and_not_shown() {
    let private = std::fs::read_to_string("tests/fixtures/keys/throw-away-rsa-private.pem").unwrap();
    let env = [
        needed()[0],
        ("ROWCAST_JWT_SECRET", "-----BEGIN PUBLIC KEY----- hunter2"),
        ("ROWCAST_JWT_PUBLIC_KEY", private.as_str()),
        ("ROWCAST_JWKS_URL", "https://me:hunter2@login.example/jwks"),
        ("ROWCAST_JWKS_REFRESH", "0s"),
    ];
    let error = load("", &env, &[]).unwrap_err();
    let text = error.to_string();
    for part in ["ROWCAST_JWT_SECRET: the secret is", "holds a private key", "leave it out", "more than zero"]
    {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert_eq!(error.mistakes().len(), 4, "{text}");
    assert!(!text.contains("hunter2") && !text.contains("BEGIN"), "{text}");
    let insecure = load("", &[needed()[0], ("ROWCAST_JWKS_URL", "http://login.example/")], &[]).unwrap_err();
    assert!(insecure.to_string().contains("use https"), "{insecure}");
    let missing = load("", &[needed()[0], ("ROWCAST_JWT_PUBLIC_KEY", "/none.pem")], &[]).unwrap_err();
    assert!(missing.to_string().contains("/none.pem cannot be read"), "{missing}");
}

#[test]
fn without_authentication_only_this_machine_is_served_unless_told_so() {
    let none = [("ROWCAST_DATABASE_URL", URL), ("ROWCAST_AUTH", "none")];
    for (listen, fine) in [
        ("127.0.0.1:4000", true),
        ("127.9.9.9:4000", true),
        ("[::1]:4000", true),
        ("[::ffff:127.0.0.1]:4000", true),
        ("0.0.0.0:4000", false),
        ("[::]:4000", false),
        ("192.0.2.1:4000", false),
    ] {
        let loaded = load("", &none, &[("listen", listen)]);
        assert_eq!(loaded.is_ok(), fine, "{listen}");
        assert!(loaded.map_or_else(|error| error.to_string().contains("allow_unauthenticated"), |_| true));
        assert!(load("", &none, &[("listen", listen), ("allow_unauthenticated", "true")]).is_ok());
    }
}

#[test]
fn what_belongs_to_the_edge_is_checked() {
    let env = [
        needed().as_slice(),
        &[
            ("ROWCAST_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8, 192.0.2.1"),
            ("ROWCAST_ALLOWED_ORIGINS", "https://app.example.com,http://localhost:3000"),
        ],
    ]
    .concat();
    let config = load("", &env, &[]).unwrap();
    assert_eq!(config.trusted_proxies.len(), 3);
    assert_eq!(config.allowed_origins.len(), 2);
    let flags = [
        ("trusted_proxies", "proxy.local"),
        ("allowed_origins", "https://app.example.com/"),
        ("tls_cert", "cert.pem"),
        ("auth", "off"),
        ("rate_limit_window", "0s"),
        ("request_timeout", "0s"),
    ];
    let error = load("", &needed(), &flags).unwrap_err();
    assert_eq!(error.mistakes().len(), 6, "{error}");
}

#[test]
fn a_broken_file_is_named_by_line_and_never_quoted() {
    let error = load("slot = \"a\"\njwt_secret = \"hunter2\nlisten = 3", &needed(), &[]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("rowcast.toml line 2"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_file_that_is_named_must_be_there() {
    for by_flag in [true, false] {
        let (directory, mut sources) = sources("", &needed(), &[]);
        let path = directory.path().join("none.toml");
        if by_flag {
            sources.file = Some(path);
        } else {
            sources.env.push(("ROWCAST_CONFIG".into(), path.into()));
        }
        let error = Config::load(&sources, Purpose::Serve).unwrap_err();
        assert!(error.to_string().contains("none.toml: the file cannot be read"), "{error}");
    }
}

#[test]
fn secrets_are_redacted() {
    let text = format!("{:?}", load("", &needed(), &[]).unwrap());
    assert!(!text.contains("hunter2") && !text.contains(SECRET), "{text}");
}

#[test]
fn the_table_has_every_key_and_only_readable_defaults() {
    let table = table();
    assert_eq!(table.lines().count(), keys().len() + 2);
    assert!(table.contains("| `log_max_age` | `ROWCAST_LOG_MAX_AGE`, `--log-max-age` | `72h` |"), "{table}");
    assert!(keys().iter().all(|key| !key.help.contains('|') && !key.help.is_empty()));
}
