//! Any text as the configuration's file: every value is read or a mistake that names its place.

use std::path::Path;
use std::sync::LazyLock;

use super::Config;
use super::sources::Given;

/// What a configuration without a file looks like.
static PLAIN: LazyLock<String> = LazyLock::new(|| {
    let mut mistakes = Vec::new();
    let given = Given::of_toml(Path::new("rowcast.toml"), "", &mut mistakes);
    format!("{:?}{}", Config::read(&given, &mut mistakes), super::table())
});

pub(crate) fn file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut mistakes = Vec::new();
    let given = Given::of_toml(Path::new("rowcast.toml"), &text, &mut mistakes);
    let config = Config::read(&given, &mut mistakes).expect("defaults stand in for what cannot be read");
    let _ = (config.log_directory(), config.embedded_directory(), config.auth());
    let shown = format!("{config:?}");
    for secret in [&config.jwt_secret, &config.database_url].into_iter().flatten() {
        let secret = secret.expose();
        // One that stands elsewhere too, or is a word of ours, is no secret.
        if secret.len() >= 12 && text.matches(secret).count() == 1 && !PLAIN.contains(secret) {
            let told = mistakes.iter().any(|mistake| mistake.to_string().contains(secret));
            assert!(!told && !shown.contains(secret), "a secret is shown");
        }
    }
}
