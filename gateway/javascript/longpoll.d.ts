// Types of the JavaScript client: longpoll.js beside this file.

/** One record of a channel. */
export interface Message<Value = unknown> {
  readonly channel: string;
  readonly partition: number;
  readonly offset: number;
  /** Milliseconds of Unix time; null if the record has none. */
  readonly timestamp: number | null;
  /** Bytes where it is not UTF-8. */
  readonly key: string | Uint8Array | null;
  /** Pairs of name and value, in order, of those that the channel lists. */
  readonly headers: ReadonlyArray<readonly [string, string]>;
  /** Null for a tombstone; the bytes of a broken record; base64 text where the channel is binary. */
  readonly value: Value;
  readonly tombstone: boolean;
  /** The record is not in its channel's format. */
  readonly broken: boolean;
}

/** Offsets from `first` to before `end` that retention took; for a keyed channel an upper bound. */
export interface Lost {
  readonly channel: string;
  readonly partition: number;
  readonly first: number;
  readonly end: number;
}

/** The position is not good any more; `cursor` is the one to go on from. */
export interface Reset {
  readonly code: "cursor_reset" | "cursor_expired";
  readonly cursor: string;
}

/** A cursor of these channels, and the highest offset that was processed beyond it, by channel and partition. */
export interface Position {
  /** Null in the midst of the very first answer. */
  cursor: string | null;
  beyond: Record<string, Record<string, number>>;
  channels: string[];
}

/** Where positions are kept; one store belongs to one subscription. */
export interface CursorStore {
  load(): Position | null | Promise<Position | null>;
  save(position: Position): void | Promise<void>;
}

export class MemoryStore implements CursorStore {
  position: Position | null;
  load(): Position | null;
  save(position: Position): void;
}

/** Keeps the position in localStorage, or another storage like it. */
export class LocalStore implements CursorStore {
  constructor(key: string, storage?: Pick<Storage, "getItem" | "setItem">);
  load(): Position | null;
  save(position: Position): void;
}

/** A token and its end in seconds of Unix time; null: what its claim `exp` says, or never. */
export interface Token {
  value: string;
  expiresAt?: number | null;
}

export interface Counters {
  polls: number;
  empty: number;
  messages: number;
  duplicates: number;
  lost: number;
  resets: number;
  failures: number;
  retries: number;
  redirects: number;
  renewals: number;
  received: number;
  published: number;
}

export interface ClientOptions {
  token?: string | Token | (() => string | Token | Promise<string | Token>);
  /** Seconds; `attempts`: failures in a row after which to give up; `deadline` of a publish. */
  retry?: { base?: number; cap?: number; attempts?: number | null; deadline?: number };
  /** `failures` in a row open the circuit breaker, for `seconds`, twice as long each time, at most `cap`. */
  breaker?: { failures?: number; seconds?: number; cap?: number };
  /** Seconds before the token's end at which a new one is asked for; 30. */
  renewBefore?: number;
  /** Seconds between two pieces of an answer; 10. */
  readTimeout?: number;
  headers?: Record<string, string>;
  /** The gateway's own; "/v1". */
  prefix?: string;
  fetch?: typeof fetch;
}

export interface SubscribeOptions {
  /** Where to begin without a cursor: "latest", "earliest", an RFC 3339 time, or "-N". */
  start?: string;
  cursor?: string;
  store?: CursorStore;
  /** Seconds that a poll is held, 0 to 55; 30. */
  wait?: number;
  limit?: number;
  maxBytes?: number;
  /** Milliseconds to go on collecting after the first message. */
  linger?: number;
  acks?: "auto" | "manual";
  onLost?: (lost: Lost) => void | Promise<void>;
  /** Returns the cursor to go on from, or nothing for the gateway's. Without it a reset is an error. */
  onReset?: (reset: Reset) => string | null | undefined | void | Promise<string | null | undefined | void>;
  /** Short polls at this pace, in seconds, in place of long ones. */
  pollEvery?: number;
  /** False: end where it is up to date. */
  follow?: boolean;
  /** Seconds beyond `wait` within which an answer has to begin; 5. */
  margin?: number;
  signal?: AbortSignal;
}

export interface PublishOptions {
  key?: string;
  tombstone?: boolean;
  form?: "json" | "text" | "binary";
  idempotencyKey?: string;
  signal?: AbortSignal;
}

export interface Published {
  partition: number;
  offset: number;
  cursor: string;
}

export interface BatchResult {
  results: Array<{ partition: number; offset: number } | { problem: Problem }>;
  cursor: string | null;
}

/** A problem document (RFC 9457). */
export interface Problem {
  type?: string;
  title?: string;
  status?: number;
  detail?: string;
  code?: string;
  request_id?: string;
  [member: string]: unknown;
}

export class Client {
  constructor(url: string, options?: ClientOptions);
  readonly counters: Counters;
  subscribe<Value = unknown>(channels: string | string[], options?: SubscribeOptions): Subscription<Value>;
  publish(channel: string, value: unknown, options?: PublishOptions): Promise<Published>;
  publishBatch(channel: string, values: unknown[], options?: Omit<PublishOptions, "tombstone">): Promise<BatchResult>;
  channels(options?: { signal?: AbortSignal }): Promise<Record<string, unknown>>;
  cursor(cursor: string, channels: string | string[], options?: { signal?: AbortSignal }): Promise<Record<string, unknown>>;
  close(): Promise<void>;
}

export class Subscription<Value = unknown> implements AsyncIterableIterator<Message<Value>> {
  readonly counters: Counters;
  /** The cursor behind the last answer that was processed as a whole; null before the first. */
  readonly cursor: string | null;
  ack(message: Message<Value>): void;
  stop(): void;
  next(): Promise<IteratorResult<Message<Value>>>;
  return(): Promise<IteratorResult<Message<Value>>>;
  [Symbol.asyncIterator](): this;
}

export class ClientError extends Error {}
export class GaveUp extends ClientError {
  readonly attempts: number;
  readonly reason: string;
}
export class CircuitOpen extends ClientError {
  /** Seconds until the gateway is asked again. */
  readonly retryAfter: number;
}
export class RedirectRefused extends ClientError {
  readonly location: string;
}
export class StoreInvalid extends ClientError {}
export class Refused extends ClientError {
  readonly status: number;
  readonly code: string;
  readonly problem: Problem;
}
export class Unauthorized extends Refused {}
export class Forbidden extends Refused {}
export class CursorReset extends Refused {
  readonly cursor: string;
}
export class CursorExpired extends CursorReset {}
export class Gone extends Refused {}
