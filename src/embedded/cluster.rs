//! One private cluster: its home directory, its settings, its address and its life.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::server::{Launch, Server, StopMode};
use super::{Account, Binaries, EmbeddedError, IoContext, Keep, Options};

/// The superuser that `initdb` makes.
const SUPERUSER: &str = "postgres";
/// Where no TCP is asked for, the port only names the socket's file, in a directory of its own.
const SOCKET_PORT: u16 = 5432;
/// The longest path of a unix socket (`sun_path`, without its final zero, on Linux; macOS has 103).
const LONGEST_SOCKET_PATH: usize = 103;
/// Others may pass through the home, for the server's account must; what lies below is closed to them.
const HOME_MODE: u32 = 0o711;
/// How long `stop` waits.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Written anew at each start, in the home rather than in `data/`: rowcast may be root, and must not
/// write where the server's account could have laid a link.
const SETTINGS_FILE: &str = "rowcast.conf";
const ACCESS_FILE: &str = "pg_hba.conf";
/// All that a cluster puts into its home.
const CONTENTS: &[&str] = &["data", "socket", "postgres.log", SETTINGS_FILE, ACCESS_FILE, "lock"];

/// A private PostgreSQL cluster, running or not. Dropping it stops what it started.
#[derive(Debug)]
pub struct Cluster {
    // First: the server ends before the lock and the directories go.
    server: Option<Server>,
    binaries: Binaries,
    account: Account,
    options: Options,
    home: PathBuf,
    socket_directory: PathBuf,
    port: u16,
    /// Where the home's own path is too long for a socket.
    short_directory: Option<TempDir>,
    /// Held, not read: the lock goes with it.
    _lock: File,
}

impl Cluster {
    /// Makes a new cluster in `home`, which may exist but hold no data yet.
    pub async fn create(home: impl AsRef<Path>, options: Options) -> Result<Self, EmbeddedError> {
        let home = home.as_ref();
        // Before there is a `Cluster`, which would remove what it does not keep.
        if home.join("data").exists() {
            return Err(EmbeddedError::DataExists(home.to_owned()));
        }
        let cluster = Self::prepare(home, Binaries::find(None)?, options)?;
        cluster.initdb().await?;
        Ok(cluster)
    }

    /// Makes a new cluster in a directory of its own below /tmp. With [`Keep::Scratch`] it leaves nothing there.
    pub async fn create_temporary(options: Options) -> Result<Self, EmbeddedError> {
        let parent = Path::new("/tmp");
        let permissions = fs::Permissions::from_mode(HOME_MODE);
        let mut builder = tempfile::Builder::new();
        let home = builder.prefix("rowcast-").permissions(permissions).tempdir_in(parent).at(parent)?;
        let cluster = Self::create(home.path(), options).await?;
        // From here on its destructor sees to the directory.
        let _ = home.keep();
        Ok(cluster)
    }

    /// Opens the cluster that `home` holds, with programs of its own version.
    pub fn open(home: impl AsRef<Path>, options: Options) -> Result<Self, EmbeddedError> {
        let home = home.as_ref();
        let version = match fs::read_to_string(home.join("data/PG_VERSION")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(EmbeddedError::NoData(home.to_owned()));
            }
            read => read.at(&home.join("data/PG_VERSION"))?,
        };
        let major = version.trim().parse().map_err(|_| EmbeddedError::NoData(home.to_owned()))?;
        Self::prepare(home, Binaries::find(Some(major))?, options)
    }

    /// Opens the cluster in `home`, or makes it at the first time.
    pub async fn open_or_create(home: impl AsRef<Path>, options: Options) -> Result<Self, EmbeddedError> {
        match Self::open(home.as_ref(), options.clone()) {
            Err(EmbeddedError::NoData(_)) => Self::create(home, options).await,
            opened => opened,
        }
    }

    /// Starts the server and returns when it accepts connections.
    pub async fn start(&mut self) -> Result<(), EmbeddedError> {
        if self.is_running() {
            return Err(EmbeddedError::Running);
        }
        self.server = None;
        self.write_configuration()?;
        let scratch = self.options.keep == Keep::Scratch;
        let removes = match scratch {
            true => self.scratch_paths(),
            false => self.short_directory.iter().map(|dir| dir.path().to_owned()).collect(),
        };
        self.server = Some(
            Server::start(Launch {
                command: &|| self.server_command(),
                home: &self.home,
                log: &self.log_path(),
                timeout: self.options.start_timeout,
                orphan_mode: if scratch { StopMode::Immediate } else { StopMode::Fast },
                orphan_removes: &removes,
            })
            .await?,
        );
        Ok(())
    }

    /// Stops the server, waiting up to a minute; nothing to do if it does not run.
    pub async fn stop(&mut self, mode: StopMode) -> Result<(), EmbeddedError> {
        if let Some(server) = &mut self.server {
            server.stop(mode, STOP_TIMEOUT).await?;
            self.server = None;
        }
        Ok(())
    }

    /// Kills the server with SIGKILL, as a crash would.
    pub fn kill9(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill9();
        }
    }

    /// Whether the server that was started has not ended.
    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(Server::is_running)
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Server::pid)
    }

    /// The superuser's connection URL over the unix socket, as libpq takes it.
    pub fn url(&self, database: &str) -> String {
        let host = percent_encode(&self.socket_directory.to_string_lossy());
        let database = percent_encode(database);
        format!("postgresql://{SUPERUSER}@/{database}?host={host}&port={}", self.port)
    }

    /// The superuser's connection URL over TCP, where that was asked for.
    pub fn tcp_url(&self, database: &str) -> Option<String> {
        let database = percent_encode(database);
        self.options.tcp.then(|| format!("postgresql://{SUPERUSER}@127.0.0.1:{}/{database}", self.port))
    }

    /// The unix socket's own path.
    pub fn socket_path(&self) -> PathBuf {
        socket_in(&self.socket_directory, self.port)
    }

    /// The home directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The server's log.
    pub fn log_path(&self) -> PathBuf {
        self.home.join("postgres.log")
    }

    /// Which server this is.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// What a scratch cluster removes, before the home itself: only what it made.
    fn scratch_paths(&self) -> Vec<PathBuf> {
        let contents = CONTENTS.iter().map(|name| self.home.join(name));
        let short = self.short_directory.iter().map(|dir| dir.path().to_owned());
        contents.chain(short).collect()
    }

    /// Everything but the data: directories with the right owner, the lock, the address.
    fn prepare(home: &Path, binaries: Binaries, options: Options) -> Result<Self, EmbeddedError> {
        let account = Account::choose()?;
        if !home.exists() {
            DirBuilder::new().recursive(true).mode(HOME_MODE).create(home).at(home)?;
        }
        let home = home.canonicalize().at(home)?;
        if !account.can_enter(&home) {
            return Err(EmbeddedError::Unreachable { directory: home, account: account.name().to_owned() });
        }
        let lock = take_lock(&home)?;
        account.private_directory(&home.join("data"))?;
        let (socket_directory, short_directory) = socket_directory(&home, &account)?;
        let port = if options.tcp { free_port().at(&home)? } else { SOCKET_PORT };
        Ok(Cluster {
            server: None,
            binaries,
            account,
            options,
            home,
            socket_directory,
            port,
            short_directory,
            _lock: lock,
        })
    }

    async fn initdb(&self) -> Result<(), EmbeddedError> {
        let mut command = self.binaries.command("initdb");
        command.args(["--username", SUPERUSER, "--encoding", "UTF8", "--locale", "C"]);
        command.args(["--auth", "trust", "--no-instructions", "--pgdata"]).arg(self.data());
        if self.options.keep == Keep::Scratch {
            command.arg("--no-sync");
        }
        self.account.apply(&mut command);
        let program = PathBuf::from(command.get_program());
        let output = tokio::process::Command::from(command).output().await.at(&program)?;
        if !output.status.success() {
            let output = [output.stdout, output.stderr].concat();
            let output = String::from_utf8_lossy(&output).trim().to_owned();
            return Err(EmbeddedError::Program { program: "initdb", output });
        }
        let main = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&main).at(&main)?;
        fs::write(&main, format!("{text}\ninclude = '../{SETTINGS_FILE}'\n")).at(&main)
    }

    /// In a file rather than on the command line, so that `ALTER SYSTEM` can change them.
    fn write_configuration(&self) -> Result<(), EmbeddedError> {
        let mut own =
            vec![("wal_level", "logical"), ("max_replication_slots", "20"), ("max_wal_senders", "20")];
        if self.options.keep == Keep::Scratch {
            own.extend([("fsync", "off"), ("full_page_writes", "off")]);
        }
        let mut text = String::from("# Written by rowcast at each start; use ALTER SYSTEM for your own.\n");
        let given = self.options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in own.into_iter().chain(given) {
            text.push_str(&setting_line(name, value)?);
        }
        let mut access = String::from("# Written by rowcast at each start.\n");
        access.push_str("local all all trust\nlocal replication all trust\n");
        if self.options.tcp {
            access.push_str("host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n");
        }
        for (name, text) in [(SETTINGS_FILE, text), (ACCESS_FILE, access)] {
            let path = self.home.join(name);
            fs::write(&path, text).at(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).at(&path)?;
        }
        Ok(())
    }

    /// What must hold whatever the settings say is on the command line.
    fn server_command(&self) -> Command {
        let setting = |name: &str, value: &str| format!("{name}={value}");
        let mut command = self.binaries.command("postgres");
        command.arg("-D").arg(self.data());
        command.arg("-k").arg(&self.socket_directory);
        command.args(["-p", &self.port.to_string()]);
        command.args(["-c", &setting("listen_addresses", if self.options.tcp { "127.0.0.1" } else { "" })]);
        command.args(["-c", &setting("hba_file", &self.home.join(ACCESS_FILE).to_string_lossy())]);
        self.account.apply(&mut command);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server = None;
        if self.options.keep == Keep::Scratch {
            for path in self.scratch_paths() {
                // A destructor has nobody to tell; what stays is in a directory for temporary files.
                let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            }
            // Goes only if nothing else is in it.
            let _ = fs::remove_dir(&self.home);
        }
    }
}

fn take_lock(home: &Path) -> Result<File, EmbeddedError> {
    let path = home.join("lock");
    let lock = File::create(&path).at(&path)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(EmbeddedError::InUse(home.to_owned())),
        Err(TryLockError::Error(source)) => Err(EmbeddedError::Io { path, source }),
    }
}

/// The home's own `socket/`, at the same place each time; a short one below /tmp where its path is too long.
fn socket_directory(home: &Path, account: &Account) -> Result<(PathBuf, Option<TempDir>), EmbeddedError> {
    let own = home.join("socket");
    // A comma or quote would split PostgreSQL's list of directories.
    let plain = own.to_str().is_some_and(|text| !text.contains([',', '"']));
    if plain && socket_in(&own, u16::MAX).as_os_str().len() <= LONGEST_SOCKET_PATH {
        account.private_directory(&own)?;
        return Ok((own, None));
    }
    let parent = Path::new("/tmp");
    let short = tempfile::Builder::new().prefix("rowcast-").tempdir_in(parent).at(parent)?;
    account.private_directory(short.path())?;
    Ok((short.path().to_owned(), Some(short)))
}

fn socket_in(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn setting_line(name: &str, value: &str) -> Result<String, EmbeddedError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if name.is_empty() || !name.chars().all(plain) || value.chars().any(char::is_control) {
        return Err(EmbeddedError::BadSetting(name.to_owned()));
    }
    Ok(format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''")))
}

fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted_for_the_configuration_file() {
        assert_eq!(setting_line("work_mem", "4MB").unwrap(), "work_mem = '4MB'\n");
        assert_eq!(setting_line("a.b", r"it's \n").unwrap(), "a.b = 'it''s \\\\n'\n");
        assert!(setting_line("a", "x\nfsync = on").is_err());
        assert!(setting_line("a b", "x").is_err());
        assert!(setting_line("", "x").is_err());
    }

    #[test]
    fn urls_carry_any_path() {
        assert_eq!(percent_encode("/tmp/a b?&"), "%2Ftmp%2Fa%20b%3F%26");
    }

    #[test]
    fn a_home_without_data_is_not_opened() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(Cluster::open(home.path(), Options::durable()), Err(EmbeddedError::NoData(_))));
    }
}
