//! How the relay signs in to PostgreSQL: each method on the socket and over TCP, on the replication
//! connection as well as on the ordinary ones.

use rowcast::embedded::Options;

use crate::support::cli::rowcast;
use crate::support::device::Device;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::wait::{PATIENCE, eventually};

/// Every character of it means something in a URL or in a connection string.
const PASSWORD: &str = "p@ss/w:rd %'\\ ü";
const IN_URL: &str = "p%40ss%2Fw%3Ard%20%25%27%5C%20%C3%BC";

/// A cluster whose relay role has a password, asked for by `method`.
async fn guarded(method: &str) -> TestPostgres {
    let pg = TestPostgres::start_with(Options::scratch().with_tcp()).await;
    rowcast(&pg, &["init"]).await.expect_success();
    pg.sql("CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL); SELECT rowcast.track('orders')")
        .await;
    let encryption = if method == "md5" { "md5" } else { "scram-sha-256" };
    let quoted = PASSWORD.replace('\'', "''");
    pg.sql(&format!(
        "SET password_encryption = '{encryption}'; ALTER ROLE rowcast_relay LOGIN PASSWORD '{quoted}'"
    ))
    .await;
    let file = pg.value("SHOW hba_file").await;
    let rules: String = ["local all", "local replication", "host all", "host replication"].iter().fold(
        String::new(),
        |rules, kind| {
            let address = if kind.starts_with("host") { "127.0.0.1/32" } else { "" };
            format!("{rules}{kind} rowcast_relay {address} {method}\n")
        },
    );
    let before = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{rules}{before}")).unwrap();
    pg.sql("SELECT pg_reload_conf()").await;
    let url = pg.url_as("rowcast_relay");
    eventually(PATIENCE, "a password is asked for", async || {
        tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_err().then_some(())
    })
    .await;
    pg
}

async fn delivers(pg: &TestPostgres, url: &str, id: u32) {
    let relay = Relay::on_url(url).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    pg.sql(&format!("INSERT INTO orders VALUES ({id}, 1)")).await;
    assert_eq!(device.change().await.record_text(), format!(r#"{{"id":{id},"user_id":1}}"#));
    assert!(!relay.output().join("\n").contains(PASSWORD) && !relay.output().join("\n").contains(IN_URL));
}

#[tokio::test]
async fn the_relay_signs_in_by_every_method_and_way() {
    for (number, method) in (1..).zip(["scram-sha-256", "md5", "password"]) {
        let pg = guarded(method).await;
        let port = pg.value("SHOW port").await;
        let database = pg.value("SELECT current_database()").await;
        let tcp = format!("postgres://rowcast_relay:{IN_URL}@127.0.0.1:{port}/{database}");
        delivers(&pg, &tcp, number * 10).await;
        // The same in libpq's other form, on the socket.
        let socket = pg.socket();
        let quoted = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
        let words = format!(
            "host='{}' port={port} user=rowcast_relay password='{quoted}' dbname={database}",
            socket.parent().unwrap_or(&socket).display()
        );
        delivers(&pg, &words, number * 10 + 1).await;
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_and_not_shown() {
    let pg = guarded("scram-sha-256").await;
    let port = pg.value("SHOW port").await;
    let database = pg.value("SELECT current_database()").await;
    let url = format!("postgres://rowcast_relay:{}@127.0.0.1:{port}/{database}", "planted-secret");
    let mut relay = Relay::on_url(&url).start_listening().await;
    assert_eq!(relay.wait_exit().await, Some(1));
    let output = relay.output().join("\n");
    assert!(output.contains("password authentication failed"), "{output}");
    assert!(!output.contains("planted-secret"), "{output}");
}
