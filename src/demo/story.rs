//! The story: what is written, and who is to be sent what. Each step shows and checks at once.
//!
//! A step names every frame that it expects, on every device, down to the bytes of the record, which
//! are compared with what Postgres prints for the row. After each step every device is asked for its
//! cursor until that has passed the step: so what did not arrive by then was not sent.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::cast::{Cast, LAPTOP, MIA, PHONE, TOM, TOMS_PHONE};
use super::want::Want;

/// In the profile, but not among its published columns.
const SECRET_NOTE: &str = "knee surgery in March";

/// Between two steps, for whoever reads along.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause(pub(super) Duration);

/// From the first write to the reckoning.
pub(super) async fn tell(cast: &mut Cast<'_>, pause: Pause) -> anyhow::Result<()> {
    /// Each step by itself, with what failed named in front of why.
    macro_rules! steps {
        ($($title:literal: $step:ident,)+) => {$(
            tokio::time::sleep(pause.0).await;
            cast.screen.step($title)?;
            $step(cast).await.context(concat!("step \"", $title, "\" failed"))?;
        )+};
    }
    steps! {
        "What is for everybody reaches every device": everybody,
        "A meal reaches its user's devices, and no one else's": meal,
        "A transaction arrives whole and in order": workout,
        "A column that was not chosen does not leave the database": profile,
        "A device knows its own write by its tag": tagged,
        "A device that was away catches up": away,
        "A row changes owner": moved,
        "A topic that was not granted is refused": refused,
        "A broadcast travels with the transaction that sent it": broadcast,
        "In the end every copy is what Postgres holds": reckoning,
    }
    Ok(())
}

async fn everybody(cast: &mut Cast<'_>) -> anyhow::Result<()> {
    let sql = "INSERT INTO exercises VALUES (1, 'Deadlift', 'back'), (2, 'Squat', 'legs');";
    let at = cast.write(sql).await?;
    let mut rows = Vec::new();
    for key in [1, 2] {
        rows.push(cast.row("INSERT", "global:exercises", key).await?);
    }
    cast.arrives(at, &[(PHONE, &rows), (LAPTOP, &rows), (TOMS_PHONE, &rows)]).await
}

async fn meal(cast: &mut Cast<'_>) -> anyhow::Result<()> {
    let sql = "INSERT INTO food_entries VALUES (1, 42, 'Oatmeal', 389.0);";
    let at = cast.write(sql).await?;
    let rows = [cast.row("INSERT", "user:42:food_entries", 1).await?];
    cast.arrives(at, &[(PHONE, &rows), (LAPTOP, &rows)]).await
}

async fn workout(cast: &mut Cast<'_>) -> anyhow::Result<()> {
    let sql = "BEGIN;\n\
               INSERT INTO workout_sessions VALUES (1, 42, 'Pull day');\n\
               INSERT INTO exercise_sets\n\
               VALUES (1, 42, 1, 1, 5, 80), (2, 42, 1, 2, 8, 62.5);\n\
               COMMIT;";
    let at = cast.write(sql).await?;
    let mut rows = vec![cast.row("INSERT", "user:42:workout_sessions", 1).await?];
    for key in [1, 2] {
        rows.push(cast.row("INSERT", "user:42:exercise_sets", key).await?);
    }
    cast.arrives(at, &[(PHONE, &rows), (LAPTOP, &rows)]).await?;
    cast.screen.note("Only the last of them says \"last\":true: here the transaction ends.")?;
    Ok(())
}

async fn profile(cast: &mut Cast<'_>) -> anyhow::Result<()> {
    cast.screen.code("-- tracked with columns => ARRAY['user_id', 'display_name', 'units']")?;
    let sql = format!(
        "INSERT INTO profiles (user_id, display_name, private_notes)\nVALUES (42, 'Mia', '{SECRET_NOTE}');"
    );
    let at = cast.write(&sql).await?;
    let rows = [cast.row("INSERT", "user:42:profiles", 42).await?];
    cast.never("private_notes").never(SECRET_NOTE);
    cast.arrives(at, &[(PHONE, &rows), (LAPTOP, &rows)]).await
}

async fn tagged(cast: &mut Cast<'_>) -> anyhow::Result<()> {
    let sql = "BEGIN;\n\
               SELECT rowcast.tag(device => 'mia-phone', correlation => 'edit-17');\n\
               UPDATE food_entries SET kcal = 412.5 WHERE id = 1;\n\
               COMMIT;";
    let at = cast.write(sql).await?;
    let rows = [cast.row("UPDATE", "user:42:food_entries", 1).await?.tagged("mia-phone", "edit-17")];
    cast.arrives(at, &[(PHONE, &rows), (LAPTOP, &rows)]).await?;
    cast.screen.note("Its own edit-17 is committed: the phone need not apply it again.")?;
    Ok(())
}

async fn away(cast: &mut Cast<'_>) -> anyhow::Result<()> {
    cast.device(LAPTOP).go_offline().await?;
    cast.screen.note("Mia closes her laptop; its cursor stays with it.")?;
    let sql = "INSERT INTO food_entries VALUES (2, 42, 'Banana', 105.0);";
    let at = cast.write(sql).await?;
    let rows = [cast.row("INSERT", "user:42:food_entries", 2).await?];
    cast.arrives(at, &[(PHONE, &rows)]).await?;
    let sql = "UPDATE food_entries SET food = 'Two bananas', kcal = 210 WHERE id = 2;";
    let at = cast.write(sql).await?;
    let rows = [cast.row("UPDATE", "user:42:food_entries", 2).await?];
    cast.arrives(at, &[(PHONE, &rows)]).await?;
    let at = cast.write("DELETE FROM exercise_sets WHERE id = 2;").await?;
    let gone = [Want::delete("user:42:exercise_sets", "id", 2)];
    cast.arrives(at, &[(PHONE, &gone)]).await?;

    cast.screen.code("POST /api/realtime/sync   from the laptop's cursor")?;
    let synced = cast.device(LAPTOP).sync().await?;
    let banana = cast.row("UPDATE", "user:42:food_entries", 2).await?;
    cast.synced(LAPTOP, &synced, &[gone[0].clone(), banana])?;

    cast.device(LAPTOP).go_online().await?;
    cast.screen.note("Mia opens her laptop. It subscribes with the cursor of that answer.")?;
    let at = cast.write("INSERT INTO food_entries VALUES (3, 42, 'Lentil soup', 320.0);").await?;
    let rows = [cast.row("INSERT", "user:42:food_entries", 3).await?];
    cast.arrives(at, &[(PHONE, &rows), (LAPTOP, &rows)]).await
}

async fn moved(cast: &mut Cast<'_>) -> anyhow::Result<()> {
    cast.screen.note("The soup was Tom's (user 7).")?;
    let at = cast.write("UPDATE food_entries SET user_id = 7 WHERE id = 3;").await?;
    let gone = [Want::delete("user:42:food_entries", "id", 3)];
    let rows = [cast.row("INSERT", "user:7:food_entries", 3).await?];
    cast.arrives(at, &[(PHONE, &gone), (LAPTOP, &gone), (TOMS_PHONE, &rows)]).await?;
    cast.screen.note("To Mia's devices it is a DELETE: the key, and nothing of the new row.")?;
    Ok(())
}

async fn refused(cast: &mut Cast<'_>) -> anyhow::Result<()> {
    cast.screen.code(&json!({"type": "subscribe", "topics": ["user:42:*"]}).to_string())?;
    let answer = cast.device(TOMS_PHONE).try_subscribe("user:42:*").await?;
    let code = answer.code.as_deref().filter(|_| answer.kind == "error");
    ensure!(code == Some("not_granted"), "Tom's phone asked for user:42:* and was answered {}", answer.text);
    let name = cast.device(TOMS_PHONE).name;
    cast.screen.device(name, None, "error not_granted")?;
    let at = cast.write("UPDATE workout_sessions SET ended = now() WHERE id = 1;").await?;
    let rows = [cast.row("UPDATE", "user:42:workout_sessions", 1).await?];
    cast.arrives(at, &[(PHONE, &rows), (LAPTOP, &rows)]).await
}

async fn broadcast(cast: &mut Cast<'_>) -> anyhow::Result<()> {
    let sql = "SELECT rowcast.broadcast('user:42:notifications', 'streak.reached',\n       \
               '{\"days\": 7}');";
    let at = cast.write(sql).await?;
    let sent = [Want::broadcast("user:42:notifications", "streak.reached", "{\"days\": 7}")];
    cast.arrives(at, &[(PHONE, &sent), (LAPTOP, &sent)]).await
}

async fn reckoning(cast: &mut Cast<'_>) -> anyhow::Result<()> {
    for user in [MIA, TOM] {
        let rows = cast.stage.rows_of(user).await?;
        for device in cast.devices.iter().filter(|device| device.user == user) {
            let copy: Vec<_> = device.rows().iter().collect();
            let mut truth: Vec<_> = rows
                .iter()
                .map(|(table, key, record)| (((*table).to_owned(), key.clone()), record))
                .collect();
            truth.sort();
            let same = copy.iter().map(|(place, record)| (*place, *record));
            if !same.eq(truth.iter().map(|(place, record)| (place, *record))) {
                bail!("the copy of {} is {copy:?}, and Postgres holds {truth:?}", device.name);
            }
            let what = format!("{} rows, each the same byte for byte", copy.len());
            cast.screen.device(device.name, None, &what)?;
        }
    }
    Ok(())
}
