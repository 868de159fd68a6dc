//! The program over TLS: the relay from insert to device, and the commands of a person.

use tokio::process::Command;

use super::{Files, cluster};
use crate::support::cli::{Outcome, run};
use crate::support::device::Device;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::tls::{Authority, Door};

/// A cluster that takes a password, over TLS alone.
async fn guarded(authority: &Authority) -> TestPostgres {
    let pg = cluster().await;
    pg.sql(
        "CREATE ROLE app SUPERUSER LOGIN PASSWORD 'sesame'; CREATE SCHEMA shop; \
         ALTER ROLE app SET search_path = shop; CREATE TABLE shop.orders (id int PRIMARY KEY, user_id int, note text)",
    )
    .await;
    let server = authority.server(&["localhost"]);
    let rules = "hostssl all app 127.0.0.1/32 scram-sha-256";
    pg.set_door(Door { certificate: Some(&server), rules, ..Door::default() }).await;
    pg
}

/// Runs a command with this environment, and with a home of its own.
async fn rowcast(files: &Files, url: &str, environment: &[(&str, &str)], arguments: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowcast"));
    command.args(arguments).env("ROWCAST_DATABASE_URL", url).env("HOME", files.directory());
    command.envs(environment.iter().copied());
    run(command).await
}

#[tokio::test]
async fn commands_and_the_relay_work_over_tls() {
    let (files, authority) = (Files::new(), Authority::new("ours"));
    let pg = guarded(&authority).await;
    let port = pg.value("SHOW port").await;
    let root = files.write("root.crt", &authority.certificate);
    let url = format!(
        "postgres://app@localhost:{port}/postgres?sslmode=verify-full&channel_binding=require&sslrootcert={}",
        root.display()
    );

    let outcome = rowcast(&files, &url, &[], &["init"]).await;
    assert!(outcome.code == 1 && outcome.stderr.contains("asks for a password"), "{outcome:?}");
    rowcast(&files, &url, &[("PGPASSWORD", "sesame")], &["init"]).await.expect_success();
    let passfile = files.write(".pgpass", &format!("localhost:{port}:*:app:sesame\n"));
    // The name as psql knows it, by the role's own search_path; what the server remarks is shown.
    let outcome = rowcast(&files, &url, &[], &["track", "orders"]).await.expect_success();
    assert!(outcome.stderr.contains("NOTICE"), "{outcome:?}");

    let mut relay = Relay::on_url(&url).env("PGPASSFILE", passfile.to_str().unwrap()).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO shop.orders VALUES (1, 1, 'rye')").await;
    assert_eq!(device.change().await.record_text(), r#"{"id":1,"user_id":1,"note":"rye"}"#);
    // Longer than any buffer on its way.
    pg.sql("INSERT INTO shop.orders VALUES (2, 1, repeat('x', 3000000))").await;
    assert!(device.change().await.record_text().len() > 3_000_000);
    let bare = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'app' AND NOT ssl";
    assert_eq!(pg.value(bare).await, "0");
    assert_eq!(
        pg.value("SELECT ssl FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)").await,
        "t",
        "the replication connection"
    );
    relay.terminate().await;
}

#[tokio::test]
async fn a_renewed_authority_is_read_at_the_next_connection() {
    let (files, authority) = (Files::new(), Authority::new("ours"));
    let pg = guarded(&authority).await;
    let port = pg.value("SHOW port").await;
    let root = files.write("root.crt", &authority.certificate);
    let url = format!(
        "postgres://app:sesame@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={}",
        root.display()
    );
    rowcast(&files, &url, &[], &["init"]).await.expect_success();
    rowcast(&files, &url, &[], &["track", "orders"]).await.expect_success();
    let relay = Relay::on_url(&url).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;

    let renewed = Authority::new("renewed");
    let server = renewed.server(&["localhost"]);
    files.write("root.crt", &renewed.certificate);
    let rules = "hostssl all app 127.0.0.1/32 scram-sha-256";
    pg.set_door(Door { certificate: Some(&server), rules, ..Door::default() }).await;
    pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'").await;
    pg.sql("INSERT INTO shop.orders VALUES (1, 1, 'rye')").await;
    assert_eq!(device.change().await.record_text(), r#"{"id":1,"user_id":1,"note":"rye"}"#);
}

#[tokio::test]
async fn the_usual_files_of_libpq_are_used_where_they_exist() {
    let (files, authority) = (Files::new(), Authority::new("ours"));
    let pg = cluster().await;
    pg.sql("CREATE ROLE app SUPERUSER LOGIN").await;
    let server = authority.server(&["localhost"]);
    let rules = "hostssl all app 127.0.0.1/32 cert";
    let clients = Some(&authority);
    pg.set_door(Door { certificate: Some(&server), clients, rules, ..Door::default() }).await;
    let client = authority.client("app");
    files.write(".postgresql/postgresql.crt", &client.certificate);
    files.write(".postgresql/postgresql.key", &client.key);
    let port = pg.value("SHOW port").await;
    let url = format!("postgres://app@localhost:{port}/postgres");
    let init = async |mode: &str| rowcast(&files, &url, &[("PGSSLMODE", mode)], &["init"]).await;
    init("require").await.expect_success();
    let outcome = init("verify-full").await;
    assert!(outcome.code == 1 && outcome.stderr.contains("name it with sslrootcert"), "{outcome:?}");
    files.write(".postgresql/root.crt", &authority.certificate);
    init("verify-full").await.expect_success();
    files.write(".postgresql/root.crt", &Authority::new("foreign").certificate);
    let outcome = init("require").await;
    assert!(outcome.code == 1 && outcome.stderr.contains("not known here"), "{outcome:?}");
    assert!(outcome.stderr.contains(&format!("localhost:{port}")), "{outcome:?}");
    // Encryption by chance demands nothing of anyone's certificate.
    init("prefer").await.expect_success();
}
