//! A private PostgreSQL for one test.
//!
//! `initdb` runs once for a version and account; each test gets a copy of that template, started
//! without fsync. Works between threads (`cargo test`) and processes (`cargo nextest`): the template
//! is made under a file lock and moved into place whole.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rowcast::embedded::{Account, Binaries, Cluster, Keep, Options, StopMode};
use tokio::sync::Mutex;
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::wait::{PATIENCE, eventually, within};
use super::watchdog::Watched;

/// Changes when the template is made differently.
const TEMPLATE_REVISION: u32 = 1;
/// The database that tests work in; `initdb` makes it.
pub(crate) const DATABASE: &str = "postgres";

/// A running cluster of its own, gone when dropped.
pub(crate) struct TestPostgres {
    cluster: Cluster,
    admin: Mutex<Option<Client>>,
    _watched: Watched,
}

impl TestPostgres {
    /// A cluster that listens on its unix socket.
    pub(crate) async fn start() -> Self {
        Self::start_with(Options::scratch()).await
    }

    /// A cluster with settings of the test's own, or with TCP.
    pub(crate) async fn start_with(options: Options) -> Self {
        let home = copy_template(&template().await);
        let mut settings: Vec<(String, String)> = [
            ("shared_buffers", "16MB"),
            ("max_connections", "200"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("jit", "off"),
            ("log_line_prefix", "%m [%p] %q%a "),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        settings.extend(options.settings);
        let options = Options { keep: Keep::Scratch, settings, ..options };
        let mut cluster = Cluster::open(&home, options).unwrap();
        cluster.start().await.unwrap();
        TestPostgres { cluster, admin: Mutex::new(None), _watched: Watched::begin() }
    }

    /// The superuser's URL, over the unix socket.
    pub(crate) fn url(&self) -> String {
        self.cluster.url(DATABASE)
    }

    /// The superuser's URL for another database.
    pub(crate) fn url_of(&self, database: &str) -> String {
        self.cluster.url(database)
    }

    /// The URL of another role.
    pub(crate) fn url_as(&self, role: &str) -> String {
        self.url().replacen("//postgres@", &format!("//{role}@"), 1)
    }

    /// Runs statements that must fail, on a connection of their own, and returns what the server said.
    pub(crate) async fn refusal(&self, statements: &str) -> DbError {
        refusal(&self.client().await, statements).await
    }

    /// The programs of this version, such as `psql`; the machine's own where a package is only a server.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let own = self.cluster.binaries().directory().join(name);
        if own.is_file() { own } else { PathBuf::from(name) }
    }

    /// The unix socket, for a proxy's upstream.
    pub(crate) fn socket(&self) -> PathBuf {
        self.cluster.socket_path()
    }

    /// The major version of the server.
    pub(crate) fn major(&self) -> u32 {
        self.cluster.binaries().major()
    }

    /// The postmaster's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.cluster.pid().expect("the cluster runs")
    }

    /// The server's log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.cluster.log_path()).unwrap_or_default()
    }

    /// Runs statements on the harness's own connection; panics with the error.
    pub(crate) async fn sql(&self, statements: &str) {
        self.run(statements).await;
    }

    /// The rows of all statements, as text.
    pub(crate) async fn query_text(&self, statements: &str) -> Vec<Vec<Option<String>>> {
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        };
        self.run(statements).await.into_iter().filter_map(row).collect()
    }

    /// The one value of the one row.
    pub(crate) async fn value(&self, query: &str) -> String {
        let rows = self.query_text(query).await;
        match rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone().unwrap_or_else(|| panic!("NULL from: {query}")),
            other => panic!("not one value but {other:?} from: {query}"),
        }
    }

    /// A connection of the test's own, as superuser.
    pub(crate) async fn client(&self) -> Client {
        connect(&self.url()).await
    }

    /// A clean stop (`pg_ctl stop -m fast`).
    pub(crate) async fn stop_fast(&mut self) {
        self.cluster.stop(StopMode::Fast).await.unwrap();
    }

    /// A crash: SIGKILL to the postmaster.
    pub(crate) fn kill9(&mut self) {
        self.cluster.kill9();
    }

    /// `pg_ctl stop -m immediate`: crash recovery at the next start.
    pub(crate) async fn stop_immediate(&mut self) {
        self.cluster.stop(StopMode::Immediate).await.unwrap();
    }

    /// The data directory; to be copied only while the server is stopped.
    pub(crate) fn data_directory(&self) -> PathBuf {
        self.cluster.home().join("data")
    }

    /// Starts it again, after a stop or a crash; the address stays.
    pub(crate) async fn start_again(&mut self) {
        self.cluster.start().await.unwrap();
    }

    /// Makes commits wait for a synchronous standby that does not exist. Returns when they do: a backend
    /// learns of the setting later than the reload.
    pub(crate) async fn await_absent_standby(&self) {
        self.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
        self.sql("SELECT pg_reload_conf()").await;
        let probe = self.client().await;
        let pid: i32 = probe.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let probing = tokio::spawn(async move {
            while probe.batch_execute("SELECT pg_logical_emit_message(true, 'probe', '')").await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        let waits =
            format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'");
        eventually(PATIENCE, "commits wait for the standby", async || {
            (self.value(&waits).await == "1").then_some(())
        })
        .await;
        self.sql(&format!("SELECT pg_terminate_backend({pid})")).await;
        probing.await.unwrap();
    }

    /// A clean stop and a start.
    pub(crate) async fn restart(&mut self) {
        self.stop_fast().await;
        self.start_again().await;
    }

    async fn run(&self, statements: &str) -> Vec<SimpleQueryMessage> {
        let mut admin = self.admin.lock().await;
        if admin.as_ref().is_none_or(Client::is_closed) {
            *admin = Some(self.client().await);
        }
        let client = admin.as_ref().expect("connected above");
        match within(statements, client.simple_query(statements)).await {
            Ok(messages) => messages,
            Err(error) => panic!("{}\nin: {statements}", explain(&error)),
        }
    }
}

impl Drop for TestPostgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- PostgreSQL log, end ---\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }
}

/// Connects by URL; the connection ends with the client.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = within("connecting to PostgreSQL", tokio_postgres::connect(url, NoTls))
        .await
        .unwrap_or_else(|error| panic!("{}\nconnecting to {url}", explain(&error)));
    tokio::spawn(connection);
    client
}

/// Runs statements that must fail, and returns what the server said.
pub(crate) async fn refusal(client: &Client, statements: &str) -> DbError {
    match within(statements, client.batch_execute(statements)).await {
        Ok(()) => panic!("not refused: {statements}"),
        Err(error) => error.as_db_error().unwrap_or_else(|| panic!("{error} in: {statements}")).clone(),
    }
}

/// What the server said, not only "db error".
pub(crate) fn explain(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| format!("{db:?}"))
}

/// The directory for clusters: the target's, or one below /tmp where the server's account cannot
/// reach the target's (root with a checkout in its home).
fn base() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres");
    fs::create_dir_all(&target).unwrap();
    if Account::choose().unwrap().can_enter(&target) {
        return target;
    }
    let uid = fs::metadata("/proc/self").map_or(0, |meta| meta.uid());
    let base = PathBuf::from(format!("/tmp/rowcast-tests-{uid}"));
    fs::create_dir_all(&base).unwrap();
    // Fails where the directory is someone else's.
    fs::set_permissions(&base, fs::Permissions::from_mode(0o711)).unwrap();
    base
}

/// The template's home, made when it is first needed.
async fn template() -> PathBuf {
    let base = base();
    let version = Binaries::find(None).unwrap().version().to_owned();
    let account = Account::choose().unwrap();
    let template = base.join(format!("template-{version}-{}-r{TEMPLATE_REVISION}", account.name()));
    let lock = File::create(base.join("template.lock")).unwrap();
    // On a thread of its own: who holds the lock may be another task of this one.
    let _lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.unwrap().unwrap();
    if !template.exists() {
        let unfinished = base.join("template-unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        let options = Options { keep: Keep::Durable, ..Options::scratch() };
        drop(Cluster::create(&unfinished, options).await.unwrap());
        fs::rename(&unfinished, &template).unwrap();
    }
    template
}

/// A home of its own for one test, with a copy of the template's data.
fn copy_template(template: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let home = template.with_file_name(format!("{}-{number}", std::process::id()));
    // What an earlier process of that id may have left.
    let _ = fs::remove_dir_all(&home);
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o711)).unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-a");
    if cfg!(target_os = "linux") {
        copy.arg("--reflink=auto");
    }
    let status = copy.arg(template.join("data")).arg(&home).status().unwrap();
    assert!(status.success(), "copying the template: {status}");
    home
}
