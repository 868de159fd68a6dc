//! `rowcast bench`, at a tiny size: it measures, checks what it measures, and leaves nothing behind.

use serde_json::Value;

use crate::support::cli::{Outcome, run};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::scene;
use crate::support::token;

async fn bench(pg: &TestPostgres, relay: &Relay, arguments: &[&str]) -> Outcome {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_rowcast"));
    command.args(["bench", "--url", &format!("http://{}", relay.address())]).args(arguments);
    run(bare(command.env("ROWCAST_DATABASE_URL", pg.url()).env("ROWCAST_JWT_SECRET", token::SECRET))).await
}

fn bare(command: &mut tokio::process::Command) -> tokio::process::Command {
    std::mem::replace(command.env("NO_COLOR", "1"), tokio::process::Command::new("true"))
}

fn result(outcome: Outcome) -> Value {
    serde_json::from_str(&outcome.expect_success().stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_device_gets_its_own_rows() {
    let (pg, relay) = scene("").await;
    let arguments = ["--devices", "40", "--rate", "100", "--duration", "2s", "--connections", "3", "--json"];
    let report = result(bench(&pg, &relay, &arguments).await);
    assert_eq!(report["wrong"], 0);
    assert_eq!(report["devices"], 40);
    assert_eq!(report["rows"], 200);
    assert_eq!(report["deliveries"], 200, "each row is for one device");
    // Half of them may be there before the commit returns.
    assert!(report["delivery_ms"]["max"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["due_ms"]["max"].as_f64() >= report["delivery_ms"]["max"].as_f64(), "{report}");
    for party in ["relay", "postgres", "generator"] {
        assert!(report[party]["memory_mib"].as_f64().unwrap() > 1.0, "{party} is found: {report}");
    }
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'rowcast_bench'";
    assert_eq!(pg.value(left).await, "0", "the schema is gone");
    assert_eq!(pg.value("SELECT count(*) FROM rowcast.tables").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_devices_get_every_row_of_theirs() {
    let (pg, relay) = scene("").await;
    let arguments =
        ["--audience", "all", "--devices", "20", "--rate", "20", "--rows", "5", "--duration", "1s", "--json"];
    let report = result(bench(&pg, &relay, &arguments).await);
    assert_eq!((&report["transactions"], &report["rows"]), (&20.into(), &100.into()));
    assert_eq!(report["deliveries"], 2_000);
    assert_eq!(report["wrong"], 0);
    let again = bench(&pg, &relay, &["--devices", "2", "--rate", "10", "--duration", "1s"]).await;
    let table = again.expect_success().stdout;
    assert!(table.contains("Every device got exactly what it should."), "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_run_is_said() {
    let (pg, relay) = scene("").await;
    let nothing = bench(&pg, &relay, &["--devices", "0"]).await;
    assert_eq!(nothing.code, 2, "{nothing:?}");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_rowcast"));
    command.args(["bench", "--url", &format!("http://{}", relay.address()), "--devices", "2"]);
    command.env("ROWCAST_JWT_SECRET", "another secret that the relay does not know of");
    let refused = run(bare(command.env("ROWCAST_DATABASE_URL", pg.url()))).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("token_invalid"), "{refused:?}");
}
