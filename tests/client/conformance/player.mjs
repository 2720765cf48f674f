// Plays cases for the JavaScript client: JSON lines in, JSON lines out; see players.py.

import { createInterface } from "node:readline";

import { Client, ClientError } from "../../../gateway/javascript/longpoll.js";

const MOST_SECONDS = 20;

const camel = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
const camelKeys = (given) => Object.fromEntries(Object.entries(given).map(([name, value]) => [camel(name), value]));
const shown = (value) => (value instanceof Uint8Array ? { bytes: Buffer.from(value).toString("base64") } : value);
const failureOf = (error) => ({ error: error instanceof ClientError ? error.name : "ValueError", code: error.code ?? "" });
const good = (error) => error instanceof ClientError || error instanceof RangeError || error instanceof TypeError;

async function play(url, given) {
  const events = [];
  const tokens = [...(given.tokens ?? [])];
  const provider = () => {
    events.push("token");
    const next = tokens.length > 1 ? tokens.shift() : tokens[0];
    if (next === "fails") throw new Error("no token");
    return typeof next === "string" ? next : { value: next.value, expiresAt: next.expires_at };
  };
  const { retry, breaker, connect_timeout: _, ...times } = given.client ?? {};
  const client = new Client(url, {
    token: tokens.length ? provider : given.token,
    retry: { base: 0.002, cap: 0.02, ...retry },
    breaker: { failures: 100, seconds: 0.01, cap: 0.02, ...breaker },
    readTimeout: 5,
    ...camelKeys(times),
  });
  if (given.publish || given.batch) return { ...(await publish(client, given, events)), counters: client.counters };

  const { channels = ["news"], ...options } = given.subscribe ?? {};
  let position = given.store ?? null;
  const saved = [];
  const store = {
    load: () => position,
    save: (next) => {
      position = next;
      saved.push(next.cursor);
    },
  };
  const subscription = client.subscribe(channels, {
    ...camelKeys(options),
    onLost: ({ channel, partition, first, end }) => events.push({ lost: [channel, partition, first, end] }),
    ...("on_reset" in given && {
      onReset: ({ code }) => {
        events.push({ reset: code });
        return given.on_reset;
      },
    }),
    ...("store" in given && { store }),
  });
  try {
    const watchdog = setTimeout(() => subscription.stop(), MOST_SECONDS * 1000);
    let count = 0;
    try {
      for await (const message of subscription) {
        events.push({ message: { ...message, key: shown(message.key), value: shown(message.value) } });
        count += 1;
        const told = given.then?.[count] ?? "";
        if (told === "ack") subscription.ack(message);
        if (told === "break") break;
        if (count >= given.take) subscription.stop();
      }
    } finally {
      clearTimeout(watchdog);
    }
  } catch (error) {
    if (!good(error)) throw error;
    events.push(failureOf(error));
  }
  await client.close();
  events.push("end");
  const stored = "store" in given ? position : null;
  return { events, stored, saved: "store" in given ? saved : null, counters: subscription.counters };
}

async function publish(client, given, events) {
  try {
    if (given.publish) {
      const { channel, value, ...options } = given.publish;
      events.push({ published: await client.publish(channel, value, camelKeys(options)) });
    } else {
      const { channel, values, ...options } = given.batch;
      const { results, cursor } = await client.publishBatch(channel, values, camelKeys(options));
      events.push({ batch: results.map(({ partition, offset, problem }) => problem?.code ?? [partition, offset]), cursor });
    }
  } catch (error) {
    if (!good(error)) throw error;
    events.push(failureOf(error));
  }
  return { events, stored: null, saved: null };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { number, url, case: given } = JSON.parse(line);
  play(url, given)
    .catch((error) => ({ events: [good(error) ? failureOf(error) : { crash: String(error.stack) }], counters: {} }))
    .then((outcome) => process.stdout.write(`${JSON.stringify({ number, ...outcome })}\n`));
}
