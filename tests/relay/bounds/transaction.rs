//! One very large transaction.

use rowcast::embedded::Options;

use super::{Figures, LONG, base, size};
use crate::support::device::{Device, Incoming};
use crate::support::orders::with_orders;
use crate::support::relay::Relay;

const USERS: usize = 1_000;
/// What a transaction may take of the relay's memory, whatever its size.
const MEMORY_KIB: u64 = 256 * 1024;

#[tokio::test]
async fn a_transaction_of_two_million_rows() {
    let rows = size(20_000, 2_000_000);
    let pg = with_orders(Options::scratch().setting("max_wal_size", "8GB")).await;
    let relay = Relay::on(&pg).start().await;
    let before = base(&relay, &pg).await;
    let mut device = Device::of(&relay, "7", "phone").connect().await;
    device.subscribe(&["user:7:*"], None).await;
    let client = pg.client().await;
    let insert = format!(
        "INSERT INTO orders SELECT n, (n % {USERS})::text, 'a row of a very large transaction'
         FROM generate_series(0, {rows} - 1) n"
    );
    tokio::time::timeout(LONG, client.batch_execute(&insert)).await.expect("it commits").unwrap();
    let all = async {
        for id in (0..rows).filter(|n| n % USERS == 7) {
            let change = loop {
                match device.next_incoming().await {
                    Incoming::Frame(frame) if frame.kind == "heartbeat" => {}
                    Incoming::Frame(frame) => break frame.change().expect("a change"),
                    Incoming::Closed(why) => panic!("the relay closed: {why:?}"),
                }
            };
            assert_eq!(change.key_text(), format!(r#"{{"id":{id}}}"#));
        }
    };
    tokio::time::timeout(LONG, all).await.expect("every row arrives");
    device.close().await;
    drop(client);
    let peak = Figures::of(&relay, &pg).await.peak_kib - before.rss_kib;
    println!("{rows} rows in one transaction: the peak was {} MiB above the base", peak / 1024);
    assert!(peak < MEMORY_KIB, "{peak} KiB above the base");
    before.come_back(&relay, &pg, "one transaction").await;
}
