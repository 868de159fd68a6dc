//! Where a secret could show: what the program prints, its command line, what `/proc` tells of it.

use super::{ORDERS, SYNC};
use crate::support::cli::rowcast_at;
use crate::support::relay::Relay;
use crate::support::scene::database;
use crate::support::token;

const PASSWORD: &str = "pl4nted-passw0rd";

#[tokio::test]
async fn no_output_holds_a_password_or_a_secret() {
    let pg = database(ORDERS).await;
    let url = pg.url().replacen("//postgres@", &format!("//postgres:{PASSWORD}@"), 1);
    assert!(url.contains(PASSWORD));
    for format in ["text", "json"] {
        let mut relay = Relay::on_url(&url)
            .env("ROWCAST_LOG_LEVEL", "trace")
            .env("ROWCAST_LOG_FORMAT", format)
            .start()
            .await;
        relay.http_as("42").get(&format!("{SYNC}?device_id=d")).await.expect_status(200);
        // Others of this machine see a process's arguments; its environment is its own user's.
        let arguments = std::fs::read(format!("/proc/{}/cmdline", relay.pid())).unwrap();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        assert!(!arguments.contains(PASSWORD) && !arguments.contains(token::SECRET), "{arguments}");
        let metrics = relay.http().get("/metrics").await.expect_status(200).text().to_owned();
        relay.restart().await;
        for line in relay.output().iter().chain([&metrics]) {
            assert!(!line.contains(PASSWORD) && !line.contains(token::SECRET), "{format}: {line}");
        }
    }
    // Every command, where it works, where nobody answers, and where the address is none.
    let nowhere = format!("postgres://postgres:{PASSWORD}@127.0.0.1:1/postgres?connect_timeout=2");
    let broken = format!("postgres://postgres:{PASSWORD}@[::1/x?sslmode=never");
    for url in [url.as_str(), &nowhere, &broken] {
        let secret = format!("--jwt-secret={PASSWORD}");
        let commands: [&[&str]; 8] = [
            &["check"],
            &["check", "--json"],
            &["tables"],
            &["init"],
            &["track", "nothing"],
            &["untrack", "nothing"],
            &["uninstall"],
            // Too short, which is said.
            &["serve", &secret],
        ];
        for arguments in commands {
            let outcome = rowcast_at(url, arguments).await;
            let printed = format!("{}{}", outcome.stdout, outcome.stderr);
            assert!(!printed.contains(PASSWORD), "{arguments:?}: {printed}");
            assert!(!printed.is_empty(), "{arguments:?}");
        }
    }
}
