// A device, in the JavaScript that browsers and Node share: one WebSocket, a copy of its user's rows,
// and a cursor from which it goes on after every interruption. It needs no package.
//
//   ROWCAST_URL=http://127.0.0.1:4000 ROWCAST_TOKEN=… node examples/device.mjs 'user:42:*' 'global:*'
//
// Node has a WebSocket of its own from version 22 on; in 20 it is behind --experimental-websocket.
// In a browser: import { connect } from './device.mjs'.

/**
 * Keeps a copy of the rows of `topics`.
 *
 * `store` is what outlives the app: { cursor, rows: Map }. A real app writes both in one transaction
 * of its local database, so that the cursor never says more than the rows hold.
 */
export function connect({ url, token, device, topics, store, onChange, onBroadcast, onNotice }) {
  let socket;
  let attempts = 0;
  let closed = false;
  let timer;

  function open() {
    // A browser cannot set headers on a WebSocket: the token travels as a subprotocol. int8 and
    // numeric come as strings, for they may not fit a JavaScript number.
    const address = `${url.replace(/^http/, 'ws')}/api/realtime/ws/${device}?numbers=string`;
    socket = new WebSocket(address, ['rowcast.v1', `bearer.${token}`]);
    socket.onopen = () => subscribe(topics, store.cursor);
    socket.onmessage = ({ data }) => receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => again(code, reason);
  }

  function subscribe(patterns, cursor) {
    socket.send(JSON.stringify({ type: 'subscribe', topics: patterns, cursor }));
  }

  function receive(frame) {
    switch (frame.type) {
      case 'database_change':
        apply(frame);
        break;
      case 'broadcast':
        onBroadcast?.(frame);
        break;
      case 'subscribed':
        attempts = 0;
        onNotice?.(`subscribed to ${frame.topics.join(' ')}`);
        break;
      case 'sync_required':
        // What the copy lacks is no longer in the relay's log, and it has to be fetched anew.
        onNotice?.(`the copy of ${frame.topics.join(' ')} is out of date: ${frame.reason}`);
        break;
      case 'revoked':
        forget(({ topic }) => frame.topics.some((pattern) => matches(pattern, topic)));
        break;
      case 'error':
        onNotice?.(`${frame.code}: ${frame.message}`);
        break;
      // Types that this client does not know are none of its business.
    }
    // Every frame with a cursor, heartbeats too: up to here this device has everything.
    if (frame.cursor) store.cursor = frame.cursor;
  }

  /** Upserts and deletes: safe to apply twice. */
  function apply({ topic, operation, key, new_record, unchanged, ...rest }) {
    // A row is one row, also where several of the topics name it: a table and its key.
    const table = topic.slice(topic.lastIndexOf(':') + 1);
    const place = `${table} ${JSON.stringify(key)}`;
    if (operation === 'TRUNCATE') {
      forget((entry) => entry.topic.endsWith(`:${table}`));
    } else if (operation === 'DELETE') {
      store.rows.delete(place);
    } else {
      // A long value that did not change is left out and named in `unchanged`: it is in the copy.
      const before = unchanged ? store.rows.get(place)?.row : undefined;
      store.rows.set(place, { topic, row: { ...before, ...new_record } });
    }
    onChange?.({ ...rest, topic, operation, key, row: store.rows.get(place)?.row });
  }

  function forget(condition) {
    for (const [place, entry] of store.rows) {
      if (condition(entry)) store.rows.delete(place);
    }
  }

  function again(code, reason) {
    if (closed) return;
    if (code === 4401 || code === 4403) {
      onNotice?.(`refused: ${reason}; get a new token`);
      return;
    }
    // Full jitter, so that the devices of a relay that restarts do not all come at once.
    const wait = Math.random() * Math.min(10_000, 100 * 2 ** attempts++);
    onNotice?.(`disconnected; again in ${Math.round(wait)} ms`);
    timer = setTimeout(open, wait);
  }

  open();
  return {
    close() {
      closed = true;
      clearTimeout(timer);
      socket.close();
    },
  };
}

function matches(pattern, topic) {
  return pattern.endsWith('*') ? topic.startsWith(pattern.slice(0, -1)) : topic === pattern;
}

/** On the command line: prints what comes. */
async function main() {
  const { ROWCAST_URL: url = 'http://127.0.0.1:4000', ROWCAST_TOKEN: token } = process.env;
  const topics = process.argv.slice(2);
  if (!token || topics.length === 0) {
    console.error("usage: ROWCAST_TOKEN=… node examples/device.mjs 'user:42:*'");
    process.exit(2);
  }
  if (typeof WebSocket === 'undefined') {
    console.error('this Node has no WebSocket: use Node 22, or node --experimental-websocket');
    process.exit(2);
  }
  connect({
    url,
    token,
    device: 'example',
    topics,
    store: { cursor: undefined, rows: new Map() },
    onChange: ({ operation, topic, row, key }) => console.log(operation, topic, JSON.stringify(row ?? key)),
    onBroadcast: ({ topic, event, payload }) => console.log('BROADCAST', topic, event, JSON.stringify(payload)),
    onNotice: (text) => console.error(text),
  });
}

if (typeof process !== 'undefined' && import.meta.url === new URL(process.argv[1] ?? '', 'file:').href) {
  await main();
}
