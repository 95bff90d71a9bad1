/** record-logits.mjs ADDON MODEL OUTPUT: has the model write 200 tokens and records its routers, as native/tests/routing-decisions.cpp reads them. */
import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const [addonPath, modelPath, output] = process.argv.slice(2);
const addon = createRequire(import.meta.url)(addonPath);
const { moeLayers, experts, topK } = await addon.inspect(modelPath);
const spec = { routing: 'original', lambda: 0, topJ: 2, capacities: moeLayers.map(() => experts / 2), generation: 1, eviction: 'lru' };
const engine = await addon.open({ modelPath, contextTokens: 256, threads: 1, lanes: 1, directIo: false, prefillBytes: 0, keepAll: false, spec });
const rows = [];
await addon.generate(engine, {
  requestId: 'record', prompt: addon.tokenize(engine, 'The river', true, false), maxTokens: 200, temperature: 0.8, topP: 1, seed: 3, coldCache: true, captureRouter: true,
}, ({ routerLogits }) => {
  if (routerLogits) rows.push(Buffer.from(routerLogits.buffer.slice(0)));
});
await addon.close(engine);
writeFileSync(output, Buffer.concat([Buffer.from(Int32Array.of(rows.length, moeLayers.length, experts, topK).buffer), ...rows]));
