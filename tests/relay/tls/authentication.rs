//! Signing in over TLS: client certificates, and SCRAM that someone in between cannot pass on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Files, assert_as_psql, assert_verdict, at_port, cluster, words};
use crate::support::postgres::TestPostgres;
use crate::support::tls::{Authority, Door, Greeting, Pair, Terminator};

const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];
const BINDING: &str = "did not sign us in by SCRAM over TLS with it";

#[tokio::test]
async fn a_client_certificate_opens_what_demands_one() {
    let (pg, files, authority) = (cluster().await, Files::new(), Authority::new("ours"));
    let server = authority.server(&NAMES);
    let store = |name: &str, pair: &Pair| {
        let key = files.write(&format!("{name}.key"), &pair.key);
        let certificate = files.write(&format!("{name}.crt"), &pair.certificate);
        format!("sslmode=require sslcert={} sslkey={}", certificate.display(), key.display())
    };
    let ours = store("ours", &authority.client("postgres"));
    let other_role = store("other", &authority.client("somebody"));
    let foreign = store("foreign", &Authority::new("foreign").client("postgres"));
    let mixed = format!("{ours} sslkey={}", files.directory().join("foreign.key").display());
    let rules = "hostssl all all 127.0.0.1/32 trust clientcert=verify-full";
    let clients = Some(&authority);
    pg.set_door(Door { certificate: Some(&server), clients, rules, ..Door::default() }).await;
    for (parameters, expected) in [
        (ours.as_str(), "tls"),
        (&other_role, "refuses the credentials"),
        ("sslmode=require", "refuses the credentials"),
        (&mixed, "do not go together"),
    ] {
        assert_as_psql(&pg, &files, &words(&pg, parameters).await, expected).await;
    }
    // In TLS 1.2 the refusal belongs to the handshake, in 1.3 it comes in place of the first message.
    for version in ["TLSv1.2", "TLSv1.3"] {
        let foreign = words(&pg, &format!("{foreign} ssl_max_protocol_version={version}")).await;
        assert_as_psql(&pg, &files, &foreign, "refuses the client certificate").await;
    }
    // libpq calls it absent and goes on without.
    let absent = words(&pg, "sslmode=require sslcert=/nowhere/a.crt").await;
    assert_verdict(&pg, &absent, "sslcert /nowhere/a.crt cannot be read").await;

    let key = files.directory().join("ours.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_as_psql(&pg, &files, &words(&pg, &ours).await, "may be read by others").await;
}

/// A cluster that asks role `postgres` for a password, on its socket as well.
async fn guarded(server: &Pair, method: &str) -> (TestPostgres, String) {
    let pg = cluster().await;
    let encryption = if method == "md5" { "md5" } else { "scram-sha-256" };
    pg.sql(&format!(
        "SET password_encryption = '{encryption}'; CREATE ROLE app SUPERUSER LOGIN PASSWORD 'sesame'"
    ))
    .await;
    let rules = format!("host all app 127.0.0.1/32 {method}");
    pg.set_door(Door { certificate: Some(server), rules: &rules, ..Door::default() }).await;
    (pg, "user=app password=sesame".to_owned())
}

#[tokio::test]
async fn scram_is_bound_to_the_servers_certificate() {
    let (files, authority) = (Files::new(), Authority::new("ours"));
    let server = authority.server(&NAMES);
    let (pg, app) = guarded(&server, "scram-sha-256").await;
    for (parameters, expected) in [
        ("sslmode=require channel_binding=require", "tls"),
        ("sslmode=require channel_binding=prefer", "tls"),
        ("sslmode=require channel_binding=disable", "tls"),
        ("sslmode=disable channel_binding=prefer", "plain"),
        ("sslmode=disable channel_binding=require", BINDING),
        ("sslmode=require channel_binding=require ssl_max_protocol_version=TLSv1.2", "tls"),
    ] {
        assert_as_psql(&pg, &files, &words(&pg, &format!("{parameters} {app}")).await, expected).await;
    }
    let wrong = words(&pg, "sslmode=require channel_binding=require user=app password=open").await;
    assert_verdict(&pg, &wrong, "password authentication failed").await;
    // Only SCRAM proves anything about the connection.
    let (pg, app) = guarded(&server, "md5").await;
    let parameters = format!("sslmode=require channel_binding=require {app}");
    assert_as_psql(&pg, &files, &words(&pg, &parameters).await, BINDING).await;
    let trusting = guarded(&server, "trust").await.0;
    assert_as_psql(&trusting, &files, &words(&trusting, &parameters).await, BINDING).await;
}

#[tokio::test]
async fn someone_in_between_is_found_out() {
    let (files, authority) = (Files::new(), Authority::new("ours"));
    let (server, impostor) = (authority.server(&NAMES), Authority::new("theirs").server(&NAMES));
    let (pg, app) = guarded(&server, "scram-sha-256").await;
    let root = files.write("root.crt", &authority.certificate);
    let root = root.display();
    // Behind the impostor the server asks for SCRAM, and cannot offer to bind it.
    pg.set_door(Door { socket: "scram-sha-256", ..Door::default() }).await;
    let socket = pg.socket();

    let asked = Terminator::start(socket.clone(), &impostor, Greeting::Asked).await;
    let at = |port: u16, parameters: &str| at_port(port, &format!("{parameters} {app}"));
    for (parameters, expected) in [
        ("sslmode=require channel_binding=require".to_owned(), BINDING),
        (format!("sslmode=verify-ca sslrootcert={root}"), "not known here"),
        (format!("sslmode=require sslrootcert={root}"), "not known here"),
        // Nothing checks here, and it is let through; `plain` is what the server sees.
        ("sslmode=require channel_binding=prefer".to_owned(), "plain"),
    ] {
        assert_as_psql(&pg, &files, &at(asked.port, &parameters), expected).await;
    }

    let denies = Terminator::start(socket, &impostor, Greeting::Denies).await;
    for mode in ["require", "verify-ca", "verify-full"] {
        let parameters = format!("sslmode={mode} sslrootcert={root}");
        assert_as_psql(&pg, &files, &at(denies.port, &parameters), "does not offer TLS").await;
    }
    let bound = at(denies.port, "sslmode=prefer channel_binding=require");
    assert_as_psql(&pg, &files, &bound, BINDING).await;
}

#[tokio::test]
async fn tls_without_asking_is_for_servers_that_know_it() {
    let (pg, files, authority) = (cluster().await, Files::new(), Authority::new("ours"));
    let root = files.write("root.crt", &authority.certificate);
    let direct = |port: u16| direct(port, &root);
    let server = authority.server(&NAMES);
    let knows = Greeting::Direct { protocol: b"postgresql" };
    let modern = Terminator::start(pg.socket(), &server, knows).await;
    // TLS ends before the server, which sees plain text.
    assert_verdict(&pg, &direct(modern.port), "plain").await;
    let other = Terminator::start(pg.socket(), &server, Greeting::Direct { protocol: b"h2" }).await;
    for verdict in
        [super::by_sql(&pg, &direct(other.port)).await, super::by_replication(&pg, &direct(other.port)).await]
    {
        assert!(super::chain(&verdict.unwrap_err()).contains("TLS failed"), "another protocol's server");
    }
    // A server of today's version ends the connection.
    if pg.major() < 17 {
        pg.set_door(Door { certificate: Some(&server), rules: super::OPEN, ..Door::default() }).await;
        let port = pg.value("SHOW port").await.parse().unwrap();
        let error = super::by_sql(&pg, &direct(port)).await.unwrap_err();
        assert!(super::chain(&error).contains("sslnegotiation=postgres"), "{error:?}");
    }
}

fn direct(port: u16, root: &Path) -> String {
    at_port(port, &format!("sslnegotiation=direct sslmode=verify-full sslrootcert={}", root.display()))
}
