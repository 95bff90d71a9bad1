/**
 * Generates on the model given while the cache is made smaller and larger all the time, and prints as JSON what came
 * out and how far the resident set was from its bound. A process of its own, so that the kernel counts nothing else.
 *
 *   node test/harness/resize-run.mjs MODEL ROUNDS
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const { Engine, inspectModel } = createRequire(import.meta.url)('@moefleet/edge-agent/engine');
const [modelPath, rounds] = [process.argv[2], Number(process.argv[3])];
const MIB = 2 ** 20;
/** Node and the libraries. */
const RESERVE = 150 * MIB;

const info = await inspectModel(modelPath);
const spec = (capacity) => ({ routing: 'original', lambda: 0, topJ: 0, capacities: info.moeLayers.map(() => capacity), generation: 0 });
const engine = await Engine.open({ modelPath, contextTokens: 256, threads: 1, lanes: 2, directIo: true, prefillBytes: 0, keepAll: false, spec: spec(info.experts) });
const rssBytes = () => Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;
/** The bound as it is now. */
const boundBytes = () => {
  const { denseBytes, kvBytes, computeBytes, cacheBytes, prefillBytes } = engine.memory();
  return denseBytes + kvBytes + computeBytes + cacheBytes + prefillBytes + RESERVE;
};

const prompt = engine.tokenize('The river rises in the hills and', true, false);
const textOf = async () => {
  let bytes = Buffer.alloc(0);
  await engine.generate({ requestId: 'r', prompt, maxTokens: 64, temperature: 0, topP: 1, seed: 0, coldCache: false, captureRouter: false }, (step) => { bytes = Buffer.concat([bytes, step.text]); });
  return bytes.toString('utf8');
};

const alone = await textOf();
const result = { alone, texts: [], shrinks: 0, samples: 0, leastRoomBytes: Infinity, rssAtFull: 0, rssAtLeast: Infinity };
let resizing = false;
let done = false;
/** Between two resizes the resident set keeps to the bound of the capacities in force. */
const sample = () => {
  if (resizing) return;
  result.samples += 1;
  result.leastRoomBytes = Math.min(result.leastRoomBytes, boundBytes() - rssBytes());
};
const timer = setInterval(sample, 2);
const resizer = (async () => {
  for (let i = 0; !done; i += 1) {
    resizing = true;
    await engine.shrink(info.moeLayers.map(() => info.topK + (i % 3)));
    resizing = false;
    sample();
    result.shrinks += 1;
    result.rssAtLeast = Math.min(result.rssAtLeast, rssBytes());
    await new Promise((resolve) => setTimeout(resolve, 40));
    await engine.apply(spec(info.experts - (i % 5)));
    await new Promise((resolve) => setTimeout(resolve, 160));
    sample();
    result.rssAtFull = Math.max(result.rssAtFull, rssBytes());
  }
})();
for (let i = 0; i < rounds; i += 1) result.texts.push(await textOf());
done = true;
await resizer;
clearInterval(timer);
result.pressureEvictions = engine.counters().layers.reduce((sum, layer) => sum + layer.pressureEvictions, 0);
await engine.close();
process.stdout.write(`${JSON.stringify(result)}\n`);
