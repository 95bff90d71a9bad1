/**
 * score-text.mjs ADDON MODEL TEXT TOKENS: scores the text's first tokens at λ 0.2 and topJ 2 with half of the experts cached,
 * and prints `{version, crossEntropy, topK, routes}`. Plain JavaScript, so that the Node.js of a bundle runs it too.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const [addonPath, modelPath, textPath, count] = process.argv.slice(2);
const addon = createRequire(import.meta.url)(addonPath);
const info = await addon.inspect(modelPath);
const spec = { routing: 'cache_prior', lambda: 0.2, topJ: 2, capacities: info.moeLayers.map(() => info.experts / 2), generation: 1, eviction: 'lru' };
const engine = await addon.open({ modelPath, contextTokens: 256, threads: 1, lanes: 1, directIo: false, prefillBytes: 0, keepAll: false, spec });
const tokens = addon.tokenize(engine, readFileSync(textPath, 'utf8').slice(0, Number(count) * 10), true, false).slice(0, Number(count) + 1);
const { crossEntropy, routes } = await addon.evaluate(engine, { tokens, context: 256, spec, stepped: false, recordRoutes: true }, () => {});
await addon.close(engine);
process.stdout.write(JSON.stringify({ version: addon.version(), crossEntropy, topK: info.topK, routes: [...routes] }));
