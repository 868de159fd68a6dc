#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn parse_with(text: &str, environment: &[(&str, &str)]) -> Result<Target, TargetError> {
    Target::parse_in(text, &|name| {
        environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

fn parse(text: &str) -> Result<Target, TargetError> {
    parse_with(text, &[])
}

#[test]
fn hosts_ports_and_sockets() {
    for (text, servers) in [
        ("postgres://u@h1:1,h2/db", "h1:1, h2:5432"),
        ("host=a,b,c port=7", "a:7, b:7, c:7"),
        ("postgres://[::1]:9/x", "[::1]:9"),
        ("postgres://%2Frun%2Fpg:5433/db", "/run/pg/.s.PGSQL.5433"),
        ("postgres:///db?host=/run/pg,h2&port=5433,5434", "/run/pg/.s.PGSQL.5433, h2:5434"),
        ("hostaddr=10.0.0.1", "10.0.0.1:5432"),
    ] {
        assert_eq!(parse(text).unwrap().servers(), servers, "{text}");
    }
    let target = parse("host=db hostaddr=10.0.0.1").unwrap();
    assert_eq!(target.endpoints[0].host, Host::Tcp("db".to_owned(), Some([10, 0, 0, 1].into())));
    for bad in ["host=a,b port=1,2,3", "host=a,b hostaddr=10.0.0.1", "port=0", "port=x", "hostaddr=h"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_environment_fills_what_the_string_leaves_out() {
    let environment =
        [("PGUSER", "env"), ("PGHOST", "h"), ("PGPORT", "9"), ("PGPASSWORD", "pw"), ("PGDATABASE", "")];
    let target = parse_with("", &environment).unwrap();
    assert_eq!((target.user(), target.dbname(), target.servers().as_str()), ("env", "env", "h:9"));
    assert_eq!(target.endpoints[0].password(), Some("pw"));
    let target = parse_with("postgres://me:own@other:1/db", &environment).unwrap();
    assert_eq!((target.user(), target.dbname(), target.servers().as_str()), ("me", "db", "other:1"));
    assert_eq!(target.endpoints[0].password(), Some("own"));
    assert_eq!(target.application_name(), "rowcast");
}

#[test]
fn the_password_file_serves_each_host_its_own() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"a:5432:db:u:first\nb:*:*:u:second\n").unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let passwords = |text: &str| -> Vec<_> {
        let target = parse(&format!("{text} passfile={path}")).unwrap();
        target.endpoints.iter().map(|endpoint| endpoint.password().map(str::to_owned)).collect()
    };
    let both = vec![Some("first".to_owned()), Some("second".to_owned())];
    assert_eq!(passwords("host=a,b user=u dbname=db"), both);
    assert_eq!(passwords("host=b user=u password=given"), [Some("given".to_owned())]);
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(passwords("host=a user=u dbname=db"), [None]);
}

#[test]
fn tls_is_refused_not_weakened() {
    for good in ["", "sslmode=disable", "sslmode=verify-full sslrootcert=/x", "postgres://h/d?ssl=true"] {
        assert!(parse(good).is_ok(), "{good}");
    }
    for bad in ["sslmode=verify", "sslnegotiation=direct", "gssencmode=require", "sslcrldir=/x"] {
        assert!(parse(bad).is_err(), "{bad}");
        let (keyword, value) = bad.split_once('=').unwrap();
        let variable = ENVIRONMENT.iter().find(|(known, _)| *known == keyword).unwrap().1;
        assert!(parse_with("", &[(variable, value)]).is_err(), "{variable}={value}");
    }
}

#[test]
fn settings_are_read_or_refused() {
    let target = parse("connect_timeout=3 keepalives=0 keepalives_idle=60 keepalives_count=3").unwrap();
    assert_eq!(target.connect_timeout(), Some(Duration::from_secs(3)));
    assert!(!target.keepalives());
    assert_eq!(target.base.get_keepalives_idle(), Duration::from_secs(60));
    assert_eq!(target.base.get_keepalives_retries(), Some(3));
    assert_eq!(parse("connect_timeout=0").unwrap().connect_timeout(), None);
    assert_eq!(parse("").unwrap().connect_timeout(), Some(DEFAULT_CONNECT_TIMEOUT));
    assert_eq!(parse("nonsense=1").unwrap_err(), TargetError::Unknown("nonsense".to_owned()));
    for bad in
        ["keepalives=x", "connect_timeout=x", "target_session_attrs=prefer-standby", "load_balance_hosts=x"]
    {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_server_of_the_wrong_kind_is_refused() {
    let standby = |name: &str| (name == "in_hot_standby").then_some("on");
    let primary = |name: &str| (name == "in_hot_standby").then_some("off");
    for (wanted, on_primary, on_standby) in
        [("any", true, true), ("read-write", true, false), ("primary", true, false), ("standby", false, true)]
    {
        let target = parse(&format!("target_session_attrs={wanted}")).unwrap();
        assert_eq!(target.accepts(primary).is_ok(), on_primary, "{wanted}");
        assert_eq!(target.accepts(standby).is_ok(), on_standby, "{wanted}");
    }
}

#[test]
fn debug_output_holds_no_password() {
    let target = parse("postgres://u:sesame@h/db").unwrap();
    let text = format!("{target:?}");
    assert!(text.contains("redacted") && !text.contains("sesame"), "{text}");
}
