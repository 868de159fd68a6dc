//! The modes against servers with good certificates, bad ones, and none.

use rowcast::postgres::Target;
use rowcast::wal::{ReplicationConnection, WalError};
use tokio_util::sync::CancellationToken;

use super::{Files, OPEN, assert_as_psql, assert_verdict, cluster, words};
use crate::support::postgres::TestPostgres;
use crate::support::tls::{Authority, Door, Pair};
use crate::support::wait::{PATIENCE, eventually};

const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

#[tokio::test]
async fn each_mode_asks_of_a_good_server_what_libpq_asks() {
    let (pg, files, authority) = (cluster().await, Files::new(), Authority::new("ours"));
    let known = files.write("ours.crt", &authority.certificate);
    let foreign = files.write("foreign.crt", &Authority::new("foreign").certificate);
    let (known, foreign) = (known.display(), foreign.display());
    let server = authority.server(&NAMES);
    pg.set_door(Door { certificate: Some(&server), rules: OPEN, ..Door::default() }).await;
    const UNKNOWN: &str = "an authority that is not known here";
    for (parameters, expected) in [
        ("sslmode=disable".to_owned(), "plain"),
        ("sslmode=allow".to_owned(), "plain"),
        (String::new(), "tls"),
        ("sslmode=prefer".to_owned(), "tls"),
        (format!("sslmode=prefer sslrootcert={known}"), "tls"),
        ("sslmode=require".to_owned(), "tls"),
        (format!("sslmode=require sslrootcert={known}"), "tls"),
        (format!("sslmode=require sslrootcert={foreign}"), UNKNOWN),
        ("sslmode=verify-ca".to_owned(), "name it with sslrootcert"),
        (format!("sslmode=verify-ca sslrootcert={known}"), "tls"),
        (format!("sslmode=verify-ca sslrootcert={foreign}"), UNKNOWN),
        (format!("sslmode=verify-full sslrootcert={known}"), "tls"),
        (format!("sslmode=verify-full sslrootcert={known} host=localhost"), "tls"),
        (format!("sslmode=verify-full sslrootcert={foreign}"), UNKNOWN),
        (format!("sslmode=verify-full sslrootcert={known} ssl_min_protocol_version=TLSv1.3"), "tls"),
        (format!("sslmode=verify-full sslrootcert={known} ssl_max_protocol_version=TLSv1.2"), "tls"),
    ] {
        assert_as_psql(&pg, &files, &words(&pg, &parameters).await, expected).await;
    }
    // Stricter than libpq, which goes on in plain text, and without any check.
    let refused = words(&pg, &format!("sslmode=prefer sslrootcert={foreign}")).await;
    assert_verdict(&pg, &refused, UNKNOWN).await;
    let absent = words(&pg, "sslmode=require sslrootcert=/nowhere/root.crt").await;
    assert_verdict(&pg, &absent, "sslrootcert /nowhere/root.crt cannot be read").await;
    cancels(&pg, &words(&pg, &format!("sslmode=verify-full sslrootcert={known}")).await).await;
    // From libpq 16 on.
    let system = words(&pg, "sslrootcert=system").await;
    assert_verdict(&pg, &system, UNKNOWN).await;
}

/// Giving up the creation of a slot takes a connection of its own, which has to be encrypted as well.
async fn cancels(pg: &TestPostgres, words: &str) {
    let open = pg.client().await;
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    let target = Target::parse(words).unwrap();
    let mut connection = ReplicationConnection::connect(&target).await.unwrap();
    let (pid, abort) = (connection.backend_pid(), CancellationToken::new());
    let waits = format!("SELECT cardinality(pg_blocking_pids({pid}))");
    let (created, ()) = tokio::join!(connection.create_slot("never", false, &abort), async {
        eventually(PATIENCE, "the slot waits for the transaction", async || {
            (pg.value(&waits).await == "1").then_some(())
        })
        .await;
        abort.cancel();
    });
    assert!(matches!(created, Err(WalError::Aborted)), "{created:?}");
}

#[tokio::test]
async fn a_certificate_that_does_not_fit_is_refused_where_libpq_refuses_it() {
    let (pg, files, authority) = (cluster().await, Files::new(), Authority::new("ours"));
    let root = files.write("root.crt", &authority.certificate);
    let own = Pair::own_authority(&NAMES);
    let own_root = files.write("own.crt", &own.certificate);
    let elsewhere = authority.server(&["db.example", "10.1.2.3"]);
    let expired = authority.expired(&NAMES);
    let common = authority.server_without_alternative_names("localhost");
    for (server, root, require, verify_ca, verify_full) in [
        (&elsewhere, &root, "tls", "tls", "is for db.example, 10.1.2.3, not"),
        (&expired, &root, "has expired", "has expired", "has expired"),
        (&common, &root, "tls", "tls", "tls"),
        (&own, &own_root, "tls", "tls", "tls"),
        (&own, &root, "not known here", "not known here", "not known here"),
    ] {
        pg.set_door(Door { certificate: Some(server), rules: OPEN, ..Door::default() }).await;
        assert_as_psql(&pg, &files, &words(&pg, "sslmode=require").await, "tls").await;
        for (mode, expected) in [("require", require), ("verify-ca", verify_ca), ("verify-full", verify_full)]
        {
            let parameters = format!("host=localhost sslmode={mode} sslrootcert={}", root.display());
            assert_as_psql(&pg, &files, &words(&pg, &parameters).await, expected).await;
        }
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let (pg, files, authority) = (cluster().await, Files::new(), Authority::new("ours"));
    let root = files.write("root.crt", &authority.certificate);
    let server = authority.numbered_server(7, &NAMES);
    pg.set_door(Door { certificate: Some(&server), rules: OPEN, ..Door::default() }).await;
    for (revoked, current, expected) in
        [(8, true, "tls"), (7, true, "is on the list of revoked ones"), (8, false, "bring it up to date")]
    {
        let list = files.write("root.crl", &authority.revoke(revoked, current));
        let parameters =
            format!("sslmode=verify-ca sslrootcert={} sslcrl={}", root.display(), list.display());
        assert_as_psql(&pg, &files, &words(&pg, &parameters).await, expected).await;
    }
}

#[tokio::test]
async fn what_the_server_demands_decides_where_the_mode_leaves_a_choice() {
    let (pg, files, authority) = (cluster().await, Files::new(), Authority::new("ours"));
    let server = authority.server(&NAMES);
    let encrypted = "hostssl all all 127.0.0.1/32 trust";
    let bare = "hostnossl all all 127.0.0.1/32 trust";
    for (certificate, rules, cases) in [
        (
            Some(&server),
            encrypted,
            [("disable", "in without TLS"), ("allow", "tls"), ("prefer", "tls"), ("require", "tls")],
        ),
        (
            Some(&server),
            bare,
            [("disable", "plain"), ("allow", "plain"), ("prefer", "plain"), ("require", "pg_hba.conf")],
        ),
        (
            None,
            OPEN,
            [
                ("disable", "plain"),
                ("allow", "plain"),
                ("prefer", "plain"),
                ("require", "does not offer TLS"),
            ],
        ),
        (
            Some(&server),
            "",
            [
                ("disable", "pg_hba.conf"),
                ("allow", "pg_hba.conf"),
                ("prefer", "SSL encryption"),
                ("require", "pg_hba.conf"),
            ],
        ),
    ] {
        pg.set_door(Door { certificate, rules, ..Door::default() }).await;
        for (mode, expected) in cases {
            assert_as_psql(&pg, &files, &words(&pg, &format!("sslmode={mode}")).await, expected).await;
        }
    }
    // A Unix socket never has TLS, whatever is asked for.
    let socket = pg.socket();
    let parameters =
        format!("host={} sslmode=verify-full sslrootcert=system", socket.parent().unwrap().display());
    assert_verdict(&pg, &words(&pg, &parameters).await, "plain").await;
}
