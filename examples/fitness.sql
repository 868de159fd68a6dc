-- A fitness app's tables, as `rowcast demo` uses them. After `rowcast init`, on an empty database:
--
--   psql -v ON_ERROR_STOP=1 --single-transaction -f examples/fitness.sql
--
-- Nothing here is special to rowcast but the last lines. There is no trigger, no extra column and no
-- outbox table.

CREATE TABLE profiles (
  user_id       bigint PRIMARY KEY,
  display_name  text NOT NULL,
  units         text NOT NULL DEFAULT 'metric',
  private_notes text                     -- the coach's; no device may see them
);

-- The same for everybody.
CREATE TABLE exercises (
  id     bigint PRIMARY KEY,
  name   text NOT NULL,
  muscle text NOT NULL
);

CREATE TABLE food_entries (
  id      bigint PRIMARY KEY,
  user_id bigint NOT NULL,
  food    text NOT NULL,
  kcal    numeric(7,1) NOT NULL,
  eaten   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE workout_sessions (
  id      bigint PRIMARY KEY,
  user_id bigint NOT NULL,
  title   text NOT NULL,
  started timestamptz NOT NULL DEFAULT now(),
  ended   timestamptz
);

-- A topic is made of a row's own columns, so a set names its user itself rather than through its session.
CREATE TABLE exercise_sets (
  id          bigint PRIMARY KEY,
  user_id     bigint NOT NULL,
  session_id  bigint NOT NULL REFERENCES workout_sessions ON DELETE CASCADE,
  exercise_id bigint NOT NULL REFERENCES exercises,
  reps        int NOT NULL,
  kg          numeric(6,2)
);

-- One index for three uses: the app reads a user's rows by it, and so does a full sync; and as replica
-- identity it lets an UPDATE or DELETE say whose row it was. `track` would build it if it were not here.
CREATE UNIQUE INDEX ON food_entries (user_id, id);
CREATE UNIQUE INDEX ON workout_sessions (user_id, id);
CREATE UNIQUE INDEX ON exercise_sets (user_id, id);

-- What leaves the database, and to whom.
SELECT rowcast.track('public.food_entries');        -- user:{user_id}:food_entries
SELECT rowcast.track('public.workout_sessions');
SELECT rowcast.track('public.exercise_sets');
SELECT rowcast.track('public.exercises', topics => ARRAY['global:exercises']);
SELECT rowcast.track('public.profiles', columns => ARRAY['user_id', 'display_name', 'units']);
