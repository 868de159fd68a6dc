//! The catalog, and a small table that tests of faults write to.

use rowcast::embedded::Options;
use rowcast::postgres::catalog;

use super::postgres::{TestPostgres, connect};

/// What [`with_orders`] tracks, as a query for a user's rows.
pub(crate) fn orders_of(user: &str) -> String {
    format!("SELECT * FROM public.orders WHERE user_id = '{user}'")
}

/// Installs the catalog, as `rowcast init` does.
pub(crate) async fn install(postgres: &TestPostgres) {
    let mut client = connect(&postgres.url()).await;
    catalog::install(&mut client).await.unwrap();
}

/// A cluster with the catalog and `public.orders`, tracked as `user:{user_id}:orders`.
pub(crate) async fn with_orders(options: Options) -> TestPostgres {
    let postgres = TestPostgres::start_with(options).await;
    install(&postgres).await;
    postgres
        .sql(
            "CREATE TABLE public.orders (id bigint PRIMARY KEY, user_id text NOT NULL, note text);
             CREATE TABLE public.untracked (id bigint PRIMARY KEY, note text);
             SELECT rowcast.track('public.orders')",
        )
        .await;
    postgres
}
