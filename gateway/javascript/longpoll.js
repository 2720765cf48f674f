/**
 * The client of the longpoll gateway for browsers and Node 18 and newer: one module that depends on nothing.
 *
 *     import { Client } from "https://gateway.example/v1/client.js";
 *     const client = new Client("https://gateway.example", { token: async () => "…" });
 *     for await (const message of client.subscribe("chat/42")) console.log(message.value);
 *
 * It behaves as the Python client does: the first cursor with `wait=0`; each poll goes on behind the last answer; a message counts
 * as processed when the loop asks for the next one (`acks: "auto"`), or says so (`acks: "manual"`); what comes again is left out
 * by channel, partition and offset; failures are met with exponential back-off with full jitter, Retry-After and a circuit
 * breaker; the position is kept in a store. The cursor goes in a header, so that in browsers the URL stays the same and one
 * preflight serves all polls. longpoll.d.ts beside this file has the types.
 *
 * Browsers hide where a redirect leads, so there every redirect is an error; Node follows those within the origin.
 */

const MOST_CHANNELS = 32;
const MOST_WAIT = 55;
const MOST_REDIRECTS = 5;
const MOST_ASKED_SECONDS = 300;
const MOST_PACE_SECONDS = 60;
const MOST_BODY_BYTES = 64 * 2 ** 20;
const QUICK_SECONDS = 1;
const QUICK_ANSWERS = 3; // so many empty answers in a row within a second each are a fault: nobody is held who wants to be
const PUBLISH_ATTEMPTS = 5;
const PUBLISH_PATIENCE = 35; // the gateway itself waits up to 30 s for Kafka
const CURSOR = /^[A-Za-z0-9_-]{1,2048}$/;
const START = /^(latest|earliest|-[1-9][0-9]{0,3}|[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ].+)$/;

// What an answer leads to; what is not here is final. The Python client has the same table.
const BY_CODE = { "409 cursor_reset": "reset", "410 cursor_expired": "reset" };
const BY_STATUS = {
  200: "take", 201: "take", 204: "take",
  301: "redirect", 302: "redirect", 303: "redirect", 307: "redirect", 308: "redirect",
  401: "renew",
  408: "retry", 425: "retry", 429: "retry", 500: "retry", 502: "retry", 503: "retry", 504: "retry",
};
const ONLY_GET = new Set([301, 302, 303]); // others would lose their body (RFC 9110 §15.4.2)

function actionOf(method, status, code) {
  if (ONLY_GET.has(status) && method !== "GET") return "refuse";
  return BY_CODE[`${status} ${code}`] ?? BY_STATUS[status] ?? "refuse";
}

// --- errors ---

/** All errors of the client. */
export class ClientError extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** There was no good answer in as many attempts, or as much time, as the program allows. */
export class GaveUp extends ClientError {
  constructor(attempts, reason, cause) {
    super(`gave up after ${attempts} attempts: ${reason}`, cause === undefined ? undefined : { cause });
    this.attempts = attempts;
    this.reason = reason;
  }
}

/** The gateway failed too often in a row, so it is not asked now; `retryAfter`: seconds until it is again. */
export class CircuitOpen extends ClientError {
  constructor(retryAfter) {
    super(`the gateway failed too often; it is asked again in ${retryAfter.toFixed(1)} s`);
    this.retryAfter = retryAfter;
  }
}

/** The gateway points elsewhere: to another origin, which must not see the token, or round and round. */
export class RedirectRefused extends ClientError {
  constructor(location) {
    super(`a redirect that is not followed: ${location || "to a place that is not told"}`);
    this.location = location;
  }
}

/** What the store holds cannot be used: damaged, or the position in another subscription. */
export class StoreInvalid extends ClientError {}

/** The gateway said no. `problem` is the whole problem document (RFC 9457), `code` its stable code. */
export class Refused extends ClientError {
  constructor(status, problem) {
    const said = problem.detail || problem.title || "no reason given";
    super(`${status}${problem.code ? ` ${problem.code}` : ""}: ${said}`);
    this.status = status;
    this.problem = problem;
    this.code = problem.code ?? "";
  }
}

/** 401: there is no token, or it is not good, also when it was renewed. */
export class Unauthorized extends Refused {}

/** 403: the token does not allow it. */
export class Forbidden extends Refused {}

/** 409 `cursor_reset`: the topic was created anew, or cut; `cursor` is a fresh one, empty where there is none. */
export class CursorReset extends Refused {
  get cursor() {
    return typeof this.problem.cursor === "string" ? this.problem.cursor : "";
  }
}

/** 410 `cursor_expired`: retention took records that were not read yet; `cursor` is the earliest one. */
export class CursorExpired extends CursorReset {}

/** 410 `gone`: the channel is past its sunset. */
export class Gone extends Refused {}

const CLASS_BY_CODE = { cursor_reset: CursorReset, cursor_expired: CursorExpired, gone: Gone };
const CLASS_BY_STATUS = { 401: Unauthorized, 403: Forbidden };

function refusalOf(status, problem) {
  const Kind = CLASS_BY_CODE[problem.code] ?? CLASS_BY_STATUS[status] ?? Refused;
  return new Kind(status, problem);
}

function problemOf(body) {
  try {
    const document = JSON.parse(new TextDecoder().decode(body));
    return isObject(document) ? document : {};
  } catch {
    return {};
  }
}

class AnswerInvalid extends ClientError {}
class Stopped extends Error {}

// --- messages ---

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function expectType(good) {
  if (!good) throw new AnswerInvalid("the answer is not as it should be");
}

function bytesOf(base64) {
  expectType(typeof base64 === "string" && /^[A-Za-z0-9+/]*={0,2}$/.test(base64) && base64.length % 4 === 0);
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function cursorOf(value) {
  if (typeof value !== "string" || !CURSOR.test(value)) throw new AnswerInvalid("the answer has no good cursor");
  return value;
}

function keyOf(value) {
  if (isObject(value)) return bytesOf(value.base64);
  expectType(value === null || typeof value === "string");
  return value;
}

function messageOf(envelope) {
  expectType(isObject(envelope) && "value" in envelope);
  const { channel, partition, offset, timestamp, headers, tombstone = false } = envelope;
  expectType(typeof channel === "string" && Number.isInteger(partition) && Number.isInteger(offset));
  expectType((timestamp === null || Number.isInteger(timestamp)) && typeof tombstone === "boolean");
  expectType(Array.isArray(headers));
  for (const pair of headers) {
    expectType(Array.isArray(pair) && pair.length === 2 && pair.every((text) => typeof text === "string"));
  }
  const broken = envelope.encoding === "base64";
  return Object.freeze({
    channel, partition, offset, timestamp, headers, tombstone, broken,
    key: keyOf(envelope.key),
    value: broken ? bytesOf(envelope.value) : envelope.value,
  });
}

function lostOf(entry) {
  expectType(isObject(entry) && typeof entry.channel === "string");
  expectType([entry.partition, entry.from, entry.to].every(Number.isInteger));
  return Object.freeze({ channel: entry.channel, partition: entry.partition, first: entry.from, end: entry.to });
}

function batchOf(answer) {
  if (answer.status === 204) {
    return { cursor: cursorOf(answer.headers.get("next-cursor")), messages: [], lost: [], upToDate: true };
  }
  const type = (answer.headers.get("content-type") ?? "").split(";")[0].trim().toLowerCase();
  if (type !== "application/json") throw new AnswerInvalid("the answer is not JSON");
  const document = documentOf(answer);
  expectType(Array.isArray(document.messages) && typeof document.up_to_date === "boolean");
  expectType(document.lost === undefined || Array.isArray(document.lost));
  return {
    cursor: cursorOf(document.cursor),
    messages: document.messages.map(messageOf),
    lost: (document.lost ?? []).map(lostOf),
    upToDate: document.up_to_date,
  };
}

function documentOf(answer) {
  let document;
  try {
    document = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(answer.body));
  } catch (error) {
    throw new AnswerInvalid("the answer is not JSON", { cause: error });
  }
  if (!isObject(document)) throw new AnswerInvalid("the answer is no JSON object");
  return document;
}

// --- positions ---

/** What was delivered and what of it is processed; see `positions` of the Python client. */
class Progress {
  #channels;
  #cursor;
  #done = new Map(); // channel → partition → highest offset
  #open = [];
  #batches = [];
  #taken = 0;
  #acknowledged = 0;

  constructor(position, channels) {
    this.#channels = channels;
    this.#cursor = position?.cursor ?? null;
    this.next = this.#cursor;
    for (const [channel, of] of Object.entries(position?.beyond ?? {})) {
      this.#done.set(channel, new Map(Object.entries(of).map(([partition, offset]) => [Number(partition), offset])));
    }
  }

  get position() {
    if (this.#cursor === null && this.#done.size === 0) return null;
    const beyond = Object.fromEntries([...this.#done].map(([channel, of]) => [channel, Object.fromEntries(of)]));
    return { cursor: this.#cursor, beyond, channels: this.#channels };
  }

  take(batch) {
    const fresh = batch.messages.filter(({ channel, partition, offset }) => {
      return offset > (this.#done.get(channel)?.get(partition) ?? -1);
    });
    this.#open.push(...fresh);
    this.#taken += fresh.length;
    this.next = batch.cursor;
    this.#batches.push([this.#taken, batch.cursor]);
    this.#move();
    return fresh;
  }

  acknowledge(message) {
    const at = this.#open.indexOf(message);
    for (const { channel, partition, offset } of this.#open.splice(0, at + 1)) {
      if (!this.#done.has(channel)) this.#done.set(channel, new Map());
      this.#done.get(channel).set(partition, offset);
    }
    this.#acknowledged += at + 1;
    this.#move();
  }

  restart(cursor) {
    this.#cursor = this.next = cursor;
    this.#done.clear();
    this.#open = [];
    this.#batches = [];
    this.#taken = this.#acknowledged = 0;
  }

  #move() {
    while (this.#batches.length && this.#batches[0][0] <= this.#acknowledged) this.#cursor = this.#batches.shift()[1];
  }
}

function checkedPosition(position, channels) {
  if (position === null || position === undefined) return null;
  const { cursor = 0 } = isObject(position) ? position : {};
  const good = cursor === null || (typeof cursor === "string" && CURSOR.test(cursor));
  const offsets = Object.values(position.beyond ?? {}).flatMap((of) => (isObject(of) ? Object.values(of) : [null]));
  if (!good || !isObject(position.beyond ?? {}) || !offsets.every(Number.isInteger)) {
    throw new StoreInvalid("the store holds no position of this client");
  }
  const stored = position.channels ?? [];
  if (stored.length && (stored.length !== channels.length || !stored.every((name) => channels.includes(name)))) {
    throw new StoreInvalid(`the store has the position in ${stored.join(", ")}: each subscription needs its own`);
  }
  return position;
}

/** Keeps the position as long as the page, or the process, lives. */
export class MemoryStore {
  position = null;

  load() {
    return this.position;
  }

  save(position) {
    this.position = position;
  }
}

/** Keeps the position in the browser under a key, over reloads. `storage`: another one than localStorage. */
export class LocalStore {
  #key;
  #storage;

  constructor(key, storage = globalThis.localStorage) {
    this.#key = key;
    this.#storage = storage;
  }

  load() {
    const text = this.#storage.getItem(this.#key);
    if (text === null) return null;
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new StoreInvalid(`${this.#key}: not a position of this client; remove it to begin anew`, { cause: error });
    }
  }

  save(position) {
    this.#storage.setItem(this.#key, JSON.stringify(position));
  }
}

// --- time ---

const seconds = () => performance.now() / 1000;

/** Wait so many seconds; an abort of the signal ends it with Stopped. */
function sleep(duration, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(new Stopped());
    const end = () => {
      clearTimeout(timer);
      reject(new Stopped());
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", end);
      resolve();
    }, duration * 1000);
    signal?.addEventListener("abort", end, { once: true });
  });
}

function retryAfterOf(headers) {
  const value = (headers.get("retry-after") ?? "").trim();
  const asked = /^[0-9]+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isNaN(asked) ? 0 : Math.min(Math.max(0, asked), MOST_ASKED_SECONDS);
}

function paceOf(headers) {
  const value = (headers.get("backoff") ?? "").trim();
  return /^[0-9]+(\.[0-9]+)?$/.test(value) ? Math.min(Number(value), MOST_PACE_SECONDS) : 0;
}

function waitOf(retry, failures) {
  return Math.random() * Math.min(retry.cap, retry.base * 2 ** Math.min(failures - 1, 32));
}

/** Leaves a gateway alone that fails again and again; see `breaker` of the Python client. */
class Breaker {
  #failures = 0;
  #opens = 0;
  #until = null;
  #probeUntil = 0;
  #settings;

  constructor({ failures = 5, seconds: open = 1, cap = 30 } = {}) {
    this.#settings = { failures, open, cap };
  }

  /** 0 where a request may go out now, else the seconds after which to ask again. */
  enter(now, patience) {
    if (this.#until === null) return 0;
    if (now < this.#until) return this.#until - now;
    if (now < this.#probeUntil) return Math.min(this.#settings.open, this.#probeUntil - now);
    this.#probeUntil = now + patience;
    return 0;
  }

  succeeded() {
    this.#failures = this.#opens = this.#probeUntil = 0;
    this.#until = null;
  }

  failed(now) {
    this.#failures += 1;
    if (this.#until !== null && now < this.#until) return; // one that was under way when it opened
    if (this.#until === null && this.#failures < this.#settings.failures) return;
    const bound = Math.min(this.#settings.cap, this.#settings.open * 2 ** Math.min(this.#opens, 32));
    this.#until = now + (bound * (1 + Math.random())) / 2;
    this.#probeUntil = 0;
    this.#opens += 1;
  }

  left() {
    this.#probeUntil = 0;
  }
}

// --- tokens ---

/** The claim `exp` of a JWT, unverified: it only says when to ask for the next one. Null for all else. */
function expiryOf(token) {
  const parts = token.split(".");
  if (parts.length !== 3) return null;
  try {
    const { exp } = JSON.parse(atob(parts[1].replaceAll("-", "+").replaceAll("_", "/")));
    return typeof exp === "number" ? exp : null;
  } catch {
    return null;
  }
}

class Credentials {
  generation = 0;
  #token = null;
  #provider;
  #renewBefore;

  constructor(given, renewBefore) {
    this.#provider = typeof given === "function" ? given : null;
    this.#renewBefore = renewBefore;
    if (given !== undefined && given !== null && this.#provider === null) this.#take(given);
  }

  get provided() {
    return this.#provider !== null;
  }

  get due() {
    if (!this.provided) return false;
    return this.#token === null || (this.#token.expiresAt !== null && Date.now() / 1000 >= this.#token.expiresAt - this.#renewBefore);
  }

  get over() {
    return this.#token === null || (this.#token.expiresAt !== null && Date.now() / 1000 >= this.#token.expiresAt);
  }

  get header() {
    return this.#token === null ? {} : { Authorization: `Bearer ${this.#token.value}` };
  }

  async renew() {
    this.#take(await this.#provider());
  }

  #take(given) {
    const { value, expiresAt = null } = typeof given === "string" ? { value: given } : (given ?? {});
    if (typeof value !== "string" || !/^[!-~]{1,16384}$/.test(value)) {
      throw new TypeError("expected a token of visible ASCII characters");
    }
    this.#token = { value, expiresAt: expiresAt ?? expiryOf(value) };
    this.generation += 1;
  }
}

// --- the client ---

const NO_COUNTS = Object.freeze({
  polls: 0, empty: 0, messages: 0, duplicates: 0, lost: 0, resets: 0, failures: 0, retries: 0, redirects: 0, renewals: 0,
  received: 0, published: 0,
});

function checked(good, expected) {
  if (!good) throw new RangeError(`expected ${expected}`);
}

/** A client of one gateway, with any number of subscriptions at the same time. */
export class Client {
  #url;
  #prefix;
  #headers;
  #retry;
  #fetch;
  #readTimeout;
  #credentials;
  #breaker;
  #subscriptions = new Set();

  /**
   * `token`: a token, or a function that returns one (a string or `{value, expiresAt}`, or a promise of it); it is called before
   * the first request, `renewBefore` seconds before the token's end, and after a 401. `retry`: `base` and `cap` of the back-off in
   * seconds, `attempts` (failures in a row after which to give up; without: never), `deadline` of a publish in seconds. `breaker`:
   * `failures` in a row that open it, for `seconds`, up to `cap`. `readTimeout`: seconds between two pieces of an answer.
   */
  constructor(url, { token, retry = {}, breaker = {}, renewBefore = 30, readTimeout = 10, headers = {}, prefix = "/v1", fetch } = {}) {
    const parsed = new URL(url);
    checked(/^https?:$/.test(parsed.protocol) && !parsed.search && !parsed.hash && !parsed.username, "the gateway's URL");
    this.#url = url.replace(/\/+$/, "");
    this.#prefix = prefix;
    this.#headers = headers;
    this.#retry = { base: 0.5, cap: 30, attempts: null, deadline: 30, ...retry };
    checked(this.#retry.base >= 0 && this.#retry.base <= this.#retry.cap, "0 <= retry.base <= retry.cap");
    this.#fetch = fetch ?? globalThis.fetch.bind(globalThis);
    this.#readTimeout = readTimeout;
    this.#credentials = new Credentials(token, renewBefore);
    this.#breaker = new Breaker(breaker);
    this.counters = { ...NO_COUNTS };
  }

  /**
   * Subscribe to a channel, or an array of up to 32. Iterate over what is returned with `for await`.
   *
   * `start`: where to begin without a cursor: "latest", "earliest", an RFC 3339 time, or "-N". `wait`: seconds that a poll is held,
   * 0 to 55; `margin`: seconds more until it counts as failed. `onLost` is told what retention took; `onReset` returns the cursor
   * to go on from, or nothing for the one that the gateway gives; without it CursorReset is thrown. Without
   * `follow` it ends where it is up to date. `signal` stops it.
   */
  subscribe(channels, options = {}) {
    const subscription = new Subscription(this, [channels].flat(), options, {
      ask: (...given) => this.#ask(...given),
      prefix: this.#prefix,
      retry: this.#retry,
      ended: () => this.#forget(subscription),
    });
    this.#subscriptions.add(subscription);
    return subscription;
  }

  #forget(subscription) {
    if (!this.#subscriptions.delete(subscription)) return;
    for (const name of Object.keys(NO_COUNTS)) this.counters[name] += subscription.counters[name];
  }

  /** Publish one value; return `{partition, offset, cursor}`. `form`: "json", "text" or "binary"; a Uint8Array is sent as it is. */
  async publish(channel, value, { key, tombstone = false, form = "json", idempotencyKey = crypto.randomUUID(), signal } = {}) {
    const query = new URLSearchParams({ channel });
    if (key !== undefined) query.set("key", key);
    if (tombstone) query.set("tombstone", "true");
    const [body, type] = tombstone ? ["", undefined] : encoded(value, form);
    const published = await this.#once({
      method: "POST",
      path: `${this.#prefix}/publish?${spelled(query)}`,
      headers: { "Idempotency-Key": idempotencyKey, ...(type && { "Content-Type": type }) },
      body,
      patience: PUBLISH_PATIENCE,
    }, (answer) => {
      const { partition, offset, cursor } = documentOf(answer);
      expectType(Number.isInteger(partition) && Number.isInteger(offset));
      return { partition, offset, cursor };
    }, signal);
    this.counters.published += 1;
    return published;
  }

  /** Publish several values in one request; return `{results, cursor}` with `{partition, offset}` or `{problem}` for each. */
  async publishBatch(channel, values, { key, form = "json", idempotencyKey = crypto.randomUUID(), signal } = {}) {
    const query = new URLSearchParams({ channel });
    if (key !== undefined) query.set("key", key);
    const result = await this.#once({
      method: "POST",
      path: `${this.#prefix}/publish?${spelled(query)}`,
      headers: { "Idempotency-Key": idempotencyKey, "Content-Type": "application/x-ndjson" },
      body: values.map((value) => `${lineOf(value, form)}\n`).join(""),
      patience: PUBLISH_PATIENCE,
    }, (answer) => {
      const { results, cursor } = documentOf(answer);
      expectType(Array.isArray(results) && results.length === values.length && results.every(isObject));
      return { results, cursor };
    }, signal);
    this.counters.published += result.results.filter(({ problem }) => problem === undefined).length;
    return result;
  }

  /** Return what the token may use, as `GET /v1/channels` tells it. */
  channels({ signal } = {}) {
    return this.#once({ method: "GET", path: `${this.#prefix}/channels`, headers: {}, patience: 15 }, documentOf, signal);
  }

  /** Return what a cursor of these channels says, as `GET /v1/cursors/{cursor}` tells it. */
  cursor(cursor, channels, { signal } = {}) {
    const query = new URLSearchParams([channels].flat().map((channel) => ["channel", channel]));
    const path = `${this.#prefix}/cursors/${encodeURIComponent(cursor)}?${spelled(query)}`;
    return this.#once({ method: "GET", path, headers: {}, patience: 15 }, documentOf, signal);
  }

  /** Stop all subscriptions; resolves when each has stored where it is. */
  async close() {
    await Promise.all([...this.#subscriptions].map((subscription) => subscription.return()));
  }

  async #once(query, read, signal) {
    try {
      const limits = { attempts: this.#retry.attempts ?? PUBLISH_ATTEMPTS, deadline: seconds() + this.#retry.deadline };
      return await this.#ask(query, read, this.counters, { ...limits, signal });
    } catch (error) {
      throw error instanceof Stopped ? new DOMException("aborted by the program", "AbortError") : error;
    }
  }

  /** Ask until there is a good answer; return what `read` makes of it. */
  async #ask(query, read, counters, { attempts = null, deadline = null, signal } = {}) {
    const credentials = this.#credentials;
    const breaker = this.#breaker;
    let url = this.#url + query.path;
    let failures = 0;
    let redirects = 0;
    let renewed = false;

    const failed = async (reason, asked = 0, cause = undefined, ofGateway = true) => {
      failures += 1;
      counters.failures += 1;
      if (ofGateway) breaker.failed(seconds());
      else breaker.left();
      const wait = Math.max(asked, waitOf(this.#retry, failures));
      if (attempts !== null && failures >= attempts) throw new GaveUp(failures, reason, cause);
      if (deadline !== null && seconds() + wait > deadline) throw new GaveUp(failures, reason, cause);
      counters.retries += 1;
      url = this.#url + query.path;
      redirects = 0;
      await sleep(wait, signal);
    };

    const renew = async () => {
      try {
        await credentials.renew();
      } catch (error) {
        return `the token provider failed: ${error}`;
      }
      counters.renewals += 1;
      return null;
    };

    for (;;) {
      for (let wait; (wait = breaker.enter(seconds(), query.patience)); ) {
        if (deadline !== null) throw new CircuitOpen(wait);
        await sleep(wait, signal);
      }
      while (credentials.due) {
        const failure = await renew();
        if (failure === null || !credentials.over) break;
        await failed(failure, 0, undefined, false);
      }
      const generation = credentials.generation;
      let answer;
      try {
        answer = await this.#send(query, url, signal);
      } catch (error) {
        if (error instanceof Stopped) {
          breaker.left();
          throw error;
        }
        await failed(String(error?.cause ?? error));
        continue;
      }
      counters.received += answer.body.length;
      const { status } = answer;
      const problem = status >= 400 ? problemOf(answer.body) : {};
      const action = answer.hidden ? "redirect" : actionOf(query.method, status, problem.code);
      if (action === "take") {
        let taken;
        try {
          taken = read(answer);
        } catch (error) {
          if (!(error instanceof AnswerInvalid)) throw error;
          await failed(error.message);
          continue;
        }
        breaker.succeeded();
        return taken;
      }
      if (action === "retry") {
        const refusal = refusalOf(status, problem);
        await failed(refusal.message, retryAfterOf(answer.headers), refusal, status !== 429);
        continue;
      }
      breaker.succeeded();
      if (action === "redirect") {
        redirects += 1;
        counters.redirects += 1;
        const location = answer.headers.get("location") ?? "";
        const next = location && URL.canParse(location, url) ? new URL(location, url) : null;
        if (next === null || redirects > MOST_REDIRECTS || next.origin !== new URL(url).origin) throw new RedirectRefused(location);
        next.hash = "";
        url = next.href;
        continue;
      }
      if (action !== "renew") throw refusalOf(status, problem);
      if (credentials.generation !== generation) continue; // somebody else got a new one meanwhile
      if (renewed || !credentials.provided) throw refusalOf(status, problem);
      const failure = await renew();
      if (failure === null) renewed = true;
      else await failed(failure, 0, undefined, false);
    }
  }

  /** Send a request once and read the whole answer. Throws Stopped where the program wants an end. */
  async #send(query, url, signal) {
    if (signal?.aborted) throw new Stopped();
    const controller = new AbortController();
    const stop = () => controller.abort(new Stopped());
    let timer;
    const within = (duration, what) => {
      clearTimeout(timer);
      timer = setTimeout(() => controller.abort(new Error(`${what} not in time`)), duration * 1000);
    };
    signal?.addEventListener("abort", stop, { once: true });
    const began = seconds();
    try {
      within(query.patience, "the answer came");
      // Answers forbid to be stored. Were that said here as well (cache: "no-store"), Chromium would forget each preflight.
      const response = await this.#fetch(url, {
        method: query.method,
        headers: { Accept: "application/json", ...this.#headers, ...query.headers, ...this.#credentials.header },
        body: query.method === "GET" ? undefined : query.body,
        credentials: "omit",
        redirect: "manual",
        signal: controller.signal,
      });
      const parts = [];
      let size = 0;
      if (response.body) {
        const reader = response.body.getReader();
        for (;;) {
          within(this.#readTimeout, "the rest of the answer came");
          const { done, value } = await reader.read();
          if (done) break;
          parts.push(value);
          size += value.length;
          if (size > MOST_BODY_BYTES) throw new Error(`more than ${MOST_BODY_BYTES} bytes`);
        }
      }
      const body = new Uint8Array(size);
      let at = 0;
      for (const part of parts) {
        body.set(part, at);
        at += part.length;
      }
      const hidden = response.type === "opaqueredirect";
      return { status: response.status, headers: response.headers, body, hidden, seconds: seconds() - began };
    } catch (error) {
      controller.abort(error);
      throw controller.signal.reason instanceof Error ? controller.signal.reason : error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    }
  }
}

/** As the gateway's own links have it: no plus for a space, and slashes as they are. */
function spelled(query) {
  return [...query].map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2F", "/")}`).join("&");
}

function encoded(value, form) {
  if (value instanceof Uint8Array) return [value, "application/octet-stream"];
  if (form === "json") return [jsonOf(value), "application/json"];
  if (form === "text" && typeof value === "string") return [value, "text/plain; charset=utf-8"];
  throw new TypeError(`expected ${form === "text" ? "a string" : "a Uint8Array"} for a ${form} channel`);
}

function lineOf(value, form) {
  if (value instanceof Uint8Array) return JSON.stringify(btoa(String.fromCharCode(...value)));
  if (form !== "json") encoded(value, form); // throws what is wrong with it
  return jsonOf(value);
}

function jsonOf(value) {
  const text = JSON.stringify(value);
  if (text === undefined) throw new TypeError("not to be written as JSON");
  return text;
}

/** Messages of some channels, in the order of each partition; made by `client.subscribe`. */
export class Subscription {
  #channels;
  #options;
  #client;
  #progress;
  #saved = null;
  #quick = 0;
  #messages;
  #stopping = new AbortController();

  constructor(client, channels, options, ways) {
    const { start, cursor, store, wait = 30, limit, maxBytes, linger, acks = "auto", pollEvery, follow = true, margin = 5, signal } = options;
    checked(channels.length >= 1 && channels.length <= MOST_CHANNELS, `1 to ${MOST_CHANNELS} channels`);
    checked(channels.every((name) => typeof name === "string" && name) && new Set(channels).size === channels.length, "channels with a name, each once");
    checked(start === undefined || START.test(start), "start: latest, earliest, an RFC 3339 time, or -N");
    checked(cursor === undefined || CURSOR.test(cursor), "a cursor from an answer of the gateway");
    checked(wait >= 0 && wait <= MOST_WAIT, `wait: 0 to ${MOST_WAIT} seconds`);
    checked(pollEvery === undefined || pollEvery > 0, "pollEvery: more than 0 seconds");
    checked(acks === "auto" || acks === "manual", 'acks: "auto" or "manual"');
    this.#channels = channels;
    this.#options = { ...options, start, cursor, store, wait, limit, maxBytes, linger, acks, pollEvery, follow, margin };
    this.#client = ways;
    this.#progress = new Progress(cursor === undefined ? null : { cursor }, channels);
    this.counters = { ...NO_COUNTS };
    if (signal?.aborted) this.stop();
    signal?.addEventListener("abort", () => this.stop(), { once: true, signal: this.#stopping.signal });
    this.#messages = this.#run();
  }

  /** The cursor behind the last answer that was processed as a whole; null before the first. */
  get cursor() {
    return this.#progress.position?.cursor ?? null;
  }

  /** Say that a message, and everything delivered before it, is processed. */
  ack(message) {
    this.#progress.acknowledge(message);
  }

  /** End it: the loop ends instead of getting another message. */
  stop() {
    this.#stopping.abort();
  }

  next() {
    return this.#messages.next();
  }

  /** End it where it is and store that: what `break` does. The message in hand counts as not processed. */
  async return() {
    this.stop();
    const result = await this.#messages.return();
    await this.#end(); // a generator that has not begun has nothing to clean up
    return result;
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  async *#run() {
    try {
      yield* this.#rounds();
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;
    } finally {
      await this.#end();
    }
  }

  async #end() {
    this.#client.ended();
    await this.#save();
    this.#stopping.abort();
  }

  async #save() {
    const { store } = this.#options;
    const position = this.#progress.position;
    if (store === undefined || position === null) return;
    const text = JSON.stringify(position);
    if (text === this.#saved) return;
    await store.save(position);
    this.#saved = text;
  }

  async *#rounds() {
    const { cursor, store, wait, pollEvery, follow } = this.#options;
    if (cursor === undefined && store !== undefined) {
      const stored = checkedPosition(await store.load(), this.#channels);
      this.#progress = new Progress(stored, this.#channels);
      this.#saved = stored === null ? null : JSON.stringify(this.#progress.position);
    }
    if (this.#progress.next === null) yield* this.#round(0);
    for (;;) yield* this.#round(pollEvery === undefined && follow ? wait : 0);
  }

  async *#round(wait) {
    let answer;
    let batch;
    try {
      [answer, batch] = await this.#poll(wait);
    } catch (error) {
      if (!(error instanceof CursorReset)) throw error;
      await this.#reset(error);
      return;
    }
    yield* this.#deliver(batch);
    await this.#save();
    if (!this.#options.follow && batch.upToDate) throw new Stopped();
    const rest = this.#rest(answer, batch, wait);
    if (rest > 0 || this.#stopping.signal.aborted) await sleep(rest, this.#stopping.signal);
  }

  async #poll(wait) {
    const { start, limit, maxBytes, linger, margin } = this.#options;
    const query = new URLSearchParams(this.#channels.map((channel) => ["channel", channel]));
    query.set("wait", String(wait));
    for (const [name, value] of Object.entries({ limit, max_bytes: maxBytes, linger, from: start })) {
      if (value !== undefined) query.set(name, String(value));
    }
    const cursor = this.#progress.next;
    const headers = cursor === null ? {} : { Cursor: cursor };
    const path = `${this.#client.prefix}/subscribe?${spelled(query)}`;
    const read = (answer) => {
      this.counters.polls += 1;
      return [answer, batchOf(answer)];
    };
    const { attempts } = this.#client.retry;
    const asked = { method: "GET", path, headers, patience: wait + margin };
    return this.#client.ask(asked, read, this.counters, { attempts, signal: this.#stopping.signal });
  }

  async *#deliver(batch) {
    const { onLost, acks } = this.#options;
    for (const lost of batch.lost) {
      this.counters.lost += lost.end - lost.first;
      if (onLost) await onLost(lost);
      else console.warn(`${lost.end - lost.first} records of ${lost.channel} are lost to retention`, lost);
    }
    const fresh = this.#progress.take(batch);
    this.counters.empty += batch.messages.length === 0 ? 1 : 0;
    this.counters.duplicates += batch.messages.length - fresh.length;
    for (const message of fresh) {
      if (this.#stopping.signal.aborted) throw new Stopped();
      this.counters.messages += 1;
      yield message;
      if (acks === "auto") this.#progress.acknowledge(message);
    }
    if (this.#stopping.signal.aborted) throw new Stopped();
  }

  #rest(answer, batch, wait) {
    const { pollEvery } = this.#options;
    const pace = paceOf(answer.headers);
    if (pollEvery !== undefined && batch.upToDate) return Math.max(pollEvery - answer.seconds, pace);
    const quick = batch.messages.length === 0 && batch.upToDate && wait > QUICK_SECONDS && answer.seconds < QUICK_SECONDS;
    this.#quick = quick ? this.#quick + 1 : 0;
    if (this.#quick < QUICK_ANSWERS) return pace;
    return Math.max(pace, waitOf(this.#client.retry, this.#quick - QUICK_ANSWERS + 1));
  }

  async #reset(error) {
    const { onReset } = this.#options;
    if (!onReset || !CURSOR.test(error.cursor)) throw error;
    this.counters.resets += 1;
    const chosen = (await onReset({ code: error.code, cursor: error.cursor })) ?? error.cursor;
    if (!CURSOR.test(chosen)) throw new RangeError("onReset returned no cursor", { cause: error });
    this.#progress.restart(chosen);
    await this.#save();
  }
}
