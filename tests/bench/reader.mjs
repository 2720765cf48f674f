// The same as reader.py with the JavaScript client: node reader.mjs URL CHANNEL STORE LINES

import { appendFileSync, existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";

import { Client } from "../../gateway/javascript/longpoll.js";

const [url, channel, file, lines] = process.argv.slice(2);

const store = {
  load: () => (existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : null),
  save: (position) => {
    writeFileSync(`${file}.new`, JSON.stringify(position));
    renameSync(`${file}.new`, file);
  },
};

const client = new Client(url, { token: process.env.GATEWAY_TOKEN, retry: { base: 0.1, cap: 1 } });
const subscription = client.subscribe(channel, { wait: 20, limit: 1000, ...(file !== "-" && { store }) });
process.on("SIGTERM", () => subscription.stop());
const waiting = setInterval(() => {
  if (subscription.cursor === null) return;
  clearInterval(waiting);
  console.log("ready");
}, 5);

for await (const { partition, offset, value } of subscription) {
  if (lines === "-") continue;
  const late = BigInt(Date.now()) * 1_000_000n - BigInt(value.t);
  appendFileSync(lines, `${partition} ${offset} ${value.n} ${late}\n`);
}
console.log(JSON.stringify(subscription.counters));
process.exit(0);
